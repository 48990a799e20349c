"""Joint budgets too large for one block: rounds at one multiplier after another, then weights within the budget.

The driver holds the multiplier. A part's program is put where the workers reach it, once; its weights and multipliers
stay where they were computed. What travels is a multiplier to each part and a few sums back, until the last round. With
a checkpoint the driver also fetches every finished round, so that a killed run repeats at most one part a worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from nettrim.blocks.merge import merge
from nettrim.blocks.multiplier import next_multiplier
from nettrim.blocks.pack import pack, unpack
from nettrim.blocks.split import Part, cut_part
from nettrim.blocks.work import Done, LayerWork, Sample, Step
from nettrim.checkpoint import Checkpoint
from nettrim.executors.base import Executor, Held
from nettrim.layerwise import Answer, LayerOutcome, LayerTask, Piece, Priced, Shares, conclude_joint, zero_squares

_SAMPLE = 16  # neurons whose program tells the first multiplier

Report = Callable[[Mapping[str, Any]], None]


@dataclass(eq=False)
class JointBlock:
    """A block that is one joint budget, in parts: where its search is, and what each part has to show."""

    whole: Part
    number: int
    cuts: tuple[range, ...]  # rows of the layer
    program: str  # digest of the layer's programs, for the checkpoint
    names: list[str] = field(default_factory=list)
    parts: list[Held] = field(default_factory=list)
    states: list[Held | None] = field(default_factory=list)
    answers: list[list[Answer]] = field(default_factory=list)  # of each part, one a round
    landed: dict[int, LayerOutcome] = field(default_factory=dict)
    pieces: list[int] = field(default_factory=list)  # in which a part was solved last, where memory was short
    zero_square: float = 0.0
    first: float = 0.0  # the multiplier of the first round

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
    def rounds(self) -> list[Answer]:
        """The sums over all parts, of the rounds that all have finished."""
        return [Answer.over(parts) for parts in zip(*self.answers, strict=False)]

    @property
    def needs_sample(self) -> bool:
        """Whether a first multiplier is to be found: not where zero weights will do, nor for an epsilon of zero."""
        return 0 < self.epsilon < math.sqrt(self.zero_square) and not self.first

    def agree(self) -> None:
        """Take the search up where it was; begin anew if files are of two searches, as after a change of version."""
        longest = max(self.answers, key=len)
        self.first = longest[0].multiplier if longest else 0.0
        course = [answer.multiplier for answer in longest]
        if any([one.multiplier for one in answers] != course[: len(answers)] for answers in self.answers):
            self.answers = [[] for _ in self.cuts]
            self.states = [None for _ in self.cuts]
            self.landed, self.first = {}, 0.0

    def sample(self) -> Sample:
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

    def guess(self, found: float | None) -> None:
        """The first multiplier: what a sample tells, else of the size at which half the penalty would be spent."""
        penalty = self.piece.program.penalty
        value = float(penalty.to(self.piece.dense).value(self.piece.dense).sum())
        self.first = found or max(value, 1e-300) / (4 * self.epsilon**2)

    def steps(self) -> list[tuple[int, Step]]:
        """What is to be done next, part by part; empty when all have landed."""
        rounds = self.rounds
        multiplier, shares = self._next_multiplier(rounds), None
        if multiplier is None and rounds:
            shares = Shares.of(rounds[-1], self.epsilon, len(self.whole.rows))
        elif multiplier is None:  # nothing to search for
            shares = Shares(0.0 if self.epsilon == 0 else self.epsilon / math.sqrt(self.zero_square or 1.0))
        waiting = [
            place
            for place in range(len(self.cuts))
            if (len(self.answers[place]) == len(rounds) if shares is None else place not in self.landed)
        ]
        return [
            (
                place,
                Step(
                    self.names[place], self.parts[place], self.states[place], len(self.cuts[place]),
                    multiplier or 0.0, shares, self.pieces[place],
                ),
            )
            for place in waiting
        ]  # fmt: skip

    def _next_multiplier(self, rounds: Sequence[Answer]) -> float | None:
        """That of parts that are ahead, as a killed run leaves them; else what the search says. None: time to land."""
        ahead = [answers[len(rounds)].multiplier for answers in self.answers if len(answers) > len(rounds)]
        if ahead:
            return ahead[0]
        if not self.first or any(len(self.answers[place]) == len(rounds) for place in self.landed):
            return None
        return next_multiplier(rounds, self.epsilon, self.task.recipe.tolerance) if rounds else self.first

    def outcome(self) -> LayerOutcome:
        """All parts put together, with the certificate of the joint program."""
        parts = [self.landed[place] for place in range(len(self.cuts))]
        return conclude_joint(self.task, self.piece, merge(self.task.layer, self.task.recipe, parts))


@dataclass(frozen=True, eq=False)
class JointRounds:
    """Runs the rounds of the joint blocks of one layer, side by side."""

    work: LayerWork
    executor: Executor
    store: Checkpoint | None
    report: Report  # takes what the log says of a finished step

    def run(
        self, task: LayerTask, piece: Piece, blocks: Mapping[int, tuple[range, ...]], program: str
    ) -> Iterator[tuple[int, LayerOutcome]]:
        """(number, outcome) of each block; `blocks` has the parts of each, as rows of the layer."""
        piece = replace(piece, program=replace(piece.program, inputs=self.executor.share(piece.program.inputs)))
        joint = [self._open(task, piece, number, cuts, program) for number, cuts in blocks.items()]
        wanting = [block for block in joint if block.needs_sample]
        samples = [block.sample() for block in wanting]
        for index, found in self.executor.map(self.work.sample, samples):
            wanting[index].guess(found)
        while joint:
            steps = [(block, place, step) for block in joint for place, step in block.steps()]
            for index, (answer, state, done) in self.executor.map(self.work.step, (step for _, _, step in steps)):
                block, place, step = steps[index]
                self._take(block, place, step, answer, state, done)
            for block in [block for block in joint if len(block.landed) == len(block.cuts)]:
                joint.remove(block)
                yield block.number, block.outcome()

    def _open(self, task: LayerTask, piece: Piece, number: int, cuts: tuple[range, ...], program: str) -> JointBlock:
        """A block with what is on disk of it."""
        whole = cut_part(task, piece, range(cuts[0].start, cuts[-1].stop), number, 0.0)
        block = JointBlock(whole, number, cuts, program)
        block.zero_square = float(zero_squares(block.piece.program).sum())
        for place, rows in enumerate(cuts):
            part = cut_part(task, piece, rows, place, 0.0)
            block.names.append(part.name)
            block.parts.append(self.executor.hold(part))
            block.states.append(None)
            block.answers.append([])
            block.pieces.append(1)
            self._look(block, place, part)
        block.agree()
        return block

    def _look(self, block: JointBlock, place: int, part: Part) -> None:
        """Take what a part had finished when an earlier run ended."""
        stored = None if self.store is None else self.store.load(unit_of(part.task.name, block.cuts, place))
        if stored is None or stored.program != block.program:
            return
        block.answers[place] = [Answer(**answer) for answer in stored.record["answers"]]
        if "landed" in stored.record:
            landed = replace(stored, record=stored.record["landed"])
            block.landed[place] = unpack(landed, part.task.layer, range(len(part.rows)))
        else:
            block.states[place] = self.executor.hold(Priced(**stored.tensors))

    def _take(
        self, block: JointBlock, place: int, step: Step, answer: Answer | LayerOutcome, state: Held | None, done: Done
    ) -> None:
        """Keep what a step found, on disk too, and report it."""
        block.pieces[place] = done.pieces
        block.states[place] = state
        if isinstance(answer, Answer):
            block.answers[place].append(answer)
        else:
            block.landed[place] = answer
        if self.store is not None:
            answers = [asdict(one) for one in block.answers[place]]
            if isinstance(answer, Answer):
                assert state is not None
                tensors, record = dict(vars(self.executor.fetch(state))), {"answers": answers}
            else:
                tensors, landed = pack(answer)
                record = {"answers": answers, "landed": landed}
            self.store.save(unit_of(block.task.name, block.cuts, place), block.program, tensors, record)
        self.report(_line(block, place, step, answer, done))


def unit_of(layer: str, cuts: Sequence[range], place: int) -> str:
    """What a part of a joint block is called on disk while the block is not finished."""
    return f"{layer} {cuts[place].start}-{cuts[place].stop - 1} of {cuts[0].start}-{cuts[-1].stop - 1}"


def _line(block: JointBlock, place: int, step: Step, answer: Answer | LayerOutcome, done: Done) -> Mapping[str, Any]:
    """A line of the log."""
    result = answer if isinstance(answer, Answer) else answer.result
    about = {
        "layer": block.task.name,
        "block": block.number,
        "part": place,
        "parts": len(block.cuts),
        "round": len(block.answers[place]) + (not isinstance(answer, Answer)),
        "neurons": [block.cuts[place].start, block.cuts[place].stop],
        "iterations": result.iterations,
        "seconds": round(result.seconds, 3),
        "worker": done.worker,
    }
    if isinstance(answer, Answer):
        about |= {"multiplier": answer.multiplier, "distance": math.sqrt(answer.square)}
    return about | ({"pieces": done.pieces} if done.pieces > 1 else {})
