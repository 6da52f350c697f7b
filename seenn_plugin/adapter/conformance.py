"""A conformance kit for adapters: inherit one class in a test module, say how to make a model, and run pytest.

The kit compares the four abilities of an adapter with the slow and obvious way of using it: every row alone, one
timestep at a time, from its first timestep on. It needs pytest to run, but does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ModelRefused
from ..inputs import InputBatch
from ..tolerance import largest_difference, rows_agree
from .contract import Adapter, Rows

Outputs = tuple[Tensor, ...]


class Snapshot:
    """Everything that a module and its children hold: attributes, buffers, parameters, hooks, modes, states.

    Taken before a call, it tells afterwards what the call has changed: which objects were replaced, and which tensors
    have another value.

    Args:
        model: the module to look at.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = Snapshot(model)
        >>> model.mem = torch.zeros(1)
        >>> before.differences()
        ['mem appeared']
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(name, module, type(module), _freeze(vars(module))) for name, module in model.named_modules()]

    def differences(self) -> list[str]:
        """One line for each thing that is no longer as it was; empty if all is."""
        found: list[str] = []
        for name, module, kind, frozen in self._modules:
            if type(module) is not kind:
                found.append(f"{name or 'the model'} became a {type(module).__name__}")
            found += _compare(frozen, vars(module), name)
        return found

    def assert_unchanged(self, after: str = "the call") -> None:
        """Fail, naming what has changed."""
        changed = self.differences()
        assert not changed, f"after {after}, the caller's model is not as it was: {'; '.join(changed)}"


def _freeze(value: Any) -> tuple[Any, Any]:
    """The object itself, and its content as far as it may change in place."""
    if isinstance(value, Tensor):
        return value, (value.detach().clone(), value.requires_grad, _gradient(value))
    if isinstance(value, dict):
        return value, {key: _freeze(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return value, [_freeze(item) for item in value]
    return value, None


def _gradient(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.is_leaf else None  # PyTorch warns where there is none to be had


def _compare(frozen: tuple[Any, Any], now: Any, label: str) -> list[str]:
    then, content = frozen
    if isinstance(then, int | float | str | None) and type(now) is type(then):
        return [] if now == then or now != now else [f"{label} was {then!r} and is {now!r}"]
    if now is not then:
        return [f"{label} is another object"]
    if isinstance(then, Tensor):
        value, requires_grad, grad = content
        changed = now.shape != value.shape or now.dtype != value.dtype or not _same_values(now.detach(), value)
        flags = now.requires_grad != requires_grad or _gradient(now) is not grad
        return [f"{label} has other values"] * changed + [f"{label} has other gradients"] * flags
    if isinstance(then, dict):
        found = [f"{_join(label, key)} appeared" for key in now if key not in content]
        for key, item in content.items():
            found += _compare(item, now[key], _join(label, key)) if key in now else [f"{_join(label, key)} is gone"]
        return found
    if isinstance(then, list | tuple):
        if len(now) != len(content):
            return [f"{label} has another length"]
        return [line for i, item in enumerate(content) for line in _compare(item, now[i], _join(label, i))]
    return []


def _same_values(left: Tensor, right: Tensor) -> bool:
    return bool(((left == right) | ((left != left) & (right != right))).all())


def _join(label: str, key: Any) -> str:
    return f"{label}.{key}" if label else str(key)


class ModelRaised(Exception):
    """Raised by the kit inside a model, to see that the adapter cleans up behind it."""


@contextmanager
def raising(module: nn.Module, call: int) -> Iterator[None]:
    """Let ``module`` raise :class:`ModelRaised` when it is called for the ``call``-th time from now, counted from 1."""
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise ModelRaised

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class AdapterConformance:
    """What every adapter must do. Inherit it, name the adapter, make a model and inputs.

    The model must not fall silent or saturate on the inputs, or little is tested. Rows are compared within
    ``seenn_plugin.tolerance``; a model in float64 keeps rounding from moving a spike.

    Attributes:
        adapter: the adapter under test, as ``EarlyExitWrapper(adapter=...)`` takes it: a class, or a function of the
            model.
        timesteps: timesteps that the tests make; at least 4.
        differentiable: whether the model's first output has a gradient by its parameters.
        sequence: whether ``make_inputs`` gives ``[T, n, ...]`` (one frame for each timestep) or ``[n, ...]``.

    Example:
        >>> class TestMyAdapter(AdapterConformance):    # doctest: +SKIP
        ...     adapter = MyAdapter
        ...     def make_model(self): return MyNet().eval()
        ...     def make_inputs(self, n): return torch.rand(n, 16)
    """

    adapter: Callable[[nn.Module], Adapter]
    timesteps: int = 6
    sequence: bool = False
    differentiable: bool = True
    _alone_cache: ClassVar[dict[int, list[list[Outputs]]]] = {}

    def make_model(self) -> nn.Module:
        """A model that the adapter is made for, in evaluation mode; a new one with the same weights at every call."""
        raise NotImplementedError

    def make_inputs(self, n: int) -> Tensor:
        """Inputs of ``n`` rows that differ: ``[n, ...]``, or ``[timesteps, n, ...]`` for a sequence.

        The same at every call with the same ``n``.
        """
        raise NotImplementedError

    def failing_module(self, model: nn.Module) -> nn.Module:
        """The module that the kit lets raise in mid-run: by default the last one without children that is called."""
        called: list[nn.Module] = []
        handles = [
            module.register_forward_pre_hook(lambda module, _: called.append(module))
            for module in model.modules()
            if not any(True for _ in module.children())
        ]
        try:
            adapter = self._bind(model)
            adapter.advance(adapter.begin(self._batch(self.make_inputs(2))))
        finally:
            for handle in handles:
                handle.remove()
        return called[-1] if called else model

    # -- the tests ------------------------------------------------------------------------------------------------

    def test_claims_its_model_and_no_other(self) -> None:
        kind = type(self._bind(self.make_model()))
        assert kind.claims(self.make_model()), f"{kind.__name__} does not claim the model that it is made for"
        plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        assert not kind.claims(plain), f"{kind.__name__} claims a plain nn.Sequential of nn.Linear"
        assert isinstance(kind.name, str), f"{kind.__name__} has no name"
        assert kind.name, f"{kind.__name__} has an empty name"

    def test_begins_fresh_rows(self) -> None:
        adapter = self._bind(self.make_model())
        inputs = self.make_inputs(3)
        rows = adapter.begin(self._batch(inputs))
        assert len(rows) == 3
        assert rows.inputs.sequence == self.sequence
        assert torch.equal(rows.clock, torch.zeros(3, dtype=torch.long))
        assert torch.equal(rows.inputs.values, inputs)

    def test_outputs_have_a_step_and_a_row_axis(self) -> None:
        adapter = self._bind(self.make_model())
        rows = adapter.begin(self._batch(self.make_inputs(3)))
        for steps, made in ((1, 1), (2, 3)):
            outputs = adapter.advance(rows, steps)
            assert isinstance(outputs, tuple)
            assert outputs, "advance returned no output"
            assert all(output.shape[:2] == (steps, 3) for output in outputs), [tuple(o.shape) for o in outputs]
            assert rows.clock.tolist() == [made] * 3

    def test_rows_together_answer_as_rows_alone(self) -> None:
        adapter = self._bind(self.make_model())
        rows = adapter.begin(self._batch(self.make_inputs(5)))
        found = [self._step(adapter, rows) for _ in range(self.timesteps)]
        for t, outputs in enumerate(found):
            self._assert_rows(outputs, [(row, t) for row in range(5)], 5, "together")

    def test_inputs_make_a_difference(self) -> None:
        # Guards the kit itself: rows that all answer alike would pass every test.
        alone = self._alone(5)
        assert any(
            not torch.equal(alone[0][t][0], alone[row][t][0]) for row in range(1, 5) for t in range(len(alone[0]))
        )
        assert any(
            not torch.equal(alone[row][0][0], alone[row][t][0]) for row in range(5) for t in range(self.timesteps)
        )

    def test_keeps_a_subset(self) -> None:
        self._check_keep([1, 3])

    def test_keeps_rows_in_another_order(self) -> None:
        self._check_keep([4, 0, 2])

    def test_keeps_rows_more_than_once(self) -> None:
        self._check_keep([2, 2, 0, 4, 4, 4])

    def test_keeps_one_row_to_the_end(self) -> None:
        adapter = self._bind(self.make_model())
        rows = adapter.begin(self._batch(self.make_inputs(5)))
        running = list(range(5))
        for t in range(self.timesteps):
            self._assert_rows(self._step(adapter, rows), [(row, t) for row in running], 5, "while rows leave")
            if len(running) > 1:
                leaving = t % len(running)
                places = [place for place in range(len(running)) if place != leaving]
                adapter.keep(rows, self._index(rows, places))
                running = [running[place] for place in places]

    def test_places_fresh_rows_with_a_clock_of_their_own(self) -> None:
        # Rows 0 to 2 start; rows 3 and 4 take the places of rows 2 and 0 after two timesteps, row 5 that of 1 after 3.
        adapter = self._bind(self.make_model())
        all_inputs = self.make_inputs(6)
        rows = adapter.begin(self._batch(self._rows_of(all_inputs, [0, 1, 2])))
        running = [(0, 0), (1, 0), (2, 0)]

        def step() -> None:
            nonlocal running
            self._assert_rows(self._step(adapter, rows), running, 6, "beside rows with another clock")
            running = [(row, t + 1) for row, t in running]

        step()
        step()
        try:
            adapter.place(rows, self._index(rows, [2, 0]), self._batch(self._rows_of(all_inputs, [3, 4])))
        except ModelRefused as refused:
            self._check_refusal(refused)
            return
        running = [(4, 0), running[1], (3, 0)]
        assert rows.clock.tolist() == [t for _, t in running]
        step()
        adapter.place(rows, self._index(rows, [1]), self._batch(self._rows_of(all_inputs, [5])))
        running[1] = (5, 0)
        step()
        adapter.keep(rows, self._index(rows, [2, 1]))
        running = [running[2], running[1]]
        while max(t for _, t in running) < self.timesteps:
            step()

    def test_chunks_equal_single_steps(self) -> None:
        for sizes in ((2, 2), (3, 1), (1, 3)):
            adapter = self._bind(self.make_model())
            rows = adapter.begin(self._batch(self.make_inputs(5)))
            made = 0
            for size in sizes:
                outputs = adapter.advance(rows, size)
                for step in range(size):
                    now = tuple(output[step] for output in outputs)
                    self._assert_rows(now, [(row, made + step) for row in range(5)], 5, f"in chunks of {sizes}")
                made += size

    def test_two_runs_interleave(self) -> None:
        adapter = self._bind(self.make_model())
        inputs = self.make_inputs(5)
        first = adapter.begin(self._batch(self._rows_of(inputs, [0, 1, 2])))
        self._assert_rows(self._step(adapter, first), [(0, 0), (1, 0), (2, 0)], 5, "in the first run")
        second = adapter.begin(self._batch(self._rows_of(inputs, [4, 3])))
        for t in range(self.timesteps - 1):
            self._assert_rows(self._step(adapter, second), [(4, t), (3, t)], 5, "in the second of two runs")
            self._assert_rows(self._step(adapter, first), [(r, t + 1) for r in range(3)], 5, "in the first of two runs")

    def test_two_adapters_share_a_model(self) -> None:
        model = self.make_model()
        one, other = self._bind(model), self._bind(model)
        inputs = self.make_inputs(5)
        first, second = one.begin(self._batch(inputs)), other.begin(self._batch(self._rows_of(inputs, [3])))
        for t in range(2):
            self._assert_rows(self._step(one, first), [(row, t) for row in range(5)], 5, "with one adapter")
            self._assert_rows(self._step(other, second), [(3, t)], 5, "with another adapter")

    def test_model_is_as_it_was_after_every_call(self) -> None:
        model = self.make_model()
        before = Snapshot(model)
        adapter = self._bind(model)
        before.assert_unchanged("making the adapter")
        inputs = self.make_inputs(4)
        rows = adapter.begin(self._batch(inputs))
        before.assert_unchanged("begin")
        for steps in (1, 2):
            adapter.advance(rows, steps)
            before.assert_unchanged(f"advance({steps})")
        adapter.keep(rows, self._index(rows, [2, 0]))
        before.assert_unchanged("keep")
        with suppress(ModelRefused):
            adapter.place(rows, self._index(rows, [0]), self._batch(self._rows_of(inputs, [3])))
        before.assert_unchanged("place")
        adapter.advance(rows)
        before.assert_unchanged("advance after keep and place")
        adapter.reference(self._batch(inputs), self.timesteps)
        before.assert_unchanged("reference")

    def test_rows_do_not_change_when_the_model_raises(self) -> None:
        model = self.make_model()
        module = self.failing_module(model)
        adapter = self._bind(model)
        rows = adapter.begin(self._batch(self.make_inputs(3)))
        self._step(adapter, rows)
        clock, inputs = rows.clock.clone(), rows.inputs.values.clone()
        with raising(module, call=1):
            before = Snapshot(model)
            self._assert_raises(lambda: adapter.advance(rows))
            before.assert_unchanged("a step in which the model raised")
        assert torch.equal(rows.clock, clock)
        assert torch.equal(rows.inputs.values, inputs)
        for t in range(1, self.timesteps):
            self._assert_rows(self._step(adapter, rows), [(row, t) for row in range(3)], 3, "after the model raised")

    def test_model_is_as_it_was_after_it_raised_at_first(self) -> None:
        model = self.make_model()
        with raising(self.failing_module(model), call=1):
            before = Snapshot(model)
            adapter = self._bind(model)
            # An adapter that looks at the model first may wrap the error in its own.
            self._assert_raises(lambda: adapter.advance(adapter.begin(self._batch(self.make_inputs(3)))), Exception)
            before.assert_unchanged("a first step in which the model raised")

    def test_gradients_flow_where_they_are_on(self) -> None:
        model = self.make_model()
        adapter = self._bind(model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self.differentiable and parameters:
            with torch.enable_grad():
                rows = adapter.begin(self._batch(self.make_inputs(2)))
                output = adapter.advance(rows, 2)[0]
            assert output.requires_grad, "the output of an advance with gradients on has none"
            gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
            assert any(gradient is not None for gradient in gradients)
        with torch.no_grad():
            rows = adapter.begin(self._batch(self.make_inputs(2)))
            assert not adapter.advance(rows)[0].requires_grad

    def test_inspects_what_the_rows_carry(self) -> None:
        adapter = self._bind(self.make_model())
        rows = adapter.begin(self._batch(self.make_inputs(5)))
        adapter.advance(rows, 2)
        adapter.keep(rows, self._index(rows, [3, 1]))
        found = adapter.state_tensors(rows)
        assert all(tensor.shape[0] == 2 for tensor in found), [tuple(tensor.shape) for tensor in found]
        wanted = []
        for row in (3, 1):
            alone = adapter.begin(self._batch(self._rows_of(self.make_inputs(5), [row])))
            adapter.advance(alone, 2)
            wanted.append(adapter.state_tensors(alone))
        for tensor, pair in zip(found, zip(*wanted, strict=True), strict=True):
            assert bool(rows_agree(tensor, torch.cat(pair)).all()), "what kept rows carry differs from rows alone"

    def test_reference_equals_single_steps(self) -> None:
        model = self.make_model()
        adapter = self._bind(model)
        inputs = self.make_inputs(5)
        rows = adapter.begin(self._batch(inputs))
        own = adapter.reference(self._batch(inputs), self.timesteps)
        if own is None:
            return
        assert own.timesteps == self.timesteps
        assert all(made_by == "stack" for _, made_by in own.outputs), "a model that makes one answer needs other tests"
        outputs = [output for output, _ in own.outputs]
        assert all(output.shape[:2] == (self.timesteps, 5) for output in outputs)
        for t in range(self.timesteps):
            self._assert_rows(tuple(o[t] for o in outputs), [(r, t) for r in range(5)], 5, "in the model's own run")
        for _ in range(self.timesteps):
            adapter.advance(rows)
        for left, right in zip(own.state or [], adapter.state_tensors(rows) if own.state else [], strict=True):
            assert bool(rows_agree(left, right).all()), "after the model's own run, rows carry something else"

    # -- how ------------------------------------------------------------------------------------------------------

    def _bind(self, model: nn.Module) -> Adapter:
        return type(self).adapter(model)

    def _step(self, adapter: Adapter, rows: Rows) -> Outputs:
        return tuple(output[0] for output in adapter.advance(rows))

    def _batch(self, inputs: Tensor) -> InputBatch:
        return InputBatch(inputs, self.sequence)

    def _rows_of(self, inputs: Tensor, rows: Sequence[int]) -> Tensor:
        return inputs.index_select(1 if self.sequence else 0, torch.tensor(rows, device=inputs.device))

    def _index(self, rows: Rows, places: Sequence[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.long, device=rows.inputs.device)

    def _alone(self, n: int) -> list[list[Outputs]]:
        """The slow reference: outputs of every row and timestep, each row alone on a model of its own."""
        if "_alone_cache" not in vars(type(self)):  # pytest makes a new object for every test
            type(self)._alone_cache = {}
        cache = type(self)._alone_cache
        if n not in cache:
            inputs = self.make_inputs(n)
            cache[n] = []
            for row in range(n):
                adapter = self._bind(self.make_model())
                rows = adapter.begin(self._batch(self._rows_of(inputs, [row])))
                cache[n].append([self._step(adapter, rows) for _ in range(self.timesteps)])
        return cache[n]

    def _assert_rows(self, outputs: Outputs, expected: Sequence[tuple[int, int]], n: int, where: str) -> None:
        """Compare outputs ``[m, ...]`` with those of (row, timestep) alone, timesteps counted from 0."""
        alone = self._alone(n)
        for position in range(len(outputs)):
            wanted = torch.cat([alone[row][t][position] for row, t in expected])
            agree = rows_agree(outputs[position], wanted)
            assert bool(agree.all()), (
                f"output {position} of rows {[e for e, a in zip(expected, agree.tolist(), strict=True) if not a]} "
                f"(row, timestep) {where} differs from the same rows alone by up to "
                f"{largest_difference(outputs[position], wanted):.2e}"
            )

    def _check_keep(self, kept: Sequence[int]) -> None:
        adapter = self._bind(self.make_model())
        rows = adapter.begin(self._batch(self.make_inputs(5)))
        self._step(adapter, rows)
        self._step(adapter, rows)
        adapter.keep(rows, self._index(rows, kept))
        assert len(rows) == len(kept)
        assert rows.clock.tolist() == [2] * len(kept)
        for t in range(2, self.timesteps):
            self._assert_rows(self._step(adapter, rows), [(row, t) for row in kept], 5, f"kept as {list(kept)}")

    def _check_refusal(self, refused: ModelRefused) -> None:
        assert refused.reason, "a refusal gives a reason"
        assert refused.remedy, "a refusal says what to do instead"

    def _assert_raises(self, call: Callable[[], Any], kind: type[Exception] = ModelRaised) -> None:
        try:
            call()
        except kind:
            return
        raise AssertionError("the model raised, and the adapter answered all the same")
