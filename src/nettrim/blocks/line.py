"""The queue that an executor works off: blocks and parts of joint budgets, layer after layer, as they become ready.

A layer is opened when the workers have room and nothing of the layers before it is ready, so several are in flight
where one cannot keep all workers busy: parts of a joint budget have to wait for each other between rounds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from nettrim.blocks.desk import Desk
from nettrim.blocks.joint import JointBlock, JointPart, line_of
from nettrim.blocks.joint_files import JointFiles
from nettrim.blocks.split import Part, cut_part, parts_of
from nettrim.blocks.work import Done, Sample, Step, worker
from nettrim.executors.base import Executor, Held
from nettrim.executors.shard import Shard
from nettrim.layerwise import Answer, LayerOutcome, LayerTask, Piece, make_pieces
from nettrim.log import Silence

_POLL = 0.5  # seconds between looks for the files of other shares
_WAITING = 2  # layers that may wait for other shares while one more is opened


class Keeper(Protocol):
    """What finishes blocks and keeps them."""

    def look(self, desk: Desk, program: str | None = None) -> None:
        """Fetch the missing blocks that are on disk; None: whatever programs they answer."""
        ...

    def keep_same(self, desk: Desk, task: LayerTask) -> str:
        """The digest of the layer's programs; stored blocks of others are dropped."""
        ...

    def finish(self, desk: Desk, number: int, outcome: LayerOutcome, done: Done) -> None:
        """Keep a finished block."""
        ...

    def log(self, line: Mapping[str, Any]) -> None:
        """Write a line of the log."""
        ...

    def silence(self) -> Silence:
        """How long no share has written a line, from now on."""
        ...


@dataclass(eq=False)
class _Open:
    """A layer whose samples are here."""

    desk: Desk
    parts: Iterator[Part]  # blocks that are solved apart
    joint: list[JointBlock] = field(default_factory=list)
    sent: int = 0  # of `parts`, in the workers' hands
    over: bool = False  # no `parts` are left to send

    @property
    def busy(self) -> bool:
        """Whether anything of it is in the workers' hands."""
        return self.sent > 0 or any(block.busy for block in self.joint)


@dataclass(frozen=True, eq=False)
class _Ticket:
    """Where the result of an item that the workers have belongs."""

    opened: _Open
    number: int = 0
    block: JointBlock | None = None
    part: JointPart | None = None


class Line:
    """Items for `Executor.map`: an iterator that may have more after it had none, as results come in.

    `done` gets layers that are finished, `away` those with blocks of other shares only.
    """

    def __init__(
        self,
        keeper: Keeper,
        executor: Executor,
        files: JointFiles | None,
        desks: Sequence[Desk],
        capture: Callable[[str], LayerTask],
        give: Callable[[str], None],
    ) -> None:
        self._keeper, self._executor, self._files = keeper, executor, files
        self._capture, self._give = capture, give
        self._closed, self._opened = deque(desks), list[_Open]()
        self._tickets: dict[int, _Ticket] = {}
        self._count = 0
        self._looked = time.monotonic()
        self.done: deque[Desk] = deque()
        self.away: list[Desk] = []

    def __iter__(self) -> Iterator[Part | Sample | Step]:
        """The same queue again, its items counted from 0."""
        self._tickets, self._count = {}, 0
        return self

    def __next__(self) -> Part | Sample | Step:
        found = self._next()
        if found is None:
            raise StopIteration
        self._tickets[self._count], item = found
        self._count += 1
        return item

    def take(self, index: int, result: Any) -> None:
        """The result of an item."""
        ticket = self._tickets.pop(index)
        opened, block = ticket.opened, ticket.block
        if block is None:
            opened.sent -= 1
            self._keeper.finish(opened.desk, ticket.number, *result)
        elif block not in opened.joint:
            return  # finished by another share meanwhile
        elif ticket.part is None:
            block.guess(result)
            self._keep_course(block)
        else:
            self._take_step(block, ticket.part, *result)
        if block is not None:
            self._advance(opened, block)
        self._close(opened)

    def wait(self) -> bool:
        """After the queue ran dry, wait for news of other shares; whether there may be more to do here.

        Where none comes in time, this process solves what is missing of blocks that it leads; where no share, in
        particular none that leads, has finished anything for twice that time, it leaves the others.
        """
        if not self._opened:
            return False
        if not isinstance(self._executor, Shard):
            return True  # an executor that did not ask again
        began, patience, silence = time.monotonic(), self._executor.wait, self._keeper.silence()
        while not self._look():
            if time.monotonic() - began >= patience and self._take_over():
                break
            left = 2 * patience - silence.seconds  # who leads gets the time to take over
            if left <= 0:
                self._give_up()
                break
            time.sleep(min(_POLL, left))
        return True

    def _next(self) -> tuple[_Ticket, Part | Sample | Step] | None:
        if time.monotonic() - self._looked >= _POLL:
            self._look()
        for opened in list(self._opened):
            found = self._of(opened)
            if found is not None:
                return found
        most = 0 if self._executor.captures else _WAITING  # shares that capture have to open layers together
        while self._closed and sum(not opened.busy for opened in self._opened) <= most:
            opened = self._open(self._closed.popleft())
            found = None if opened is None else self._of(opened)
            if found is not None:
                return found
        return None

    def _of(self, opened: _Open) -> tuple[_Ticket, Part | Sample | Step] | None:
        """What is ready of a layer."""
        for block in opened.joint:
            found = block.next()
            if found is not None:
                return _Ticket(opened, block=block, part=found[0]), found[1]
        part = next(opened.parts, None)
        if part is not None:
            opened.sent += 1
            return _Ticket(opened, part.number), part
        opened.over = True
        self._close(opened)
        return None

    def _open(self, desk: Desk) -> _Open | None:
        """Capture a layer and make its programs, where anything of it is to be solved here."""
        self._keeper.look(desk)
        if not desk.own(self._executor):
            if desk.missing:
                self._give(desk.layer.name)
            (self.away if desk.missing else self.done).append(desk)
            return None
        task = self._capture(desk.layer.name)
        program = self._keeper.keep_same(desk, task)
        own = desk.own(self._executor)
        apart = [number for number in own if number not in desk.joint]
        opened = _Open(desk, parts_of(task, desk.blocks, apart, self._executor.share) if apart else iter(()))
        self._opened.append(opened)
        if len(apart) < len(own):
            (piece,) = make_pieces(task)
            shared = self._executor.share(piece.program.inputs)
            piece = replace(piece, program=replace(piece.program, inputs=shared))
            for number in own:
                if number in desk.joint:
                    self._start(opened, task, piece, number, program)
        return opened

    def _start(self, opened: _Open, task: LayerTask, piece: Piece, number: int, program: str) -> None:
        """Begin a joint block, or go on with it."""
        desk, cuts = opened.desk, opened.desk.joint[number]
        whole = cut_part(task, piece, range(cuts[0].start, cuts[-1].stop), number, 0.0)
        parts = [JointPart(cut_part(task, piece, rows, place, 0.0)) for place, rows in enumerate(cuts)]
        for place, part in enumerate(parts):
            if desk.solves(self._executor, number, place):
                part.held = self._executor.hold(part.part)
        block = JointBlock(whole, number, program, parts, desk.leads(self._executor, number))
        if self._files is not None:
            self._files.read(block)
        opened.joint.append(block)
        self._advance(opened, block)

    def _take_step(
        self, block: JointBlock, part: JointPart, answer: Answer | LayerOutcome, state: Held | None, done: Done
    ) -> None:
        if not block.take(part, answer, state, done):
            return
        self._keeper.log(line_of(block, part, answer, done))
        if self._files is not None:
            self._files.keep_part(block, part)

    def _advance(self, opened: _Open, block: JointBlock) -> None:
        """Decide what is next for a joint block; finish it where all parts have landed."""
        if block.decide():
            self._keep_course(block)
        if not block.over:
            return
        if block.lead:
            lost = [] if self._files is None else list(self._files.gather(block))
            if lost:
                self._adopt(opened, block, lost)
                return
            self._keeper.finish(opened.desk, block.number, block.outcome(), Done(worker(), 1))
        opened.joint.remove(block)

    def _keep_course(self, block: JointBlock) -> None:
        if self._files is not None:
            self._files.keep_course(block)

    def _look(self) -> bool:
        """Whether there is news of joint blocks that other shares work on too."""
        self._looked = time.monotonic()
        if not isinstance(self._executor, Shard) or self._files is None:
            return False
        news = False
        for opened in list(self._opened):
            for block in [block for block in opened.joint if not block.alone]:
                self._keeper.look(opened.desk, block.program)
                if block.number in opened.desk.outcomes:
                    opened.joint.remove(block)
                    news = True
                elif self._files.look(block):
                    self._advance(opened, block)
                    news = True
            self._close(opened)
        return news

    def _take_over(self) -> bool:
        """Make this share's own what the blocks that it leads lack for the next round; whether there was anything."""
        found = False
        for opened in list(self._opened):
            for block in list(opened.joint):
                missing = [part for part in block.parts if part.held is None and not part.at_end(block.course)]
                if block.lead and missing:
                    self._adopt(opened, block, missing)
                    found = True
            self._close(opened)
        return found

    def _give_up(self) -> None:
        """Leave the blocks that other shares lead."""
        for opened in list(self._opened):
            opened.joint = [block for block in opened.joint if block.lead]
            self._close(opened)

    def _adopt(self, opened: _Open, block: JointBlock, parts: Sequence[JointPart]) -> None:
        """Make parts of other shares this one's own, with what is on disk of them, which may be more than was seen."""
        for part in parts:
            part.forget()
            part.held = self._executor.hold(part.part)
            if self._files is not None and self._files.read_part(block, part):
                block.follow(block.course)
        if parts:
            self._advance(opened, block)

    def _close(self, opened: _Open) -> None:
        """Let go of a layer of which nothing is left to do here."""
        if opened in self._opened and opened.over and not opened.sent and not opened.joint:
            self._opened.remove(opened)
            (self.away if opened.desk.missing else self.done).append(opened.desk)
