"""Where work runs: the one protocol that every executor offers. Knows nothing of pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from nettrim.errors import NettrimError, should

Item = TypeVar("Item")
Result = TypeVar("Result")

_REFUSALS = ("can't allocate memory", "not enough memory")  # how torch's allocator of the CPU says it


class OutOfMemory(NettrimError, MemoryError):
    """An item needs more memory than there is, and cannot be made smaller."""


class ClusterError(NettrimError, RuntimeError):
    """The workers did not finish an item: they were lost too often, or nothing came within the time limit."""


@dataclass(frozen=True, eq=False)
class Held:
    """A value that stays where it was made; items and results may carry it at little cost.

    A function that gets an item with one finds the value itself in `value`. Elsewhere ask `Executor.fetch`.
    """

    value: Any


class Executor(Protocol):
    """Runs a pure function over items. Functions must not write into their inputs: shared tensors are shared.

    An item that runs out of memory is run again as `item.smaller()`, where it has such a method, until that answers
    None; then OutOfMemory is raised.
    """

    @property
    def workers(self) -> int:
        """How many items run at the same time."""
        ...

    @property
    def captures(self) -> bool:
        """Whether workers are also to run the network, each on a share of the samples, where memory is not shared."""
        ...

    def share(self, tensor: Tensor) -> Tensor:
        """A handle of a tensor that items may carry cheaply; a tensor itself where memory is shared already."""
        ...

    def hold(self, value: Any) -> Held:
        """`value`, put once where the workers reach it, for items of many calls."""
        ...

    def fetch(self, held: Held) -> Any:
        """The value that `hold` put away, or that a function left behind as the one `Held` in its result."""
        ...

    def one(self, function: Callable[[Item], Result], item: Item) -> Result:
        """function(item), with all that the executor has: for work that cannot be cut. Failures as in `map`."""
        ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """(index, function(item)) in order of completion.

        `items` is read lazily, at most `workers` of them ahead, so a generator that loads data on
        demand bounds the memory. An iterator that has no more is asked again whenever the reader comes for a result, so
        items may come of results. The first exception of an item is raised again, with a note of
        which item it was (`name_of`), and no further item starts.
        """
        ...


def name_of(item: object, index: int) -> str:
    """How an item is called in messages: its `name` where it has one."""
    name = getattr(item, "name", None)
    return name if isinstance(name, str) else f"item {index}"


def attempt(function: Callable[[Item], Result], item: Item) -> Result:
    """function(item), or of smaller and smaller items while memory runs out."""
    while True:
        try:
            return function(item)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            item = smaller(item, error)  # tried when the error, and with it all that it refers to, is gone
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def attempt_named(function: Callable[[Item], Result], item: Item, index: int) -> Result:
    """As `attempt`; a failure has a note of which item it was."""
    try:
        return attempt(function, item)
    except Exception as error:
        error.add_note(f"While working on {name_of(item, index)!r}.")
        raise


def smaller(item: Item, error: Exception) -> Item:
    """The same work in smaller pieces. Raises OutOfMemory where there are none."""
    shrink: Any = getattr(item, "smaller", None)
    less = None if shrink is None else shrink()
    if less is None:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        cure = "Use fewer workers, less calibration data, or smaller budget groups."
        raise OutOfMemory(should("memory", "enough for an item that cannot be cut further", said, cure)) from error
    return less


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, in this process or on a GPU."""
    if isinstance(error, OutOfMemory):
        return False  # nothing smaller is left
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS)
