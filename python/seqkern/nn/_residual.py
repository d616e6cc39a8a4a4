"""Branches with a residual connection and layer norm, before or after: the Transformer's joints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._arrays import Array
from .dropout import Dropout
from .module import Module

# A branch maps x to y and a gradient function whose first result is dx; others may follow.
Branch = Callable[[Array], tuple[Array, Callable[..., tuple[Any, ...]]]]


def residual_vjp(x: Array, branch: Branch, norm: Module, norm_first: bool) -> tuple[Array, Any]:
    """x + branch(norm(x)) for norm_first, else norm(x + branch(x)).

    The pullback takes dy and returns dx and whatever else the branch's returns.
    """
    if norm_first:
        normed, pull_norm = norm.vjp(x)
        y, pull_branch = branch(normed)

        def pull_pre(dy: Array) -> tuple[Any, ...]:
            dnormed, *others = pull_branch(dy)
            return (dy + pull_norm(dnormed)[0], *others)

        return x + y, pull_pre

    y, pull_branch = branch(x)
    y, pull_norm = norm.vjp(x + y)

    def pull_post(dy: Array) -> tuple[Any, ...]:
        (dsum,) = pull_norm(dy)
        dx, *others = pull_branch(dsum)
        return (dsum + dx, *others)

    return y, pull_post


def then_dropout(result: tuple[Array, Any], dropout: Dropout) -> tuple[Array, Any]:
    """A branch's result with dropout on its output."""
    y, pull_branch = result
    y, pull_dropout = dropout.vjp(y)
    return y, lambda dy: pull_branch(pull_dropout(dy)[0])


def chain_vjp(x: Array, *modules: Module) -> tuple[Array, Any]:
    """One-input modules one after the other."""
    pulls = []
    for module in modules:
        x, pull = module.vjp(x)
        pulls.append(pull)

    def back(dy: Array) -> tuple[Array]:
        for pull in reversed(pulls):
            (dy,) = pull(dy)
        return (dy,)

    return x, back
