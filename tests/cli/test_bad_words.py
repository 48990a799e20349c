"""Whatever cannot be used ends in one sentence on standard error, exit code 2, and no output directory."""

from __future__ import annotations

import json
import pickle
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

import nettrim.cli.running
from nettrim.report import Report

GOOD = ("--data", "data.npz", "--epsilon", "0.1")


def refused(result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("[")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert not Path("out").exists()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("smal.onnx", *GOOD), ("exists", "'small.onnx'")),
        (("data.npz", *GOOD), (".onnx",)),
        ((".", *GOOD), ("directory",)),
        (("small.safetensors", *GOOD), ("--weights small.safetensors",)),
        (("net.pt", *GOOD), ("pickle", "safetensors")),
        (("net.pth", *GOOD), ("pickle",)),
        (("net.pkl", *GOOD), ("pickle",)),
        (("renamed.onnx", *GOOD), ("model",)),
        (("cut.onnx", *GOOD), ("model",)),
        (("nan.onnx", *GOOD), ("finite", "layer0")),
        (("absent:net", *GOOD), ("absent",)),
        (("nets:smal", *GOOD), ("'small'",)),
        (("nets:broken", *GOOD), ("no weights here",)),
        (("nets:number", *GOOD), ("torch.nn.Module", "int")),
        (("nets:small", "--weights", "absent.safetensors", *GOOD), ("--weights",)),
        (("nets:small", "--weights", "net.pt", *GOOD), ("--weights", "pickle")),
        (("nets:small", "--weights", "other.safetensors", *GOOD), ("--weights",)),
        (("small.onnx", "--weights", "small.safetensors", *GOOD), ("--weights",)),
        (("small.onnx", "--data", "absent.npz", "--epsilon", "0.1"), ("absent.npz",)),
        (("small.onnx", "--data", "wrong.npy", "--epsilon", "0.1"), (", 5)",)),
        (("nets:small", "--data", "wrong.npy", "--epsilon", "0.1"), (", 5)",)),
        (("small.onnx", "--data", "nan.npy", "--epsilon", "0.1"), ("finite",)),
        (("small.onnx", "--data", "empty.npy", "--epsilon", "0.1"), ("sample",)),
        (("small.onnx", "--data", "objects.npy", "--epsilon", "0.1"), ("data",)),
        (("small.onnx", "--data", "data.npz"), ("--epsilon", "--recipe")),
        (("small.onnx", "--data", "data.npz", "--epsilon", "-1"), (">= 0",)),
        (("small.onnx", "--data", "data.npz", "--epsilon", "much"), ("a number", "'much'")),
        (("small.onnx", "--data", "data.npz", "--epsilon", "nan"), ("epsilon",)),
        (("small.onnx", "--data", "data.npz", "--epsilon", "layer=0.1"), ("layer0",)),
        (("small.onnx", *GOOD, "--scheme", "cascad"), ("'cascade'",)),
        (("small.onnx", *GOOD, "--gamma", "0.5"), ("gamma",)),
        (("small.onnx", *GOOD, "--kappa", "2"), ("kappa",)),
        (("small.onnx", *GOOD, "--kappa", "x"), ("--kappa",)),
        (("small.onnx", *GOOD, "--budget", "0"), ("budget",)),
        (("small.onnx", *GOOD, "--penalty", "l3"), ("l1",)),
        (("small.onnx", *GOOD, "--constraint", "loose"), ("constraint",)),
        (("small.onnx", *GOOD, "--targets", "layr0"), ("layer0",)),
        (("small.onnx", *GOOD, "--ignore", "*"), ("to trim",)),
        (("small.onnx", *GOOD, "--holdout", "1.5"), ("holdout",)),
        (("small.onnx", *GOOD, "--holdout", "absent.npy"), ("absent.npy",)),
        (("small.onnx", *GOOD, "--seed", "-1"), ("seed",)),
        (("small.onnx", *GOOD, "--device", "abacus"), ("device",)),
        (("small.onnx", *GOOD, "--recipe", "absent.toml"), ("absent.toml",)),
        (("small.onnx", *GOOD, "--recipe", "bad.toml"), ("epsilom", "'epsilon'")),
        (("small.onnx", *GOOD, "--recipe", "broken.toml"), ("TOML",)),
        (("small.onnx", *GOOD, "--epsilonn", "3"), ("--epsilon",)),
        (("small.onnx", "--epsilon", "0.1"), ("--data",)),
        ((*GOOD,), ("MODEL",)),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)
def test_trim(run, folder: Path, words: tuple[str, ...], said: tuple[str, ...]) -> None:
    spoil(folder)
    refused(run("trim", *words, "-o", "out"), *said)


def spoil(folder: Path) -> None:
    """Files that are broken, each in its own way."""
    inputs = np.load("plain.npy")
    for name in ("net.pt", "net.pth", "net.pkl", "renamed.onnx"):
        (folder / name).write_bytes(pickle.dumps({"weight": [1.0]}))
    (folder / "cut.onnx").write_bytes((folder / "small.onnx").read_bytes()[:700])
    model = onnx.load("small.onnx")
    array = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, model.graph.initializer[0].name))
    onnx.save(model, "nan.onnx")
    save_file({"0.weight": torch.zeros(3, 3)}, "other.safetensors")
    np.save("wrong.npy", inputs[:, :5])
    np.save("nan.npy", np.where(inputs > 2, np.nan, inputs))
    np.save("empty.npy", inputs[:0])
    np.save("objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "bad.toml").write_text("epsilom = 0.1\n")
    (folder / "broken.toml").write_text("epsilon = = 1\n")


@pytest.mark.parametrize("output", ["full", "full/file", "small.onnx"])
def test_output_that_cannot_be(run, folder: Path, output: str) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("mine")
    refused(run("trim", "small.onnx", *GOOD, "-o", output), "--output")
    assert (folder / "full" / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval", "small.onnx", "--data", "plain.npy", "--metric", "accuracy"), ("labels", "plain.npy")),
        (("eval", "small.onnx", "--data", "data.npz", "--metric", "acuracy"), ("'accuracy'",)),
        (("eval", "small.onnx", "--data", "many.npz"), ("labels",)),
        (("eval", "nets:small", "--data", "wrong.npy"), ("inputs", ", 5)")),
        (("eval", "small.onnx", "--data", "wrong.npy"), (", 5)",)),
        (("verify", "absent", "--data", "data.npz"), ("'absent'",)),
        (("verify", ".", "--data", "data.npz"), ("nettrim.json",)),
        (("shrink", "absent"), ("'absent'",)),
        (("shrink", "."), ("nettrim.json",)),
        (("bench", "absent.onnx"), ("absent.onnx",)),
        (("bench", "nets:small"), ("--data",)),
        (("bench", "nets:smal", "--data", "plain.npy"), ("'small'",)),
        (("bench", "nets:torch_", "--data", "plain.npy"), ("small, chatty",)),
        (("bench", "small.onnx", "--data", "wrong.npy"), ("(60, 5)", "12")),
        (("bench", "small.onnx", "--threads", "100000"), ("thread_count", "100000")),
        (("bench",), ("MODEL",)),
        (("demo", "-o", "small.onnx"), ("--output",)),
        (("trimm",), ("'trim'",)),
        (("--verson",), ("--version",)),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)
def test_other_verbs(run, folder: Path, words: tuple[str, ...], said: tuple[str, ...]) -> None:
    spoil(folder)
    inputs = np.load("plain.npy")
    np.savez("many.npz", inputs=inputs, labels=np.arange(60))
    refused(run(*words), *said)


def test_verify_damaged(run, trimmed: str, folder: Path) -> None:
    other = np.load("plain.npy") + 1
    np.save("other.npy", other)
    result = run("verify", trimmed, "--data", "other.npy")
    assert result.exit_code == 2 and "other data" in result.stderr
    for name in ("model.onnx", "proofs.safetensors", "original.onnx"):
        path = folder / trimmed / name
        content = path.read_bytes()
        path.write_bytes(content[:-20])
        result = run("verify", trimmed, "--data", "data.npz")
        assert result.exit_code == 2 and name in result.stderr, result.output
        path.write_bytes(content)
    index = json.loads((folder / trimmed / "nettrim.json").read_text())
    del index["files"]["model.onnx"]
    (folder / trimmed / "nettrim.json").write_text(json.dumps(index))
    assert run("verify", trimmed, "--data", "data.npz").exit_code == 2


def test_nothing_is_left_when_the_work_fails(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Report, "to_html", fail)
    refused(run("trim", "small.onnx", *GOOD, "-o", "out"), "No space left")


def test_interrupted(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nettrim.cli.trim.run_trim", stop)
    result = run("trim", "small.onnx", *GOOD, "-o", "out")
    assert result.exit_code == 130 and not Path("out").exists()


@pytest.mark.parametrize("failure", [SystemExit(1), BrokenPipeError(32, "Broken pipe"), RuntimeError("lost")], ids=repr)
def test_what_falls_over_after_ctrl_c_is_an_interrupt(run, monkeypatch: pytest.MonkeyPatch, failure) -> None:
    """As a cluster that goes before its driver has closed it."""

    def stop(*args: object, **options: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise failure

    monkeypatch.setattr("nettrim.cli.trim.run_trim", stop)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
    try:
        result = run("trim", "small.onnx", *GOOD, "-o", "out", "--checkpoint", "kept")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130 and result.stderr.splitlines()[-1].startswith("Interrupted. Finished work is kept")


@pytest.mark.parametrize("failure", [None, SystemExit(1), RuntimeError("lost")], ids=repr)
def test_sigterm_closes_everything_and_has_its_own_code(run, monkeypatch: pytest.MonkeyPatch, failure) -> None:
    closed = []

    def stop(*args: object, **options: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # schedulers ask more than once
            closed.append(True)
            if failure is not None:
                raise failure

    monkeypatch.setattr("nettrim.cli.trim.run_trim", stop)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        result = run("trim", "small.onnx", *GOOD, "-o", "out", "--checkpoint", "kept")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert closed and result.exit_code == 143
    assert result.stderr.splitlines()[-1].startswith("Ended by SIGTERM. Finished work is kept")


def test_debug_shows_where(run) -> None:
    for words in (("--debug", "eval", "absent.onnx"), ("eval", "absent.onnx", "--debug")):
        result = run(*words, "--data", "data.npz")
        assert result.exit_code == 2 and "Traceback" in result.stderr


def test_the_unforeseen_is_one_sentence(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(nettrim.cli.running, "check_device", fail)
    refused(run("trim", "small.onnx", *GOOD, "-o", "out"), "unforeseen", "--debug")
