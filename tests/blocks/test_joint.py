"""One budget over many neurons, solved in parts: the joint program's optimum and certificate, to the same bits."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import nettrim
from nettrim.blocks import Blocks, split, work
from nettrim.blocks.joint_files import JointFiles
from nettrim.blocks.split import cuts, plan
from nettrim.blocks.work import LayerWork
from nettrim.checkpoint import Checkpoint
from nettrim.executors.base import Held
from nettrim.executors.local import LocalExecutor
from nettrim.executors.shard import Shard, Unfinished
from nettrim.layerwise import LayerTask, Shares, conclude, land, make_pieces, trim_layer
from nettrim.models.base import Layer
from nettrim.recipe import Recipe

ROWS = 18


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(split, "_ROWS", 4)
    monkeypatch.setattr(split, "_JOINT_ROWS", 4)


def task(moved=False, out=ROWS, **options):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(out, 6, generator=generator) * torch.rand(out, 1, generator=generator)
    layer = Layer("fc", "Linear", (out, 6), "relu", weight, torch.randn(out, generator=generator) / 4)
    inputs = torch.randn(1, 50, 6, generator=generator)
    recipe = Recipe(**{"epsilon": 0.2, **options})
    if not moved:
        return LayerTask(layer, inputs, None, None, recipe)
    shifted = inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
    responses = (inputs[0] @ weight.T + layer.bias).relu()
    return LayerTask(layer, shifted, responses, None, recipe, "cascade", moved=True)


def in_parts(given, executor=None, store=None):
    blocks = Blocks(LayerWork(), executor or LocalExecutor(1), given.recipe, store)
    (outcome,) = blocks.run([given.layer], lambda name: given)
    return outcome


def trimmed(checkpoint=None, executor=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))
    options = {"epsilon": 0.2, "progress": False, **options}
    return nettrim.trim(model, torch.randn(40, 6), executor=executor, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("out", [15, 16, 17, 40])
@pytest.mark.parametrize("budget", ["layer", "neuron", 2])
def test_only_joint_budgets_are_cut_and_every_neuron_is_in_one_part(out, budget):
    given = task(out=out, budget=budget)
    for block in plan(given.layer, given.recipe):
        parts = cuts(given.layer, given.recipe, block)
        assert [row for part in parts for row in part] == list(block)
        if budget == "neuron" or len(block) <= 12:
            assert len(parts) == 1
        else:
            assert len(parts) >= 4
            assert max(map(len, parts)) <= 4


@pytest.mark.parametrize("options", [{"kappa": 0.9}, {"penalty": nettrim.GroupL2Inputs()}])
def test_what_cannot_be_cut_is_kept_whole(options):
    given = task(**options)
    assert cuts(given.layer, given.recipe, range(ROWS)) == (range(ROWS),)


def test_orthogonal_inputs_have_a_known_answer():
    """With X'X = I the joint program is soft thresholding of all weights at one level, the same for every neuron."""
    given = task(refit=False)
    inputs = torch.linalg.qr(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    weight = given.layer.weight.double()
    given = replace(
        given, inputs=inputs[None], layer=replace(given.layer, activation="linear", weight=weight, bias=None)
    )
    epsilon = 0.2 * float(weight.norm())  # the responses' norm is the weights'
    low, high = 0.0, float(weight.abs().max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if float(weight.abs().clamp(max=level).norm()) < epsilon else (low, level)
    expected = weight.sign() * (weight.abs() - level).clamp(min=0)
    outcome = in_parts(given)
    assert outcome.result.certified
    assert outcome.totals.objective == pytest.approx(float(expected.abs().sum()), rel=1e-4)
    assert float((outcome.weight - expected).abs().max()) < 1e-2 * level
    assert torch.equal(outcome.weight != 0, expected.abs() > 0)


CASES = [
    {},
    {"constraint": "strict"},
    {"epsilon": 0.02},
    {"epsilon": 0.7},
    {"budget": 1},
    {"relative": False, "epsilon": 1.0},
    {"penalize_bias": True},
    {"refit": False},
    {"penalty": nettrim.ElasticNet(0.1)},
    {"tolerance": 1e-6, "penalty": nettrim.L1(torch.rand(6) + 0.5)},
    {"moved": True, "gamma": 1.3},
    {"moved": True, "gamma": 1.3, "constraint": "strict"},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options)) or "plain")
def test_parts_reach_the_optimum_of_the_whole(options):
    given = task(**options)
    outcome, whole = in_parts(given), trim_layer(given)
    (piece,) = make_pieces(given)
    (backing,) = outcome.backing
    certificate = nettrim.certify(piece.program, backing.weight, backing.dual)
    assert certificate.holds(given.recipe.tolerance, 1e-6)
    assert outcome.result.certified
    assert outcome.totals.objective == pytest.approx(certificate.objective)
    assert outcome.totals.bound == pytest.approx(certificate.bound)
    assert outcome.totals.bound <= whole.totals.objective * (1 + 1e-12)
    assert whole.totals.bound <= outcome.totals.objective * (1 + 1e-12)
    assert outcome.totals.epsilon == pytest.approx(whole.totals.epsilon)
    assert sum(outcome.result.neurons.values()) == ROWS


@pytest.mark.parametrize("options", CASES[:3], ids=lambda options: "-".join(map(str, options)) or "plain")
def test_the_record_is_that_of_the_weights(options):
    """Every number is as `conclude` measures it on the whole layer, which is what `verify` will do."""
    given = task(**options)
    outcome = in_parts(given)
    whole = conclude(given, make_pieces(given), outcome.backing, outcome.weight, outcome.bias)
    for name, value in vars(outcome.totals).items():
        assert value == pytest.approx(getattr(whole.totals, name), rel=1e-6, abs=1e-9), name
    assert outcome.result.certified == whole.result.certified


def test_clusters_larger_than_a_block_have_multipliers_of_their_own():
    given = task(out=37, budget=2, epsilon=0.3)
    outcome, whole = in_parts(given), trim_layer(given)
    (piece,) = make_pieces(given)
    certificate = nettrim.certify(piece.program, outcome.backing[0].weight, outcome.backing[0].dual)
    assert bool((certificate.group_gap < 1e-4).all())
    assert certificate.violation <= 1e-6
    assert outcome.totals.objective == pytest.approx(whole.totals.objective, rel=2e-4)


@pytest.mark.parametrize(("epsilon", "rounds"), [(0.0, False), (5.0, False)])
def test_without_anything_to_search_there_are_no_rounds(epsilon, rounds, monkeypatch):
    """Epsilon zero leaves each neuron to itself; where zero weights are within epsilon, they are the answer."""
    monkeypatch.setattr(work, "price", None)
    outcome = in_parts(task(epsilon=epsilon))
    if epsilon:
        assert outcome.result.nonzeros_after == 0
    assert outcome.result.gap <= 1e-4
    assert outcome.totals.violation <= 1e-6


def test_shares_add_up_to_the_joint_epsilon():
    given = task()
    found = {}
    inner = work.land

    def spy(task, piece, priced, shares, device):
        found[len(found)] = (priced, shares)
        return inner(task, piece, priced, shares, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "land", spy)
        outcome = in_parts(given)
    total = 0.0
    for priced, shares in found.values():
        own = (shares.scale * priced.squares.sqrt()).clamp(min=shares.floor)
        total += float(torch.where(priced.settled, priced.squares, own**2).sum())
    assert math.sqrt(total) <= outcome.totals.epsilon
    assert math.sqrt(total) == pytest.approx(outcome.totals.epsilon, rel=1e-6)


def test_parts_that_break_the_budget_together_leave_the_dense_weights(monkeypatch):
    def generous(task, piece, priced, shares, device):
        return land(task, piece, priced, Shares(1.5 * shares.scale, shares.floor), device)

    monkeypatch.setattr(work, "land", generous)
    given = task()
    outcome = in_parts(given)
    assert torch.equal(outcome.weight, given.layer.weight)
    assert outcome.totals.violation == 0
    assert not outcome.result.certified
    assert any("their weights were kept" in note for note in outcome.notes)


def test_a_multiplier_far_off_is_found_out(monkeypatch):
    """Landing at the wrong multiplier gives feasible weights that are not optimal, and the certificate says so."""
    monkeypatch.setattr("nettrim.blocks.joint.next_multiplier", lambda *given: None)
    monkeypatch.setattr(LayerWork, "sample", lambda self, sample: 1e-3)
    outcome = in_parts(task())
    assert outcome.totals.violation <= 1e-6
    assert outcome.result.gap > 1e-3
    assert not outcome.result.certified


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_any_number_of_workers_gives_the_same_bits(scheme, same):
    one = trimmed(executor=LocalExecutor(1), scheme=scheme)
    assert same(one, trimmed(executor=LocalExecutor(3), scheme=scheme))


class Backwards(LocalExecutor):
    """Takes as many items as it has workers, and the newest of them comes back first."""

    def __init__(self, workers):
        super().__init__(workers)
        self.together = set()  # layers that had items in flight at the same time

    def map(self, function, items):
        source, sent = enumerate(items), []
        while True:
            while len(sent) < self.workers and (entry := next(source, None)) is not None:
                sent.append(entry)
            if not sent:
                return
            self.together.add(frozenset(item.name.partition(",")[0] for _, item in sent))
            index, item = sent.pop()
            yield index, function(item)


def test_layers_are_in_flight_together(same):
    """Between the rounds of one layer the workers have those of others; with one worker a layer comes after another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 16), nn.ReLU(), nn.Linear(16, 20))
    samples, trims = torch.randn(40, 6), {}
    for workers in (1, 3, 7):
        executor = Backwards(workers)
        trims[workers] = nettrim.trim(model, samples, epsilon=0.2, progress=False, executor=executor)
        assert max(map(len, executor.together)) == min(workers, 3)
    assert same(trims[1], trims[3])
    assert same(trims[1], trims[7])


def test_an_executor_that_asks_once_is_asked_again(same):
    class Once(LocalExecutor):
        def map(self, function, items):
            return ((index, function(item)) for index, item in enumerate(list(items)))

    assert same(trimmed(executor=LocalExecutor(1)), trimmed(executor=Once(1)))


def test_only_sums_travel_between_rounds():
    """An executor that takes every item and result apart: tensors are in what is held, and in the last step."""

    class Watching(LocalExecutor):
        rounds = 0

        def map(self, function, items):
            for index, result in super().map(function, items):
                if isinstance(result, tuple) and isinstance(result[1], Held):
                    answer, _, done = result
                    assert all(
                        isinstance(value, int | float | str) for value in [*vars(answer).values(), *vars(done).values()]
                    )
                    self.rounds += 1
                yield index, result

    executor = Watching(1)
    in_parts(task(), executor)
    assert executor.rounds >= 5


class Stop(Exception):
    pass


def stopping(monkeypatch, after):
    """Steps are counted; after some of them the run dies."""
    counted = {"steps": 0, "samples": 0}
    inner, inner_sample = LayerWork.step, LayerWork.sample

    def step(self, step):
        if counted["steps"] >= after:
            raise Stop
        counted["steps"] += 1
        return inner(self, step)

    def sample(self, sample):
        counted["samples"] += 1
        return inner_sample(self, sample)

    monkeypatch.setattr(LayerWork, "step", step)
    monkeypatch.setattr(LayerWork, "sample", sample)
    return counted


def interrupted(tmp_path, monkeypatch, after):
    """What a whole run finds, and the folder of one that ended after so many steps."""
    expected, folder = trimmed(tmp_path / "whole", LocalExecutor(1)), tmp_path / "other"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stopping(patch, after)
        trimmed(folder, LocalExecutor(1))
    return expected, folder


def test_a_run_that_dies_after_any_step_repeats_none(tmp_path, monkeypatch, same):
    with monkeypatch.context() as patch:
        counted = stopping(patch, 10**6)
        expected = trimmed(tmp_path / "whole", LocalExecutor(1))
        steps = counted["steps"]
    assert steps >= 10
    for after in range(1, steps, 5):
        folder = tmp_path / str(after)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stopping(patch, after)
            trimmed(folder, LocalExecutor(1))
        with monkeypatch.context() as patch:
            counted = stopping(patch, 10**6)
            assert same(expected, trimmed(folder, LocalExecutor(1)))
            assert counted == {"steps": steps - after, "samples": 0}
    names = {path.name for path in (tmp_path / "whole").glob("*.block")}
    assert len(names) == 2  # nothing is left of the rounds
    assert all({path.name for path in folder.glob("*.block")} == names for folder in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["of", "course"])
@pytest.mark.parametrize("after", [3, 7, 16])
def test_a_damaged_part_alone_is_made_up_for(tmp_path, monkeypatch, after, name, same):
    """So is a damaged course: the parts tell it."""
    expected, folder = interrupted(tmp_path, monkeypatch, after)
    damaged = sorted(folder.glob(f"*_{name}_*.block"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with monkeypatch.context() as patch:
        counted = stopping(patch, 10**6)
        assert same(expected, trimmed(folder, LocalExecutor(1)))
    assert counted["samples"] == 0


@pytest.mark.parametrize("name", ["0-2 of 0-16", "course of 0-16"])
@pytest.mark.parametrize("after", [3, 16])
def test_records_of_another_version_are_made_up_for(tmp_path, monkeypatch, after, name, same):
    """Of parts in the rounds and of landed ones, and of the course."""
    expected, folder = interrupted(tmp_path, monkeypatch, after)
    store, unit = Checkpoint(folder), f"0 {name}"
    stored = store.load(unit)
    for key in stored.record.keys() & {"answers", "landed"}:
        each = stored.record[key] if key == "answers" else [stored.record[key]["totals"]]
        for record in each:
            record["added"] = 1.0
    stored.record.pop("multipliers", None)
    store.save(unit, stored.program, stored.tensors, stored.record)
    found = trimmed(folder, LocalExecutor(1))
    assert same(expected, found)
    assert [note for note in found.report.result.notes if repr(unit) in note and "another version" in note]


def test_parts_of_another_search_are_not_mixed(tmp_path, monkeypatch, same):
    """As when files of two versions lie in one directory: parts that left the course begin anew."""
    folder, kept = tmp_path / "other", {}
    for first in (0.5, 0.7):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(LayerWork, "sample", lambda self, sample, first=first: first)
            if first == 0.7:
                expected = trimmed(executor=LocalExecutor(1))
                patch.setattr(JointFiles, "read", lambda *given: None)
            stopping(patch, 8)
            trimmed(folder, LocalExecutor(1))
        if first == 0.5:
            kept = {path: path.read_bytes() for path in sorted(folder.glob("*_of_*.block"))[:2]}
    for path, content in kept.items():
        path.write_bytes(content)
    assert same(expected, trimmed(folder, LocalExecutor(1)))


def test_every_step_has_a_line_in_the_log(tmp_path):
    trimmed(tmp_path, LocalExecutor(1))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if "round" in line]
    assert {(line["round"], line["part"]) for line in rounds} == {
        (number, part) for number in range(1, rounds[-1]["round"] + 1) for part in range(5)
    }
    by_round = {}
    for line in rounds:
        by_round.setdefault(line["round"], set()).add(line.get("multiplier"))
    assert all(len(multipliers) == 1 for multipliers in by_round.values())
    assert by_round[rounds[-1]["round"]] == {None}


def test_a_share_takes_a_joint_budget_whole(tmp_path, same):
    whole = trimmed(executor=LocalExecutor(1))
    with pytest.raises(Unfinished):
        trimmed(tmp_path, Shard(1, 2))
    assert same(whole, trimmed(tmp_path, Shard(2, 2)))


def test_a_trim_in_parts_can_be_verified(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3)), torch.randn(40, 6)
    saved = nettrim.trim(model, data, epsilon=0.2, progress=False).save(tmp_path / "saved")
    assert nettrim.verify(saved, model, data).holds
