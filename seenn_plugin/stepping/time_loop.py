"""Splits a ``forward`` with a time loop into the statements before the loop, one timestep, and those after it.

Most snnTorch networks, and many SpikingJelly ones, hide their timesteps in a ``for`` loop. The source of ``forward`` is
parsed; the statements before the loop, those in it and those after it become three functions over an explicit
dictionary of local variables. They are compiled from the caller's own statements, run in the caller's own module
namespace and closure, and report errors at the caller's own lines. Nothing of the caller's is changed.

This module knows syntax only. :mod:`seenn_plugin.stepping.spiking_calls` finds which loop is the time loop, and
:mod:`seenn_plugin.stepping.loop_stepper` what the local variables hold.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any, Final

from torch import nn

from ..errors import ModelRefused
from .running_source import NoSource, OtherSource, running_source

Locals = dict[str, Any]
_ITEM: Final = "seenn_item_"
_COUNT: Final = "seenn_passes_"
_LENGTH: Final = re.compile(r"(?P<name>\w+)\.(shape\[|size\((dim=)?)(?P<dim>\d+)[\])]|len\((?P<whole>\w+)\)")
_REACHED: Final = "seenn_plugin: the time loop was reached"


@dataclass(frozen=True)
class Source:
    """A function with its source.

    Attributes:
        function: the function itself, without decorators.
        tree: its definition, with the line numbers of its file.
        owner: name of the class it was written in, for private names; empty if none.
    """

    function: Any
    tree: ast.FunctionDef
    owner: str

    @property
    def file(self) -> str:
        return self.function.__code__.co_filename

    def mangled(self, name: str) -> str:
        """A private name as Python stores it inside a class."""
        private = self.owner and name.startswith("__") and not name.endswith("__")
        return f"_{self.owner.lstrip('_')}{name}" if private else name

    def compile(self, parameters: ast.arguments, body: list[ast.stmt]) -> FunctionType:
        """A function with other parameters and another body, in the namespace and the closure of this one."""
        piece = copy.copy(self.tree)
        piece.args, piece.body, piece.decorator_list, piece.returns = parameters, body, [], None
        cells = dict(zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=True))
        outer = ", ".join(name for name in cells if name != "__class__")  # a class body has a __class__ of its own
        factory = ast.parse(f"def factory({outer}):\n class {self.owner or 'Nobody'}:\n  pass\n")
        scope: Any = factory.body[0]
        scope.body[0].body = [piece]
        if not self.owner:  # outside a class private names are not mangled
            scope.body = [piece]
        code = _inner_code(compile(ast.fix_missing_locations(factory), self.file, "exec"), piece.name)
        closure = tuple(cells[name] for name in code.co_freevars)
        return FunctionType(code, self.function.__globals__, piece.name, None, closure)


def has_loop(model: nn.Module) -> bool:
    """Whether a ``for`` loop is written in ``model.forward``, as far as its source can be read."""
    if getattr(model.forward, "__module__", "").startswith("torch."):  # nn.Sequential loops over layers
        return False
    try:
        source = read_source(model)
    except ModelRefused:
        return False
    return any(isinstance(node, ast.For) for node in ast.walk(source.tree))


def read_source(model: nn.Module) -> Source:
    """The source of ``model.forward``.

    Raises:
        ModelRefused: there is none, or it is not what is running.
    """
    kind = type(model).__name__
    remedy = "Define forward() in a file or in a notebook cell, or wrap a module that makes one timestep."
    function: Any = inspect.unwrap(getattr(model.forward, "__func__", model.forward))
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        raise ModelRefused(f"the forward() of {kind} is no plain function, so that its source cannot be split.", remedy)
    file = function.__code__.co_filename
    try:
        tree = running_source(function)
    except NoSource as error:
        if file.startswith("<timed"):
            remedy = "Define it in a notebook cell that does not begin with %%time or another %%magic."
        raise ModelRefused(
            f"{kind} runs its time loop inside forward(), whose source cannot be read ({error}).", remedy
        ) from error
    except OtherSource as error:
        raise ModelRefused(
            f"the source of {kind}.forward in {file} is not what is running: it was edited after it was loaded, or its "
            "code was changed as it was loaded.",
            "Load it again (run the cell again, or restart), and make the model anew from the class that this gives.",
        ) from error
    path = function.__code__.co_qualname.split(".")  # where it was compiled: by that, private names are mangled
    owner = path[-2] if len(path) > 1 and path[-2] != "<locals>" else ""
    return Source(function, tree, owner)


def _inner_code(code: CodeType, name: str) -> CodeType:
    """The code of the innermost function called ``name``, in a nest of single definitions."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    if code.co_name == name and code.co_flags & inspect.CO_NEWLOCALS and code.co_flags & inspect.CO_OPTIMIZED:
        return code
    return _inner_code(inner[0], name)


@dataclass(frozen=True)
class TimeLoop:
    """A ``forward`` split at its time loop.

    Attributes:
        source: the function.
        loop: its ``for`` statement.
    """

    source: Source
    loop: ast.For
    _compiled: dict[Any, FunctionType] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"for {ast.unparse(self.loop.target)} in {ast.unparse(self.loop.iter)}"
        return f"{head} ({self.source.file}:{self.loop.lineno})"

    # -- running the three parts ----------------------------------------------------------------------------------

    def enter(self, arguments: Sequence[Any], keywords: dict[str, Any]) -> tuple[Locals, Iterable[Any]] | None:
        """Run ``forward(*arguments, **keywords)`` up to the loop: its local variables there, and what it iterates over.

        ``None`` if it returned before it came to the loop.
        """
        result = self._prologue(*arguments, **keywords)
        if type(result) is tuple and len(result) == 3 and result[0] == _REACHED:
            return self._own(result[1]), result[2]
        return None

    def step(self, variables: Locals, item: Any) -> Locals:
        """One pass through the loop with the next ``item`` of what it iterates over: the local variables after it."""
        after = self._own(self._part("body", self._body, (*variables, _ITEM))(*variables.values(), item))
        del after[_ITEM]
        return after

    def leave(self, variables: Locals, passes: int) -> Any:
        """What ``forward`` returns if the loop ends here, after ``passes``.

        Where the statements after the loop use the number of its passes, they get this number.
        """
        told = {_COUNT: self._start + passes} if self.rest_counts else {}
        return self._part("rest", self._counting_rest[0], (*variables, *told))(*variables.values(), *told.values())

    def _own(self, variables: Locals) -> Locals:
        """Without the variables of functions around this one, which ``locals()`` has too."""
        free = self.source.function.__code__.co_freevars
        return {name: value for name, value in variables.items() if name not in free}

    def _part(self, name: str, body: list[ast.stmt], parameters: tuple[str, ...]) -> FunctionType:
        """The function of one part, compiled for the local variables that are bound; unbound ones stay unbound."""
        key = (name, parameters)
        if key not in self._compiled:
            arguments = ast.arguments([], [ast.arg(p) for p in parameters], None, [], [], None, [])
            self._compiled[key] = self.source.compile(arguments, body)
        return self._compiled[key]

    @cached_property
    def _prologue(self) -> FunctionType:
        tree = copy.deepcopy(self.source.tree)
        position = (self.loop.lineno, self.loop.col_offset)

        class Stop(ast.NodeTransformer):
            def visit_For(self, node: ast.For) -> ast.stmt:
                if (node.lineno, node.col_offset) != position:
                    return node
                reached = ast.Tuple([ast.Constant(_REACHED), _call_locals(), node.iter], ast.Load())
                return ast.copy_location(ast.Return(reached), node)

        Stop().visit(tree)
        function = self.source.compile(tree.args, tree.body)
        function.__defaults__ = self.source.function.__defaults__
        function.__kwdefaults__ = self.source.function.__kwdefaults__
        return function

    @cached_property
    def _body(self) -> list[ast.stmt]:
        # A loop over one item: `continue`, and any kind of target, work as they do in the caller's loop.
        once = ast.For(self.loop.target, ast.Tuple([ast.Name(_ITEM, ast.Load())], ast.Load()), self.loop.body, [])
        inner: list[ast.stmt] = [ast.copy_location(once, self.loop)]
        for block in reversed(self._path):
            if isinstance(block, ast.With):
                inner = [ast.copy_location(ast.With(block.items, inner), block)]
        return [*inner, ast.Return(_call_locals())]

    @cached_property
    def _rest(self) -> list[ast.stmt]:
        rest: list[ast.stmt] = []
        inner: ast.stmt = self.loop
        for block in reversed((self.source.tree, *self._path)):
            statements = next(s for s in _blocks(block) if inner in s)
            rest += statements[statements.index(inner) + 1 :]
            if isinstance(block, ast.With) and rest:
                rest = [ast.copy_location(ast.With(block.items, rest), block)]
            inner = block
        return rest or [ast.Pass()]

    @property
    def rest_counts(self) -> bool:
        """Whether the statements after the loop use the number of its passes: ``out / self.num_steps``."""
        return self._counting_rest[1]

    @cached_property
    def _counting_rest(self) -> tuple[list[ast.stmt], bool]:
        counter = _Counter(self._counts)
        rest = [counter.visit(copy.deepcopy(statement)) for statement in self._rest]
        return rest, counter.found

    @cached_property
    def _range(self) -> ast.Call | None:
        """The ``range(...)`` that the loop runs over, also inside ``enumerate`` or a progress bar."""
        calls = [node for node in ast.walk(self.loop.iter) if isinstance(node, ast.Call)]
        ranges = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "range" and 1 <= len(c.args) <= 2]
        return ranges[0] if len(ranges) == 1 else None

    @cached_property
    def _start(self) -> int:
        """The number from which the passes are counted."""
        first = self._range.args[0] if self._range is not None and len(self._range.args) == 2 else ast.Constant(0)
        return first.value if isinstance(first, ast.Constant) and isinstance(first.value, int) else 0

    @cached_property
    def _counts(self) -> frozenset[str]:
        """Expressions of which the value is the number of passes of the whole loop."""
        if self._range is None:
            over = self.loop.iter
            if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id == "enumerate":
                over = over.args[0]
            known = {f"len({over.id})"} if isinstance(over, ast.Name) else set()
        else:
            if len(self._range.args) == 2 and not isinstance(self._range.args[0], ast.Constant):
                return frozenset()
            known = {ast.unparse(self._range.args[-1])}
        for statement in ast.walk(self.source.tree):  # steps = x.size(0)
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                name, value = ast.unparse(statement.targets[0]), ast.unparse(statement.value)
                if name in known and statement.lineno < self.loop.lineno:
                    known = {*known, value}
        for expression in tuple(known):
            if found := _LENGTH.fullmatch(expression):
                name, dim = found["name"] or found["whole"], found["dim"] or "0"
                known |= {f"{name}.shape[{dim}]", f"{name}.size({dim})", f"{name}.size(dim={dim})"}
                known |= {f"len({name})"} if dim == "0" else set()
        return frozenset(known)

    # -- reading the syntax ---------------------------------------------------------------------------------------

    @cached_property
    def _path(self) -> tuple[Any, ...]:
        """The statements around the loop, from the outermost."""
        return next(_paths_to(self.source.tree, self.loop))

    @cached_property
    def carried(self) -> frozenset[str]:
        """Local variables that a pass through the loop may read before it sets them, or that are read after it."""
        once = [ast.For(self.loop.target, ast.Constant(0), [], []), *self.loop.body]
        exposed, _ = _flow(once, _names(self.loop.target, ast.Store))
        for block in self._path:
            if isinstance(block, ast.With):  # it is entered for each pass
                exposed |= {name for item in block.items for name in _names(item, ast.Load)}
        return frozenset(map(self.source.mangled, exposed)) | self.read_after

    @cached_property
    def read_after(self) -> frozenset[str]:
        """Local variables that the statements after the loop read."""
        return frozenset(map(self.source.mangled, _flow(self._counting_rest[0], set())[0] - {_COUNT}))

    @cached_property
    def reads_item(self) -> bool:
        """Whether the items of the loop are read, and not only counted."""
        targets = _names(self.loop.target, ast.Store)
        return bool(targets & (_loads(self.loop.body) | _loads(self._rest))) or not isinstance(
            self.loop.target, ast.Name | ast.Tuple
        )

    @cached_property
    def appended(self) -> frozenset[str]:
        """Local variables that the loop uses in ``variable.append(...)`` only: records of the timesteps."""
        uses: dict[str, int] = {}
        appends: dict[str, int] = {}
        for node in (n for statement in self.loop.body for n in ast.walk(statement)):
            if isinstance(node, ast.Name):
                uses[node.id] = uses.get(node.id, 0) + 1
            if isinstance(node, ast.Expr) and (name := _appended_to(node.value)):
                appends[name] = appends.get(name, 0) + 1
        return frozenset(self.source.mangled(name) for name, count in appends.items() if uses[name] == count)

    def refuse_what_cannot_be_split(self, kind: str) -> None:
        """Raises:
        ModelRefused: the loop is left in its middle, or its parts cannot be separated.
        """
        where = f"the time loop of {kind}.forward, {self},"
        plain = "Write the timesteps as one plain for loop, and let the wrapper stop it early."
        for node in _own_statements(self.loop.body):
            if isinstance(node, ast.Break):
                raise ModelRefused(f"{where} is left with break in line {node.lineno}.", plain)
            if isinstance(node, ast.Return):
                raise ModelRefused(f"{where} has a return inside, in line {node.lineno}.", plain)
        for node in ast.walk(self.source.tree):
            if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await | ast.Global | ast.Nonlocal):
                name = type(node).__name__.lower()
                raise ModelRefused(f"{kind}.forward uses {name} in line {node.lineno}, around its time loop.", plain)
        if self.loop.orelse:
            raise ModelRefused(f"{where} has an else branch.", plain)
        for block in self._path:
            if not isinstance(block, ast.If | ast.With):
                raise ModelRefused(f"{where} lies inside a {type(block).__name__.lower()} statement.", plain)


class _Counter(ast.NodeTransformer):
    """Replaces expressions for the number of passes by a variable.

    A literal number counts only as a divisor.
    """

    def __init__(self, counts: frozenset[str]) -> None:
        self.counts = counts
        self.found = False

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and not isinstance(node, ast.Constant) and ast.unparse(node) in self.counts:
            loaded = not hasattr(node, "ctx") or isinstance(getattr(node, "ctx", None), ast.Load)
            if loaded:
                return self._count(node)
        return super().visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        node = self.generic_visit(node)  # pyright: ignore[reportAssignmentType]
        if isinstance(node.op, ast.Div) and self._is_number(node.right):
            node.right = self._count(node.right)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        node = self.generic_visit(node)  # pyright: ignore[reportAssignmentType]
        if isinstance(node.op, ast.Div) and self._is_number(node.value):
            node.value = self._count(node.value)
        return node

    def _is_number(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Constant) and ast.unparse(node) in self.counts

    def _count(self, node: ast.expr) -> ast.expr:
        self.found = True
        return ast.copy_location(ast.Name(_COUNT, ast.Load()), node)


def loops_around(tree: ast.FunctionDef, line: int) -> list[ast.For | ast.While]:
    """The loops of a function, its own and not those of functions inside it, around a line; from the outermost."""
    found = [node for node in _own_statements(tree.body, into_loops=True) if isinstance(node, ast.For | ast.While)]
    return [loop for loop in found if any(s.lineno <= line <= (s.end_lineno or s.lineno) for s in loop.body)]


def _call_locals() -> ast.expr:
    return ast.Call(ast.Name("locals", ast.Load()), [], [])


def _appended_to(node: ast.expr) -> str:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "append"
        and isinstance(node.func.value, ast.Name)
        and len(node.args) == 1
        and not node.keywords
    ):
        return node.func.value.id
    return ""


def _blocks(node: ast.AST) -> Iterator[list[Any]]:
    """The lists of statements directly inside a statement."""
    for name in ("body", "orelse", "finalbody"):
        if isinstance(getattr(node, name, None), list):
            yield getattr(node, name)
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def _own_statements(statements: Sequence[ast.stmt], into_loops: bool = False) -> Iterator[ast.stmt]:
    """All statements, nested ones too; not those of functions, and ``break`` only where it leaves *this* loop."""
    for statement in statements:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        inner_loop = isinstance(statement, ast.For | ast.While)
        for block in _blocks(statement):
            for inner in _own_statements(block, into_loops):
                if into_loops or not (inner_loop and isinstance(inner, ast.Break)):
                    yield inner


def _paths_to(block: ast.AST, target: ast.stmt, path: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.AST, ...]]:
    for statements in _blocks(block):
        for statement in statements:
            if statement is target:
                yield path
            else:
                yield from _paths_to(statement, target, (*path, statement))


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def _loads(statements: Sequence[ast.stmt]) -> set[str]:
    """Names that the statements read. ``x += 1`` reads x."""
    nodes = [node for statement in statements for node in ast.walk(statement)]
    augmented = {n.target.id for n in nodes if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
    deleted = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Del)}
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} | augmented | deleted


def _flow(statements: Sequence[ast.stmt], assigned: set[str]) -> tuple[set[str], set[str]]:
    """Names that may be read before they are set, and names that are always set afterwards."""
    exposed: set[str] = set()
    assigned = set(assigned)

    def through(block: Sequence[ast.stmt], known: set[str]) -> set[str]:
        inner, after = _flow(block, known)
        exposed.update(inner)
        return after

    for s in statements:
        match s:
            case ast.If():
                exposed |= _names(s.test, ast.Load) - assigned
                assigned = through(s.body, assigned) & through(s.orelse, assigned)
            case ast.For():
                exposed |= _names(s.iter, ast.Load) - assigned
                through(s.body, assigned | _names(s.target, ast.Store))
                through(s.orelse, assigned)
            case ast.With():
                for item in s.items:
                    exposed |= _names(item, ast.Load) - assigned
                    assigned |= _names(item, ast.Store)
                assigned = through(s.body, assigned)
            case ast.Assign() | ast.AnnAssign() | ast.Expr():
                exposed |= _loads([s]) - assigned
                if not (isinstance(s, ast.AnnAssign) and s.value is None):
                    targets = s.targets if isinstance(s, ast.Assign) else [getattr(s, "target", s)]
                    assigned |= {name for target in targets for name in _plain_targets(target)}
            case ast.FunctionDef():
                exposed |= _loads([s]) - assigned
                assigned.add(s.name)
            case _:  # whatever is set inside may not be: while, try, match, del, ...
                exposed |= _loads([s]) - assigned
                assigned -= _names(s, ast.Del)
    return exposed, assigned


def _plain_targets(target: ast.AST) -> set[str]:
    """Names that an assignment to ``target`` sets; those inside ``x[i]`` or ``x.y`` it reads."""
    match target:
        case ast.Name():
            return {target.id}
        case ast.Tuple() | ast.List():
            return {name for element in target.elts for name in _plain_targets(element)}
        case ast.Starred():
            return _plain_targets(target.value)
    return set()
