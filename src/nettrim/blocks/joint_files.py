"""Joint blocks on disk, while they are not finished: the course in one file, what each part has to show in another.

By these files the jobs of an array meet, too. Only who leads a block writes its course, only who solves a part writes
that one. The numbers that travel stand in the files' heads, so others read them without the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from nettrim.blocks.joint import Course, JointBlock, JointPart
from nettrim.blocks.pack import pack, unpack
from nettrim.checkpoint import Checkpoint, Stored
from nettrim.executors.base import Executor
from nettrim.layerwise import Answer, LayerOutcome, Priced, Shares


@dataclass(frozen=True, eq=False)
class JointFiles:
    """The files of joint blocks."""

    store: Checkpoint
    executor: Executor

    def read(self, block: JointBlock) -> None:
        """Take up what an earlier run, or another process, had finished."""
        for part in block.parts:
            self.read_part(block, part)
        if not self._read_course(block) and block.lead:
            block.recover()
            if block.course != Course():
                self.keep_course(block)

    def read_part(self, block: JointBlock, part: JointPart) -> bool:
        """What a part has to show: all of it for one that is solved here, else the numbers. Whether that is news."""
        own = part.held is not None
        found = self.store.read(_unit(block, part), partial(_shown, part, own), block.program, head=not own)
        if found is None or (found.answers, found.shares) == (part.answers, part.shares):
            return False
        part.answers, part.shares = found.answers, found.shares
        if found.landed is not None:
            part.landed = found.landed
        if found.state is not None:
            part.state = self.executor.hold(found.state)
        return True

    def look(self, block: JointBlock) -> bool:
        """Whether there is news of a block that others work on too: answers for who leads, the course for others."""
        if not block.lead:
            return self._read_course(block)
        news = False
        for part in block.parts:
            if part.held is None and part.shares is None and self.read_part(block, part):
                if part.keeps_to(block.course):
                    news = True
                else:
                    part.forget()
        return news

    def gather(self, block: JointBlock) -> Iterator[JointPart]:
        """Read the parts that landed elsewhere, and name those that cannot be read, which have to begin anew."""
        for part in block.parts:
            if part.landed is None:
                found = self.store.read(_unit(block, part), partial(_shown, part, True), block.program)
                if found is None or found.landed is None or found.shares != block.course.shares:
                    part.forget()
                    yield part
                else:
                    part.landed = found.landed

    def keep_part(self, block: JointBlock, part: JointPart) -> None:
        """Write what a part has to show."""
        record = {"answers": [asdict(answer) for answer in part.answers]}
        if part.landed is not None and part.shares is not None:
            tensors, landed = pack(part.landed)
            record |= {"landed": landed, "shares": asdict(part.shares)}
        else:
            assert part.state is not None
            tensors = dict(vars(self.executor.fetch(part.state)))
        self.store.save(_unit(block, part), block.program, tensors, record)

    def keep_course(self, block: JointBlock) -> None:
        """Write what was decided."""
        self.store.save(course_unit(block.task.name, block.cuts), block.program, {}, asdict(block.course))

    def _read_course(self, block: JointBlock) -> bool:
        course = self.store.read(course_unit(block.task.name, block.cuts), _course, block.program, head=True)
        if course is None:
            return False
        news = course != block.course
        block.follow(course)
        return news


@dataclass(frozen=True, eq=False)
class _Shown:
    """What a part has to show, as its file tells."""

    answers: list[Answer]
    shares: Shares | None
    landed: LayerOutcome | None = None
    state: Priced | None = None


def units(layer: str, cuts: Sequence[range]) -> Iterator[str]:
    """What is on disk of a joint block that is not finished."""
    yield course_unit(layer, cuts)
    for rows in cuts:
        yield part_unit(layer, cuts, rows)


def part_unit(layer: str, cuts: Sequence[range], rows: range) -> str:
    """What a part is called on disk."""
    return f"{layer} {rows.start}-{rows.stop - 1} of {cuts[0].start}-{cuts[-1].stop - 1}"


def course_unit(layer: str, cuts: Sequence[range]) -> str:
    """What the course is called on disk."""
    return f"{layer} course of {cuts[0].start}-{cuts[-1].stop - 1}"


def _unit(block: JointBlock, part: JointPart) -> str:
    return part_unit(block.task.name, block.cuts, part.rows)


def _shown(part: JointPart, whole: bool, stored: Stored) -> _Shown:
    """Of a part's file: its numbers, or the whole of it."""
    shown = _Shown([Answer(**answer) for answer in stored.record["answers"]], _shares(stored))
    if not whole:
        return shown
    if shown.shares is None:
        return replace(shown, state=Priced(**stored.tensors))
    landed = replace(stored, record=stored.record["landed"])
    return replace(shown, landed=unpack(landed, part.part.task.layer, _all(part)))


def _course(stored: Stored) -> Course:
    return Course(tuple(stored.record["multipliers"]), _shares(stored))


def _all(part: JointPart) -> range:
    """Its rows as its own task counts them."""
    return range(len(part.rows))


def _shares(stored: Stored) -> Shares | None:
    shares = stored.record.get("shares")
    return None if shares is None else Shares(**shares)
