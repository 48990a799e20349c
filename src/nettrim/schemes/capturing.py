"""Samples of layers: captured here, or by all workers, each on a share of the batches.

Shares are consecutive batches, joined in order, so the samples are those of one capture. Workers that share no memory
keep theirs until they are asked for; the jobs of an array exchange files in the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nettrim.checkpoint import Checkpoint, digest_tensors
from nettrim.executors.base import Executor, Held
from nettrim.executors.shard import Shard, Unfinished
from nettrim.models.base import LayerSamples, Network
from nettrim.models.capture import join_samples

_SHARES = 4  # for each worker: what one holds at a time is smaller, and the driver joins while others still run
_POLL = 0.5  # seconds between looks for the files of other shares


@dataclass(frozen=True, eq=False)
class _Share:
    """Some batches for a worker."""

    network: Held
    layer: str
    batches: tuple[object, ...]
    first: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.layer}, samples of batches {self.first}-{self.first + len(self.batches) - 1}"


@dataclass(frozen=True, eq=False)
class Captures:
    """Captures layers on `batches`, with what the executor's workers do where its `captures` is set."""

    batches: Sequence[object]
    executor: Executor
    store: Checkpoint | None = None
    _units: dict[str, list[str]] = field(default_factory=dict)

    def of(self, network: Network, name: str) -> LayerSamples:
        """The samples of a layer with the network's present weights.

        Raises `Unfinished` where those of other shares of an array are missing.
        """
        if not self.executor.captures or len(self.batches) < 2:
            return network.capture(self.batches, [name])[name]
        if isinstance(self.executor, Shard) and self.store is not None:
            parts = self._from_files(network, name, self.executor, self.store)
        else:
            parts = self._from_workers(network, name)
        return join_samples(name, parts, network.new_store())

    def give(self, network: Network, name: str) -> None:
        """This share's part of what `of` would answer, for the other shares of an array; nothing elsewhere."""
        if self.executor.captures and isinstance(self.executor, Shard) and self.store is not None:
            self._give(network, name, self.executor, self.store)

    def release(self, name: str) -> None:
        """Remove the files of a layer of which all blocks are finished."""
        for unit in self._units.pop(name, ()):
            assert self.store is not None
            self.store.remove(unit)

    def _from_workers(self, network: Network, name: str) -> Iterator[LayerSamples]:
        held = self.executor.hold(network.copy())
        shares = [
            _Share(held, name, tuple(self.batches[start:stop]), start)
            for start, stop in _ranges(len(self.batches), _SHARES * self.executor.workers)
        ]
        done: dict[int, Held] = {}
        following = 0
        for index, samples in self.executor.map(_capture, shares):
            done[index] = samples
            while following in done:
                yield self.executor.fetch(done.pop(following))
                following += 1

    def _give(self, network: Network, name: str, shard: Shard, store: Checkpoint) -> tuple[str, list[str]]:
        """(digest of the network, names of all shares' files), with this share's file there."""
        ranges = _ranges(len(self.batches), shard.count)
        program = digest_tensors(network.state())
        units = [f"{name} samples {program[:16]} {place + 1} of {len(ranges)}" for place in range(len(ranges))]
        self._units.setdefault(name, []).extend(units)
        place = shard.index - 1
        if place < len(ranges) and store.load(units[place]) is None:
            start, stop = ranges[place]
            samples = network.capture(self.batches[start:stop], [name], start)[name]
            store.save(units[place], program, {key: x for key, x in vars(samples).items() if x is not None}, {})
        return program, units

    def _from_files(self, network: Network, name: str, shard: Shard, store: Checkpoint) -> Iterator[LayerSamples]:
        program, units = self._give(network, name, shard, store)
        limit = time.monotonic() + shard.wait
        for unit in units:
            while (stored := store.load(unit)) is None or stored.program != program:
                if time.monotonic() >= limit:
                    raise Unfinished(
                        f"This share's samples of layer {name!r} are done; others are missing, the first {unit!r}. "
                        "Run the shares at the same time with a `wait`, or run this one again when the others are done."
                    )
                time.sleep(min(_POLL, max(0.0, limit - time.monotonic())))
            yield LayerSamples(**stored.tensors)


def _capture(share: _Share) -> Held:
    """On a worker: the samples, to stay there until they are asked for."""
    network: Network = share.network.value
    return Held(network.capture(share.batches, [share.layer], share.first)[share.layer])


def _ranges(count: int, most: int) -> list[tuple[int, int]]:
    """`count` items in at most `most` consecutive ranges, as even as can be."""
    parts = min(count, max(1, most))
    return [(place * count // parts, (place + 1) * count // parts) for place in range(parts)]
