"""`nettrim trim` with a checkpoint, in shares, and on engines that do not exist."""

import json
from pathlib import Path

import pytest

from nettrim.cli.running import parse_bytes

TORCH = ("nets:small", "--weights", "small.safetensors")


def _trim(run, model, output, *words):
    how = ("--data", "data.npz", "--epsilon", "0.1", "--budget", "neuron", "-o", output, "-q")
    return run("trim", *model, *how, *words)


@pytest.mark.parametrize("model", [("small.onnx",), TORCH], ids=["onnx", "torch"])
def test_a_resumed_trim_solves_nothing_again(run, folder: Path, model: tuple[str, ...]) -> None:
    assert _trim(run, model, "out", "--resume").exit_code == 0
    kept = {path: path.stat().st_mtime_ns for path in (folder / "out.checkpoint").rglob("*.block")}
    assert kept
    assert _trim(run, model, "again", "--checkpoint", "out.checkpoint").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    one, two = (json.loads((folder / name / "report.json").read_text()) for name in ("out", "again"))
    assert one["nonzeros_after"] == two["nonzeros_after"] and one["network"] == two["network"]


def test_a_checkpoint_of_another_recipe_is_refused(run) -> None:
    assert _trim(run, TORCH, "out", "--resume").exit_code == 0
    result = _trim(run, TORCH, "other", "--checkpoint", "out.checkpoint", "--constraint", "strict")
    assert result.exit_code == 2 and "constraint" in result.stderr
    assert not Path("other").exists()


def test_shares_of_a_trim(run) -> None:
    first = _trim(run, TORCH, "out", "--checkpoint", "kept", "--shard", "1/2")
    assert first.exit_code == 0 and not Path("out").exists()
    second = _trim(run, TORCH, "out", "--checkpoint", "kept", "--shard", "2/2")
    assert second.exit_code == 0 and Path("out", "report.json").exists()
    assert _trim(run, TORCH, "whole").exit_code == 0
    one, two = (json.loads(Path(name, "report.json").read_text()) for name in ("out", "whole"))
    assert one["nonzeros_after"] == two["nonzeros_after"] and one["network"] == two["network"]


@pytest.mark.parametrize(
    "words",
    [
        ("--executor", "dask"),
        ("--shard", "1/2"),
        ("--shard", "3/2", "--checkpoint", "kept"),
        ("--shard", "x"),
        ("--memory", "lots"),
        ("--memory", "0.1B"),
    ],
)
def test_bad_words_end_in_one_sentence(run, words: tuple[str, ...]) -> None:
    result = _trim(run, TORCH, "out", *words)
    assert result.exit_code == 2 and not Path("out").exists()
    assert words[1] in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("800MB", 800_000_000), ("2GiB", 2 << 30), ("1.5 k", 1500), ("4096", 4096), ("1tb", 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_little_memory_changes_no_answer(run) -> None:
    assert _trim(run, TORCH, "little", "--memory", "20kB").exit_code == 0
    assert _trim(run, TORCH, "whole").exit_code == 0
    one, two = (json.loads(Path(name, "report.json").read_text()) for name in ("little", "whole"))
    assert one["nonzeros_after"] == two["nonzeros_after"]
