"""Modules made of modules: Sequential and ModuleList."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ._arrays import Array
from .module import Module, Pullback


class ModuleList(Module):
    """A list of modules whose parameters are named `0.weight`, `1.weight`, ... as in torch."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._items: list[Module] = []
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end. Returns self."""
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: every item must be a Module, got {type(module).__name__}"
            )
        self._items.append(module)
        return self

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(k), module) for k, module in enumerate(self._items))

    def replace_child(self, name: str, module: Module) -> None:
        self._items[int(name)] = module

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items)

    def __getitem__(self, k: int) -> Module:
        return self._items[k]


class Sequential(ModuleList):
    """Modules applied one after the other; each takes one array and returns one array."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def __call__(self, x: Array) -> Array:
        for module in self:
            x = module(x)
        return x

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        pullbacks: list[Pullback] = []
        for module in self:
            x, pullback = module.vjp(x)
            pullbacks.append(pullback)

        def pull(dy: Any) -> tuple[Any]:
            for pullback in reversed(pullbacks):
                (dy,) = pullback(dy)
            return (dy,)

        return x, Pullback(pull)
