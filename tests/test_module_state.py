"""Where state lies in a module: finding it, copying it, and giving back what was the caller's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seenn_plugin.state.isolation import isolated, undo
from seenn_plugin.state.values import ABSENT, hides_tensors, is_plain, leaves, map_tensors, same, tensors

from .test_bad_input import assert_unchanged, snapshot


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mem", torch.zeros(2, 3), persistent=False)
        self.register_buffer("empty", None)
        self.trace: Any = [torch.ones(2), (torch.zeros(1), 4)]
        self.settings = {"tau": 2.0, "v": torch.full((2,), 5.0)}
        self.clock = 7


def test_whatever_happens_inside_isolation_is_undone():
    model = nn.Sequential(Stateful(), nn.BatchNorm1d(3))
    before = snapshot(model)
    state = torch.get_rng_state()
    with isolated(model):
        inner = model[0]
        inner.mem.add_(1)
        inner.mem = torch.rand(5, 3)
        inner.empty = torch.rand(2)
        inner.trace[0].zero_()
        inner.trace = None
        inner.settings["v"].mul_(3)
        inner.settings["new"] = torch.rand(3)
        del inner.settings["tau"]
        inner.clock += 1
        inner.lazy = torch.rand(4)
        model[1].running_mean.add_(9)
        model[1].num_batches_tracked.add_(1)
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].mem, torch.zeros(2, 3))
    assert model[0].trace[0].tolist() == [1, 1]


def test_isolation_is_undone_when_something_raises():
    model = Stateful()
    before = snapshot(model)

    def interrupted() -> None:
        with isolated(model):
            model.mem.add_(1)
            model.late = 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_unchanged(model, before)


def test_tensors_that_two_places_share_stay_shared_inside_isolation():
    model = Stateful()
    model.other = model.mem
    with isolated(model):
        model.mem.add_(1)
        assert torch.equal(model.other, model.mem)
    assert model.other is model.mem


@pytest.mark.parametrize("mode", ["inference_mode", "enable_grad", "no_grad"])
def test_isolation_works_in_every_mode_and_records_no_gradient(mode):
    model = Stateful()
    with getattr(torch, mode)():
        before = snapshot(model)
        with isolated(model):
            assert not (model.weight * 2).requires_grad
            assert not torch.is_inference_mode_enabled()
            model.mem.add_(1)
        assert torch.is_grad_enabled() == (mode == "enable_grad")
    assert_unchanged(model, before)


VALUES = [None, 3, 2.5, True, "x", ABSENT, torch.arange(4), (torch.zeros(2), [1, {"a": torch.ones(1)}])]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_equals_its_copy_and_nothing_else(value):
    twin = map_tensors(Tensor.clone, value)
    assert same(value, twin)
    assert is_plain(value)
    for other in VALUES:
        assert same(value, other) == (value is other)


def test_equality_is_strict_about_type_shape_and_value_and_takes_nan_for_equal():
    nan = torch.tensor([float("nan"), 1.0])
    assert same(nan, nan.clone())
    assert not same(nan, torch.tensor([0.0, 1.0]))
    assert not same(torch.zeros(2), torch.zeros(2, 1))
    assert not same(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same(1, 1.0)
    assert not same(1, True)
    assert not same([1], (1,))
    assert not same([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)])


def test_tensors_are_found_in_containers_and_mapped_without_touching_them():
    value = {"a": [torch.ones(2), 3], "b": (torch.zeros(1), None)}
    assert len(tensors(value)) == 2
    assert len(leaves(value)) >= 3
    doubled = map_tensors(lambda tensor: tensor * 2, value)
    assert doubled["a"][0].tolist() == [2, 2]
    assert value["a"][0].tolist() == [1, 1]
    assert doubled["a"][1] == 3
    assert doubled["a"] is not value["a"]


def test_objects_that_hold_tensors_are_told_from_those_that_do_not():
    class Holder:
        pass

    holder, plain = Holder(), Holder()
    holder.v = torch.ones(2)
    assert not is_plain(holder)
    assert hides_tensors(holder)
    assert hides_tensors([1, holder])
    assert not hides_tensors(plain)
    assert not hides_tensors(len)


def test_undo_gives_a_store_back_and_names_what_had_been_written():
    first, second = torch.ones(2), torch.zeros(2)
    store: dict[str, Any] = {"kept": first, "replaced": second, "deleted": 3}
    saved = dict(store)
    assert undo(store, saved) == []
    store["replaced"] = torch.zeros(2)
    store["new"] = 4
    del store["deleted"]
    assert sorted(undo(store, saved)) == ["deleted", "new", "replaced"]
    assert store == saved
    assert store["replaced"] is second


def test_what_a_framework_caches_is_no_state_and_stays():
    store: dict[str, Any] = {}
    kernel = object()
    store["kernel"] = kernel
    assert undo(store, {}) == []
    assert store == {"kernel": kernel}


def test_absence_is_one_thing_through_copies():
    assert copy.deepcopy(ABSENT) is ABSENT
    assert copy.deepcopy([ABSENT])[0] is ABSENT
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
