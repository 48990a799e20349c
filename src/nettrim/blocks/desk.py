"""A layer in the making: which of its blocks are finished, and whose the others are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nettrim.blocks.split import cuts, plan
from nettrim.executors.base import Executor
from nettrim.executors.shard import Shard
from nettrim.layerwise import LayerOutcome
from nettrim.models.base import Layer
from nettrim.recipe import Recipe


@dataclass(eq=False)
class Desk:
    """A layer in the making."""

    layer: Layer
    blocks: tuple[range, ...]
    joint: Mapping[int, tuple[range, ...]]  # blocks that are one joint budget, solved in several parts: these
    first: int  # the number of its first block or part, counted over the whole trim
    programs: dict[int, str] = field(default_factory=dict)  # digests of what the stored blocks answer
    outcomes: dict[int, LayerOutcome] = field(default_factory=dict)

    def unit(self, number: int) -> str:
        """What a block is called on disk."""
        rows = self.blocks[number]
        return f"{self.layer.name} {rows.start}-{rows.stop - 1}"

    @property
    def missing(self) -> list[int]:
        """Numbers of the blocks that are not finished."""
        return [number for number in range(len(self.blocks)) if number not in self.outcomes]

    @property
    def size(self) -> int:
        """Blocks, each part of a joint one by itself."""
        return sum(len(self.joint.get(number, (0,))) for number in range(len(self.blocks)))

    def leads(self, executor: Executor, number: int) -> bool:
        """Whether this process finishes a block: solves it, or leads its parts."""
        return self.solves(executor, number, 0)

    def solves(self, executor: Executor, number: int, place: int) -> bool:
        """Whether this process solves a part of a joint block.

        Shares that do not wait for each other cannot take turns: who leads a block then solves all of it.
        """
        if not isinstance(executor, Shard):
            return True
        before = sum(len(self.joint.get(other, (0,))) for other in range(number))
        return executor.mine(self.first + before + (place if executor.wait else 0))

    def own(self, executor: Executor) -> list[int]:
        """Missing blocks of which something is to be solved here."""
        return [
            number
            for number in self.missing
            if any(self.solves(executor, number, place) for place in range(len(self.joint.get(number, (0,)))))
        ]


def desks_of(layers: Sequence[Layer], recipe: Recipe, whole: bool) -> list[Desk]:
    """A desk for each layer, those with a joint budget in several parts last; `whole`: layers are not cut."""
    apart: list[Desk] = []
    joined: list[Desk] = []
    first = 0
    for layer in layers:
        blocks, joint = (range(layer.weight.shape[0]),), {}
        if not whole:
            blocks = plan(layer, recipe)
            joint = {number: cuts(layer, recipe, block) for number, block in enumerate(blocks)}
        joint = {number: parts for number, parts in joint.items() if len(parts) > 1}
        desk = Desk(layer, blocks, joint, first)
        first += desk.size
        (joined if joint else apart).append(desk)
    return apart + joined
