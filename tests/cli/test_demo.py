"""The demo, in its quick settings: what it shows is true, and what it writes can be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from nettrim import demo

pytest.importorskip("sklearn")


def test_the_demo(run, folder: Path) -> None:
    result = run("demo", "--quick", "--epsilon", "0.3", "-o", "out")
    assert result.exit_code == 0, result.output
    page = (folder / "out" / "demo.html").read_text(encoding="utf-8")
    assert "Parallel" in page and "Cascade" in page and "http://" not in page.replace("http://www.w3.org", "")
    for word in ("parallel", "cascade", "bound", "held-out", "accuracy", "latency", "bytes on disk", "demo.html"):
        assert word in result.stdout
    check = ("--data", "out/calibration.npz", "--model", "nettrim.demo:network", "--weights", "out/dense.safetensors")
    for scheme in demo.SCHEMES:
        report = json.loads((folder / "out" / scheme / "report.json").read_text())
        assert report["certified"] and report["network"]["discrepancy"] <= report["network"]["bound"]
        assert report["gain"]["accuracy"]["trimmed"] == report["gain"]["accuracy"]["shrunk"]
    modes = {path.name: path.stat().st_mode for path in (folder / "out").iterdir() if path.is_file()}
    assert len(set(modes.values())) == 1, modes
    verified = run("verify", "out/cascade", *check)
    assert verified.exit_code == 0, verified.output
    measured = run("eval", "nettrim.demo:network", "--weights", "out/cascade", "--data", "out/test.npz", "--json")
    assert json.loads(measured.stdout)["accuracy"] == pytest.approx(report["gain"]["accuracy"]["trimmed"])


def test_what_cannot_be_written_is_refused_before_the_work(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", None)
    (folder / "out" / "cascade").mkdir(parents=True)
    (folder / "out" / "cascade" / "thesis.txt").write_text("years of work")
    result = run("demo", "-o", "out")
    assert result.exit_code == 2 and "which holds something else" in result.stderr
    monkeypatch.setattr("os.access", lambda path, mode: False)
    result = run("demo", "-o", "other")
    assert result.exit_code == 2 and "can be written" in result.stderr


def test_training_is_repeatable_and_leaves_the_random_state() -> None:
    digits = demo.load_digits()
    state = torch.get_rng_state()
    one, two = (demo.train(digits, 1) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_without_scikit_learn(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = run("demo", "-o", "out", "--quiet")
    assert result.exit_code == 2 and "nettrim[demo]" in result.stderr
    assert not Path("out").exists()
