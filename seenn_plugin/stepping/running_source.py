"""Finds the source of a function, and proves that it is the source of the running code.

A file may have been edited after it was loaded, and a notebook cell run again with other code. Source is used only if
it compiles to the very code that is running: instructions, constants, names, and line numbers. It may have been
compiled in more than one way, because some instructions depend on what is compiled with them: a file is compiled as a
whole, the statements of a notebook cell one by one, and pytest rewrites assertions. The position of the function in its
file may differ, and its formatting, if IPython's autoreload has replaced an older function by it.
"""

from __future__ import annotations
import __future__

import ast
import copy
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, Final

_FILES: Final = 16  # that are kept, parsed and compiled
_AWAIT: Final = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_FUTURES: Final = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


class NoSource(Exception):
    """There is no source, or none that can be read."""


class OtherSource(Exception):
    """There is source, and the running code was not compiled from it."""


def running_source(function: FunctionType) -> ast.FunctionDef:
    """The definition of a function, with the line numbers of the code that is running.

    Raises:
        NoSource: there is none, or it cannot be read.
        OtherSource: the present source compiles to other code.
    """
    text, code = _text(function), function.__code__
    tree = _parsed(text)
    running = _all_of(code, code.co_firstlineno)
    flags = code.co_flags & _FUTURES | _AWAIT
    for module, source in _compiled_together(tree, text, function):
        try:
            compiled = _compiled(module, code.co_filename, flags)
        except (SyntaxError, ValueError):  # of a cell, the statements before the one that does not compile were run
            continue
        for candidate in compiled.get(code.co_qualname, ()):
            first = candidate.co_firstlineno
            if _all_of(candidate, first) == running:
                (definition,) = (d for d in _definitions(source, code.co_name) if _first_line(d) == first)
                return ast.increment_lineno(copy.deepcopy(definition), code.co_firstlineno - first)
    raise OtherSource


@lru_cache(maxsize=_FILES)
def _parsed(text: str) -> ast.Module:
    """The syntax tree of a file, which nobody may change: a file holds the ``forward`` of many modules."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise NoSource(str(error)) from error


@lru_cache(maxsize=_FILES)
def _compiled(module: ast.Module, file: str, flags: int) -> dict[str, list[CodeType]]:
    """All code objects of a module, by qualified name."""
    found: dict[str, list[CodeType]] = {}
    for code in _nested(compile(module, file, "exec", flags, dont_inherit=True)):
        found.setdefault(code.co_qualname, []).append(code)
    return found


def _text(function: FunctionType) -> str:
    """The present text of the place that the function was loaded from."""
    file = function.__code__.co_filename
    linecache.checkcache(file)
    lines = linecache.getlines(file, function.__globals__)
    if not lines:
        try:
            lines, _ = inspect.findsource(function)  # it knows more places than linecache: python -c, from 3.13 on
        except (OSError, TypeError, IndexError) as error:
            raise NoSource(str(error)) from error
    return "".join(lines)


def _compiled_together(tree: ast.Module, text: str, function: FunctionType) -> Iterator[tuple[ast.Module, ast.Module]]:
    """Modules as which the function may have been compiled, with the source that each was made of."""
    name, owner = function.__code__.co_name, function.__code__.co_qualname.rpartition(".")[0]
    yield tree, tree
    loader = function.__globals__.get("__loader__")  # of pytest, if it has rewritten assertions
    rewrite = getattr(sys.modules.get(type(loader).__module__), "rewrite_asserts", None)
    if rewrite is not None:
        yield _rewritten(text, rewrite, function.__code__.co_filename, getattr(loader, "config", None)), tree
    for statement in tree.body:  # of a notebook cell
        if any(_definitions(statement, name)):
            yield ast.Module([statement], []), tree
    for definition in _definitions(tree, name):  # by IPython's autoreload, which writes it anew, in a class of its own
        written = ast.unparse(definition)
        if owner.isidentifier():
            written = f"class {owner}:\n{textwrap.indent(written, '    ')}"
        alone = ast.parse(written)
        yield alone, alone


@lru_cache(maxsize=_FILES)
def _rewritten(text: str, rewrite: Callable[..., None], file: str, config: Any) -> ast.Module:
    """A file as pytest compiles it."""
    module = ast.parse(text)
    rewrite(module, text.encode(), file, config)
    return module


def _definitions(tree: ast.AST, name: str) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _first_line(definition: ast.FunctionDef) -> int:
    """The line where its code begins, decorators included."""
    return min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])


def _all_of(code: CodeType, first: int) -> tuple[Any, ...]:
    """Everything that decides what code does. Lines are counted from ``first``; columns are left out."""
    return (
        *(code.co_name, code.co_qualname, code.co_flags),
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        *(code.co_varnames, code.co_cellvars, code.co_freevars, code.co_names),
        *(code.co_code, code.co_exceptiontable),
        tuple(_constant(value, first) for value in code.co_consts),
        tuple((start, end, line and line - first) for start, end, line in code.co_lines()),
    )


def _constant(value: Any, first: int) -> Any:
    """A constant in a form in which 1 and True, or 0.0 and -0.0, are not equal."""
    if isinstance(value, CodeType):
        return _all_of(value, first)
    if isinstance(value, tuple | frozenset):
        return type(value)(_constant(item, first) for item in value)
    return type(value), repr(value)
