"""Layers through an executor, block by block: what is on disk already is not done again, what is done goes to disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from nettrim.blocks.merge import merge
from nettrim.blocks.pack import digest_task, pack, unpack
from nettrim.blocks.split import LayerWork, Part, parts_of, plan, worker
from nettrim.checkpoint import Checkpoint
from nettrim.executors.base import Executor
from nettrim.executors.shard import Shard, Unfinished
from nettrim.layerwise import LayerOutcome, LayerTask
from nettrim.log import LOG, Log
from nettrim.models.base import Layer
from nettrim.recipe import Recipe

Trimmer = Callable[[LayerTask], LayerOutcome]

_POLL = 0.5  # seconds between looks for the files of other shares


@dataclass(eq=False)
class _Desk:
    """A layer in the making."""

    layer: Layer
    blocks: tuple[range, ...]
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

    def run(self, layers: Sequence[Layer], capture: Callable[[str], LayerTask]) -> Iterator[LayerOutcome]:
        """Outcomes in order of completion.

        `capture` makes a layer's task; it is asked only for layers with a block to solve here, as late as may be.
        Raises `Unfinished` where blocks of other shares are missing.
        """
        desks = self._desks(layers)
        ready: list[_Desk] = []
        away: list[_Desk] = []
        sent: dict[int, tuple[_Desk, Part]] = {}

        def parts() -> Iterator[Part]:
            count = 0
            for desk in desks:
                self._look(desk)
                if not desk.missing:
                    ready.append(desk)
                    continue
                if self._own(desk):
                    task = capture(desk.layer.name)
                    digest = self._keep_same(desk, task)
                    for part in parts_of(task, desk.blocks, self._own(desk), self.executor.share):
                        desk.programs[part.number] = digest
                        sent[count] = (desk, part)
                        count += 1
                        yield part
                if len(self._own(desk)) < len(desk.missing):
                    away.append(desk)

        for index, (outcome, who) in self._map(parts(), alone=len(desks) == 1 and len(desks[0].blocks) == 1):
            desk, part = sent.pop(index)
            self._put(desk, part, outcome, who)
            desk.outcomes[part.number] = outcome
            if not desk.missing:
                ready.append(desk)
            while ready:
                yield self._merged(ready.pop(0))
        while ready:
            yield self._merged(ready.pop(0))
        yield from self._others(away)

    def _desks(self, layers: Sequence[Layer]) -> list[_Desk]:
        desks, first = [], 0
        for layer in layers:
            blocks = plan(layer, self.recipe) if isinstance(self.work, LayerWork) else (range(layer.weight.shape[0]),)
            desks.append(_Desk(layer, blocks, first))
            first += len(blocks)
        return desks

    def _map(self, parts: Iterator[Part], alone: bool) -> Iterator[tuple[int, tuple[LayerOutcome, str]]]:
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

    def _keep_same(self, desk: _Desk, task: LayerTask) -> str:
        """The digest of the layer's program; stored blocks of any other are solved again."""
        if self.store is None:
            return ""
        digest = digest_task(task)
        for number in list(desk.outcomes):
            if desk.programs[number] != digest:
                del desk.outcomes[number]
        return digest

    def _put(self, desk: _Desk, part: Part, outcome: LayerOutcome, who: str) -> None:
        """On disk, and a line in the log."""
        if self.store is None:
            return
        self.store.save(desk.unit(part.number), desk.programs[part.number], *pack(outcome))
        result = outcome.result
        Log(self.store.directory / LOG).write(
            {
                "layer": desk.layer.name,
                "block": part.number,
                "blocks": len(desk.blocks),
                "neurons": [part.rows.start, part.rows.stop],
                "ended": result.neurons,
                "iterations": result.iterations,
                "gap": result.gap,
                "certified": result.certified,
                "seconds": round(result.seconds, 3),
                "worker": who,
            }
        )

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


def _do(work: Trimmer, part: Part) -> tuple[LayerOutcome, str]:
    outcome = work.part(part) if isinstance(work, LayerWork) else work(part.task)
    return outcome, worker()
