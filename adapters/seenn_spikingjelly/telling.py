"""Telling a network how often it is to repeat its input: by whatever says it in its code."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import FunctionType, MethodType
from typing import Any, Final

import torch
from torch import nn

from seenn_plugin.errors import ModelRefused
from seenn_plugin.signature import call_keywords, tells_timesteps
from seenn_plugin.time_loop import read_source

Teller = Callable[[int], Any]
"""Makes a context in which the model makes the given number of timesteps of the input that it repeats."""


def _by_argument(model: nn.Module, timesteps: int) -> Teller | None:
    """By an argument of ``forward``, which every call gets that way."""
    x = torch.empty(0)
    return (lambda steps: nullcontext()) if call_keywords(model, x, timesteps) else None


def _by_attributes(model: nn.Module, timesteps: int) -> Teller | None:
    """By the attributes that carry the number: ``self.T`` of the network and of its parts."""
    held = [
        (vars(module), name)
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is int and value == timesteps and tells_timesteps(name)
    ]

    @contextmanager
    def told(steps: int) -> Iterator[None]:
        before = [attributes[name] for attributes, name in held]
        try:
            for attributes, name in held:
                attributes[name] = steps
            yield
        finally:
            for (attributes, name), value in zip(held, before, strict=True):
                attributes[name] = value

    return told if held else None


def _by_globals(model: nn.Module, timesteps: int) -> Teller | None:
    """By the names of its file that ``forward`` reads: it is run with others. Those of the file stay as they are."""
    function: Any = getattr(model.forward, "__func__", None)
    if not isinstance(function, FunctionType):
        return None
    space = function.__globals__
    names = [n for n in function.__code__.co_names if type(space.get(n)) is int and space[n] == timesteps]

    def made_for(steps: int) -> FunctionType:  # each time anew: what else lies in the file may have changed
        other = FunctionType(
            function.__code__,
            {**space, **dict.fromkeys(names, steps)},
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        other.__kwdefaults__ = function.__kwdefaults__
        return other

    return _running(model, made_for) if names else None


def _by_literals(model: nn.Module, timesteps: int) -> Teller | None:
    """By the number where it is written in ``forward``: ``x.repeat(4, 1, 1, 1, 1)``, or ``T = 4``."""
    try:
        source = read_source(model)
    except ModelRefused:
        return None
    written = [
        constant
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
        for argument in node.args[:2]
        for constant in (
            argument.elts[0] if isinstance(argument, ast.Tuple | ast.List) and argument.elts else argument,
        )
        if isinstance(constant, ast.Constant) and constant.value == timesteps and type(constant.value) is int
    ]
    written += [
        node.value
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and (type(node.value.value), node.value.value) == (int, timesteps)
        and any(isinstance(target, ast.Name) and tells_timesteps(target.id) for target in node.targets)
    ]
    places = {(constant.lineno, constant.col_offset) for constant in written}

    @cache
    def made_for(steps: int) -> FunctionType:
        tree = copy.deepcopy(source.tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and (node.lineno, node.col_offset) in places:
                node.value = steps
        other = source.compile(tree.args, tree.body)
        other.__defaults__, other.__kwdefaults__ = source.function.__defaults__, source.function.__kwdefaults__
        return other

    return _running(model, made_for) if places else None


def _running(model: nn.Module, made_for: Callable[[int], FunctionType]) -> Teller:
    """Lets the model run another ``forward`` for the time being."""

    @contextmanager
    def told(steps: int) -> Iterator[None]:
        attributes = vars(model)
        before = attributes.get("forward")
        attributes["forward"] = MethodType(made_for(steps), model)
        try:
            yield
        finally:
            if before is None:
                del attributes["forward"]
            else:
                attributes["forward"] = before

    return told


TELLERS: Final = (_by_argument, _by_attributes, _by_globals, _by_literals)
"""Ways to find a teller for a model that makes the given number of timesteps, in the order in which they are tried."""
