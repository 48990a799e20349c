"""Items in processes of this machine (extra `processes`): as fast as it has cores, without a cluster.

Threads share one interpreter, whose lock the solver's many small operations wait for; processes do not. Tensors that
all items read are written to a temporary file once, and every worker maps that file: one copy, whatever their number.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from nettrim.errors import InputError, MissingExtraError, should
from nettrim.executors.base import ClusterError, Held, OutOfMemory, name_of, smaller
from nettrim.executors.local import OneMachine
from nettrim.executors.parcel import Remote, pack, run, share
from nettrim.executors.swap import Place, put_back, replaced
from nettrim.scratch import scratch_folder

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRIES = 3  # of an item whose workers are killed
_LOOK = 2.0  # seconds between a worker's looks for its parent
_IDLE = 600  # seconds after which a worker without work ends


@dataclass(frozen=True)
class _Array:
    """An array in a file."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def open(self) -> np.ndarray:
        """The array, read-only and not read before it is used."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)

    def remove(self) -> None:
        """Delete the file; who has it open keeps what is in it."""
        Path(self.path).unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Value:
    """A held value without its tensors, and the files of those."""

    skeleton: Any
    arrays: tuple[_Array, ...]

    def open(self) -> tuple[Any, tuple[np.ndarray, ...]]:
        """As `put_back` takes it."""
        return self.skeleton, tuple(array.open() for array in self.arrays)


@dataclass(frozen=True, eq=False)
class _Sent:
    """An item at work, and how often its workers were lost."""

    index: int
    item: Any
    name: str
    lost: int = 0


class Processes(OneMachine):
    """Runs items in processes of this machine; the answers are those of one thread.

    The processes start with the first item and serve until `close`, the end of a `with` block, or of this process;
    use one for a whole trim. What they share lies in a folder of their own for temporary files, which goes with them,
    or with the next executor's start where this process is killed. On Ctrl-C, or when an item fails, they are ended.
    """

    def __init__(self, workers: int | None = None, *, folder: str | os.PathLike[str] | None = None) -> None:
        """Nothing starts yet.

        workers: processes; None takes the processors this process may use.
        folder: where the temporary files go, as large as the samples of the layers at work; None: the system's.
        Raises MissingExtraError without loky, InputError for the arguments.
        """
        super().__init__(workers)
        self._loky = _import_loky()
        if folder is not None and not (isinstance(folder, str | os.PathLike) and Path(folder).is_dir()):
            raise InputError(should("folder", "a directory, or None", repr(folder)))
        try:
            self._folder, _ = scratch_folder(self, folder)
        except OSError as error:
            got = f"{folder!r} ({error.strerror})"
            cure = "Name one, or set the environment variable TMPDIR."
            raise InputError(should("folder", "a directory that can be written", got, cure)) from error
        self._names = count()
        self._shared: dict[int, _Array] = {}  # by the address of the memory they are copies of
        self._pool: Any = None

    def share(self, tensor: Tensor) -> Tensor:
        """The tensor, contiguous; items that carry it or views of it carry the name of a file.

        Raises ClusterError where there is no room for the file.
        """
        return share(tensor, self._shared, self._write, _Array.remove)

    def hold(self, value: Any) -> Held:
        """Put `value` into files."""
        skeleton, arrays, references = pack(value, self._shared)
        return self._held(skeleton, arrays, tuple(references))

    def fetch(self, held: Held) -> Any:
        """The value from its files."""
        remote = held.value
        skeleton, arrays = remote.reference.open()
        return put_back(skeleton, arrays, [array.open() for array in remote.shared], copies=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """(index, function(item)) in order of completion; see `Executor.map`.

        A failed item raises its own exception, with the worker's traceback as its cause; ClusterError when workers are
        killed again and again.
        """
        source = enumerate(items)
        pending: dict[Future[Any], _Sent] = {}
        try:
            while True:
                while len(pending) < self._workers and (entry := next(source, None)) is not None:
                    self._submit(function, _Sent(*entry, name_of(entry[1], entry[0])), pending)
                if not pending:
                    return
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                if any(map(_broken, done)):
                    self._restart(function, pending)
                    continue
                for future in sorted(done, key=lambda future: pending[future].index):
                    sent = pending.pop(future)
                    yield sent.index, self._result(future, sent)
        except BaseException:  # also when the reader of the results stops early
            self._end()
            raise

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _submit(self, function: Callable[[Any], Any], sent: _Sent, pending: dict[Future[Any], _Sent]) -> None:
        if self._pool is None:
            self._pool = self._loky.ProcessPoolExecutor(
                self._workers, timeout=_IDLE, initializer=_watch, initargs=(os.getpid(),)
            )
        try:
            future = self._pool.submit(_work, function, *pack(sent.item, self._shared))
        except BrokenProcessPool:  # a process was killed while it waited for work
            self._restart(function, pending, sent)
        else:
            pending[future] = sent

    def _restart(self, function: Callable[[Any], Any], pending: dict[Future[Any], _Sent], *fresh: _Sent) -> None:
        """Submit what is not finished, and what is `fresh`, to new processes: some of the old ones were killed."""
        lost = [future for future in pending if not future.done() or _broken(future)]
        self._end()
        for sent in [*(_again(pending.pop(future)) for future in lost), *fresh]:
            self._submit(function, sent, pending)

    def _result(self, future: Future[Any], sent: _Sent) -> Any:
        try:
            (skeleton, arrays), left = future.result()
        except Exception as error:
            error.add_note(f"While working on {sent.name!r}.")
            raise
        result = put_back(skeleton, arrays)
        return replaced(result, Place, lambda _: self._held(left[0], left[1], ()))

    def _held(self, skeleton: Any, arrays: tuple[np.ndarray, ...], shared: tuple[Any, ...]) -> Held:
        files = tuple(self._write(array) for array in arrays)
        held = Held(Remote(_Value(skeleton, files), shared))
        weakref.finalize(held, _remove, files)
        return held

    def _write(self, array: np.ndarray) -> _Array:
        path = self._folder / str(next(self._names))
        try:
            array.tofile(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            cure = "Give `folder`, or the environment variable TMPDIR, a folder with more room."
            raise ClusterError(should("folder", "able to hold the samples", str(error), cure)) from error
        return _Array(str(path), array.dtype.str, array.shape)

    def _end(self) -> None:
        """Kill the processes: what they do is not wanted any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None


def _broken(future: Future[Any]) -> bool:
    """Whether what is done ended because a process was killed."""
    return isinstance(future.exception(), BrokenProcessPool)


def _again(sent: _Sent) -> _Sent:
    """An item whose worker may have been killed for its memory: in smaller pieces, where it has any."""
    if sent.lost + 1 >= _TRIES:
        cure = "Out of memory: use fewer workers. Finished work is in the checkpoint, where there is one: resume."
        raise ClusterError(should("workers", "alive", f"some killed {_TRIES} times during {sent.name!r}", cure))
    try:
        item = smaller(sent.item, MemoryError("a worker was killed"))
    except OutOfMemory:
        item = sent.item
    return _Sent(sent.index, item, sent.name, sent.lost + 1)


def _work(function: Callable[[Any], Any], skeleton: Any, arrays: tuple[Any, ...], references: list[Any]) -> Any:
    return run(function, skeleton, arrays, *(reference.open() for reference in references))


def _watch(parent: int) -> None:
    """End this worker when the process that it works for is gone, killed before it could say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _remove(arrays: tuple[_Array, ...]) -> None:
    for array in arrays:
        array.remove()


def _import_loky() -> ModuleType:
    try:
        import loky  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingExtraError("loky", "processes") from error
    return loky
