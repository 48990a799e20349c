"""Where work runs: the one protocol that every executor offers. Knows nothing of pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs a pure function over items. Functions must not write into their inputs: shared tensors are shared."""

    @property
    def workers(self) -> int:
        """How many items run at the same time."""
        ...

    def share(self, tensor: Tensor) -> Tensor:
        """A handle of a tensor that items may carry cheaply; a tensor itself where memory is shared already."""
        ...

    def one(self, function: Callable[[Item], Result], item: Item) -> Result:
        """function(item), with all that the executor has: for work that cannot be cut. Failures as in `map`."""
        ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """(index, function(item)) in order of completion.

        `items` is read lazily, at most `workers` of them ahead, so a generator that loads data on
        demand bounds the memory. The first exception of an item is raised again, with a note of
        which item it was (`name_of`), and no further item starts.
        """
        ...


def name_of(item: object, index: int) -> str:
    """How an item is called in messages: its `name` where it has one."""
    name = getattr(item, "name", None)
    return name if isinstance(name, str) else f"item {index}"
