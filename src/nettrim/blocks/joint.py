"""Joint budgets too large for one block: rounds at one multiplier after another, then weights within the budget.

One process leads: it alone decides the course, that is the multiplier of each round and at last how epsilon is dealt
out. Whatever a part has to show was found on that course, or does not count. So it does not matter who solves which
part, in which order, nor what an earlier run had left half done: the answer is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nettrim.blocks.merge import merge
from nettrim.blocks.multiplier import next_multiplier
from nettrim.blocks.split import Part
from nettrim.blocks.work import Done, Sample, Step
from nettrim.executors.base import Held
from nettrim.layerwise import Answer, LayerOutcome, LayerTask, Piece, Shares, conclude_joint, zero_squares

_SAMPLE = 16  # neurons whose program tells the first multiplier


@dataclass(frozen=True)
class Course:
    """What was decided so far: a multiplier a round, then the shares of epsilon."""

    multipliers: tuple[float, ...] = ()
    shares: Shares | None = None


@dataclass(eq=False)
class JointPart:
    """Some neurons of a joint budget: what they have to show."""

    part: Part  # its rows are those of the layer
    held: Held | None = None  # the same where the workers reach it; None: solved elsewhere
    answers: list[Answer] = field(default_factory=list)  # one a round
    state: Held | None = None  # of a Priced: the last round's
    landed: LayerOutcome | None = None
    shares: Shares | None = None  # within which it landed, here or elsewhere
    sent: Step | None = None  # in the workers' hands
    pieces: int = 1  # in which it was solved last, where memory was short

    @property
    def rows(self) -> range:
        return self.part.rows

    def keeps_to(self, course: Course) -> bool:
        """Whether all it has to show was found on this course."""
        made = tuple(answer.multiplier for answer in self.answers)
        return made == course.multipliers[: len(made)] and self.shares in (None, course.shares)

    def at_end(self, course: Course) -> bool:
        """Whether it has all to show that the course asks for so far."""
        return len(self.answers) == len(course.multipliers) and self.shares == course.shares

    def forget(self) -> None:
        """Begin anew."""
        self.answers, self.state, self.landed, self.shares = [], None, None, None

    def step(self, course: Course) -> Step | None:
        """What is to be done next; None where nothing is, until the course goes on."""
        if self.held is None or self.sent is not None or self.shares is not None:
            return None
        step = Step(self.part.name, self.held, self.state, len(self.rows), pieces=self.pieces)
        if len(self.answers) < len(course.multipliers):
            return replace(step, multiplier=course.multipliers[len(self.answers)])
        return None if course.shares is None else replace(step, shares=course.shares)


@dataclass(eq=False)
class JointBlock:
    """A block that is one joint budget, in parts: where its search is."""

    whole: Part
    number: int
    program: str  # digest of the layer's programs, for the checkpoint
    parts: list[JointPart]
    lead: bool = True  # whether this process decides the course
    course: Course = field(default_factory=Course)
    sampling: bool = False  # a sample is in the workers' hands

    def __post_init__(self) -> None:
        self.zero_square = float(zero_squares(self.piece.program).sum())

    @property
    def piece(self) -> Piece:
        assert self.whole.piece is not None
        return self.whole.piece

    @property
    def epsilon(self) -> float:
        assert self.piece.program.epsilon is not None
        return float(self.piece.program.epsilon)

    @property
    def task(self) -> LayerTask:
        return self.whole.task

    @property
    def cuts(self) -> tuple[range, ...]:
        """The rows of the layer that each part has."""
        return tuple(part.rows for part in self.parts)

    @property
    def busy(self) -> bool:
        """Whether anything of it is in the workers' hands."""
        return self.sampling or any(part.sent is not None for part in self.parts)

    @property
    def alone(self) -> bool:
        """Whether all of it is solved by this process."""
        return self.lead and all(part.held is not None for part in self.parts)

    @property
    def over(self) -> bool:
        """Whether nothing more is to be solved: anywhere for who leads, here for others."""
        return all(part.shares is not None for part in self.parts if self.lead or part.held is not None)

    def follow(self, course: Course) -> None:
        """Take up a course; parts that have left it begin anew."""
        self.course = course
        for part in self.parts:
            if not part.keeps_to(course):
                part.forget()

    def recover(self) -> None:
        """Take up the course that the parts tell of, where its own file is lost: the longest."""
        longest = max(self.parts, key=lambda part: (part.shares is not None, len(part.answers)))
        self.follow(Course(tuple(answer.multiplier for answer in longest.answers), longest.shares))

    def next(self) -> tuple[JointPart | None, Sample | Step] | None:
        """What is to be done next, and of which part; None where nothing is until something comes back."""
        if self._needs_sample:
            if self.sampling or not self.lead:
                return None
            self.sampling = True
            return None, self._sample()
        for part in self.parts:
            step = part.step(self.course)
            if step is not None:
                part.sent = step
                return part, step
        return None

    def guess(self, found: float | None) -> None:
        """The first multiplier: what a sample tells, else of the size at which half the penalty would be spent."""
        penalty = self.piece.program.penalty
        value = float(penalty.to(self.piece.dense).value(self.piece.dense).sum())
        self.sampling = False
        self.course = Course((found or max(value, 1e-300) / (4 * self.epsilon**2),))

    def take(self, part: JointPart, answer: Answer | LayerOutcome, state: Held | None, done: Done) -> bool:
        """What a step found; False where the course has changed since, so that it does not count."""
        step, part.sent = part.sent, None
        assert step is not None
        part.pieces = done.pieces
        if isinstance(answer, Answer):
            if self.course.multipliers[len(part.answers) :][:1] != (answer.multiplier,):
                return False
            part.answers.append(answer)
        else:
            if step.shares != self.course.shares or part.shares is not None:
                return False
            part.landed, part.shares = answer, step.shares
        part.state = state
        return True

    def decide(self) -> bool:
        """Extend the course, where this process leads and all parts have come to its end; whether it was extended."""
        course = self.course
        if not self.lead or course.shares is not None or self._needs_sample:
            return False
        if any(len(part.answers) < len(course.multipliers) for part in self.parts):
            return False
        multiplier = None
        if not course.multipliers:  # nothing to search for
            shares = Shares(0.0 if self.epsilon == 0 else self.epsilon / math.sqrt(self.zero_square or 1.0))
        else:
            rounds = [Answer.over(answers) for answers in zip(*(part.answers for part in self.parts), strict=True)]
            multiplier = next_multiplier(rounds, self.epsilon, self.task.recipe.tolerance)
            shares = Shares.of(rounds[-1], self.epsilon, len(self.whole.rows)) if multiplier is None else None
        more = () if multiplier is None else (multiplier,)
        self.course = Course((*course.multipliers, *more), shares)
        return True

    def outcome(self) -> LayerOutcome:
        """All parts put together, with the certificate of the joint program."""
        parts = [part.landed for part in self.parts if part.landed is not None]
        assert len(parts) == len(self.parts)
        return conclude_joint(self.task, self.piece, merge(self.task.layer, self.task.recipe, parts))

    @property
    def _needs_sample(self) -> bool:
        """Whether a first multiplier is to be found: not where zero weights will do, nor for an epsilon of zero."""
        return 0 < self.epsilon < math.sqrt(self.zero_square) and not self.course.multipliers

    def _sample(self) -> Sample:
        """Some of its neurons, evenly spread over those that zero weights do not serve."""
        squares = zero_squares(self.piece.program)
        useful = (squares > 0).nonzero()[:, 0]
        count = min(_SAMPLE, len(useful))
        rows = useful[torch.arange(count) * len(useful) // count]
        share = float(squares[rows].sum()) / self.zero_square if math.isfinite(self.zero_square) else math.nan
        share = share if share > 0 else count / len(useful)
        return Sample(
            f"{self.task.name}, a sample of its neurons", self.piece.program.rows(rows), self.piece.dense[rows], share
        )


def line_of(block: JointBlock, part: JointPart, answer: Answer | LayerOutcome, done: Done) -> Mapping[str, Any]:
    """A line of the log."""
    result = answer if isinstance(answer, Answer) else answer.result
    about = {
        "layer": block.task.name,
        "block": block.number,
        "part": block.parts.index(part),
        "parts": len(block.parts),
        "round": len(part.answers) + (not isinstance(answer, Answer)),
        "neurons": [part.rows.start, part.rows.stop],
        "iterations": result.iterations,
        "seconds": round(result.seconds, 3),
        "worker": done.worker,
    }
    if isinstance(answer, Answer):
        about |= {"multiplier": answer.multiplier, "distance": math.sqrt(answer.square)}
    return about | ({"pieces": done.pieces} if done.pieces > 1 else {})
