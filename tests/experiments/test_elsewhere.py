"""Experiments on a device that is not the CPU, pretended: run, and run again from what they kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nettrim.experiments import run as running
from nettrim.experiments.run import reproduce
from nettrim.experiments.settings import read_settings

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "device")]
from elsewhere import FAR, Elsewhere  # noqa: E402  # it stands beside the device's tests

_SHORT = {"epochs": 10, "batch": 30, "rate": 1e-2}
_BANDS = {"samples": 120, "hidden": [8], "epsilon": 0.1, "bands": True, "noise": True, "training": _SHORT}
_TINY = {
    "mnist-figures": {"draws": 1, "networks": {"NN2-10K": _BANDS}},
    "mnist-small": {
        "samples": [60], "hidden": [[10, 10]], "tests": 100, "validation": 60, "epsilons": [0.2], "training": _SHORT,
    },
    "pcn": {"samples": 80, "tests": 100, "hidden": [6], "sizes": [1, 6], "training": {"epochs": 5, "batch": 20}},
    "spirals": {
        "hidden": 5, "attempts": 1, "grid": 21, "epsilon": 0.2, "networks": {"plain": {"epochs": 60, "rate": 1e-2}},
    },
}  # fmt: skip


@pytest.fixture
def replaced_parameters() -> Iterator[None]:
    """A module that moves gets new parameters: those of the pretended device are of another class."""
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)
    yield
    future.set_overwrite_module_params_on_conversion(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_TINY))
@pytest.mark.usefixtures("replaced_parameters")
def test_nothing_is_left_on_the_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    for variable in ("NETTRIM_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    settings = read_settings(name)
    smaller = replace(settings, quick={**settings.quick, **_TINY[name]})
    monkeypatch.setattr(running, "read_settings", lambda name: smaller)
    with Elsewhere():
        first = reproduce(name, tmp_path / "out", quick=True, device=str(FAR))
        again = reproduce(name, tmp_path / "out", quick=True, device=str(FAR))
    assert first.findings.tables and again.findings.tables == first.findings.tables
