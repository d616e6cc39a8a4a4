"""Branches with a residual connection and layer norm, before or after: the Transformer's joints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._arrays import Array
from .activation import Activation
from .dropout import Dropout
from .linear import Linear
from .module import Module

# A branch maps x and a residual r to r + f(x), and gives the gradient function of f, whose first result is dx;
# others may follow. The gradient of r is that of the sum.
Branch = Callable[[Array, Array], tuple[Array, Callable[..., tuple[Any, ...]]]]


def residual_vjp(x: Array, branch: Branch, norm: Module, norm_first: bool) -> tuple[Array, Any]:
    """x + f(norm(x)) for norm_first, else norm(x + f(x)), f being the branch's function.

    The pullback takes dy and returns dx and whatever else the branch's returns.
    """
    if norm_first:
        normed, pull_norm = norm.vjp(x)
        y, pull_branch = branch(normed, x)

        def pull_pre(dy: Array) -> tuple[Any, ...]:
            dnormed, *others = pull_branch(dy)
            return (dy + pull_norm(dnormed)[0], *others)

        return y, pull_pre

    total, pull_branch = branch(x, x)
    y, pull_norm = norm.vjp(total)

    def pull_post(dy: Array) -> tuple[Any, ...]:
        (dsum,) = pull_norm(dy)
        dx, *others = pull_branch(dsum)
        return (dsum + dx, *others)

    return y, pull_post


def plus_dropout(residual: Array, result: tuple[Array, Any], dropout: Dropout) -> tuple[Array, Any]:
    """residual + dropout(y) of a result (y, gradient function)."""
    y, pull_result = result
    y, pull_dropout = dropout.vjp(y)
    return residual + y, lambda dy: pull_result(pull_dropout(dy)[0])


def linear_plus_vjp(x: Array, residual: Array, linear: Linear, dropout: Dropout) -> tuple[Array, Any]:
    """residual + dropout(linear(x)); where nothing is dropped, one product with the sum fused in."""
    if not dropout.active:
        return linear.vjp(x, residual=residual)
    return plus_dropout(residual, linear.vjp(x), dropout)


def feed_forward_vjp(
    x: Array, residual: Array, first: Linear, activation: Activation, dropout: Dropout, second: Linear, last: Dropout
) -> tuple[Array, Any]:
    """residual + last(second(dropout(act(first(x))))), the activation fused into the first product."""
    hidden, pull_first = first.vjp(x, activation=activation.fused)
    hidden, pull_dropout = dropout.vjp(hidden)
    y, pull_second = linear_plus_vjp(hidden, residual, second, last)
    return y, lambda dy: pull_first(*pull_dropout(*pull_second(dy)))


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
