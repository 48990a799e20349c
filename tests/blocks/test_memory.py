"""Blocks that run out of memory are solved in smaller pieces, with the answer of those pieces."""

import json

import pytest
import torch
from torch import nn

import nettrim
from nettrim.blocks import split, work
from nettrim.blocks.split import parts_of
from nettrim.blocks.work import LayerWork
from nettrim.errors import NettrimError
from nettrim.executors import LocalExecutor, OutOfMemory
from nettrim.executors.base import attempt, is_out_of_memory

FAILURES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(split, "_ROWS", 8)
    monkeypatch.setattr(split, "_JOINT_ROWS", 5)


def trimmed(checkpoint=None, executor=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    return nettrim.trim(
        model, torch.randn(40, 6), epsilon=0.2, progress=False, executor=executor, checkpoint=checkpoint, **options
    )


def close(one, other):
    """As exact as the tolerance of the solver makes it."""
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.result.certified
        assert b.result.certified
        assert a.totals.objective == pytest.approx(b.totals.objective, rel=2e-4)
        assert a.totals.epsilon == pytest.approx(b.totals.epsilon)
        assert a.weight.shape == b.weight.shape
        assert float((a.weight - b.weight).norm()) <= 0.02 * float(b.weight.norm())


def short_of_memory(monkeypatch, most, error=None):
    """Solving more than `most` neurons at a time fails."""

    def limited(inner):
        def function(task, *more):
            if task.layer.weight.shape[0] > most:
                raise error or MemoryError("no room")
            return inner(task, *more)

        return function

    for name in ("trim_layer", "trim_piece", "price", "land"):
        monkeypatch.setattr(work, name, limited(getattr(work, name)))


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_smaller_pieces_give_the_same_answer(tmp_path, monkeypatch, budget, error):
    whole = trimmed(budget=budget)
    short_of_memory(monkeypatch, 3, error)
    pieces = trimmed(tmp_path, LocalExecutor(2), budget=budget)
    close(pieces, whole)
    assert any("memory ran out; solved in" in note for note in pieces.report.to_dict()["notes"])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line.get("pieces", 1) for line in lines if "part" in line or budget == "neuron"} <= {1, 2, 4}
    assert any(line.get("pieces", 1) > 1 for line in lines)


def test_pieces_are_those_of_a_plan_with_smaller_blocks(monkeypatch):
    """What was cut after a failure is bit for bit what would have been cut from the start."""
    monkeypatch.setattr(split, "_ROWS", 10)
    with monkeypatch.context() as patch:
        short_of_memory(patch, 5)
        pieces = trimmed(budget="neuron", executor=LocalExecutor(1))
    monkeypatch.setattr(split, "_ROWS", 5)
    planned = trimmed(budget="neuron", executor=LocalExecutor(1))
    for one, other in zip(pieces.layers, planned.layers, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.backing[0].dual, other.backing[0].dual)
        assert one.totals.objective == pytest.approx(other.totals.objective, rel=1e-12)  # sums of sums


def test_a_budget_group_is_not_cut(monkeypatch):
    """Clusters of five neurons where only four fit: an error that names the block and the cure."""
    short_of_memory(monkeypatch, 4)
    with pytest.raises(OutOfMemory, match="`memory` should be enough for an item that cannot be cut further") as caught:
        trimmed(budget=4, executor=LocalExecutor(1))
    assert isinstance(caught.value, NettrimError)
    assert any("neurons 0-4" in note for note in caught.value.__notes__)


def test_neurons_of_a_joint_budget_are_cut_down_to_one(monkeypatch):
    whole = trimmed()
    with monkeypatch.context() as patch:
        short_of_memory(patch, 1)
        patch.setattr(work, "trim_layer", lambda task, device: whole.layers[1])  # which is not cut
        pieces = trimmed(executor=LocalExecutor(1))
    close(pieces, whole)


def test_a_layer_that_is_whole_stays_whole(monkeypatch):
    short_of_memory(monkeypatch, 4)
    with pytest.raises(OutOfMemory):
        trimmed(penalty=nettrim.GroupL2Inputs(), executor=LocalExecutor(1))


def test_a_part_in_pieces_covers_its_rows():
    torch.manual_seed(0)
    layer = nettrim.models.base.Layer("fc", "Linear", (21, 5), "relu", torch.randn(21, 5), torch.randn(21))
    task = nettrim.layerwise.LayerTask(
        layer, torch.randn(1, 30, 5), None, torch.randn(30, 21), nettrim.Recipe(epsilon=0.2, budget=7)
    )
    (whole,) = parts_of(task, (range(21),))
    first, second = parts_of(task, (range(12), range(12, 21)))
    for part, groups in ((whole, 7), (first, 4), (second, 3)):
        seen = [part]
        while (part := seen[-1].smaller()) is not None:
            seen.append(part)
        assert seen[-1].pieces == groups
        divided = seen[-1].divided()
        assert [len(piece.rows) for piece in divided] == [3] * groups
        assert torch.equal(torch.cat([piece.task.layer.weight for piece in divided]), seen[0].task.layer.weight)
    alone, together = LayerWork().part(first.smaller()), LayerWork().part(first)
    assert alone.totals.objective == pytest.approx(together.totals.objective, rel=1e-4)


def test_what_is_no_lack_of_memory_is_raised_as_it_is():
    for error in (RuntimeError("shape mismatch"), ValueError("no"), OutOfMemory("no")):
        assert not is_out_of_memory(error)

    class Item:
        def smaller(self):
            raise AssertionError

    def fail(item):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        attempt(fail, Item())
