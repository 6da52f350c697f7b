"""Event data in the layouts of SpikingJelly's loaders, as published and as they leave it, read, split and prepared.

Frames are compared with events counted one by one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly import datasets
from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS
from spikingjelly.datasets.dvs128_gesture import DVS128Gesture
from spikingjelly.datasets.n_mnist import NMNIST
from torch.utils.data import DataLoader, Dataset

from seenn_plugin.data import events as data
from seenn_plugin.data.events import cifar10_dvs, dvs128_gesture, nmnist
from seenn_plugin.errors import InputError, OptionalDependencyError

OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LOADERS: dict[str, tuple[Callable[..., Dataset[Any]], tuple[str, ...], int, bool]] = {
    "nmnist": (nmnist, tuple("0123456789"), 34, True),
    "cifar10_dvs": (cifar10_dvs, OBJECTS, 128, False),
    "dvs128_gesture": (dvs128_gesture, tuple(str(n) for n in range(11)), 128, True),
}
TRAIN, TEST = 12, 3
OLD = not hasattr(NMNIST, "create_raw_from_extracted")  # 0.0.0.0.14


def recording(seed: int, camera: int, number: int = 40) -> dict[str, np.ndarray]:
    """Events in microseconds, some in each tenth of the time."""
    drawn = np.random.default_rng(seed)
    t = np.sort(np.concatenate([drawn.integers(0, 300_000, number - 30), np.arange(5, 300, 10) * 1000]))
    return {"t": t, **{axis: drawn.integers(0, camera, number) for axis in "xy"}, "p": drawn.integers(0, 2, number)}


def write(root: Path, name: str) -> Path:
    """``events_np`` with few recordings of few events, each different."""
    _, classes, camera, divided = LOADERS[name]
    for part, number in (("train", TRAIN), ("test", TEST)) if divided else (("", TRAIN + TEST),):
        for label, folder in enumerate(classes):
            place = root / "events_np" / part / folder
            place.mkdir(parents=True)
            for i in range(number):
                seed = 1000 * label + 100 * (part == "test") + i
                np.savez(place / f"{i:05d}.npz", **recording(seed, camera))  # pyright: ignore[reportArgumentType]
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name), name) for name in LOADERS}


def slow_frames(events: dict[str, np.ndarray], camera: int, timesteps: int, split_by: str) -> torch.Tensor:
    frames = torch.zeros(timesteps, 2, camera, camera)
    t = events["t"]
    for i in range(len(t)):
        time = (t[i] - t[0]) // ((t[-1] - t[0]) // timesteps)
        step = i // (len(t) // timesteps) if split_by == "number" else time
        frames[min(step, timesteps - 1), int(events["p"][i]), int(events["y"][i]), int(events["x"][i])] += 1
    return frames


def contents(samples: Dataset[Any]) -> list[bytes]:
    return [frames.numpy().tobytes() for frames, _ in samples]  # pyright: ignore[reportGeneralTypeIssues]


def small(name: str) -> dict[str, int]:
    """Options for frames that are quickly made, and still different."""
    return {"timesteps": 2} if name == "nmnist" else {"timesteps": 1, "size": 32}


def labels_of(samples: Dataset[Any]) -> list[int]:
    return [label for _, label in samples]  # pyright: ignore[reportGeneralTypeIssues]


@pytest.mark.parametrize("split_by", ["time", "number"])
@pytest.mark.parametrize("timesteps", [1, 3, 10])
def test_frames_are_the_events_counted_one_by_one(roots, timesteps, split_by):
    found = nmnist(roots["nmnist"], timesteps=timesteps, split_by=split_by)
    assert len(found) == 10 * TEST  # pyright: ignore[reportArgumentType]
    for label in range(10):
        for i in range(TEST):
            frames, seen = found[label * TEST + i]
            assert seen == label
            assert frames.dtype == torch.float32
            assert torch.equal(frames, slow_frames(recording(1000 * label + 100 + i, 34), 34, timesteps, split_by))


@pytest.mark.parametrize("name", ["cifar10_dvs", "dvs128_gesture"])
def test_large_frames_are_averaged_to_the_size_asked_for(roots, name):
    load, classes, camera, _ = LOADERS[name]
    whole, small, smaller = (load(roots[name], size=size) for size in (camera, 64, 48))
    label = sorted(classes).index(classes[2])
    position = labels_of(whole).index(label)
    test = recording(2100, camera) if name == "dvs128_gesture" else recording(2000 + TRAIN + 2, camera)
    frames, _ = whole[position]
    assert torch.equal(frames, slow_frames(test, camera, 10, "number"))
    for size, samples in ((64, small), (48, smaller)):
        less, seen = samples[position]
        assert less.shape == (10, 2, size, size)
        assert seen == label
        # No event is lost between the pixels that are left, but for weights near the edges.
        assert float(less.sum()) * (camera / size) ** 2 == pytest.approx(float(frames.sum()), rel=0.05)


@pytest.mark.parametrize("name", LOADERS)
def test_splits_share_no_recording_and_hold_every_class(roots, name):
    load, classes, _, divided = LOADERS[name]
    parts = {split: load(roots[name], split, **small(name)) for split in ("train", "validation", "test")}
    found = {split: contents(samples) for split, samples in parts.items()}
    everything = [frames for each in found.values() for frames in each]
    assert len(everything) == len(set(everything)) == len(classes) * (TRAIN + TEST)
    test_of_each = TEST if divided else 1
    assert Counter(labels_of(parts["test"])) == dict.fromkeys(range(len(classes)), test_of_each)
    for split in ("train", "validation"):
        assert set(labels_of(parts[split])) == set(range(len(classes)))
    rest = len(everything) - len(found["test"])
    assert len(found["validation"]) == np.ceil(rest / 10)
    assert found["validation"] == contents(load(roots[name], "validation", **small(name)))


@pytest.mark.parametrize("name", LOADERS)
def test_folds_are_disjoint_cover_everything_and_hold_every_class_equally(roots, name):
    load, classes, _, _ = LOADERS[name]
    tested: list[bytes] = []
    for fold in range(5):
        parts = {split: load(roots[name], split, fold=fold, **small(name)) for split in ("train", "validation", "test")}
        found = {split: contents(samples) for split, samples in parts.items()}
        assert len({frames for each in found.values() for frames in each}) == len(classes) * (TRAIN + TEST)
        assert Counter(labels_of(parts["test"])) == dict.fromkeys(range(len(classes)), (TRAIN + TEST) // 5)
        assert found["test"] == contents(load(roots[name], "test", fold=fold, **small(name)))
        tested += found["test"]
    assert len(tested) == len(set(tested)) == len(classes) * (TRAIN + TEST)


def test_cifar10_dvs_is_split_as_spikingjelly_does(roots, capsys):
    everything = CIFAR10DVS(str(roots["cifar10_dvs"]))
    _, test = datasets.split_to_train_test_set(0.9, everything, 10)
    paths = [everything.samples[i][0] for i in test.indices]  # pyright: ignore[reportAttributeAccessIssue]
    wanted = []
    for path in paths:
        with np.load(path) as events:
            wanted.append(slow_frames(events, 128, 10, "number").numpy().tobytes())
    assert contents(cifar10_dvs(roots["cifar10_dvs"], size=128)) == wanted
    capsys.readouterr()


def test_they_are_batched_by_several_processes_and_leave_the_folder_alone(roots):
    before = sorted(roots["nmnist"].rglob("*"))
    samples = nmnist(roots["nmnist"], timesteps=4)
    batches = list(DataLoader(samples, batch_size=7, num_workers=2))
    assert batches[0][0].shape == (7, 4, 2, 34, 34)
    assert torch.equal(torch.cat([frames for frames, _ in batches]), torch.stack([frames for frames, _ in samples]))
    assert sorted(roots["nmnist"].rglob("*")) == before


# -- augmentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("augment", "mirrored"), [("roll", False), ("flip", True)])
def test_frames_are_shifted_together_by_up_to_a_tenth_and_mirrored_if_asked(roots, augment, mirrored):
    plain, drawn = (cifar10_dvs(roots["cifar10_dvs"], timesteps=2, size=30, augment=how) for how in ("none", augment))
    wanted, _ = plain[0]
    ways = {
        _moved(wanted, vertical, horizontal, flip).numpy().tobytes(): (vertical, horizontal, flip)
        for flip in (False, True)
        for vertical in range(-3, 4)
        for horizontal in range(-3, 4)
    }
    assert len(ways) == 2 * 7 * 7
    shifts = [ways[drawn[0][0].numpy().tobytes()] for _ in range(100)]
    for axis in (0, 1):
        assert {way[axis] for way in shifts} == set(range(-3, 4))
    assert {way[2] for way in shifts} == ({False, True} if mirrored else {False})


def _moved(frames: torch.Tensor, vertical: int, horizontal: int, flip: bool) -> torch.Tensor:
    rows = [(i - vertical) % 30 for i in range(30)]
    columns = [(i - horizontal) % 30 for i in range(30)]
    moved = frames[:, :, rows][:, :, :, columns]
    return moved.flip(-1) if flip else moved


@pytest.mark.parametrize("load", [nmnist, dvs128_gesture])
def test_digits_and_hands_are_not_mirrored(roots, load):
    with pytest.raises(InputError, match=r"unknown augment 'flip'; valid: none, roll"):
        load(roots[load.__name__], augment="flip")


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "unknown split 'tset'.*Did you mean 'test'"),
        ({"split_by": "duration"}, "unknown split_by 'duration'; valid: number, time"),
        ({"timesteps": 0}, "timesteps must be positive, not 0"),
        ({"size": -1}, "size must be positive, not -1"),
        ({"fold": 5}, "fold must be 0 to 4, not 5"),
        ({"fold": -1, "augment": "auto"}, "unknown augment 'auto'.*fold must be 0 to 4"),
    ],
)
def test_options_that_do_not_exist_are_named(roots, options, message):
    with pytest.raises(InputError, match=message):
        cifar10_dvs(roots["cifar10_dvs"], **options)


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_class_would_shift_the_others_and_is_refused(tmp_path, name):
    load, classes, _, divided = LOADERS[name]
    root = write(tmp_path / "data", name)
    shutil.rmtree(root / "events_np" / ("test" if divided else "") / classes[3])
    with pytest.raises(InputError, match="holds the classes"):
        load(root)


@pytest.mark.parametrize("name", LOADERS)
def test_an_empty_class_is_refused(tmp_path, name):
    load, classes, _, divided = LOADERS[name]
    root = write(tmp_path / "data", name)
    for path in (root / "events_np" / ("train" if divided else "") / classes[-1]).iterdir():
        path.unlink()
    with pytest.raises(InputError, match="not laid out as"):
        load(root)


def test_another_layout_is_refused(roots):
    with pytest.raises(InputError, match="not laid out as NMNIST needs it"):
        nmnist(roots["cifar10_dvs"])
    with pytest.raises(InputError, match="holds the classes test, train; CIFAR10DVS has airplane"):
        cifar10_dvs(roots["dvs128_gesture"])
    with pytest.raises(InputError, match=r"holds the classes 0, 1, 10, 2, .*; NMNIST has 0, 1, 2"):
        nmnist(roots["dvs128_gesture"])


def test_too_few_recordings_for_folds_are_refused(tmp_path):
    root = write(tmp_path, "cifar10_dvs")
    for path in sorted((root / "events_np" / "frog").iterdir())[4:]:
        path.unlink()
    with pytest.raises(InputError, match="a class has 4 recordings, too few for 5 folds"):
        cifar10_dvs(root, fold=0)


def no_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])  # as an interruption leaves it


def other_arrays(path: Path) -> None:
    np.savez(path, t=np.arange(9), x=np.arange(9))


def no_events(path: Path) -> None:
    np.savez(path, **{name: np.zeros(0, int) for name in "txyp"})  # pyright: ignore[reportArgumentType]


def outside(path: Path) -> None:
    np.savez(path, **{**recording(0, 34), "x": np.full(40, 34)})  # pyright: ignore[reportArgumentType]


def a_pause(path: Path) -> None:
    np.savez(path, **{**recording(0, 34), "t": np.arange(40) ** 9})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_file, "holds no events t, x, y and p"),
        (other_arrays, "holds no events t, x, y and p"),
        (no_events, "holds no events, or some outside of 34 x 34 pixels"),
        (outside, "holds no events, or some outside of 34 x 34 pixels"),
        (a_pause, "has no events in one of 10 timesteps of equal time: take fewer, or split_by='number'"),
    ],
)
def test_a_recording_that_cannot_be_read_is_named(tmp_path, spoil, message):
    root = write(tmp_path, "nmnist")
    spoil(root / "events_np" / "test" / "0" / "00001.npz")
    samples = nmnist(root)
    assert samples[0][1] == 0
    with pytest.raises(InputError, match=rf"0.00001\.npz {message}"):
        samples[1]


def test_what_is_not_installed_is_named(roots, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spikingjelly.datasets.n_mnist", None)
    with pytest.raises(OptionalDependencyError, match=r'pip install "seenn-plugin\[spikingjelly\]"'):
        nmnist(roots["nmnist"])


def test_what_cross_validation_needs_is_named(roots, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.model_selection", None)
    with pytest.raises(OptionalDependencyError, match=r'pip install "seenn-plugin\[train\]"'):
        nmnist(roots["nmnist"], fold=0)


# -- preparing what was published -------------------------------------------------------------------------------------

NUMBER = 11


def atis(path: Path, events: dict[str, np.ndarray]) -> None:
    """N-MNIST: five bytes an event, 23 bits of them time."""
    columns = [
        events["x"],
        events["y"],
        events["p"] << 7 | events["t"] >> 16,
        events["t"] >> 8 & 255,
        events["t"] & 255,
    ]
    path.write_bytes(np.stack(columns, 1).astype(np.uint8).tobytes())


def aedat2(path: Path, events: dict[str, np.ndarray]) -> None:
    """CIFAR10-DVS: address and time of each event, as the camera turned it."""
    address = (127 - events["y"]) << 1 | (127 - events["x"]) << 8 | (1 - events["p"])
    pairs = np.stack([address, events["t"]], 1).astype(">u4")
    path.write_bytes(b"#!AER-DAT2.0\r\n" + pairs.tobytes())


def aedat3(path: Path, trials: list[dict[str, np.ndarray]]) -> None:
    """DVS128 Gesture: one packet of events for a trial, a second after the one before."""
    packets = []
    for number, events in enumerate(trials):
        n = len(events["t"])
        address = events["x"] << 17 | events["y"] << 2 | events["p"] << 1 | 1
        pairs = np.stack([address, events["t"] + 1_000_000 * number], 1).astype("<u4")
        packets.append(struct.pack("<HHIIIIII", 1, 0, 8, 4, 0, n, n, n) + pairs.tobytes())
    path.write_bytes(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + b"".join(packets))


def publish_nmnist(folder: Path) -> None:
    for part, number in (("Train", NUMBER), ("Test", 1)):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for label in range(10):
                for i in range(number):
                    scratch = folder.parent / "scratch"
                    atis(scratch, recording(100 * label + i + 50 * (part == "Test"), 34))
                    archive.write(scratch, f"{part}/{label}/{i:05d}.bin")


def publish_cifar10_dvs(folder: Path) -> None:
    for label, name in enumerate(OBJECTS):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for i in range(NUMBER + 1):
                scratch = folder.parent / "scratch"
                aedat2(scratch, recording(100 * label + i, 128))
                archive.write(scratch, f"{name}/cifar10_{name}_{i}.aedat")


def publish_dvs128_gesture(folder: Path) -> None:
    made = folder.parent / "DvsGesture"
    made.mkdir()
    users = {"train": range(1, NUMBER + 1), "test": range(24, 25)}
    for part, numbers in users.items():
        (made / f"trials_to_{part}.txt").write_text("".join(f"user{user:02d}_led.aedat\n" for user in numbers))
        for user in numbers:
            aedat3(made / f"user{user:02d}_led.aedat", [recording(100 * gesture + user, 128) for gesture in range(11)])
            rows = [f"{gesture + 1},{1_000_000 * gesture},{1_000_000 * gesture + 999_999}" for gesture in range(11)]
            (made / f"user{user:02d}_led_labels.csv").write_text(
                "\n".join(["class,startTime_usec,endTime_usec", *rows])
            )
    with tarfile.open(folder / "DvsGesture.tar.gz", "w:gz") as archive:
        archive.add(made, "DvsGesture")
    shutil.rmtree(made)


PUBLISHED: dict[str, tuple[Any, Callable[[Path], None]]] = {
    "nmnist": (NMNIST, publish_nmnist),
    "cifar10_dvs": (CIFAR10DVS, publish_cifar10_dvs),
    "dvs128_gesture": (DVS128Gesture, publish_dvs128_gesture),
}


def publish(root: Path, name: str, monkeypatch: pytest.MonkeyPatch, samples: int | None = None) -> Path:
    """The archives of a data set in ``download/``, small, their sums and the number of recordings put right."""
    kind, make = PUBLISHED[name]
    folder = root / "download"
    folder.mkdir(parents=True)
    make(folder)
    files = [(path.name, "nowhere", hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(kind, "resource_url_md5", staticmethod(lambda: files))
    real = data._Source
    classes = len(LOADERS[name][1])
    number = (NUMBER + 1) * classes if samples is None else samples
    monkeypatch.setattr(data, "_Source", lambda *given: replace(real(*given), samples=number))
    return root


# It cannot read CIFAR10-DVS with the NumPy of today, see below.
PREPARED = [name for name in LOADERS if not OLD or name != "cifar10_dvs"]


@pytest.mark.parametrize("name", PREPARED)
def test_published_archives_are_prepared_once(tmp_path, monkeypatch, capsys, name):
    load, classes, camera, _ = LOADERS[name]
    root = publish(tmp_path / "data", name, monkeypatch)
    size = {} if name == "nmnist" else {"size": camera}
    frames, label = load(root, split_by="number", **size)[0]
    assert label == 0
    # Of class 0, the test recording; names are in alphabetical order, 9 the last of 0..11.
    seed = {"nmnist": 50, "cifar10_dvs": 9, "dvs128_gesture": 24}[name]
    assert torch.equal(frames, slow_frames(recording(seed, camera), camera, 10, "number"))
    assert sum(len(load(root, split)) for split in ("train", "validation", "test")) == 12 * len(classes)  # pyright: ignore[reportArgumentType]
    assert not list(root.glob("events_np.*"))
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    load(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == written
    capsys.readouterr()


def test_recordings_that_were_not_written_are_missed(tmp_path, monkeypatch, capsys):
    root = publish(tmp_path / "data", "nmnist", monkeypatch, samples=121)
    with pytest.raises(InputError, match=r"wrote 120 of 121 recordings\. Remove"):
        nmnist(root)
    with pytest.raises(InputError, match=r"are unfinished\. Remove"):
        nmnist(root)
    capsys.readouterr()


@pytest.mark.skipif(not OLD, reason="2.0.0 reads it")
def test_recordings_that_could_not_be_read_are_missed(tmp_path, monkeypatch, capsys):
    """``numpy.fromstring`` fails in a thread that nobody asks how it went."""
    root = publish(tmp_path / "data", "cifar10_dvs", monkeypatch)
    with pytest.raises(InputError, match=r"CIFAR10DVS cannot prepare .* no valid file"):
        cifar10_dvs(root)
    with pytest.raises(InputError, match=r"are unfinished\. Remove"):
        cifar10_dvs(root)
    capsys.readouterr()


@pytest.mark.parametrize("name", PREPARED)
def test_an_interrupted_preparation_is_not_taken_for_the_data(tmp_path, monkeypatch, capsys, name):
    load, *_ = LOADERS[name]
    kind, _ = PUBLISHED[name]
    root = publish(tmp_path / "data", name, monkeypatch)
    step = "create_events_np_files" if OLD else "create_raw_from_extracted"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kind, step, staticmethod(interrupted))
        with pytest.raises(KeyboardInterrupt):
            load(root)
    assert (root / "events_np").is_dir()
    with pytest.raises(InputError, match=r"unfinished. Remove .*extract, .*events_np, .*, and try again") as caught:
        load(root)
    for path in str(caught.value).removesuffix(", and try again.").split("Remove ")[1].split(", "):
        (shutil.rmtree if Path(path).is_dir() else os.unlink)(path)
    assert len(load(root))  # pyright: ignore[reportArgumentType]
    capsys.readouterr()


def test_a_marker_of_spikingjelly_itself_counts(tmp_path):
    root = write(tmp_path, "nmnist")
    (root / "events_np.building").touch()
    with pytest.raises(InputError, match=r"unfinished. Remove .*events_np\.building"):
        nmnist(root)


def test_what_cannot_be_downloaded_is_asked_for_and_nothing_is_written(tmp_path):
    for load, files in ((nmnist, "Train.zip, Test.zip of https"), (dvs128_gesture, "DvsGesture.tar.gz, .* of https")):
        with pytest.raises(InputError, match=f"holds no events_np. Put {files}"):
            load(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="there is no folder"):
        cifar10_dvs(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path, monkeypatch):
    root = publish(tmp_path / "data", "nmnist", monkeypatch)

    def read_only(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(InputError, match=r"NMNIST cannot prepare .*Read-only file system"):
        nmnist(root)
    assert not (root / "events_np").exists()
