"""A report says what evaluate and measure_energy say, shows the samples that a slow reference picks, and is a page."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based import layer as sj
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, accuracy_curve, evaluate, measure_energy
from seenn_plugin.errors import CalibrationError, InputError, OptionalDependencyError
from seenn_plugin.policies import ConfidencePolicy, FixedPolicy, PatiencePolicy, Plan, PlanPolicy, Policy, RLPolicy
from seenn_plugin.policies.base import Decision
from seenn_plugin.report import write_report
from seenn_plugin.report.pictures import Scale, pictures
from seenn_plugin.report.samples import FEW, WatchedLoader

from .rl_tasks import readable
from .rl_tasks import wrapped as rl_wrapped
from .test_full_run import frames as full_run_frames
from .test_full_run import make as full_run_net

T, CLASSES, SIDE = 4, 5, 6
NAMES = ["<b>bold</b>", 'quoted "&', "<script>alert(1)</script>", "plain", "never there"]
Batches = list[tuple[Tensor, Tensor]]


def image_net(channels: int = 1) -> nn.Module:
    net = nn.Sequential(
        sj.Conv2d(channels, 6, 3, padding=1), neuron.LIFNode(8.0), sj.Flatten(), sj.Linear(6 * SIDE * SIDE, CLASSES)
    )
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[3].weight.mul_(3)
    functional.set_step_mode(net, "m")
    return net.eval()


def images(n: int = 41, channels: int = 1) -> Batches:
    """Two batches, and an empty one between them; the last class is never there."""
    x, labels = 3 * torch.randn(n, channels, SIDE, SIDE), torch.randint(0, CLASSES - 1, (n,))
    cut = n // 3 + 1
    return [(x[:cut], labels[:cut]), (x[:0], labels[:0]), (x[cut:], labels[cut:])]


def events(n: int = 9, channels: int = 2, time_dim: int = 0) -> Batches:
    x = torch.randint(0, 3, (n, T, channels, SIDE, SIDE)).float()
    return [(x if time_dim else x.transpose(0, 1).contiguous(), torch.arange(n) % CLASSES)]


def read(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("report") / "made" / "here"
    snn = EarlyExitWrapper(image_net(), ConfidencePolicy(0.4), timesteps=T)
    loader = images()
    page = write_report(snn, loader, folder, title="A & <i>B</i>", class_names=NAMES, picojoules_per_ac=1.5)
    assert page == folder / "index.html"
    return snn, loader, folder, read(folder), page.read_text(encoding="utf-8")


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_evaluate(made):
    snn, loader, _, facts, page = made
    expected = evaluate(snn, loader).to_dict()
    timed = {"seconds", "throughput"}
    assert {k: v for k, v in facts["evaluation"].items() if k not in timed} == {
        k: v for k, v in expected.items() if k not in timed
    }
    assert len([n for n in expected["histogram"] if n]) > 2, "exits must be mixed, or nothing is tested"
    assert expected["accuracy"] != expected["full_accuracy"]
    summary = facts["summary"]
    assert summary["row_steps_saved"] == pytest.approx(1 - expected["row_steps"] / (41 * T))
    for value in (expected["accuracy"], expected["full_accuracy"], expected["agreement"]):
        assert f'<dd class="value">{100 * value:.2f} %</dd>' in page
    assert f'<dd class="value">{expected["mean_timesteps"]:.3f}</dd>' in page
    for accuracy in expected["accuracy_per_timestep"]:
        assert f"<td>{100 * accuracy:.2f} %</td>" in page


def test_the_numbers_are_those_of_measure_energy(made):
    snn, loader, _, facts, page = made
    energy = measure_energy(snn, loader, picojoules_per_ac=1.5)
    for name, value in energy.to_dict()["mean"].items():
        assert facts["energy"]["mean"][name] == value
    assert facts["energy"]["total"] == energy.to_dict()["total"]
    assert facts["energy"]["static_picojoules"] == energy.static_picojoules
    assert facts["summary"]["energy_saved"] == energy.saving
    assert facts["energy"]["static_acs"][-1] == pytest.approx(float(energy.full_acs.mean()))
    assert facts["energy"]["static_macs"][0] == pytest.approx(float(energy.macs_per_timestep[0].mean()))
    assert f'<dd class="value">{100 * energy.saving:.1f} %</dd>' in page
    for value in (energy.picojoules.mean(), energy.full_picojoules.mean(), energy.acs.mean(), energy.full_acs.mean()):
        assert f"<td>{float(value):,.0f}</td>" in page
    assert facts["energy_not_measured"] is None


def test_the_curve_is_that_of_accuracy_curve(made):
    snn, loader, _, facts, _ = made
    curve = accuracy_curve(snn, loader)
    for name in ("points", "pareto"):
        expected = [(p.policy.settings(), p.accuracy, p.mean_timesteps) for p in getattr(curve, name)]
        assert [(p["settings"], p["accuracy"], p["mean_timesteps"]) for p in facts["curve"][name]] == expected
    assert facts["curve"]["static"] == list(curve.static)


def answered(snn: EarlyExitWrapper, loader: Batches) -> list[dict[str, Any]]:
    """Sample by sample, from infer alone."""
    found = []
    for x, labels in loader:
        with torch.no_grad():
            result = snn.infer(x)
        found += [
            {
                "position": len(found) + i,
                "label": int(labels[i]),
                "answer": int(result.predictions[i]),
                "timesteps": int(result.timesteps[i]),
                "score": float(result.score[i]),
            }
            for i in range(labels.numel())
        ]
    return found


def test_the_classes_are_those_of_a_slow_reference(made):
    snn, loader, _, facts, page = made
    samples = answered(snn, loader)
    assert [figures["name"] for figures in facts["classes"]] == NAMES
    for label, figures in enumerate(facts["classes"]):
        own = [sample for sample in samples if sample["label"] == label]
        assert figures["samples"] == len(own)
        if own:
            assert figures["mean_timesteps"] == pytest.approx(sum(s["timesteps"] for s in own) / len(own))
            assert figures["accuracy"] == pytest.approx(sum(s["answer"] == label for s in own) / len(own))
            assert f"<td>{figures['mean_timesteps']:.3f}</td>" in page
    assert facts["classes"][-1] == {"name": NAMES[-1], "samples": 0, "mean_timesteps": None, "accuracy": None}


@pytest.mark.parametrize("policy", [ConfidencePolicy(0.4), PatiencePolicy(2), FixedPolicy(3)], ids=str)
def test_easiest_and_hardest_are_those_of_a_slow_reference(policy, tmp_path):
    snn, loader = EarlyExitWrapper(image_net(), policy, timesteps=T), images(50)
    write_report(snn, loader, tmp_path)
    facts, samples = read(tmp_path), answered(snn, loader)
    # Sorting is stable, so that position decides between equals.
    easiest = sorted(sorted(samples, key=lambda s: s["score"], reverse=True), key=lambda s: s["timesteps"])
    hardest = sorted(sorted(samples, key=lambda s: s["score"]), key=lambda s: -s["timesteps"])
    for name, expected in (("easiest", easiest), ("hardest", hardest)):
        assert [{key: shown[key] for key in samples[0]} for shown in facts[name]] == expected[:FEW]
        for shown in facts[name]:
            assert shown["right"] == (shown["label"] == shown["answer"])
            assert (shown["label_name"], shown["answer_name"]) == (str(shown["label"]), str(shown["answer"]))


def test_the_report_says_where_it_is_from(made):
    facts = made[3]
    assert {"python", "torch", "spikingjelly"} <= set(facts["provenance"]["versions"])
    assert facts["provenance"]["machine"]["threads"] == 1
    assert facts["policy"]["name"] == "ConfidencePolicy"
    assert facts["policy"]["settings"]["threshold"] == 0.4
    assert facts["network"]["timesteps"] == T


def test_what_is_no_number_is_null(tmp_path):
    class Unsure(Policy):
        def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
            return Decision(timestep >= 2, torch.full_like(logits[:, 0], float("nan")))

    write_report(EarlyExitWrapper(image_net(), Unsure(), timesteps=T), images(), tmp_path)
    facts = read(tmp_path)
    assert [sample["score"] for sample in facts["easiest"]] == [None] * FEW
    assert [sample["position"] for sample in facts["easiest"]] == list(range(FEW))
    assert len(facts["curve"]["points"]) == 1


# -- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [b64decode(source.split(",", 1)[1], validate=True) for source in sources]


def test_the_page_refers_to_nothing_outside_itself(made):
    page = Page(made[4])
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    styles = [text for text in page.texts if "box-sizing" in text]
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]
    assert "://" not in made[4]


def test_names_are_escaped(made):
    page = Page(made[4])
    for name in ("A & <i>B</i>", *NAMES):
        assert name in page.texts
    assert not {tag for tag, _ in page.tags} & {"i", "script"}


def test_the_page_holds_the_figures_and_the_pictures(made):
    _, loader, folder, facts, text = made
    drawn = Page(text).pictures()
    figures = sorted((folder / "figures").iterdir())
    assert [path.name for path in figures] == ["exits.png", "pareto.png"]
    assert {path.read_bytes() for path in figures} == set(drawn[:2])
    shown = facts["easiest"] + facts["hardest"]
    assert len(drawn) == 2 + len(shown)
    x = torch.cat([x for x, _ in loader])
    low, high = x.min(), x.max()
    assert facts["pictures"] == {"of": "images", "low": [float(low)], "high": [float(high)]}
    for sample, png in zip(shown, drawn[2:], strict=True):
        expected = (255 * (x[sample["position"], 0] - low) / (high - low)).round().byte()
        assert torch.equal(pixels(png), expected.unsqueeze(-1).expand(-1, -1, 3))


def test_wrong_answers_are_marked(made):
    _, _, _, facts, text = made
    shown = facts["easiest"] + facts["hardest"]
    wrong = [sample for sample in shown if not sample["right"]]
    assert 0 < len(wrong) < len(shown)
    classes = [attributes.get("class") for tag, attributes in Page(text).tags if tag == "figure"]
    assert classes == [None, None] + ["right" if sample["right"] else "wrong" for sample in shown]
    assert text.count("<b>wrong: ") == len(wrong)


# -- the pictures -----------------------------------------------------------------------------------------------------


def pixels(png: bytes) -> Tensor:
    """Of a PNG file: uint8 ``[H, W, 3]``."""
    from matplotlib.image import imread

    return torch.from_numpy(imread(BytesIO(png), format="png"))[..., :3].mul(255).round().byte()


def painted(batch: Tensor, row: int = 0) -> Tensor:
    scale = Scale()
    scale.see(batch)
    assert torch.equal(pixels(scale.png(batch[row])), scale.paint(batch[row]))
    return scale.paint(batch[row])


def test_every_channel_goes_from_its_least_to_its_greatest_value():
    batch = torch.tensor([[-2.0, 0.0, 2.0], [10.0, 10.0, 30.0], [5.0, 5.0, 5.0]]).view(1, 3, 1, 3)
    assert painted(batch).tolist() == [[[0, 0, 0], [128, 0, 0], [255, 255, 0]]]


def test_the_range_is_that_of_all_batches():
    scale = Scale()
    scale.see(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    scale.see(torch.tensor([-1.0, 0.5]).view(2, 1, 1, 1))
    assert scale.paint(torch.zeros(1, 1, 1)).tolist() == [[[128, 128, 128]]]


def test_what_is_not_finite_has_no_part_in_the_range():
    nan, inf = float("nan"), float("inf")
    batch = torch.tensor([nan, inf, -inf, 0.0, 2.0]).view(1, 1, 1, 5)
    assert painted(batch)[0, :, 0].tolist() == [0, 255, 0, 0, 255]
    assert painted(torch.full((1, 1, 1, 1), nan)).tolist() == [[[0, 0, 0]]]


def test_events_are_summed_and_their_polarities_told_apart():
    frames = torch.zeros(3, 1, 2, 1, 3)
    frames[:, 0, 0, 0, 1] = 1
    frames[2, 0, 1, 0, 2] = 4
    for time_dim in (0, 1):
        batch = pictures(frames.transpose(0, time_dim), True, time_dim)
        assert batch is not None
        assert batch[0, :, 0].tolist() == [[0, 3, 0], [0, 0, 4]]
        nothing, first, second = painted(batch)[0].tolist()
        assert nothing == [255, 255, 255]
        assert first == [0, 114, 178]
        assert second == [213, 94, 0]


def test_large_pictures_are_shrunk():
    batch = torch.rand(1, 3, 700, 350)
    assert painted(batch).shape == (192, 96, 3)


@pytest.mark.parametrize("shape", [(2, 9), (2, 4, 6, 6), (2, 6, 6), (2, 1, 6, 6, 6)])
def test_other_inputs_are_no_pictures(shape):
    assert pictures(torch.rand(shape), False, 0) is None


def test_many_channels_of_frames_are_added_up():
    frames = torch.rand(3, 2, 5, 4, 4)
    batch = pictures(frames, True, 0)
    assert batch is not None
    assert torch.allclose(batch, frames.sum((0, 2)).unsqueeze(1))


def test_only_the_pictures_shown_are_kept():
    snn = EarlyExitWrapper(image_net(), timesteps=T)
    watched = WatchedLoader(snn, images(200), None)
    for _ in watched:
        kept = {sample.position for sample in (*watched.easiest, *watched.hardest)}
        assert set(watched.shown) == kept
        for picture in watched.shown.values():
            assert picture.untyped_storage().nbytes() == picture.nbytes  # a view would hold its whole batch
    assert len(watched) == 3
    assert len(watched.shown) == 2 * FEW


# -- every kind of wrapper --------------------------------------------------------------------------------------------


class HalfTime(PlanPolicy):
    def plan(self, frames: Tensor, timesteps: int) -> Plan | Tensor:
        return (frames.flatten(1).sum(1) > 0).long() + 1


class Counted(list):
    """A loader that counts how often it is read; an iterator that nobody advances does not count."""

    readings = 0

    def __iter__(self):
        self.readings += 1
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("policy", "readings"),
    [
        ("entropy", 3),
        (PatiencePolicy(2), 3),
        (FixedPolicy(2), 2),
        (HalfTime(), 2),
        (PatiencePolicy(2) | ConfidencePolicy(0.99), 2),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__ if isinstance(value, Policy) else None,
)
def test_the_data_are_read_as_often_as_the_curve_needs(policy, readings, tmp_path):
    loader = Counted(images(20))
    write_report(EarlyExitWrapper(image_net(), policy, timesteps=T), loader, tmp_path)
    assert loader.readings == readings
    points = read(tmp_path)["curve"]["points"]
    assert (len(points) == 1) == (readings == 2)


@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_sequences_show_their_events(time_dim, channels, tmp_path):
    snn = EarlyExitWrapper(image_net(channels), PatiencePolicy(2), input="sequence", time_dim=time_dim)
    loader = events(channels=channels, time_dim=time_dim)
    page = write_report(snn, loader, tmp_path).read_text(encoding="utf-8")
    facts = read(tmp_path)
    summed = loader[0][0].sum(time_dim)
    assert facts["pictures"] == {
        "of": "events",
        "low": summed.amin((0, 2, 3)).tolist(),
        "high": summed.amax((0, 2, 3)).tolist(),
    }
    assert len(Page(page).pictures()) == 2 + len(facts["easiest"]) + len(facts["hardest"])
    assert "summed over time" in page


def test_an_rl_policy_has_its_frontier_and_its_share(tmp_path):
    data = readable(60, seed=0)
    snn = rl_wrapped()
    page = write_report(snn, data.batches(32), tmp_path / "loaded").read_text(encoding="utf-8")
    facts = read(tmp_path / "loaded")
    assert len(facts["curve"]["points"]) == 1
    assert facts["energy"]["mean"]["policy_macs"] > 0
    assert "the policy’s own network" in page
    assert "Left out: the inputs are no pictures" in page
    assert len(Page(page).pictures()) == 2
    snn = rl_wrapped("rl")
    snn.fit_policy(
        data.batches(), readable(60, seed=1).batches(), average_timesteps=3.0, epochs=2, max_operations=100.0
    )
    assert isinstance(snn.policy, RLPolicy)
    write_report(snn, data.batches(32), tmp_path / "fitted")
    expected = accuracy_curve(snn, data.batches(32)).points
    found = read(tmp_path / "fitted")["curve"]["points"]
    assert [p["mean_timesteps"] for p in found] == [p.mean_timesteps for p in expected]


def test_a_network_that_is_run_whole_saves_nothing_and_says_why(tmp_path):
    x = full_run_frames()
    snn = EarlyExitWrapper(full_run_net(), ConfidencePolicy(0.6), input="sequence", full_run=True)
    page = write_report(snn, [(x, torch.zeros(x.shape[1], dtype=torch.long))], tmp_path).read_text(encoding="utf-8")
    facts = read(tmp_path)
    assert facts["energy"] is None
    assert "full_run=True" in facts["energy_not_measured"]
    assert facts["summary"]["row_steps_saved"] == 0
    assert "Nothing is saved" in page
    assert "Energy was not measured" in page
    Page(page)


def test_one_sample(tmp_path):
    x, labels = images(3)[0]
    write_report(EarlyExitWrapper(image_net(), timesteps=T), [(x[:1], labels[:1])], tmp_path)
    facts = read(tmp_path)
    assert facts["summary"]["samples"] == len(facts["easiest"]) == len(facts["hardest"]) == 1
    assert [figures["samples"] for figures in facts["classes"]].count(0) == CLASSES - 1


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_report_replaces_the_last_one(tmp_path):
    snn = EarlyExitWrapper(image_net(), timesteps=T)
    write_report(snn, images(5), tmp_path, title="first")
    page = write_report(snn, images(6), str(tmp_path), title="second")
    assert read(tmp_path)["summary"]["samples"] == 6
    assert "first</title>" not in page.read_text(encoding="utf-8")


def test_missing_matplotlib_is_named_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionalDependencyError, match=r'pip install "seenn-plugin\[plot\]"'):
        write_report(EarlyExitWrapper(image_net(), timesteps=T), images(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(tmp_path, monkeypatch):
    snn, loader = EarlyExitWrapper(image_net(), timesteps=T), Counted(images())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write a report to .*file"):
        write_report(snn, loader, tmp_path / "file" / "report")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="no permission"):
        write_report(snn, loader, tmp_path / "locked")
    assert loader.readings == 0


def test_what_does_not_fit_is_refused(tmp_path):
    snn = EarlyExitWrapper(image_net(), timesteps=T)
    with pytest.raises(InputError, match="read more than once"):
        write_report(snn, iter(images()), tmp_path)
    with pytest.raises(InputError, match="2 names, and the model 5 classes"):
        write_report(snn, images(), tmp_path, class_names=["a", "b"])
    with pytest.raises(InputError, match="picojoules_per_ac"):
        write_report(snn, images(), tmp_path, picojoules_per_ac=-1.0)
    with pytest.raises(CalibrationError, match="no sample"):
        write_report(snn, [], tmp_path)
    with pytest.raises(CalibrationError, match="5 classes"):
        write_report(snn, [(images()[0][0][:2], torch.tensor([0, CLASSES]))], tmp_path)


# -- in a browser -----------------------------------------------------------------------------------------------------


def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for path in map(shutil.which, names) if path), None) or _playwrights()
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


def _playwrights() -> str | None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def browse(page: Path, folder: Path, *options: str) -> str:
    """What headless Chromium prints."""
    quiet = ("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    command = [browser(), "--headless", "--no-sandbox", *quiet, f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run([*command, page.as_uri()], check=True, capture_output=True, text=True, timeout=300)
    return done.stdout


def test_a_browser_shows_the_page(made, tmp_path):
    """A screenshot with the colours of the figures and of a wrong answer in it."""
    target = tmp_path / "page.png"
    browse(made[2] / "index.html", tmp_path, "--window-size=1400,2400", "--hide-scrollbars", f"--screenshot={target}")
    seen = pixels(target.read_bytes())
    assert seen.shape == (2400, 1400, 3)
    colours = {tuple(colour) for colour in seen.view(-1, 3).unique(dim=0).tolist()}
    assert len(colours) > 50
    assert {(0, 114, 178), (179, 71, 0), (213, 94, 0)} <= colours  # bars, a frame, the star
    assert (seen.float().mean(2) < 250).any(1).float().mean() > 0.5, "most lines of the page show something"


@pytest.mark.parametrize("width", [400, 1400])
def test_no_figure_is_broken_and_nothing_is_cut_off(made, tmp_path, width):
    """Looked at from a page around it, with a script that the page itself would not let run."""
    around = tmp_path / "around.html"
    around.write_text(
        f"""<!DOCTYPE html><iframe style="width: {width}px; height: 900px" srcdoc="{html.escape(made[4])}"></iframe>
<pre></pre><script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  document.querySelector("pre").textContent = JSON.stringify({{
    sizes: [...page.images].map(image => [image.complete, image.naturalWidth, image.width]),
    width: root.clientWidth, needed: root.scrollWidth }});
}};</script>""",
        encoding="utf-8",
    )
    found = re.search(r"<pre>(.*?)</pre>", browse(around, tmp_path, "--window-size=1600,1000", "--dump-dom"))
    assert found is not None
    seen = json.loads(found[1])
    assert len(seen["sizes"]) == 2 + 2 * FEW
    assert all(complete and natural > 0 and 20 < shown <= width for complete, natural, shown in seen["sizes"])
    assert seen["width"] > width - 50
    assert seen["needed"] <= seen["width"], "the page must not be wider than the window"
