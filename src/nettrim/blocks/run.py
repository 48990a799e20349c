"""Layers through an executor, block by block: what is on disk already is not done again, what is done goes to disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nettrim.blocks.desk import Desk, desks_of
from nettrim.blocks.joint_files import JointFiles, units
from nettrim.blocks.line import Line
from nettrim.blocks.merge import merge
from nettrim.blocks.pack import digest_task, pack, unpack
from nettrim.blocks.split import Part
from nettrim.blocks.work import Done, LayerWork, Sample, Step, worker
from nettrim.checkpoint import Checkpoint, Stored
from nettrim.executors.base import Executor
from nettrim.executors.shard import Shard, Unfinished
from nettrim.layerwise import LayerOutcome, LayerTask
from nettrim.log import LOG, Log, Silence
from nettrim.models.base import Layer
from nettrim.recipe import Recipe

Trimmer = Callable[[LayerTask], LayerOutcome]
Capture = Callable[[str], LayerTask]

_POLL = 0.5  # seconds between looks for the files of other shares


@dataclass(frozen=True, eq=False)
class Blocks:
    """How layers are worked on: `work`, by `executor`, with what is finished kept in `store`.

    Only a `LayerWork` is given blocks; any other function of a task gets whole layers.
    """

    work: Trimmer
    executor: Executor
    recipe: Recipe
    store: Checkpoint | None = None

    def run(
        self, layers: Sequence[Layer], capture: Capture, give: Callable[[str], None] = lambda name: None
    ) -> Iterator[LayerOutcome]:
        """Outcomes in order of completion; layers with a joint budget in several parts come last.

        `capture` makes a layer's task; it is asked only for layers with a block to solve here, as late as may be. For
        others that are not finished `give` does what other shares need for theirs.
        Raises `Unfinished` where blocks of other shares are missing.
        """
        desks = desks_of(layers, self.recipe, not isinstance(self.work, LayerWork))
        files = None if self.store is None else JointFiles(self.store, self.executor)
        line = Line(self, self.executor, files, desks, capture, give)
        alone = len(desks) == 1 and desks[0].size == 1
        more = True
        while more:
            for index, result in self._results(line, alone):
                line.take(index, result)
                yield from self._merged(line)
            more = line.wait()
            yield from self._merged(line)
        yield from self._others(line.away)

    def look(self, desk: Desk, program: str | None = None) -> None:
        """Fetch the missing blocks that are on disk; None: whatever programs they answer."""
        for number in desk.missing if self.store is not None else ():
            assert self.store is not None
            make = partial(_found, desk.layer, desk.blocks[number])
            found = self.store.read(desk.unit(number), make, program)
            if found is not None:
                desk.programs[number], desk.outcomes[number] = found
                self._tidy(desk, number)

    def keep_same(self, desk: Desk, task: LayerTask) -> str:
        """The digest of the layer's program, that of all blocks from now on; stored ones of another are dropped."""
        if self.store is None:
            return ""
        digest = digest_task(task)
        for number in list(desk.outcomes):
            if desk.programs[number] != digest:
                del desk.outcomes[number]
        desk.programs = dict.fromkeys(range(len(desk.blocks)), digest)
        return digest

    def finish(self, desk: Desk, number: int, outcome: LayerOutcome, done: Done) -> None:
        """Keep a finished block, on disk too, and write its line: first, so that no block on disk lacks one."""
        desk.outcomes[number] = outcome
        if self.store is None:
            return
        result = outcome.result
        line = {
            "layer": desk.layer.name,
            "block": number,
            "blocks": len(desk.blocks),
            "neurons": [desk.blocks[number].start, desk.blocks[number].stop],
            "ended": result.neurons,
            "iterations": result.iterations,
            "gap": result.gap,
            "certified": result.certified,
            "seconds": round(result.seconds, 3),
            "worker": done.worker,
        }
        self.log(line | ({"pieces": done.pieces} if done.pieces > 1 else {}))
        self.store.save(desk.unit(number), desk.programs[number], *pack(outcome))
        self._tidy(desk, number)

    def log(self, line: Mapping[str, Any]) -> None:
        """Write a line of the log, where there is a checkpoint."""
        if self.store is not None:
            Log(self.store.directory / LOG).write(line)

    def silence(self) -> Silence:
        """How long no share has written a line, from now on. Shares have a checkpoint."""
        assert self.store is not None
        return Silence(Log(self.store.directory / LOG))

    def _results(self, line: Line, alone: bool) -> Iterator[tuple[int, Any]]:
        """The queue through the executor; a layer alone that cannot be cut gets all that the executor has."""
        function = partial(_do, self.work)
        if alone:
            return ((index, self.executor.one(function, item)) for index, item in enumerate(line))
        return self.executor.map(function, line)

    def _tidy(self, desk: Desk, number: int) -> None:
        """Remove what was kept of the parts of a block that is finished."""
        for unit in units(desk.layer.name, desk.joint[number]) if number in desk.joint else ():
            assert self.store is not None
            self.store.remove(unit)

    def _merged(self, line: Line) -> Iterator[LayerOutcome]:
        """The layers that are finished."""
        while line.done:
            yield self._together(line.done.popleft())

    def _together(self, desk: Desk) -> LayerOutcome:
        return merge(desk.layer, self.recipe, [desk.outcomes.pop(number) for number in range(len(desk.blocks))])

    def _others(self, away: list[Desk]) -> Iterator[LayerOutcome]:
        """Layers with blocks of other shares, as their files appear."""
        if not away:
            return
        assert isinstance(self.executor, Shard)
        silence = self.silence()
        while away:
            left = self.executor.wait - silence.seconds  # before the look: what is written before its line counts
            for desk in list(away):
                self.look(desk)
                if not desk.missing:
                    away.remove(desk)
                    yield self._together(desk)
            if away and left <= 0:
                missing = [desk.unit(number) for desk in away for number in desk.missing]
                raise Unfinished(
                    f"This share is done; {len(missing)} blocks of other shares are missing, the first {missing[0]!r}. "
                    "When they are finished, run the same trim once more without a share to put all together.",
                    missing,
                )
            if away:
                time.sleep(min(_POLL, left))


def _found(layer: Layer, rows: range, stored: Stored) -> tuple[str, LayerOutcome]:
    """The program that a stored block answers, and its outcome."""
    return stored.program, unpack(stored, layer, rows)


def _do(work: Trimmer, item: Part | Sample | Step) -> Any:
    """What a worker does: the answer of `LayerWork` for the item, or an outcome and how it came about."""
    if isinstance(item, Part):
        outcome = work.part(item) if isinstance(work, LayerWork) else work(item.task)
        return outcome, Done(worker(), item.pieces)
    assert isinstance(work, LayerWork)
    return work.sample(item) if isinstance(item, Sample) else work.step(item)
