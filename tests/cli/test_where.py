"""`nettrim trim` with a checkpoint, in shares, and on engines that do not exist."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nettrim.cli.running import Where, parse_bytes
from nettrim.errors import InputError
from nettrim.executors import Processes, Shard

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
    assert first.exit_code == 3 and not Path("out").exists() and not first.stdout
    again = _trim(run, TORCH, "out", "--checkpoint", "kept", "--shard", "1/2", "--json")
    rest = json.loads(again.stdout)
    assert again.exit_code == 3 and rest == {"finished": False, "reason": again.stderr.strip(), "missing": ["2 0-3"]}
    second = _trim(run, TORCH, "out", "--checkpoint", "kept", "--shard", "2/2")
    assert second.exit_code == 0 and Path("out", "report.json").exists()
    assert _trim(run, TORCH, "whole").exit_code == 0
    one, two = (json.loads(Path(name, "report.json").read_text()) for name in ("out", "whole"))
    assert one["nonzeros_after"] == two["nonzeros_after"] and one["network"] == two["network"]


@pytest.mark.slow
def test_shares_that_run_together_share_the_samples_too(run, folder: Path) -> None:
    """Two jobs at the same time: each runs the network on one of the two batches, and both write the result."""
    inputs = np.random.default_rng(0).standard_normal((400, 12)).astype(np.float32)
    np.savez(folder / "data.npz", inputs=inputs)
    words = ["--data", "data.npz", "--epsilon", "0.1", "--holdout", "0", "-q", "--checkpoint", "kept", "-o", "out"]
    command = [sys.executable, "-m", "nettrim", "trim", *TORCH, *words, "--wait", "100", "--spread-data", "--shard"]
    jobs = [subprocess.Popen([*command, f"{index}/2"], stderr=subprocess.PIPE, text=True) for index in (1, 2)]
    ends = [(job.communicate(timeout=200)[1], job.returncode) for job in jobs]
    assert ends == [("", 0), ("", 0)]
    assert run("trim", *TORCH, *words[:-4], "-o", "whole").exit_code == 0
    one, two = (json.loads(Path(name, "report.json").read_text()) for name in ("out", "whole"))
    assert one["nonzeros_after"] == two["nonzeros_after"] and one["network"] == two["network"]


@pytest.mark.parametrize("place", ["out", "out/kept", "out/deep/../kept", "link/kept"])
def test_a_checkpoint_in_the_results_is_refused_before_the_work(run, monkeypatch, place: str) -> None:
    monkeypatch.setattr("nettrim.cli.trim.run_trim", None)
    Path("link").symlink_to("out")
    result = _trim(run, TORCH, "out", "--checkpoint", place)
    assert result.exit_code == 2 and "`--checkpoint` should be outside the directory of results" in result.stderr
    assert not Path("out").exists()


def test_what_the_words_make_of_an_executor(tmp_path: Path) -> None:
    chosen = Where.of(None, None, tmp_path, "2/3", None, 7.5, True).executor
    assert isinstance(chosen, Shard)
    assert (chosen.index, chosen.count, chosen.wait, chosen.captures) == (2, 3, 7.5, True)
    assert not Where.of(None, None, tmp_path, "2/3").executor.captures
    pytest.importorskip("ray")
    assert Where.of(None, "ray", None, None, spread=True).executor.captures
    assert not Where.of(None, "ray", None, None).executor.captures
    assert isinstance(Where.of(None, "processes", None, None).executor, Processes)
    with pytest.raises(InputError, match="spread-data"):
        Where.of(None, "processes", None, None, spread=True)
    both = Where.of(None, "ray", tmp_path, "1/2", None, 1.0, True).executor  # shares capture, not their clusters
    assert both.captures and not both._executor.captures


@pytest.mark.parametrize(
    "words",
    [
        ("--executor", "dask"),
        ("--shard", "1/2"),
        ("--checkpoint", "kept", "--shard", "3/2"),
        ("--shard", "x"),
        ("--wait", "5"),
        ("--checkpoint", "kept", "--shard", "1/2", "--wait", "-1"),
        ("--spread-data",),
        ("--memory", "lots"),
        ("--memory", "0.1B"),
    ],
)
def test_bad_words_end_in_one_sentence(run, words: tuple[str, ...]) -> None:
    result = _trim(run, TORCH, "out", *words)
    assert result.exit_code == 2 and not Path("out").exists()
    assert words[-1] in result.stderr and "Traceback" not in result.stderr


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
