"""Numbers and names as they are written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim.report import format as fmt


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.934, "93.4 %"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.9997, "99.97 %"),
        (0.9999999, "> 99.999 %"),
        (1e-9, "< 0.001 %"),
        (np.float32(0.5), "50.0 %"),
        (1.5, "150.0 %"),
        (None, fmt.MISSING),
        (math.nan, fmt.MISSING),
        (math.inf, fmt.MISSING),
    ],
)
def test_percent(fraction: float | None, text: str) -> None:
    assert fmt.percent(fraction) == text


@given(st.floats(0, 1))
def test_only_a_full_layer_is_called_full_and_only_an_empty_one_empty(fraction: float) -> None:
    assert (fmt.percent(fraction) == "100 %") == (100 * fraction == 100)
    assert (fmt.percent(fraction) == "0 %") == (100 * fraction == 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.02134, "0.0213"),
        (0.05, "0.0500"),
        (1.2e-5, "1.2e-05"),
        (123.4, "123"),
        (54321.0, "5.4e+04"),
        (0.0, "0"),
        (-0.5, "-0.500"),
        (math.nan, fmt.MISSING),
    ],
)
def test_number(value: float, text: str) -> None:
    assert fmt.number(value) == text


def test_units() -> None:
    assert [fmt.size(value) for value in (12, 1234, 4.5e6, 7e12)] == ["12 B", "1.23 kB", "4.50 MB", "7.00 TB"]
    assert [fmt.duration(value) for value in (8.5e-5, 0.00123, 12.3, 0.9999)] == [
        "85.0 µs",
        "1.23 ms",
        "12.3 s",
        "1.00 s",
    ]
    assert fmt.count(1234567) == "1,234,567"
    assert fmt.gap(-1e-17) == "0"
    assert fmt.setting(0.05) == "0.05"
    assert fmt.shape((3, 4)) == "3 × 4"


def test_names_lose_what_a_terminal_or_xml_cannot_take() -> None:
    assert fmt.clean("a\x1b[31m\x00b\n") == "a\ufffd[31m\ufffdb\ufffd"
    assert len(fmt.elide("x" * 100)) == 26
    assert fmt.elide("features.0") == "features.0"
