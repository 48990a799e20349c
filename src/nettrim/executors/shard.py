"""A share of the work for a plain array of jobs: run i of n solves its blocks, files are all they exchange."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any, Self, TypeVar

from torch import Tensor

from nettrim.errors import InputError, NettrimError, is_number, is_whole, should
from nettrim.executors.base import Executor, Held
from nettrim.executors.local import LocalExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Unfinished(NettrimError):
    """A share is done and kept, but blocks or samples of other shares, `missing` by their names, are not there yet."""

    def __init__(self, message: str, missing: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class Shard:
    """Share `index` of `count`, from 1, of a trim with a checkpoint that all shares can write to.

    Every share has the same model, data and recipe. Each solves its blocks only; one that finds all blocks finished,
    or a run of the same checkpoint without a share, puts them together. A share that is done while others are not
    waits until it has been `wait` seconds without news of them, then raises `Unfinished`. The cascade needs all blocks
    of a layer before it goes on to the next: let shares that run at the same time wait, or run the array once a layer.

    Shares that wait solve the parts of a joint budget together; one of them leads, and solves what others have not
    brought after `wait` seconds. They wait until no share has finished anything for twice that time. Without a `wait`
    it solves all parts itself.
    """

    def __init__(
        self,
        index: int,
        count: int,
        *,
        wait: float = 0.0,
        executor: Executor | None = None,
        captures: bool = False,
    ) -> None:
        """`executor` runs the share's own blocks; None: threads of this process, or what `nettrim.trim` finds better.

        captures: run the network on this share's batches only, and read the samples of other batches from the files of
        the other shares, which have to run at the same time, with a `wait`, or again.
        Raises InputError.
        """
        if not (is_whole(index, 1) and is_whole(count, 1) and index <= count):
            raise InputError(should("shard", "i/n with whole numbers 1 <= i <= n", f"{index!r}/{count!r}"))
        if not is_number(wait, 0):
            raise InputError(should("wait", "a number of seconds >= 0", repr(wait)))
        if executor is not None and (isinstance(executor, type) or not hasattr(executor, "map")):
            raise InputError(should("executor", "one of `nettrim.executors`, or None", repr(executor)))
        self.index, self.count, self.wait = index, count, float(wait)
        self._executor = executor or LocalExecutor()
        self.free = executor is None  # to run elsewhere
        self._captures = captures

    @classmethod
    def parse(cls, text: str, *, wait: float = 0.0, executor: Executor | None = None, captures: bool = False) -> Self:
        """From "i/n". Raises InputError for anything else."""
        match = re.fullmatch(r"\s*([0-9]+)/([0-9]+)\s*", text) if isinstance(text, str) else None
        if match is None:
            raise InputError(should("shard", "i/n such as 1/4", repr(text)))
        return cls(int(match[1]), int(match[2]), wait=wait, executor=executor, captures=captures)

    def on(self, executor: Executor) -> Self:
        """The same share with another executor for its own blocks."""
        share = copy(self)
        share._executor, share.free = executor, False
        return share

    @property
    def workers(self) -> int:
        """How many items run at the same time, in this share."""
        return self._executor.workers

    @property
    def captures(self) -> bool:
        """Whether every share runs the network on its part of the samples."""
        return self._captures

    def mine(self, number: int) -> bool:
        """Whether this share solves the block, or the part of a joint budget, with this number in the whole trim."""
        return number % self.count == self.index - 1

    def share(self, tensor: Tensor) -> Tensor:
        """As the share's executor does."""
        return self._executor.share(tensor)

    def hold(self, value: Any) -> Held:
        """As the share's executor does."""
        return self._executor.hold(value)

    def fetch(self, held: Held) -> Any:
        """As the share's executor does."""
        return self._executor.fetch(held)

    def one(self, function: Callable[[Item], Result], item: Item) -> Result:
        """As the share's executor does."""
        return self._executor.one(function, item)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """As the share's executor does; the items are this share's own."""
        return self._executor.map(function, items)
