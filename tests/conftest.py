"""What every test may rely on: one torch thread, fixed seeds, and fixtures that skip what this machine lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import nettrim

# one thread each: the workers of the suite are already as many as the cores
torch.set_num_threads(1)

settings.register_profile(
    "nettrim",
    deadline=None,  # times are checked elsewhere; a busy machine must not fail a property
    derandomize=True,  # the same examples in every run
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("nettrim")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers whatever ran before."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def same() -> Callable[[nettrim.Trimmed, nettrim.Trimmed], bool]:
    """Whether two trims are the same to the bit: models, what was measured, and proofs."""

    def compare(one: nettrim.Trimmed, other: nettrim.Trimmed) -> bool:
        tensors = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
        return all(torch.equal(a, b) for a, b in tensors) and all(
            a.totals == b.totals
            and torch.equal(a.weight, b.weight)
            and torch.equal(a.backing[0].weight, b.backing[0].weight)
            and torch.equal(a.backing[0].dual, b.backing[0].dual)
            for a, b in zip(one.layers, other.layers, strict=True)
        )

    return compare


@pytest.fixture(scope="session")
def nettrim_data() -> Path:
    """The folder with real data sets (`mnist/`, `spiral/`) that the environment variable NETTRIM_DATA names."""
    folder = os.environ.get("NETTRIM_DATA")
    if not folder:
        pytest.skip("NETTRIM_DATA names no data folder")
    path = Path(folder)
    if not (path / "mnist" / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no MNIST files in NETTRIM_DATA = {folder}")
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium to render pages with. Where NETTRIM_REQUIRE_BROWSER is set, its absence is a failure."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("NETTRIM_REQUIRE_BROWSER"):
        pytest.fail("no Chromium on the PATH, but NETTRIM_REQUIRE_BROWSER is set")
    pytest.skip("no Chromium on the PATH")
