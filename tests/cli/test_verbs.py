"""Every verb does what it says, and what it writes agrees with what it prints."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import nettrim

TRIM = ("trim", "small.onnx", "--data", "data.npz")
MODULE = ("nets:small", "--weights", "small.safetensors")


def timeless(report: dict) -> dict:
    """A report without what differs from run to run."""
    report.pop("seconds")
    for layer in report["layers"]:
        layer.pop("seconds")
    return report


def test_trim_writes_what_it_promises(run, folder: Path) -> None:
    result = run(*TRIM, "--epsilon", "0.1", "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    names = {path.name for path in (folder / "out").iterdir()}
    assert {"model.onnx", "report.json", "report.html", "recipe.toml", "nettrim.json"} <= names
    assert json.loads((folder / "out" / "report.json").read_text()) == report
    assert {"sparsity", "nonzeros_before", "nonzeros_after", "layers", "network"} <= set(report)
    assert all(layer["certified"] and layer["discrepancy"] <= layer["epsilon"] for layer in report["layers"])
    stored = onnx.load(folder / "out" / "model.onnx").graph.initializer
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in stored]
    assert sum(np.count_nonzero(w) for w in weights if w.ndim == 2) == report["nonzeros_after"]


def test_the_trimmed_file_predicts_what_the_report_says(run, trimmed: str) -> None:
    inputs = np.load("data.npz")["inputs"]
    before, after = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})[0]
        for path in ("small.onnx", f"{trimmed}/model.onnx")
    )
    report = json.loads(Path(trimmed, "report.json").read_text())
    assert 0 < np.linalg.norm(after - before) / np.linalg.norm(before) <= report["network"]["bound"] * 1.5


def test_what_a_module_prints_is_no_result(run) -> None:
    result = run("trim", "nets:chatty", "--data", "data.npz", "--epsilon", "0.1", "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["certified"]
    assert "built" in result.stderr
    checked = run("verify", "out", "--model", "nets:chatty", "--data", "data.npz", "--json")
    assert json.loads(checked.stdout)["holds"]


def test_shrink_writes_over_nothing_that_was_there(run, trimmed: str, folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / trimmed).iterdir()}
    for target in (f"{trimmed}/model.onnx", f"{trimmed}/original.onnx", "shrunk.safetensors"):
        result = run("shrink", trimmed, "-o", target)
        assert result.exit_code == 2 and "--output" in result.stderr
    shutil.copy(f"{trimmed}/original.onnx", "mine.onnx")
    assert run("shrink", trimmed, "-o", "mine.onnx").exit_code == 2
    assert all(path.read_bytes() == content for path, content in before.items())
    assert run("shrink", trimmed, "-o", "new/small.onnx").exit_code == 0 and Path("new/small.onnx").is_file()


def test_shrink_reads_only_what_was_saved(run, trimmed: str) -> None:
    """Other weights under the same name would pass for the certified ones."""
    shutil.copy(f"{trimmed}/original.onnx", f"{trimmed}/model.onnx")
    result = run("shrink", trimmed)
    assert result.exit_code == 2 and "a changed model.onnx" in result.stderr
    assert not Path(trimmed, "shrunk.onnx").exists()


def test_onnx_and_torch_agree(run) -> None:
    reports = []
    for model, output in ((("small.onnx",), "one"), (MODULE, "two")):
        result = run("trim", *model, "--data", "data.npz", "--epsilon", "0.1", "-o", output, "--json")
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.stdout))
    for one, two in zip(*(report["layers"] for report in reports), strict=True):
        assert one["nonzeros_after"] == pytest.approx(two["nonzeros_after"], abs=2)
        assert one["objective"] == pytest.approx(two["objective"], rel=1e-3)
    assert reports[0]["network"]["bound"] == pytest.approx(reports[1]["network"]["bound"], rel=1e-2)


@pytest.mark.parametrize("model", [("small.onnx",), MODULE], ids=["onnx", "torch"])
def test_the_recipe_written_gives_the_same_report(run, model: tuple[str, ...]) -> None:
    options = ("--epsilon", "0.2", "--scheme", "cascade", "--gamma", "1.3", "--constraint", "strict", "--no-refit")
    first = run("trim", *model, "--data", "data.npz", *options, "--holdout", "0.2", "-o", "one", "--json")
    again = run("trim", *model, "--data", "data.npz", "--recipe", "one/recipe.toml", "-o", "two", "--json")
    assert first.exit_code == again.exit_code == 0, first.output + again.output
    assert timeless(json.loads(first.stdout)) == timeless(json.loads(again.stdout))
    assert Path("one/recipe.toml").read_text() == Path("two/recipe.toml").read_text()


def test_every_option_reaches_the_recipe(run) -> None:
    words = (
        "--epsilon layer0=0.1 --epsilon *=0.2 --scheme layer0=cascade --gamma 1.2 --kappa 0.9 --budget neuron "
        "--penalty group-inputs --penalize-bias --constraint strict --slack positive --no-refit --tolerance 0.01 "
        "--targets layer0 --ignore layer2 --holdout 0.25 --seed 3 --num-calibration-samples 20 --positions 5 "
        "--batchnorm fold"
    )
    result = run(*TRIM, *words.split(), "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    recipe = tomllib.loads(Path("out/recipe.toml").read_text())
    assert recipe["epsilon"] == {"layer0": 0.1, "*": 0.2}
    assert recipe["scheme"] == {"layer0": "cascade"}
    assert recipe["penalty"] == {"kind": "GroupL2Inputs"}
    wanted = {"gamma": 1.2, "kappa": 0.9, "budget": "neuron", "penalize_bias": True, "constraint": "strict"}
    wanted |= {"slack": "positive", "refit": False, "tolerance": 0.01, "targets": ["layer0"], "holdout": 0.25}
    wanted |= {"num_calibration_samples": 20, "positions": 5, "batchnorm": "fold"}
    assert wanted.items() <= recipe.items()
    assert recipe["seed"] == 3 and recipe["ignore"] == ["layer2"]


def test_an_option_wins_over_the_recipe(run) -> None:
    Path("mine.toml").write_text('epsilon = 0.3\nconstraint = "strict"\n')
    result = run(*TRIM, "--recipe", "mine.toml", "--epsilon", "0.1", "-o", "out", "--json")
    recipe = json.loads(result.stdout)["recipe"]
    assert (recipe["epsilon"], recipe["constraint"]) == (0.1, "strict")


def test_a_file_can_be_held_out(run) -> None:
    result = run(*TRIM, "--epsilon", "0.1", "--holdout", "plain.npy", "-o", "out", "--json")
    assert json.loads(result.stdout)["network"]["samples_holdout"] == 60
    assert run("verify", "out", "--data", "data.npz").exit_code == 0


def test_an_earlier_result_is_replaced(run, trimmed: str) -> None:
    assert run(*TRIM, "--epsilon", "0.3", "-o", trimmed).exit_code == 0
    assert "epsilon = 0.3" in Path(trimmed, "recipe.toml").read_text()


def test_eval_measures_accuracy(run, trimmed: str) -> None:
    result = run("eval", "small.onnx", "--data", "data.npz", "--json")
    assert json.loads(result.stdout)["accuracy"] == 1.0
    found = json.loads(run("eval", f"{trimmed}/model.onnx", "--data", "data.npz", "--json").stdout)
    assert 0.5 < found["accuracy"] <= 1.0
    assert found["nonzeros"] == json.loads(Path(trimmed, "report.json").read_text())["nonzeros_after"]
    module = json.loads(run("eval", *MODULE, "--data", "data.npz", "--json", "--metric", "loss").stdout)
    assert "accuracy" not in module and module["loss"] > 0


def test_eval_without_labels_describes_the_outputs(run) -> None:
    result = run("eval", "small.onnx", "--data", "plain.npy", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["outputs"] == "60 x 4" and found["smallest"] < found["mean"] < found["largest"]


def test_eval_regression(run) -> None:
    inputs = np.load("plain.npy")
    with torch.no_grad():
        wanted = nettrim.cli.opening.open_model("nets:small").module(torch.from_numpy(inputs)).numpy()
    np.savez("numbers.npz", inputs=inputs, labels=wanted + 0.5)
    found = json.loads(run("eval", "small.onnx", "--data", "numbers.npz", "--json").stdout)
    assert found["mse"] == pytest.approx(0.25, rel=1e-3) and found["mae"] == pytest.approx(0.5, rel=1e-3)


def test_verify_confirms_and_refuses(run, trimmed: str) -> None:
    result = run("verify", trimmed, "--data", "data.npz")
    assert result.exit_code == 0 and "Every claim holds" in result.stdout
    path = Path(trimmed, "report.json")
    report = json.loads(path.read_text())
    report["layers"][0]["discrepancy"] /= 2
    lie(trimmed, "report.json", json.dumps(report).encode())
    result = run("verify", trimmed, "--data", "data.npz", "--json")
    assert result.exit_code == 1
    assert "discrepancy" in json.loads(result.stdout)["failures"][0]


def test_verify_finds_other_weights(run, trimmed: str) -> None:
    model = onnx.load(f"{trimmed}/model.onnx")
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.5), tensor.name))
    lie(trimmed, "model.onnx", model.SerializeToString())
    assert run("verify", trimmed, "--data", "data.npz").exit_code == 1


def test_verify_a_module(run) -> None:
    assert run("trim", *MODULE, "--data", "data.npz", "--epsilon", "0.1", "-o", "out").exit_code == 0
    result = run("verify", "out", "--data", "data.npz", "--model", *MODULE)
    assert result.exit_code == 0, result.output
    result = run("verify", "out", "--data", "data.npz")
    assert result.exit_code == 2 and "--model" in result.stderr
    assert json.loads(run("eval", "nets:untrained", "--weights", "out", "--data", "data.npz", "--json").stdout)[
        "accuracy"
    ] > 0.5


def lie(directory: str, name: str, content: bytes) -> None:
    """Change a file and its hash, as somebody would who wants to deceive."""
    Path(directory, name).write_bytes(content)
    index = json.loads(Path(directory, "nettrim.json").read_text())
    index["files"][name] = hashlib.sha256(content).hexdigest()
    Path(directory, "nettrim.json").write_text(json.dumps(index))


def test_shrink_keeps_the_function(run) -> None:
    assert run(*TRIM, "--epsilon", "0.9", "--no-refit", "-o", "out").exit_code == 0
    result = run("shrink", "out", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["parameters_after"] < summary["parameters_before"]
    inputs = np.load("data.npz")["inputs"]
    one, two = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})[0]
        for path in ("out/model.onnx", "out/shrunk.onnx")
    )
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert run("verify", "out", "--data", "data.npz").exit_code == 0
    whole = json.loads(run("shrink", "out", "--all-inputs", "--json").stdout)
    assert whole["layers"][0]["after"][-1] == 12 and whole["layers"][0]["inputs_picked"] is None


def test_shrink_a_module(run) -> None:
    options = ("--data", "data.npz", "--epsilon", "0.9", "--no-refit", "-o", "out")
    assert run("trim", *MODULE, *options).exit_code == 0
    result = run("shrink", "out", "--model", "nets:untrained", "--data", "data.npz", "--json")
    assert result.exit_code == 0, result.output
    shrunk, full = (
        json.loads(run("eval", "nets:untrained", "--weights", path, "--data", "plain.npy", "--json").stdout)
        for path in ("out/shrunk.safetensors", "out")
    )
    assert shrunk["weights"] < full["weights"]
    assert shrunk["mean"] == pytest.approx(full["mean"], abs=1e-5)


def test_bench_measures(run, trimmed: str) -> None:
    options = ("--batch", "4", "--seconds", "0.01", "--no-break-even", "--threads", "1")
    result = run("bench", "small.onnx", trimmed, *options, "--json")
    assert result.exit_code == 0, result.output
    dense, sparse = json.loads(result.stdout)["rows"]
    assert dense["nonzeros"] > sparse["nonzeros"] and sparse["latency"][0]["batch"] == 4
    assert "no gain" in run("bench", "small.onnx", *options).stdout


def test_an_exported_program_needs_trust(run) -> None:
    module = nettrim.cli.opening.open_model("nets:small").module
    program = torch.export.export(module, (torch.zeros(2, 12),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, "small.pt2")
    options = ("small.pt2", "--data", "data.npz", "--epsilon", "0.1", "-o", "out")
    refused = run("trim", *options)
    assert refused.exit_code == 2 and "--trust-model" in refused.stderr and not Path("out").exists()
    assert run("trim", *options, "--trust-model").exit_code == 0
    assert run("verify", "out", "--data", "data.npz", "--model", "small.pt2", "--trust-model").exit_code == 0


def test_as_a_process(folder: Path) -> None:
    """Standard output holds the JSON and nothing else; the exit code is the process's."""
    command = [sys.executable, "-m", "nettrim", *TRIM, "--epsilon", "0.1", "-o", "out", "--json"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["certified"] is True
    assert "[2/2]" in found.stderr and "nettrim verify out" in found.stderr
