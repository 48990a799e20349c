"""Layers through an executor, block by block: what is on disk already is not done again, what is done goes to disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nettrim.blocks.joint import JointRounds, unit_of
from nettrim.blocks.merge import merge
from nettrim.blocks.pack import digest_task, pack, unpack
from nettrim.blocks.split import Part, cuts, parts_of, plan
from nettrim.blocks.work import Done, LayerWork, worker
from nettrim.checkpoint import Checkpoint
from nettrim.executors.base import Executor
from nettrim.executors.shard import Shard, Unfinished
from nettrim.layerwise import LayerOutcome, LayerTask, make_pieces
from nettrim.log import LOG, Log
from nettrim.models.base import Layer
from nettrim.recipe import Recipe

Trimmer = Callable[[LayerTask], LayerOutcome]
Capture = Callable[[str], LayerTask]

_POLL = 0.5  # seconds between looks for the files of other shares


@dataclass(eq=False)
class _Desk:
    """A layer in the making."""

    layer: Layer
    blocks: tuple[range, ...]
    joint: Mapping[int, tuple[range, ...]]  # blocks that are one joint budget, solved in several parts: these
    first: int  # the number of its first block, counted over the whole trim
    programs: dict[int, str] = field(default_factory=dict)  # digests of what the stored blocks answer
    outcomes: dict[int, LayerOutcome] = field(default_factory=dict)

    def unit(self, number: int) -> str:
        """What a block is called on disk."""
        rows = self.blocks[number]
        return f"{self.layer.name} {rows.start}-{rows.stop - 1}"

    @property
    def missing(self) -> list[int]:
        return [number for number in range(len(self.blocks)) if number not in self.outcomes]


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
        """Outcomes in order of completion; layers with a joint budget in several parts come last, one by one.

        `capture` makes a layer's task; it is asked only for layers with a block to solve here, as late as may be. For
        others that are not finished `give` does what other shares need for theirs.
        Raises `Unfinished` where blocks of other shares are missing.
        """
        desks = self._desks(layers)
        away: list[_Desk] = []
        yield from self._side_by_side([desk for desk in desks if not desk.joint], capture, give, away)
        for desk in desks:
            if desk.joint:
                yield from self._in_rounds(desk, capture, give, away)
        yield from self._others(away)

    def _side_by_side(
        self, desks: Sequence[_Desk], capture: Capture, give: Callable[[str], None], away: list[_Desk]
    ) -> Iterator[LayerOutcome]:
        """Layers whose blocks are independent; those that wait for other shares go to `away`."""
        ready: list[_Desk] = []
        sent: dict[int, tuple[_Desk, int]] = {}

        def parts() -> Iterator[Part]:
            count = 0
            for desk in desks:
                self._look(desk)
                if not desk.missing:
                    ready.append(desk)
                    continue
                if self._own(desk):
                    task = capture(desk.layer.name)
                    self._keep_same(desk, task)
                    for part in parts_of(task, desk.blocks, self._own(desk), self.executor.share):
                        sent[count] = (desk, part.number)
                        count += 1
                        yield part
                else:
                    give(desk.layer.name)
                if len(self._own(desk)) < len(desk.missing):
                    away.append(desk)

        for index, (outcome, done) in self._map(parts(), alone=len(desks) == 1 and len(desks[0].blocks) == 1):
            desk, number = sent.pop(index)
            self._finish(desk, number, outcome, done)
            if not desk.missing:
                ready.append(desk)
            while ready:
                yield self._merged(ready.pop(0))
        while ready:
            yield self._merged(ready.pop(0))

    def _in_rounds(
        self, desk: _Desk, capture: Capture, give: Callable[[str], None], away: list[_Desk]
    ) -> Iterator[LayerOutcome]:
        """A layer with joint budgets in several parts."""
        self._look(desk)
        if self._own(desk):
            task = capture(desk.layer.name)
            program = self._keep_same(desk, task)
            own = self._own(desk)
            apart = [number for number in own if number not in desk.joint]
            parts = parts_of(task, desk.blocks, apart, self.executor.share) if apart else iter(())
            for index, (outcome, done) in self._map(parts, alone=False):
                self._finish(desk, apart[index], outcome, done)
            assert isinstance(self.work, LayerWork)
            rounds = JointRounds(self.work, self.executor, self.store, self._log)
            (piece,) = make_pieces(task)
            together = {number: desk.joint[number] for number in own if number in desk.joint}
            for number, outcome in rounds.run(task, piece, together, program):
                self._finish(desk, number, outcome, Done(worker(), 1))
        elif desk.missing:
            give(desk.layer.name)
        if desk.missing:
            away.append(desk)
        else:
            yield self._merged(desk)

    def _desks(self, layers: Sequence[Layer]) -> list[_Desk]:
        desks, first = [], 0
        for layer in layers:
            blocks, joint = (range(layer.weight.shape[0]),), {}
            if isinstance(self.work, LayerWork):
                blocks = plan(layer, self.recipe)
                joint = {number: cuts(layer, self.recipe, block) for number, block in enumerate(blocks)}
            joint = {number: parts for number, parts in joint.items() if len(parts) > 1}
            desks.append(_Desk(layer, blocks, joint, first))
            first += len(blocks)
        return desks

    def _map(self, parts: Iterator[Part], alone: bool) -> Iterator[tuple[int, tuple[LayerOutcome, Done]]]:
        """All parts through the executor; a layer alone that cannot be cut gets all that the executor has."""
        function = partial(_do, self.work)
        if not alone:
            yield from self.executor.map(function, parts)
            return
        for index, part in enumerate(parts):
            yield index, self.executor.one(function, part)

    def _own(self, desk: _Desk) -> list[int]:
        """Missing blocks that are to be solved here."""
        if not isinstance(self.executor, Shard):
            return desk.missing
        return [number for number in desk.missing if self.executor.mine(desk.first + number)]

    def _look(self, desk: _Desk) -> None:
        """Fetch the missing blocks that are on disk."""
        for number in desk.missing if self.store is not None else ():
            assert self.store is not None
            stored = self.store.load(desk.unit(number))
            if stored is not None:
                desk.programs[number] = stored.program
                desk.outcomes[number] = unpack(stored, desk.layer, desk.blocks[number])
                self._tidy(desk, number)

    def _keep_same(self, desk: _Desk, task: LayerTask) -> str:
        """The digest of the layer's program, that of all blocks from now on; stored ones of another are dropped."""
        if self.store is None:
            return ""
        digest = digest_task(task)
        for number in list(desk.outcomes):
            if desk.programs[number] != digest:
                del desk.outcomes[number]
        desk.programs = dict.fromkeys(range(len(desk.blocks)), digest)
        return digest

    def _finish(self, desk: _Desk, number: int, outcome: LayerOutcome, done: Done) -> None:
        """Keep a finished block, on disk too, and write its line."""
        desk.outcomes[number] = outcome
        if self.store is None:
            return
        self.store.save(desk.unit(number), desk.programs[number], *pack(outcome))
        self._tidy(desk, number)
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
        self._log(line | ({"pieces": done.pieces} if done.pieces > 1 else {}))

    def _tidy(self, desk: _Desk, number: int) -> None:
        """Remove what was kept of the parts of a block that is finished."""
        parts = desk.joint.get(number, ())
        for place in range(len(parts)):
            assert self.store is not None
            self.store.remove(unit_of(desk.layer.name, parts, place))

    def _log(self, line: Mapping[str, Any]) -> None:
        if self.store is not None:
            Log(self.store.directory / LOG).write(line)

    def _merged(self, desk: _Desk) -> LayerOutcome:
        return merge(desk.layer, self.recipe, [desk.outcomes.pop(number) for number in range(len(desk.blocks))])

    def _others(self, away: list[_Desk]) -> Iterator[LayerOutcome]:
        """Layers with blocks of other shares, as their files appear."""
        executor = self.executor
        limit = time.monotonic() + (executor.wait if isinstance(executor, Shard) else 0.0)
        while away:
            for desk in list(away):
                self._look(desk)
                if not desk.missing:
                    away.remove(desk)
                    yield self._merged(desk)
            if away and time.monotonic() >= limit:
                missing = [desk.unit(number) for desk in away for number in desk.missing]
                raise Unfinished(
                    f"This share is done; {len(missing)} blocks of other shares are missing, the first {missing[0]!r}. "
                    "When they are finished, run the same trim once more without a share to put all together."
                )
            if away:
                time.sleep(min(_POLL, max(0.0, limit - time.monotonic())))


def _do(work: Trimmer, part: Part) -> tuple[LayerOutcome, Done]:
    outcome = work.part(part) if isinstance(work, LayerWork) else work(part.task)
    return outcome, Done(worker(), part.pieces)
