"""Setting how often a network repeats its input, wherever its code defines the number of timesteps."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from types import FunctionType, MethodType
from typing import Any, Final

import torch
from torch import nn

from seenn_plugin.errors import ModelRefused
from seenn_plugin.state.patching import patched, patched_forward
from seenn_plugin.stepping.signature import call_keywords, tells_timesteps
from seenn_plugin.stepping.time_loop import read_source

TimestepOverride = Callable[[int], Any]
"""From a number of timesteps to a context in which the model repeats its input so often."""


def _by_argument(model: nn.Module, timesteps: int) -> TimestepOverride | None:
    """By an argument of ``forward``, which every call passes anyway."""
    x = torch.empty(0)
    return (lambda steps: nullcontext()) if call_keywords(model, x, timesteps) else None


def _by_attributes(model: nn.Module, timesteps: int) -> TimestepOverride | None:
    """By the attributes that carry the number: ``self.T`` of the network and of its parts."""
    held = [
        (vars(module), name)
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is int and value == timesteps and tells_timesteps(name)
    ]

    return (lambda steps: patched((attributes, name, steps) for attributes, name in held)) if held else None


def _by_globals(model: nn.Module, timesteps: int) -> TimestepOverride | None:
    """By global variables that ``forward`` reads: it runs with other globals, and the module's own do not change."""
    function: Any = getattr(model.forward, "__func__", None)
    if not isinstance(function, FunctionType):
        return None
    space = function.__globals__
    names = [n for n in function.__code__.co_names if type(space.get(n)) is int and space[n] == timesteps]

    def made_for(steps: int) -> FunctionType:  # made at every call, because other globals may have changed
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


def _by_literals(model: nn.Module, timesteps: int) -> TimestepOverride | None:
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


def _running(model: nn.Module, made_for: Callable[[int], FunctionType]) -> TimestepOverride:
    """Lets the model run another ``forward`` for a while."""
    return lambda steps: patched_forward({model: MethodType(made_for(steps), model)})


TIMESTEP_OVERRIDES: Final = (_by_argument, _by_attributes, _by_globals, _by_literals)
"""Functions that find an override for a model and its number of timesteps, in the order in which they are tried."""
