"""Samples of layers: captured here, or by all workers, each on a share of the batches.

Shares are consecutive batches, joined in order, so the samples are those of one capture. Workers that share no memory
keep theirs until they are asked for; the jobs of an array exchange files in the checkpoint.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nettrim.checkpoint import Checkpoint, Stored, digest_tensors
from nettrim.executors.base import Executor, Held
from nettrim.executors.shard import Shard, Unfinished
from nettrim.models.base import LayerSamples, Network
from nettrim.models.capture import join_samples

_SHARES = 4  # for each worker: what one holds at a time is smaller, and the driver joins while others still run
_POLL = 0.5  # seconds between looks for the files of other shares
_ROWS = 1024  # samples that are joined at a time
_DIGITS = 16  # of the network's digest, in the name of a file


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
        """Remove the files of a layer of which all blocks are finished, those of other and of earlier runs too."""
        if self.store is None:
            return
        ours = re.compile(rf"{re.escape(name)} samples [0-9a-f]{{{_DIGITS}}} \d+ of \d+")
        for unit in self.store.units(f"{name} samples "):
            if ours.fullmatch(unit):
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
        units = [f"{name} samples {program[:_DIGITS]} {place + 1} of {len(ranges)}" for place in range(len(ranges))]
        place = shard.index - 1
        if place < len(ranges) and store.read(units[place], _samples, program) is None:
            start, stop = ranges[place]
            samples = network.capture(self.batches[start:stop], [name], start)[name]
            store.save(units[place], program, {key: x for key, x in vars(samples).items() if x is not None}, {})
        return program, units

    def _from_files(self, network: Network, name: str, shard: Shard, store: Checkpoint) -> Iterator[LayerSamples]:
        program, units = self._give(network, name, shard, store)
        limit = time.monotonic() + shard.wait
        for place, unit in enumerate(units):
            while (samples := store.read(unit, _samples, program)) is None:
                if time.monotonic() >= limit:
                    raise Unfinished(
                        f"This share's samples of layer {name!r} are done; others are missing, the first {unit!r}. "
                        "Run the shares at the same time with a `wait`, or run this one again when the others are "
                        "done.",
                        [unit, *(other for other in units[place + 1 :] if store.peek(other) is None)],
                    )
                time.sleep(min(_POLL, max(0.0, limit - time.monotonic())))
            yield from _few(samples)
            del samples  # before the next ones are read


def _capture(share: _Share) -> Held:
    """On a worker: the samples, to stay there until they are asked for."""
    network: Network = share.network.value
    return Held(network.capture(share.batches, [share.layer], share.first)[share.layer])


def _samples(stored: Stored) -> LayerSamples:
    """What a share's file holds. TypeError for another version's."""
    return LayerSamples(**stored.tensors)


def _few(samples: LayerSamples) -> Iterator[LayerSamples]:
    """The same, a few samples at a time, copied: who joins them makes copies, and may keep the last ones."""
    for start in range(0, len(samples.preactivations), _ROWS):
        rows = slice(start, start + _ROWS)
        offset = None if samples.offset is None else samples.offset[rows].clone()
        yield LayerSamples(samples.inputs[:, rows].clone(), samples.preactivations[rows].clone(), offset)


def _ranges(count: int, most: int) -> list[tuple[int, int]]:
    """`count` items in at most `most` consecutive ranges, as even as can be."""
    parts = min(count, max(1, most))
    return [(place * count // parts, (place + 1) * count // parts) for place in range(parts)]
