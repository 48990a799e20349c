"""The pretended device stands beside its tests, and the generator of programs beside the solvers'."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "solvers")]


@pytest.fixture
def replaced_parameters() -> Iterator[None]:
    """A module that moves gets new parameters: those of the pretended device are of another class."""
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)
    yield
    future.set_overwrite_module_params_on_conversion(before)
