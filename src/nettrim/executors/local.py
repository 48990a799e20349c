"""Threads of this process, one torch thread each."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from nettrim.errors import InputError, is_whole, should
from nettrim.executors.base import Held, attempt_named
from nettrim.threads import torch_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OneMachine:
    """What the executors of this machine alone have in common."""

    def __init__(self, workers: int | None = None) -> None:
        """`workers`: at the same time; None takes the processors this process may use.

        Raises InputError unless it is a whole number >= 1.
        """
        if workers is None:
            workers = processors()
        if not is_whole(workers, 1):
            raise InputError(should("workers", "a whole number >= 1", repr(workers)))
        self._workers = workers

    @property
    def workers(self) -> int:
        """How many items run at the same time."""
        return self._workers

    @property
    def captures(self) -> bool:
        """False: this process has all samples."""
        return False

    def one(self, function: Callable[[Item], Result], item: Item) -> Result:
        """function(item) in the calling thread, with as many torch threads as it has."""
        return attempt_named(function, item, 0)

    def close(self) -> None:
        """End what was started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LocalExecutor(OneMachine):
    """A pool of threads over items; inline in the calling thread when `workers` is 1.

    torch releases the interpreter lock in its kernels, and one torch thread an item beats several
    inside one item (no waiting on spinning threads when the machine is shared). Both modes run with
    one torch thread, so results do not depend on `workers`. On Ctrl-C, or when an item fails, the exception is raised
    at once, no further item starts, and those running are told to stop.
    """

    def share(self, tensor: Tensor) -> Tensor:
        """The tensor itself: threads share memory."""
        return tensor

    def hold(self, value: Any) -> Held:
        """The value itself."""
        return Held(value)

    def fetch(self, held: Held) -> Any:
        """The value itself."""
        return held.value

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """(index, function(item)) in order of completion; see `Executor.map`."""
        return self._inline(function, items) if self._workers == 1 else self._pooled(function, items)

    def _inline(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        for index, item in enumerate(items):
            with torch_threads(1):
                result = attempt_named(function, item, index)
            yield index, result

    def _pooled(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        source = enumerate(items)
        running: dict[Future[Result], int] = {}
        busy: set[int] = set()  # identifiers of threads with an item in hand

        def call(item: Item, index: int) -> Result:
            busy.add(threading.get_ident())
            try:
                return attempt_named(function, item, index)
            finally:
                busy.discard(threading.get_ident())

        pool = ThreadPoolExecutor(self._workers, "nettrim", initializer=torch.set_num_threads, initargs=(1,))
        threads = torch.get_num_threads()
        try:
            while True:
                while len(running) < self._workers and (entry := next(source, None)) is not None:
                    index, item = entry
                    running[pool.submit(call, item, index)] = index
                if not running:
                    break
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(finished, key=running.__getitem__):
                    index = running.pop(future)
                    yield index, future.result()
        except BaseException:  # also when the reader of the results stops early
            pool.shutdown(wait=False, cancel_futures=True)
            for thread in tuple(busy):
                _stop(thread)
            raise
        finally:
            pool.shutdown(wait=False)
            torch.set_num_threads(threads)


def _stop(thread: int) -> None:
    """Raise an interrupt in a thread at its next Python instruction; kernels that are running finish first."""
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    set_exception(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))
