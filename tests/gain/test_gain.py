"""Gains are measured against the best dense engine, and none is claimed where there is none."""

from __future__ import annotations

import copy
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from nettrim.errors import InputError, MissingExtraError, ModelError
from nettrim.gain import subject as subjects
from nettrim.gain.bench import bench, bench_table
from nettrim.gain.chain import SparseChain, chain_of, csr
from nettrim.gain.latency import Latency, break_even, latency
from nettrim.gain.measure import measure_gain
from nettrim.gain.subject import Subject, torch_subject
from nettrim.gain.timing import Timing, interleaved, median_interval, ratio
from nettrim.models.batches import Batch
from nettrim.models.shrink import shrink
from nettrim.report.gain import gain_table


def mlp(*sizes: int, kept: float = 1.0) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Flatten()]
    for one, other in itertools.pairwise(sizes):
        layer = nn.Linear(one, other)
        with torch.no_grad():
            layer.weight[torch.rand(other, one) >= kept] = 0
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def as_batch(inputs: Tensor) -> Batch:
    return Batch((inputs,), {}, None, len(inputs))


def timing(*seconds: float) -> Timing:
    return Timing(np.array(seconds))


class TestTiming:
    def test_a_verdict_needs_an_interval_beyond_what_the_dense_engine_differs_from_itself(self) -> None:
        one = timing(*[1.0] * 8)
        assert ratio(one, timing(*[0.5] * 6, 0.4, 0.6)).verdict == "2.00 x faster"
        assert ratio(one, timing(0.8, 1.3, 0.7, 1.4, 0.8, 1.3, 0.7, 1.4)).change == "no gain"
        assert ratio(one, one).verdict == "no gain (the same dense engine on the same shapes)"
        assert ratio(one, timing(*[2.0] * 8)).verdict == "no gain (2.00 x slower)"
        assert ratio(one, timing(*[2.0] * 8)).change == "2.00 × slower"
        fast = timing(*[0.9] * 8)
        assert ratio(one, fast).faster and ratio(one, fast, one).faster
        assert not ratio(one, timing(*[0.98] * 8)).faster, "two hundredths are nothing"
        assert not ratio(one, fast, timing(*[0.93] * 8)).faster and not ratio(one, fast, timing(*[1.07] * 8)).faster
        assert not ratio(timing(1.0, 1.0), timing(0.1, 0.1)).faster, "two rounds say nothing"

    def test_the_interval_of_a_median_holds_it(self) -> None:
        """Against exact binomial tails, and on skewed numbers whose median is known."""
        for count, place in ((5, 0), (6, 1), (12, 3), (25, 8), (100, 40)):
            wanted = (0.0, np.inf) if place == 0 else (float(place), float(count + 1 - place))
            assert median_interval(np.arange(1.0, count + 1)) == wanted
        random, held = np.random.default_rng(0), []
        for _ in range(600):
            low, high = median_interval(random.lognormal(0.0, 1.0, 31))
            held.append(low <= 1.0 <= high)
        assert np.mean(held) >= 0.93

    @pytest.mark.parametrize("noise", [0.002, 0.03, 0.1], ids=["quiet", "usual", "busy"])
    def test_copies_are_not_called_faster(self, noise: float) -> None:
        """Copies differ by 1.5 % for as long as they live; rounds share drifts and have outliers of their own."""
        random = np.random.default_rng(1)
        false, true = [], []
        for _ in range(400):
            drift = np.cumsum(random.normal(0, noise / 10, 60))

            def timed(seconds: float, drift: Any = drift) -> Timing:
                held = random.normal(0, 0.015)
                outliers = (random.random(60) < 0.1) * random.exponential(5 * noise, 60)
                return Timing(seconds * np.exp(held + drift + random.normal(0, noise, 60) + outliers))

            dense, copy, again = timed(1.0), timed(1.0), timed(1.0)
            false.append(ratio(dense, copy, again).faster)
            true.append(ratio(dense, timed(0.5), again).faster)
        assert np.mean(false) <= 0.05
        assert np.mean(true) >= 0.95

    def test_nothing_has_a_fixed_neighbour(self) -> None:
        """Whoever follows itself, or the same one every time, finds its data in the cache."""
        calls: list[str] = []
        runs = {name: lambda name=name: (calls.append(name), time.sleep(3e-4)) for name in "abcd"}
        found = interleaved(runs, seconds=0, rounds=60)
        assert {len(timing.seconds) for timing in found.values()} == {60}
        rounds = ["".join(calls[-240:][place : place + 4]) for place in range(0, 240, 4)]
        assert all(sorted(order) == list("abcd") for order in rounds) and len(set(rounds)) > 12
        before = {name: sum(one + name in order for order in rounds for one in "abcd") for name in "abcd"}
        assert all(count < 60 for count in before.values()), "each is the first of a round now and then"

    def test_medians_and_order(self) -> None:
        calls: list[str] = []
        found = interleaved({"a": lambda: calls.append("a"), "b": lambda: time.sleep(0.002)}, seconds=0.02, rounds=5)
        assert found["a"].median < found["b"].median
        assert found["b"].median >= 0.002
        assert len(found["a"].seconds) == len(found["b"].seconds) >= 5
        low, high = found["b"].spread
        assert low <= found["b"].median <= high


class TestChain:
    def test_computes_what_the_network_does(self) -> None:
        model = mlp(12, 9, 7, 3, kept=0.3)
        model[2] = nn.Tanh()
        inputs = torch.randn(5, 3, 4)
        chain = chain_of(model, as_batch(inputs))
        assert chain is not None and [step.activation for step in chain] == ["tanh", "relu", ""]
        for share in (0.0, 0.5, 2.0):
            runner = SparseChain(chain, sparse_from=share)
            assert torch.allclose(runner(inputs), model(inputs), atol=1e-6)
            assert torch.allclose(runner(inputs[:1]), model(inputs[:1]), atol=1e-6)

    def test_also_when_inputs_are_picked(self) -> None:
        model = mlp(12, 9, 3)
        with torch.no_grad():
            model.get_parameter("1.weight")[:, 3:8] = 0
        inputs = torch.randn(4, 12)
        small = shrink(model, inputs).module
        chain = chain_of(small, as_batch(inputs))
        assert chain is not None and chain[0].columns is not None
        assert torch.allclose(SparseChain(chain)(inputs), model(inputs), atol=1e-6)

    def test_anything_else_is_no_chain(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.one(x) + x

        inputs = as_batch(torch.randn(3, 4))
        assert chain_of(Twice(), inputs) is None
        assert chain_of(nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), inputs) is None
        assert chain_of(mlp(4, 2).double(), as_batch(torch.randn(3, 4).double())) is None
        assert chain_of(nn.Linear(4, 2), as_batch(torch.randn(3, 5, 4))) is None

    def test_indices_are_short(self) -> None:
        matrix = torch.randn(6, 5) * (torch.rand(6, 5) < 0.4)
        found = csr(matrix)
        assert found.crow_indices().dtype == torch.int32
        assert torch.equal(found.to_dense(), matrix)


def counted(seconds: float) -> Any:
    """An engine whose run takes a known time."""
    return lambda batch: lambda: time.sleep(seconds)


def plain_subject(**engines: float) -> Subject:
    dense = {name: counted(s) for name, s in engines.items() if name != "CSR"}
    sparse = {name: counted(s) for name, s in engines.items() if name == "CSR"}
    return Subject({}, dense, sparse, lambda: (_ for _ in ()).throw(AssertionError))


class TestLatency:
    def test_the_best_dense_engine_is_the_one_to_beat(self) -> None:
        """A sparse kernel between a slow and a fast dense engine is no gain."""
        dense, trimmed = plain_subject(slow=0.02, fast=0.006), plain_subject(slow=0.02, CSR=0.015)
        found = latency({"dense": dense, "trimmed": trimmed}, as_batch(torch.zeros(2, 1)), batches=(1,), seconds=0.1)[0]
        assert found.best("dense") == found.best("trimmed") == "fast"  # the same shapes on the same engine
        assert found.gain("trimmed").verdict.startswith("no gain")
        trimmed = plain_subject(CSR=0.0005)
        found = latency({"dense": dense, "trimmed": trimmed}, as_batch(torch.zeros(2, 1)), batches=(1,), seconds=0.6)[0]
        assert found.gain("trimmed").faster
        data = json.loads(json.dumps(found.to_dict()))
        assert data["stages"]["trimmed"]["verdict"].endswith("faster")
        assert data["stages"]["dense"]["best"] == "fast"

    def test_a_dense_stage_does_not_use_sparse_kernels(self) -> None:
        both = plain_subject(fast=0.002, CSR=0.0005)
        found = latency({"dense": both}, as_batch(torch.zeros(2, 1)), batches=(1, 3), seconds=0.05)
        assert [entry.batch for entry in found] == [1, 3]
        assert set(found[0].times["dense"]) == {"fast"}

    def test_copies_of_the_dense_engines_run_along(self) -> None:
        model = mlp(20, 30, 5)
        batch = as_batch(torch.randn(4, 20))
        dense, other = (torch_subject(net, batch, threads=1, export=False) for net in (model, mlp(20, 9, 5)))
        found = latency({"dense": dense, "shrunk": other}, batch, batches=(4,), seconds=0.02)[0]
        assert set(found.again) == set(found.times["dense"]) == set(dense.again())
        assert set(found.times) == {"dense", "shrunk"}
        mine, copies = dense.dense["PyTorch"](batch)(), dense.again()["PyTorch"](batch)()
        assert torch.equal(mine, copies)
        assert not latency({"dense": dense}, batch, batches=(4,), seconds=0.02)[0].again, "nothing to compare"

    def test_without_a_dense_stage(self) -> None:
        with pytest.raises(InputError, match="dense"):
            latency({"trimmed": plain_subject(fast=0.001)}, as_batch(torch.zeros(2, 1)))

    def test_batches_of_any_size_from_few_samples(self) -> None:
        seen: list[tuple[int, ...]] = []

        def prepare(batch: Batch) -> Any:
            seen.append(tuple(batch.args[0].shape))
            return lambda: None

        stage = Subject({}, {"engine": prepare}, {}, lambda: (_ for _ in ()).throw(AssertionError))
        latency({"dense": stage}, as_batch(torch.zeros(3, 7)), batches=(1, 16), seconds=0.01)
        assert seen == [(1, 7), (16, 7)]

    def test_break_even(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bisection finds where the winner changes; the ends have answers of their own."""
        for border, answer in ((0.83, 0.83), (0.2, 0.5), (2.0, None)):
            monkeypatch.setitem(break_even.__globals__, "_sparse_wins", lambda *a, b=border: a[2] >= b)
            found = break_even((10, 10), 4, steps=9)
            assert found == answer if answer is None else found == pytest.approx(answer, abs=0.002)

    def test_break_even_measured(self) -> None:
        found = break_even((64, 64), 16, seconds=0.02, steps=3)
        assert found is None or 0.5 <= found < 1


class TestMeasure:
    def test_the_form_a_report_shows(self) -> None:
        dense, trimmed = mlp(20, 30, 5), mlp(20, 30, 5, kept=0.2)
        with torch.no_grad():
            trimmed.get_parameter("1.weight")[:10] = 0
            trimmed.get_parameter("1.bias")[:10] = -1
        start = time.perf_counter()
        found = measure_gain(dense, trimmed, torch.randn(8, 20), accuracy=lambda model: 0.5, seconds=0.2)
        assert time.perf_counter() - start < 10
        assert set(found) == {"accuracy", "weights", "bytes", "bytes_sparse", "latency", "verdicts", "note"}
        stages = {"dense", "trimmed", "shrunk"}
        assert all(set(found[key]) == stages for key in found if key not in ("note", "verdicts"))
        assert set(found["verdicts"]["latency"]) == {"trimmed", "shrunk"}
        assert found["weights"]["dense"] == 750
        kept = sum(int((p != 0).sum()) for p in trimmed.parameters() if p.dim() == 2)
        assert found["weights"]["trimmed"] == kept > found["weights"]["shrunk"]
        assert found["bytes"]["shrunk"] < found["bytes"]["trimmed"] == found["bytes"]["dense"]
        assert found["bytes"]["dense"] == len(save(dict(dense.state_dict()))), "of a file that is really written"
        sparse = found["bytes_sparse"]
        assert sparse["shrunk"] < sparse["trimmed"] < sparse["dense"]
        assert "batch 16" in found["note"] and "best dense" in found["note"] and "thread" in found["note"]
        table = gain_table(found)
        assert table is not None
        titles = ["accuracy", "weights", "bytes on disk", "bytes by save_sparse", "latency"]
        assert [row[0] for row in table.rows] == titles
        assert table.rows[-1][-1] == found["verdicts"]["latency"]["shrunk"]
        json.dumps(found, allow_nan=False)

    def test_a_network_of_convolutions_and_given_accuracies(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        other = copy.deepcopy(net)
        with torch.no_grad():
            other.get_parameter("0.weight")[0] = 0
            other.get_parameter("1.bias")[0] = -1
        found = measure_gain(net, other, torch.randn(4, 1, 6, 6), accuracy={"dense": 0.9, "trimmed": 0.8}, seconds=0.1)
        assert found["accuracy"] == {"dense": 0.9, "trimmed": 0.8}
        assert found["weights"]["shrunk"] < found["weights"]["dense"]

    def test_equal_networks_gain_nothing(self) -> None:
        model = mlp(40, 50, 5)
        found = measure_gain(model, copy.deepcopy(model), torch.randn(8, 40), seconds=0.3)
        assert found["bytes"]["trimmed"] == found["bytes"]["dense"]
        assert found["verdicts"] == {"latency": {"trimmed": "no gain", "shrunk": "no gain"}}
        assert found["weights"]["dense"] == found["weights"]["trimmed"] == found["weights"]["shrunk"]

    def test_without_onnx(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subjects, "onnx_parts", lambda: None)
        found = measure_gain(mlp(8, 6, 3), mlp(8, 6, 3, kept=0.3), torch.randn(4, 8), seconds=0.1)
        assert "ONNX Runtime is not installed" in found["note"]

    def test_the_callers_models_stay(self) -> None:
        model = mlp(8, 6, 3).train()
        before = copy.deepcopy(model.state_dict())
        measure_gain(model, model, torch.randn(4, 8), seconds=0.05)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def check_row(row: dict[str, Any]) -> None:
    json.dumps(row, allow_nan=False)
    assert {"name", "weights", "nonzeros", "sparsity", "bytes", "shrink", "latency", "break_even", "verdict"} <= set(
        row
    )
    for entry in row["latency"]:
        assert "dense" in entry["stages"]
        for stage in entry["stages"].values():
            assert stage["best"] in stage["seconds"]


class TestBench:
    def test_a_module(self) -> None:
        model = mlp(30, 20, 4, kept=0.2)
        rows = bench({"mine": model}, torch.randn(6, 30), batches=(1, 16), seconds=0.05, find_break_even=False)
        check_row(rows[0])
        assert rows[0]["name"] == "mine" and rows[0]["weights"] == 680
        assert [entry["batch"] for entry in rows[0]["latency"]] == [1, 16]
        assert "CSR" in rows[0]["latency"][0]["stages"]["trimmed"]["seconds"]
        text = bench_table(rows)
        assert "mine: 680 weights" in text and "batch 16" in text

    def test_nothing_to_gain(self) -> None:
        rows = bench([mlp(30, 20, 4)], torch.randn(6, 30), batches=(1,), seconds=0.05, find_break_even=False)
        assert rows[0]["verdict"] == "no gain in latency against the best dense engine"
        assert set(rows[0]["latency"][0]["stages"]) == {"dense"}
        assert rows[0]["name"] == "Sequential"

    def test_onnx_files(self, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        from nettrim.gain.onnx_export import chain_model  # noqa: PLC0415

        model = mlp(30, 20, 4, kept=0.1)
        with torch.no_grad():
            model.get_parameter("1.weight")[:5] = 0
            model.get_parameter("1.bias")[:5] = -1
        chain = chain_of(model, as_batch(torch.randn(3, 30)))
        assert chain is not None
        path = tmp_path / "net.onnx"
        onnx.save(chain_model(chain), path)
        rows = bench([path, model], torch.randn(6, 30), batches=(1, 2), seconds=0.05)
        rows += bench([path], batches=(4,), seconds=0.05, find_break_even=False)
        for row in rows:
            check_row(row)
        assert [row["name"] for row in rows] == ["net.onnx", "Sequential", "net.onnx"]
        assert rows[0]["nonzeros"] == rows[1]["nonzeros"] == rows[2]["nonzeros"]
        assert set(rows[0]["latency"][0]["stages"]["dense"]["seconds"]) == {"ONNX Runtime", "PyTorch"}
        assert rows[0]["break_even"]["shape"] == [20, 30]
        assert rows[0]["shrink"]["layers"][0]["after"][0] <= 15
        assert "break-even" in bench_table(rows)

    @pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, "bfloat16"])
    def test_onnx_weights_in_constant_nodes(self, kind: Any) -> None:
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        helper = onnx.helper
        dtype = np.dtype(kind) if kind != "bfloat16" else np.dtype("float32")
        weight = np.random.default_rng(0).standard_normal((20, 6)).astype(dtype)
        weight[:5] = 0
        tensor = onnx.numpy_helper.from_array(weight)
        if kind == "bfloat16":
            tensor = helper.make_tensor("w", onnx.TensorProto.BFLOAT16, weight.shape, weight.reshape(-1))
        nodes = [
            helper.make_node("Constant", [], ["stored"], value=tensor),
            helper.make_node("Cast", ["stored"], ["weight"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1),
        ]
        ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", s]) for n, s in (("x", 6), ("y", 20))]
        graph = helper.make_graph(nodes, "net", ends[:1], ends[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (row,) = bench([model], batches=(1,), seconds=0.02, find_break_even=False)
        assert (row["weights"], row["nonzeros"], row["shrink"]["parameters_before"]) == (120, 90, 120)

    def test_what_it_cannot_take(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="example"):
            bench([mlp(3, 2)])
        with pytest.raises(InputError, match="ONNX file"):
            bench([tmp_path / "weights.pt"])


class TestExport:
    def test_an_export_predicts_the_same(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        from nettrim.gain.onnx_export import export_onnx, feeds_of, onnx_runner  # noqa: PLC0415

        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).train()
        inputs = torch.randn(7, 1, 6, 6)
        model = export_onnx(net, inputs[:1], tmp_path / "net.onnx")
        assert net.training
        found = onnx_runner(model, 1)(feeds_of(model, as_batch(inputs)))[0]
        assert np.allclose(found, net.eval()(inputs).detach().numpy(), atol=1e-5)
        assert str(tmp_path.home()).encode() not in (tmp_path / "net.onnx").read_bytes()
        subject = torch_subject(net, as_batch(inputs), threads=1, export=True)
        assert {"PyTorch", "PyTorch channels last", "ONNX Runtime"} == set(subject.dense)
        assert not subject.notes

    def test_what_cannot_be_exported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("onnxruntime")
        from nettrim.gain import onnx_export  # noqa: PLC0415

        def missing(*_: Any) -> None:
            raise ModuleNotFoundError("onnxscript")

        monkeypatch.setattr(onnx_export, "_exported", missing)
        with pytest.raises(MissingExtraError, match="onnxscript"):
            onnx_export.export_onnx(nn.Linear(2, 2), torch.randn(2, 2))

        def failing(*_: Any) -> None:
            raise RuntimeError("no")

        monkeypatch.setattr(onnx_export, "_exported", failing)
        with pytest.raises(ModelError, match="export"):
            onnx_export.export_onnx(nn.Linear(2, 2), torch.randn(2, 2))


def test_latency_is_a_record() -> None:
    entry = Latency(1, 1, {"dense": {"engine": timing(1.0, 2.0, 3.0)}})
    assert entry.seconds("dense") == 2.0
