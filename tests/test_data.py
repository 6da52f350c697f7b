"""Every loader on small files in its own layout, written here; the splits; augmentation only where it is asked for."""

import hashlib
import pickle
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad
from torch.utils.data import TensorDataset
from torchvision import datasets

from seenn_plugin.data.static import braille, cifar10, held_out, mnist
from seenn_plugin.errors import InputError

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
PER_CLASS = 10


def samples(data):
    return [(x, int(y)) for x, y in (data[i] for i in range(len(data)))]


def inputs(data):
    return [x.numpy().tobytes() for x, _ in samples(data)]


def labels(data):
    return Counter(y for _, y in samples(data))


# -- splits ---------------------------------------------------------------------------------------------------------


def unequal(counts):
    classes = [label for label, count in enumerate(counts) for _ in range(count)]
    classes = [classes[i] for i in torch.randperm(len(classes)).tolist()]
    return TensorDataset(torch.arange(len(classes)), torch.tensor(classes)), classes


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_the_parts_are_disjoint_and_complete_with_classes_in_proportion(share):
    counts = [50, 100, 30]
    data, classes = unequal(counts)
    train, validation = (held_out(data, classes, split, share) for split in ("train", "validation"))
    assert sorted(train.indices + validation.indices) == list(range(180))
    assert labels(validation) == {label: round(share * count) for label, count in enumerate(counts)}
    assert labels(train) + labels(validation) == dict(enumerate(counts))
    assert all(classes[int(i)] == y for part in (train, validation) for i, y in samples(part))


def test_a_tenth_is_held_out_unless_told():
    data, classes = unequal([50, 50])
    assert len(held_out(data, classes, "validation")) == 10


def test_the_parts_are_the_same_always():
    data, classes = unequal([50, 50])
    first = held_out(data, classes, "validation").indices
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 (the generator of a splitter that has no seed)
    state = torch.get_rng_state()
    assert held_out(data, classes, "validation").indices == first
    assert torch.equal(torch.get_rng_state(), state)


def test_test_data_and_unknown_parts_cannot_be_held_out():
    data, classes = unequal([20, 20])
    for split in ("test", "valid"):
        with pytest.raises(InputError, match=f"unknown split '{split}'; valid: train, validation"):
            held_out(data, classes, split)


@pytest.mark.parametrize("counts", [[20, 1], [5, 4]])
def test_too_few_samples_are_refused(counts):
    with pytest.raises(InputError, match="cannot be split"):
        held_out(*unequal(counts), "train")


def assert_three_splits(load, per_class, held_out_per_class, test_per_class):
    """Three disjoint parts with classes in proportion, and the same the next time."""
    parts = {split: load(split) for split in ("train", "validation", "test")}
    wanted = {"train": per_class - held_out_per_class, "validation": held_out_per_class, "test": test_per_class}
    for split, each in wanted.items():
        assert set(labels(parts[split]).values()) == {each}, split
        assert inputs(load(split)) == inputs(parts[split]), split
    together = [sample for part in parts.values() for sample in inputs(part)]
    assert len(set(together)) == len(together), "a sample is in two splits"


# -- CIFAR-10 -------------------------------------------------------------------------------------------------------


def pixels(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


@pytest.fixture
def cifar_folder(tmp_path):
    """Image files, and what is in them by split and class."""
    kept = {"train": [], "test": []}
    for split, each in (("train", PER_CLASS), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                image = pixels(32, 32, 3)
                Image.fromarray(image.numpy()).save(folder / f"{number:04d}.png")
                kept[split].append((image, label))
    return tmp_path, kept


@pytest.fixture
def cifar_pickles(tmp_path, monkeypatch):
    """CIFAR-10 as its authors pack it, smaller. torchvision holds the files against checksums: these are told it."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    kept, sums = {"train": [], "test": []}, {}
    names = {"train": ["data_batch_1", "data_batch_2"], "test": ["test_batch"]}
    for split, batches in names.items():
        for batch in batches:
            rows = [(pixels(3, 32, 32), label) for label in [0, 1] * (PER_CLASS // 2)]
            content = {"data": torch.stack([x.flatten() for x, _ in rows]).numpy(), "labels": [y for _, y in rows]}
            sums[batch] = write_pickle(folder / batch, content)
            kept[split] += [(x.permute(1, 2, 0), y) for x, y in rows]
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = write_pickle(folder / "batches.meta", {"label_names": ["cat", "dog"]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    for split, batches in names.items():
        monkeypatch.setattr(datasets.CIFAR10, f"{split}_list", [[batch, sums[batch]] for batch in batches])
    return tmp_path, kept


def write_pickle(path, content):
    raw = pickle.dumps(content)
    path.write_bytes(raw)
    return hashlib.md5(raw).hexdigest()


def cifar_ready(image):
    """``[32, 32, 3]`` of bytes, as the network gets it."""
    return (image.permute(2, 0, 1).float() / 255 - MEAN) / STD


@pytest.mark.parametrize("layout", ["cifar_folder", "cifar_pickles"])
def test_cifar10_reads_both_layouts(layout, request):
    root, kept = request.getfixturevalue(layout)
    each = len(kept["train"]) // 2
    assert_three_splits(lambda split: cifar10(root, split), each, each // 10, len(kept["test"]) // 2)
    for split in ("train", "validation", "test"):
        source = kept["test" if split == "test" else "train"]
        for x, y in samples(cifar10(root, split)):
            assert x.dtype == torch.float32
            assert x.shape == (3, 32, 32)
            same = [label for image, label in source if torch.allclose(cifar_ready(image), x, atol=1e-6)]
            assert same == [y]


def test_cifar10_is_augmented_only_where_asked(cifar_folder):
    root, _ = cifar_folder
    plain = cifar10(root, "train")
    assert torch.equal(plain[0][0], plain[0][0])
    for augment in ("crop", "auto"):
        data = cifar10(root, "train", augment)
        drawn = [data[0][0] for _ in range(10)]
        assert len({x.numpy().tobytes() for x in drawn}) > 5
        assert all(x.shape == (3, 32, 32) and x.dtype == torch.float32 for x in drawn)


def test_cifar10_crops_are_shifts_and_mirror_images(cifar_folder):
    root, _ = cifar_folder
    image = cifar10(root, "train")[3][0]
    padded = [pad(x * STD + MEAN, (4, 4, 4, 4)) for x in (image, image.flip(2))]
    shifts = torch.stack([x[:, i : i + 32, j : j + 32] for x in padded for i in range(9) for j in range(9)])
    data = cifar10(root, "train", "crop")
    found = set()
    for _ in range(30):
        drawn = data[3][0] * STD + MEAN
        near = (shifts - drawn).abs().amax((1, 2, 3)) < 1e-5
        assert near.sum() == 1
        found.add(int(near.nonzero()))
    assert min(found) < 81 <= max(found), "no flip in 30, or nothing else"


# -- MNIST ----------------------------------------------------------------------------------------------------------


def digits(each):
    return pixels(2 * each, 28, 28), torch.tensor([0, 1] * each, dtype=torch.uint8)


def write_idx(path, values):
    """The format of the MNIST files: a magic number, the sizes, the bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.numpy().tobytes())


@pytest.fixture
def mnist_idx(tmp_path):
    kept = {"train": digits(PER_CLASS), "test": digits(2)}
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, classes = kept[split]
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", classes)
    return tmp_path, kept


@pytest.fixture
def mnist_npz(tmp_path):
    kept = {"train": digits(PER_CLASS), "test": digits(2)}
    arrays = {f"{name}_{split}": kept[split][i].numpy() for split in kept for i, name in enumerate("xy")}
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path, kept


@pytest.mark.parametrize("layout", ["mnist_idx", "mnist_npz"])
def test_mnist_reads_both_layouts(layout, request):
    root, kept = request.getfixturevalue(layout)
    assert_three_splits(lambda split: mnist(root, split), PER_CLASS, 1, 2)
    for split in ("train", "validation", "test"):
        images, classes = kept["test" if split == "test" else "train"]
        for x, y in samples(mnist(root, split)):
            assert x.dtype == torch.float32
            assert x.shape == (1, 28, 28)
            same = (images.float() / 255 - x).abs().amax((1, 2)) < 1e-6
            assert classes[same].tolist() == [y]


def test_mnist_crops_are_shifts_where_asked(mnist_npz):
    root, _ = mnist_npz
    plain = mnist(root, "train")
    image = plain[3][0]
    assert torch.equal(plain[3][0], image)
    padded = pad(image, (2, 2, 2, 2))
    shifts = torch.stack([padded[:, i : i + 28, j : j + 28] for i in range(5) for j in range(5)])
    data = mnist(root, "train", "crop")
    found = set()
    for _ in range(30):
        same = (shifts == data[3][0]).flatten(1).all(1)
        assert same.sum() == 1
        found.add(int(same.nonzero()))
    assert len(found) > 5
    assert [y for _, y in samples(data)] == [y for _, y in samples(plain)]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x_test": np.zeros((4, 28, 28), np.float32), "y_test": np.zeros(4, np.uint8)},
        {"x_test": np.zeros((4, 784), np.uint8), "y_test": np.zeros(4, np.uint8)},
        {"x_test": np.zeros((4, 28, 28), np.uint8), "y_test": np.zeros(3, np.uint8)},
    ],
)
def test_other_mnist_arrays_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(InputError, match=r"mnist\.npz must hold images uint8 \[n, 28, 28\]"):
        mnist(tmp_path)


def test_an_unreadable_file_is_named(tmp_path):
    file = tmp_path / "mnist.npz"
    np.savez(file, x_train=np.zeros((4, 28, 28), np.uint8))
    with pytest.raises(InputError, match=r"mnist\.npz is no \.npz file with the arrays x_test, y_test"):
        mnist(tmp_path)
    for content in (b"", b"no archive", b"PK\x03\x04 nor this"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"mnist\.npz is no \.npz file"):
            mnist(tmp_path)
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(InputError, match=r"mnist\.npz is no \.npz file"):
        mnist(tmp_path)


# -- Braille --------------------------------------------------------------------------------------------------------


@pytest.fixture
def braille_npz(tmp_path):
    n = 3 * (PER_CLASS + 4)
    label = torch.arange(n, dtype=torch.uint8) % 3
    split = (torch.arange(n) >= 3 * PER_CLASS).to(torch.uint8)
    order = torch.randperm(n)  # test samples between the others
    arrays = {"spikes": (torch.rand(n, 256, 12) < 0.2).to(torch.uint8), "label": label[order], "split": split[order]}
    kept = {name: value.numpy() for name, value in arrays.items()}
    np.savez(tmp_path / "braille7.npz", classes=np.array(["A", "E", "I"]), **kept)
    return tmp_path, kept


def test_braille_reads_its_file(braille_npz):
    root, kept = braille_npz
    assert_three_splits(lambda split: braille(root, split), PER_CLASS, 2, 4)
    for split in ("train", "validation", "test"):
        for x, y in samples(braille(root, split)):
            assert x.dtype == torch.float32
            assert x.shape == (256, 12)
            (place,) = np.flatnonzero((kept["spikes"] == x.numpy()).all((1, 2)))
            assert kept["label"][place] == y
            assert kept["split"][place] == (split == "test")


@pytest.mark.parametrize("timesteps", [1, 32, 64, 128])
def test_fewer_timesteps_are_sums_of_neighbouring_bins(braille_npz, timesteps):
    root, _ = braille_npz
    width = 256 // timesteps
    for split in ("train", "validation", "test"):
        fine, coarse = samples(braille(root, split)), samples(braille(root, split, timesteps=timesteps))
        for (x, y), (sums, label) in zip(fine, coarse, strict=True):
            assert sums.tolist() == [x[t * width : (t + 1) * width].sum(0).tolist() for t in range(timesteps)]
            assert label == y


@pytest.mark.parametrize("timesteps", [0, -1, 3, 100, 512])
def test_bins_that_do_not_divide_are_refused(braille_npz, timesteps):
    with pytest.raises(InputError, match=rf"timesteps must be one of 1, 2, 4, .*, 256, not {timesteps}"):
        braille(braille_npz[0], timesteps=timesteps)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spikes", np.zeros((42, 128, 12))),
        ("spikes", np.zeros((42, 256, 11))),
        ("label", np.zeros(41)),
        ("split", np.zeros((42, 1))),
    ],
)
def test_other_braille_arrays_are_refused(braille_npz, name, value):
    root, kept = braille_npz
    np.savez(root / "braille7.npz", **{**kept, name: value})
    with pytest.raises(InputError, match=r"braille7\.npz must hold spikes \[n, 256, 12\]"):
        braille(root)


# -- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [cifar10, mnist, braille])
def test_unknown_splits_are_named_before_anything_is_read(tmp_path, load):
    with pytest.raises(InputError, match=r"unknown split 'valid'.*Did you mean 'validation'"):
        load(tmp_path, "valid")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("load", "fixture"), [(cifar10, "cifar_folder"), (mnist, "mnist_npz"), (braille, "braille_npz")]
)
def test_every_data_set_can_be_sent_to_workers(load, fixture, request):
    data = load(request.getfixturevalue(fixture)[0], "train")
    assert inputs(pickle.loads(pickle.dumps(data))) == inputs(data)


@pytest.mark.parametrize(("load", "augment"), [(cifar10, "crops"), (mnist, "auto")])
def test_unknown_augmentations_are_named(tmp_path, load, augment):
    with pytest.raises(InputError, match=f"unknown augmentation '{augment}'"):
        load(tmp_path, "train", augment)


def test_a_missing_braille_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"braille7\.npz"):
        braille(tmp_path)
