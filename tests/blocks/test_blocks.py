"""Layers cut into blocks: the same answer whoever solves them, resumed to the bit, shared between jobs."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import nettrim
from nettrim.blocks import split
from nettrim.blocks.merge import merge
from nettrim.blocks.split import parts_of, plan
from nettrim.blocks.work import LayerWork
from nettrim.checkpoint import Checkpoint
from nettrim.errors import InputError
from nettrim.executors.local import LocalExecutor
from nettrim.executors.shard import Shard, Unfinished
from nettrim.layerwise import LayerTask, conclude, make_pieces
from nettrim.models.base import Layer
from nettrim.recipe import Recipe


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(split, "_ROWS", 4)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), torch.randn(40, 6)


def trimmed(checkpoint=None, executor=None, model=None, data=None, **options):
    model, data = model or network()[0], network()[1] if data is None else data
    options = {"epsilon": 0.2, "budget": "neuron", "progress": False, **options}
    return nettrim.trim(model, data, executor=executor, checkpoint=checkpoint, **options)


def task(out=11, **options):
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(out, 5, generator=generator), torch.randn(out, generator=generator)
    layer = Layer("fc", "Linear", (out, 5), "relu", weight, bias)
    inputs = torch.randn(1, 30, 5, generator=generator)
    return LayerTask(layer, inputs, None, None, Recipe(**{"epsilon": 0.2, "budget": "neuron", **options}))


@pytest.mark.parametrize("budget", ["layer", "neuron", 1, 2, 5, 100])
@pytest.mark.parametrize("out", [1, 4, 5, 9, 16, 23])
def test_blocks_cover_every_neuron_once_and_split_no_group(budget, out):
    given = task(out, budget=budget)
    blocks = plan(given.layer, given.recipe)
    assert [row for block in blocks for row in block] == list(range(out))
    groups = make_pieces(given)[0].program.groups.tolist()
    owners = [{number for number, block in enumerate(blocks) for row in block if groups[row] == g} for g in set(groups)]
    assert all(len(owner) == 1 for owner in owners)
    if budget == "neuron":
        assert max(map(len, blocks)) <= 4


@pytest.mark.parametrize("changes", [{"kappa": 0.9}, {"penalty": nettrim.GroupL2Inputs()}, {"budget": "layer"}])
def test_what_cannot_be_cut_is_kept_whole(changes):
    given = task(**changes)
    assert len(plan(given.layer, given.recipe)) == 1


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("options", [{}, {"budget": 4}, {"relative": False}, {"refit": False}])
def test_the_merged_record_is_that_of_the_merged_weights(constraint, options):
    """Every number is as `conclude` measures it on the whole layer, which is what `verify` will do."""
    given = task(constraint=constraint, **options)
    blocks = plan(given.layer, given.recipe)
    work = LayerWork()
    parts = list(parts_of(given, blocks, range(len(blocks)), lambda tensor: tensor))
    assert len(parts) > 1
    outcome = merge(given.layer, given.recipe, [work.part(part) for part in parts])
    whole = conclude(given, make_pieces(given), outcome.backing, outcome.weight, outcome.bias)
    for name, value in vars(outcome.totals).items():
        assert value == pytest.approx(getattr(whole.totals, name), rel=1e-6, abs=1e-9), name
    assert outcome.result.certified == whole.result.certified
    assert outcome.result.nonzeros_after == whole.result.nonzeros_after


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_any_number_of_workers_gives_the_same_bits(scheme, same):
    one = trimmed(executor=LocalExecutor(1), scheme=scheme)
    assert same(one, trimmed(executor=LocalExecutor(3), scheme=scheme))


@pytest.mark.parametrize("budget", ["neuron", "layer"])
@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_a_finished_trim_comes_back_without_solving(tmp_path, scheme, budget, monkeypatch, same):
    first = trimmed(tmp_path, scheme=scheme, budget=budget)
    monkeypatch.setattr(LayerWork, "part", None)
    again = trimmed(tmp_path, scheme=scheme, budget=budget)
    assert same(first, again)
    assert [outcome.result.seconds for outcome in first.layers] == [outcome.result.seconds for outcome in again.layers]


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_missing_and_damaged_blocks_alone_are_solved_again(tmp_path, scheme, monkeypatch, same):
    first = trimmed(tmp_path, scheme=scheme)
    files = sorted(tmp_path.glob("*.block"))
    assert len(files) == 4
    files[0].unlink()
    files[-1].write_bytes(files[-1].read_bytes()[:-20])
    solved = []
    inner = LayerWork.part
    monkeypatch.setattr(LayerWork, "part", lambda self, part: solved.append(part.name) or inner(self, part))
    assert same(first, trimmed(tmp_path, scheme=scheme))
    assert len(solved) == 2


@pytest.mark.parametrize("change", [{"added": 1.0}, {"shape": None}, {"name": ...}])
def test_blocks_with_records_of_another_version_are_solved_again(tmp_path, monkeypatch, change, same):
    """A field that is not known, of another type, or missing."""
    first = trimmed(tmp_path)
    store, unit = Checkpoint(tmp_path), "0 0-2"
    stored = store.load(unit)
    result = {key: value for key, value in {**stored.record["result"], **change}.items() if value is not ...}
    store.save(unit, stored.program, stored.tensors, {**stored.record, "result": result})
    solved = []
    inner = LayerWork.part
    monkeypatch.setattr(LayerWork, "part", lambda self, part: solved.append(part.name) or inner(self, part))
    again = trimmed(tmp_path)
    assert same(first, again)
    assert len(solved) == 1
    assert [note for note in again.report.result.notes if repr(unit) in note and "another version" in note]
    assert not [note for note in trimmed(tmp_path).report.result.notes if "another version" in note]


def test_blocks_of_another_program_are_solved_again(tmp_path, monkeypatch, same):
    """As when the inputs of a layer were computed on another machine, to other last digits."""
    first = trimmed(tmp_path)
    sorted(tmp_path.glob("0_*.block"))[0].unlink()
    monkeypatch.setattr("nettrim.blocks.run.digest_task", lambda task: "another")
    solved = []
    inner = LayerWork.part
    monkeypatch.setattr(LayerWork, "part", lambda self, part: solved.append(part.name) or inner(self, part))
    assert same(first, trimmed(tmp_path))
    assert len(solved) == 3  # the whole first layer; the second one was not asked


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: trimmed("DIR", epsilon=0.3), "recipe: epsilon 0.2 there, 0.3 here"),
        (lambda: trimmed("DIR", penalty=nettrim.L1(torch.rand(6))), "recipe"),
        (lambda: trimmed("DIR", model=network(1)[0]), "model: 0."),
        (lambda: trimmed("DIR", data=network(1)[1]), "data"),
        (lambda: trimmed("DIR", holdout=network(1)[1]), "data: held out"),
    ],
)
def test_a_checkpoint_of_another_trim_is_refused(tmp_path, monkeypatch, change, named):
    monkeypatch.chdir(tmp_path)
    trimmed("DIR")
    before = {path: path.read_bytes() for path in (tmp_path / "DIR").iterdir()}
    with pytest.raises(InputError, match=f"of another {named}"):
        change()
    assert before == {path: path.read_bytes() for path in (tmp_path / "DIR").iterdir()}


class Scaled(nn.Module):
    """The same weights whatever its scale, which no state dictionary has."""

    def __init__(self, scale, kept):
        super().__init__()
        self.layers = network()[0]
        if kept == "buffer":
            self.register_buffer("scale", torch.tensor(scale), persistent=False)
        else:
            self.scale = {"number": float, "tensor": torch.tensor, "whole": int}[kept](scale)

    def forward(self, x):
        return self.layers(x * self.scale)


@pytest.mark.parametrize("kept", ["number", "tensor", "whole", "buffer"])
def test_a_checkpoint_of_another_forward_pass_is_refused(tmp_path, kept):
    """Its layers would be certified on samples that the network at hand never sees."""
    trimmed(tmp_path, model=Scaled(1.0, kept))
    with pytest.raises(InputError, match="of another model: .*(operations|answers)"):
        trimmed(tmp_path, model=Scaled(3.0, kept))
    assert trimmed(tmp_path, model=Scaled(1.0, kept)).report.layers[0].certified


def test_a_checkpoint_knows_batches_where_positions_are_drawn_by_them(tmp_path):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    data = torch.randn(40, 2, 8)
    for positions, folder in ((None, tmp_path / "all"), (2, tmp_path / "some")):
        trimmed(folder, model=model, data=list(data.split(10)), positions=positions)
        if positions is None:
            trimmed(folder, model=model, data=list(data.split(8)))
        else:
            with pytest.raises(InputError, match="of another data: batches"):
                trimmed(folder, model=model, data=list(data.split(8)), positions=positions)


def test_every_block_has_a_line_in_the_log(tmp_path):
    trimmed(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sorted((line["layer"], *line["neurons"]) for line in lines) == [
        ("0", 0, 3), ("0", 3, 6), ("0", 6, 10), ("2", 0, 3)
    ]  # fmt: skip
    assert all(line["seconds"] >= 0 and line["gap"] <= 1e-4 and line["worker"] and line["ended"] for line in lines)


@pytest.mark.parametrize("count", [2, 3])
def test_shares_make_the_same_trim(tmp_path, count, same):
    whole = trimmed()
    for index in range(1, count):
        with pytest.raises(Unfinished, match="blocks of other shares are missing"):
            trimmed(tmp_path, Shard(index, count, executor=LocalExecutor(1)))
    assert same(whole, trimmed(tmp_path, Shard.parse(f"{count}/{count}")))  # the last one finds all there
    assert same(whole, trimmed(tmp_path))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4  # nothing was solved twice


def test_shares_of_a_cascade_go_layer_by_layer(tmp_path, same):
    whole = trimmed(scheme="cascade")
    rounds = 0
    while True:
        rounds += 1
        finished = None
        for index in (1, 2):
            try:
                finished = trimmed(tmp_path, Shard(index, 2), scheme="cascade")
            except Unfinished:
                continue
        if finished is not None:
            break
        assert rounds < 4
    assert same(whole, finished)


def test_a_share_waits_no_longer_than_it_may(tmp_path):
    with pytest.raises(Unfinished):
        trimmed(tmp_path, Shard(1, 2, wait=0.7))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "a/b", "1", "-1/2"])
def test_shares_are_checked(text):
    with pytest.raises(InputError, match="`shard` should be"):
        Shard.parse(text)


def test_a_share_needs_a_checkpoint():
    with pytest.raises(InputError, match="`checkpoint` should be given"):
        trimmed(executor=Shard(1, 2))


def test_nothing_writes_into_shared_inputs():
    """Blocks read views of one array: the solver leaves it as it was."""
    given = task()
    blocks = plan(given.layer, given.recipe)
    parts = list(parts_of(given, blocks, range(len(blocks)), lambda tensor: tensor))
    before = parts[0].piece.program.inputs.clone()
    for part in parts:
        assert part.piece.program.inputs.data_ptr() == part.task.inputs.data_ptr() == parts[0].task.inputs.data_ptr()
        LayerWork().part(replace(part))
    assert torch.equal(before, parts[0].piece.program.inputs)


def test_a_trim_in_blocks_can_be_verified(tmp_path):
    model, data = network()
    saved = trimmed(tmp_path / "checkpoint").save(tmp_path / "saved")
    assert nettrim.verify(saved, model, data).holds
