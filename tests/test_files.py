"""Files: whole or not at all, one process at a time, and damage that is named with a remedy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from seenn_plugin._files import from_json, locked, to_json, write_files
from seenn_plugin.errors import InputError, SeennError
from seenn_plugin.policies import RLPolicy
from seenn_plugin.study.run_file import RunFile, read
from seenn_plugin.training_loop.checkpoint import Checkpoint

pytest.importorskip("safetensors")

STUDIED = {"card": {"title": "a | b"}, "settings": {"seed": 0}, "weights": "abc"}
ROW = {"policy": "margin", "target": "accuracy", "provenance": {}}
FACTS = {"epochs": 3}


def run_file(folder: Path) -> Path:
    RunFile(folder / "run.json", STUDIED).add(ROW)
    return folder / "run.json"


def checkpoint(folder: Path, value: float = 1.0) -> Path:
    kept = Checkpoint(folder / "training.pt")
    kept.require(FACTS)
    kept.finish("one", {"weights": torch.full((40,), value)})
    return folder / "training.pt"


def policy(folder: Path, value: float = 1.0) -> Path:
    network = nn.Linear(4, 3)
    nn.init.constant_(network.weight, value)
    RLPolicy(network).save(folder)
    return folder / "policy.safetensors"


def read_policy(path: Path) -> RLPolicy:
    return RLPolicy.load(path.parent, nn.Linear(4, 3))


KINDS = {
    "run file": (run_file, lambda path: RunFile(path, STUDIED)),
    "checkpoint": (checkpoint, Checkpoint),
    "weights of a policy": (policy, read_policy),
    "settings of a policy": (lambda folder: policy(folder).with_name("policy.json"), read_policy),
}


def offsets(size: int) -> list[int]:
    return sorted({*range(min(size, 8)), *range(0, size, max(1, size // 60)), *range(max(0, size - 8), size)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_anywhere_is_named_with_a_remedy(kind, tmp_path):
    make, load = KINDS[kind]
    path = make(tmp_path)
    whole = path.read_bytes()
    load(path)
    for length in offsets(len(whole)):
        if not whole[length:].strip():
            continue  # only the end of the last line is missing
        path.write_bytes(whole[:length])
        with pytest.raises(SeennError, match=r"(Delete it|again)") as caught:
            load(path)
        assert path.name in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_byte_anywhere_is_named_or_changes_nothing(kind, tmp_path):
    make, load = KINDS[kind]
    path = make(tmp_path)
    whole, messages = path.read_bytes(), []
    places = offsets(len(whole))
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            load(path)
        except SeennError as error:
            messages.append(str(error))
    assert all(str(tmp_path) in message for message in messages)
    assert len(messages) > 0.5 * len(places)  # padding and white space may be anything


def test_json_of_earlier_versions_has_no_checksum(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": [1, float("nan")]}))
    assert from_json(path)["a"][0] == 1
    path.write_text(to_json({"a": {1: 0.1, "b": (2, float("inf"))}}, indent=1))
    assert from_json(path) == {"a": {"1": 0.1, "b": [2, float("inf")]}}


# -- the disk is full --------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
from tests import test_files
from seenn_plugin.errors import InputError
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
for make in (test_files.run_file, lambda f: test_files.checkpoint(f, 2.0), lambda f: test_files.policy(f, 2.0)):
    try:
        make(folder)
    except InputError as error:
        assert "cannot write" in str(error) and str(folder) in str(error), error
        assert "kept" in str(error), error
    else:
        raise AssertionError("the disk was not full")
"""


def child(code: str, *arguments: object, **options) -> subprocess.Popen:
    root = Path(__file__).parent.parent
    paths = os.pathsep.join([str(root), str(root / "adapters")])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=root, text=True, **options)


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_full_disk_leaves_the_old_files_and_names_the_new_one(tmp_path):
    for make in (run_file, checkpoint, policy):
        make(tmp_path)
    before = state(tmp_path)
    done = child(LIMITED, tmp_path, stderr=subprocess.PIPE)
    assert done.communicate()[1] == ""
    assert done.returncode == 0
    assert state(tmp_path) == before


def test_of_files_that_belong_together_all_are_replaced_or_none(tmp_path):
    one, two = tmp_path / "one", tmp_path / "deep" / "two"
    write_files({one: "old", two: b"old"})

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*two: No space left on device. What was there before is kept"):
        write_files({one: "new", two: fail})
    assert (one.read_text(), two.read_text()) == ("old", "old")
    assert [path.name for path in two.parent.iterdir()] == ["two"]
    with pytest.raises(InputError, match="it is a folder; name a file"):
        write_files({one: "new", two.parent: "new"})
    one.chmod(0o640)
    (tmp_path / "link").symlink_to(one)
    write_files({tmp_path / "link": "new"})
    assert (tmp_path / "link").is_symlink()
    assert (one.read_text(), one.stat().st_mode & 0o777) == ("new", 0o640)


# -- killed, and two at a time -----------------------------------------------------------------------------------------

WRITING = """
import sys
from pathlib import Path
from tests import test_files
from seenn_plugin._files import locked
folder, value = Path(sys.argv[1]), 0.0
with locked(folder / "training.pt"):
    print("ready", flush=True)
    while True:
        value += 1.0
        test_files.checkpoint(folder, value)
"""
HOLDING = """
import sys
from seenn_plugin._files import locked
with locked(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_is_killed_leaves_a_whole_file_and_no_lock(tmp_path):
    for milliseconds in (3, 11, 20):
        process = child(WRITING, tmp_path, stdout=subprocess.PIPE)
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while not (tmp_path / "training.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with locked(tmp_path / "training.pt"):  # removes what the dead process has not finished
            weights = Checkpoint(tmp_path / "training.pt").finished("one")["weights"]
        assert float(weights[0]) >= 1
        assert bool((weights == weights[0]).all())
        assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


def test_of_two_processes_the_second_is_told_which_folder_is_in_use(tmp_path):
    place = tmp_path / "run" / "training.pt"
    process = child(HOLDING, place, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(InputError, match="another process works on") as caught, locked(place):
        pass
    assert str(place.parent) in str(caught.value)
    with locked(place.with_name("other")):
        pass
    process.communicate("")
    assert process.returncode == 0
    with locked(place), pytest.raises(InputError, match="another process"), locked(place):
        pass
    assert not list(place.parent.iterdir())


def test_a_run_file_is_read_as_it_was_written(tmp_path):
    assert read(run_file(tmp_path))["rows"] == [ROW]
