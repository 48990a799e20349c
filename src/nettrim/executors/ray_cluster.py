"""Items as tasks of a Ray cluster (extra `ray`): one on this machine, or one that is there already.

Tensors that all items read are put into the object store once and read from shared memory, one copy a machine. A
task is a pure function of its item, so Ray may run it again when a worker or a machine is lost.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self, TypeVar

from torch import Tensor

from nettrim.errors import InputError, MissingExtraError, is_number, is_whole, should
from nettrim.executors.base import ClusterError, Held, OutOfMemory, attempt_named, name_of, smaller
from nettrim.executors.parcel import Remote, pack, run, share
from nettrim.executors.swap import Place, put_back, replaced

Item = TypeVar("Item")
Result = TypeVar("Result")

_HEARTBEAT = 5.0  # seconds after which a wait looks up
_FETCH = 300.0  # seconds that the transfer of a finished result may take
_NAMED = 3  # items named in a message


@dataclass(frozen=True, eq=False)
class _Sent:
    """An item on its way."""

    index: int
    item: Any
    name: str
    left: Any  # the reference of what its function leaves behind


class Ray:
    """Runs items on a Ray cluster; the answers are those of one thread of this process.

    The cluster starts, or is connected to, with the first item and serves until `close`, the end of a `with` block, or
    of the process; use one for a whole trim. Usage statistics and the dashboard are off. Ray listens on all network
    interfaces, so a cluster started here asks for a token, which only this process and its children have; that of a
    cluster that is there already is in the hands of who started it (RAY_AUTH_MODE=token, `ray get-auth-token`).
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        timeout: float = 3600.0,
        retries: int = 3,
        captures: bool = False,
    ) -> None:
        """Nothing starts yet.

        address: of a cluster, such as "10.0.0.1:6379", or "auto"; None starts one here.
        workers: items at the same time; None: as many as the cluster has room for.
        cpus, gpus: what an item takes; parts of a GPU are allowed.
        timeout: seconds without any finished item after which waiting ends.
        retries: how often an item is run again after its worker or machine was lost.
        captures: the workers also run the network, each on a share of the batches; the model travels to them.
        Raises MissingExtraError without Ray, InputError for the other arguments.
        """
        if address is not None and not isinstance(address, str):
            raise InputError(should("address", "None, or that of a cluster", repr(address)))
        for name, value in (("cpus", cpus), ("gpus", gpus)):
            if not (is_number(value, 0) and math.isfinite(value)):
                raise InputError(should(name, "a number >= 0", repr(value)))
        if not is_whole(retries, 0):
            raise InputError(should("retries", "a whole number >= 0", repr(retries)))
        if workers is not None and not is_whole(workers, 1):
            raise InputError(should("workers", "a whole number >= 1, or None", repr(workers)))
        if not (is_number(timeout) and timeout > 0):
            raise InputError(should("timeout", "a number of seconds > 0", repr(timeout)))
        self._ray = _import_ray(local=address is None)
        self._address, self._asked = address, workers
        self._cpus, self._gpus = float(cpus), float(gpus)
        self._timeout, self._retries = float(timeout), retries
        self._shared: dict[int, Any] = {}  # object references by the address of the memory they are copies of
        self._task: Any = None
        self._own = False
        self._captures = captures

    @classmethod
    def parse(cls, text: str, *, captures: bool = False) -> Self:
        """From "ray", or "ray://" and a cluster's address. Raises InputError for anything else."""
        scheme, _, address = text.partition("://") if isinstance(text, str) else ("", "", "")
        if scheme != "ray" or ("://" in text and not address):
            raise InputError(should("executor", "ray, or ray://ADDRESS", repr(text)))
        return cls(address or None, captures=captures)

    @property
    def workers(self) -> int:
        """How many items run at the same time; starts the cluster."""
        self._start()
        room = sum(self._room(node) for node in self._nodes())
        return max(1, room if self._asked is None else min(room, self._asked))

    @property
    def captures(self) -> bool:
        """Whether the workers run the network, each on a share of the samples."""
        return self._captures

    def share(self, tensor: Tensor) -> Tensor:
        """The tensor, contiguous; items that carry it or views of it carry a reference to the object store's copy."""
        self._start()
        return share(tensor, self._shared, self._ray.put)

    def hold(self, value: Any) -> Held:
        """Put `value` into the object store."""
        self._start()
        skeleton, arrays, references = pack(value, self._shared)
        return Held(Remote(self._ray.put((skeleton, arrays)), tuple(references)))

    def fetch(self, held: Held) -> Any:
        """The value from the object store. Raises ClusterError when it is lost and cannot be made again."""
        remote = held.value
        try:
            skeleton, arrays = self._ray.get(remote.reference, timeout=_FETCH)
            return put_back(skeleton, arrays, self._ray.get(list(remote.shared), timeout=_FETCH), copies=True)
        except self._ray.exceptions.RayError as error:
            cure = "Finished work is in the checkpoint: resume."
            got = type(error).__name__
            raise ClusterError(should("cluster", "able to give back what it holds", got, cure)) from error

    def one(self, function: Callable[[Item], Result], item: Item) -> Result:
        """function(item) on a GPU of the cluster, or where none was asked for in this process, with all its threads."""
        if self._gpus:
            return next(result for _, result in self.map(function, [item]))
        return attempt_named(function, item, 0)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """(index, function(item)) in order of completion; see `Executor.map`.

        The function must be one of a module that the workers can import. A failed item raises its own exception, with
        the remote traceback as a note; ClusterError when the cluster itself fails.
        """
        self._start()
        source = enumerate(items)
        pending: dict[Any, _Sent] = {}
        try:
            while True:
                while len(pending) < 2 * self.workers and (entry := next(source, None)) is not None:
                    self._submit(function, *entry, pending)
                if not pending:
                    return
                done = self._wait(pending)
                sent = pending.pop(done)
                try:
                    result = self._fetch(done, sent)
                except _Killed as killed:  # perhaps for its memory
                    self._submit(function, sent.index, self._less(sent, killed), pending)
                    continue
                yield sent.index, result
        except KeyboardInterrupt:
            if self._own:  # `close` ends them; cancelled while it ends, a task may abort this process (task_manager.cc)
                pending.clear()
            raise
        finally:  # also when the reader of the results stops early
            for reference in pending:
                self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Stop a cluster that was started here, or let go of one that was there."""
        self._shared.clear()
        self._task = None
        if self._own:
            self._ray.shutdown()
            self._own = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        if self._task is not None and self._ray.is_initialized():
            return
        self._shared.clear()
        if not self._ray.is_initialized():
            self._connect()
            self._own = True
        self._check_room()
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": self._retries, "num_returns": 2}
        self._task = self._ray.remote(**options)(run)

    def _connect(self) -> None:
        quiet = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            if self._address is None:
                cpus = None if self._asked is None else max(1, math.ceil(self._asked * self._cpus))
                self._ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
            else:
                self._ray.init(address=self._address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            got = f"{self._address!r} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            cure = "Check the address, and that both sides have the same version of Ray and the same token."
            raise InputError(should("address", "None, or that of a cluster that answers", got, cure)) from error

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _room(self, node: dict[str, float]) -> int:
        """How many items fit on a machine."""
        rooms = [node.get(kind, 0.0) // need for kind, need in (("CPU", self._cpus), ("GPU", self._gpus)) if need]
        return int(min(rooms, default=1))

    def _check_room(self) -> None:
        """A task that no machine has room for would wait for ever."""
        nodes = self._nodes()
        if any(self._room(node) for node in nodes):
            return
        for name, kind, need in (("gpus", "GPU", self._gpus), ("cpus", "CPU", self._cpus)):
            most = max((node.get(kind, 0.0) for node in nodes), default=0.0)
            if most < need:
                raise InputError(should(name, f"at most the {most:g} that a machine of the cluster has", f"{need:g}"))
        raise InputError(should("cpus", "with `gpus` within one machine", f"{self._cpus:g} and {self._gpus:g}"))

    def _submit(self, function: Callable[[Item], Result], index: int, item: Item, pending: dict[Any, _Sent]) -> None:
        skeleton, arrays, references = pack(item, self._shared)
        result, left = self._task.remote(function, skeleton, arrays, *references)
        pending[result] = _Sent(index, item, name_of(item, index), left)

    def _wait(self, pending: dict[Any, _Sent]) -> Any:
        """The next finished reference; ClusterError after the time limit, saying what was awaited."""
        limit = time.monotonic() + self._timeout
        while True:
            left = limit - time.monotonic()
            done, _ = self._ray.wait(list(pending), num_returns=1, timeout=max(0.0, min(_HEARTBEAT, left)))
            if done:
                return done[0]
            if left <= 0:
                names = [sent.name for sent in pending.values()]
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                nodes = self._nodes()
                got = (
                    f"none of {', '.join(map(repr, names[:_NAMED]))}{more}; the cluster has {len(nodes)} machines "
                    f"with room for {sum(map(self._room, nodes))} items"
                )
                cure = "Raise `timeout` if items take that long; finished work is in the checkpoint."
                raise ClusterError(should("cluster", f"done with an item within {self._timeout:g} s", got, cure))

    def _fetch(self, reference: Any, sent: _Sent) -> Any:
        failures = self._ray.exceptions
        try:
            skeleton, arrays = self._ray.get(reference, timeout=_FETCH)
        except failures.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else ClusterError(str(error))
            cause.add_note(f"While working on {sent.name!r}.")
            cause.add_note(f"On the worker:\n{error}")
            raise cause from None
        except (failures.OutOfMemoryError, failures.WorkerCrashedError) as error:
            raise _Killed(type(error).__name__) from error
        except failures.RayError as error:
            raise self._lost(type(error).__name__, sent) from error
        result = put_back(skeleton, arrays, copies=True)
        return replaced(result, Place, lambda _: Held(Remote(sent.left)))

    def _less(self, sent: _Sent, killed: _Killed) -> Any:
        """The item in smaller pieces. Raises ClusterError where there are none."""
        try:
            return smaller(sent.item, killed)
        except OutOfMemory:
            raise self._lost(str(killed), sent) from killed

    def _lost(self, what: str, sent: _Sent) -> ClusterError:
        got = f"{what} for {sent.name!r} after {self._retries} more tries"
        cure = "Finished work is in the checkpoint: resume. Out of memory: give an item more `cpus`."
        return ClusterError(should("cluster", "able to finish an item", got, cure))


class _Killed(Exception):
    """The worker of an item was killed again and again."""


def _import_ray(local: bool) -> ModuleType:
    """Ray, told before it is loaded what it reads from the environment only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", "1")  # a task killed for its memory is run again in smaller pieces
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local:
        if "ray" not in sys.modules:  # once loaded, it no longer looks, and asks for a token by itself since 2.60
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray
