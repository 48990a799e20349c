"""How numbers and untrusted names are written, the same in every table, figure and page."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

MISSING = "–"


def known(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, NumPy's included."""
    return isinstance(value, Real) and math.isfinite(value)


def clean(name: str) -> str:
    """A name fit for a terminal and for XML: what cannot be printed becomes a replacement character."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def elide(name: str, width: int = 26) -> str:
    """A name shortened in its middle: layer names differ at both ends."""
    name = clean(name)
    if len(name) <= width:
        return name
    head = (width - 1) // 3
    return name[:head] + "…" + name[len(name) - (width - 1 - head) :]


def count(value: float | None) -> str:
    """A whole number with thousands separated: 1,234,567."""
    return f"{value:,.0f}" if value is not None and known(value) else MISSING


def percent(fraction: float | None) -> str:
    """A fraction as a percentage: 93.4 %; never rounded to 0 or 100 when it is neither."""
    if fraction is None or not known(fraction):
        return MISSING
    value = 100 * fraction
    for digits in (1, 2, 3):
        text = f"{value:.{digits}f}"
        if float(text) not in (0.0, 100.0):
            return f"{text} %"
    if value == 0:
        return "0 %"
    if value == 100:
        return "100 %"
    return "< 0.001 %" if value < 50 else "> 99.999 %"


def number(value: float | None) -> str:
    """Three significant digits: 0.0213; two and an exponent when small or large: 1.2e-05."""
    if value is None or not known(value):
        return MISSING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:.1e}"


def setting(value: float | None) -> str:
    """A number somebody chose, as short as it was written: 0.05, 1e-06."""
    return f"{value:.4g}" if value is not None and known(value) else MISSING


def gap(value: float | None) -> str:
    """An optimality gap: two significant digits with an exponent; rounding errors below zero are zero."""
    if value is None or not known(value):
        return MISSING
    return "0" if value <= 0 else f"{value:.1e}"


def size(value: float | None) -> str:
    """Bytes, in decimal units: 1.23 MB."""
    if value is None or not known(value):
        return MISSING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:#.3g}".rstrip(".") + f" {unit}"


def duration(seconds: float | None) -> str:
    """A time span: 85.0 µs, 1.23 ms, 12.3 s."""
    if seconds is None or not known(seconds):
        return MISSING
    for unit, scale in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)):
        if seconds * scale < 999.5 or unit == "s":
            break
    return f"{seconds * scale:#.3g}".rstrip(".") + f" {unit}"


def shape(dimensions: tuple[int, ...]) -> str:
    """A weight's shape: 300 × 784."""
    return " × ".join(str(dimension) for dimension in dimensions)
