"""Joint blocks on disk, while they are not finished: the course in one file, what each part has to show in another.

By these files the jobs of an array meet, too. Only who leads a block writes its course, only who solves a part writes
that one. The numbers that travel stand in the files' heads, so others read them without the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from nettrim.blocks.joint import Course, JointBlock, JointPart
from nettrim.blocks.pack import pack, unpack
from nettrim.checkpoint import Checkpoint, Stored
from nettrim.executors.base import Executor
from nettrim.layerwise import Answer, Priced, Shares


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
        unit = _unit(block, part)
        stored = self._of(block, self.store.load(unit) if own else self.store.peek(unit))
        if stored is None:
            return False
        answers, shares = [Answer(**answer) for answer in stored.record["answers"]], _shares(stored)
        if (answers, shares) == (part.answers, part.shares):
            return False
        part.answers, part.shares = answers, shares
        if own and shares is not None:
            part.landed = unpack(replace(stored, record=stored.record["landed"]), part.part.task.layer, _all(part))
        elif own:
            part.state = self.executor.hold(Priced(**stored.tensors))
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
                stored = self._of(block, self.store.load(_unit(block, part)))
                if stored is None or _shares(stored) != block.course.shares:
                    part.forget()
                    yield part
                else:
                    landed = replace(stored, record=stored.record["landed"])
                    part.landed = unpack(landed, part.part.task.layer, _all(part))

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
        stored = self._of(block, self.store.peek(course_unit(block.task.name, block.cuts)))
        if stored is None:
            return False
        course = Course(tuple(stored.record["multipliers"]), _shares(stored))
        news = course != block.course
        block.follow(course)
        return news

    def _of(self, block: JointBlock, stored: Stored | None) -> Stored | None:
        """What was stored, where it answers the block's program."""
        return stored if stored is not None and stored.program == block.program else None


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


def _all(part: JointPart) -> range:
    """Its rows as its own task counts them."""
    return range(len(part.rows))


def _shares(stored: Stored) -> Shares | None:
    shares = stored.record.get("shares")
    return None if shares is None else Shares(**shares)
