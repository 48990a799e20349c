"""The exceptions nettrim raises: one sentence, the value received, and the cure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class NettrimError(Exception):
    """Base of every error nettrim raises on purpose."""


class InputError(NettrimError, ValueError):
    """An argument, a file or a model cannot be used as given."""


class DataError(InputError):
    """Calibration data cannot be used: missing, empty, wrong shape, or not finite."""


class ModelError(InputError):
    """A model cannot be used: nothing to trim, weights not finite, or an unsupported structure."""


class RecipeError(InputError):
    """A recipe or option is unknown or contradictory."""


class MissingExtraError(NettrimError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"`{package}` should be installed for this. Got no such package. "
            f'Install it with: pip install "nettrim[{extra}]".'
        )


def should(name: str, be: str, got: object, cure: str = "") -> str:
    """The one form of every message: *`name` should be …. Got ….* and, where there is one, the cure."""
    sentence = f"`{name}` should be {be}. Got {got}."
    return f"{sentence} {cure}" if cure else sentence


def is_number(value: object, least: float = -math.inf) -> bool:
    """Whether a value is a number >= `least`, which NaN is not, nor are True and False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= least


def is_whole(value: object, least: float = -math.inf) -> bool:
    """The same of whole numbers, which 2.0 is not."""
    return isinstance(value, int) and is_number(value, least)


def near(name: str, known: Iterable[str]) -> str:
    """A cure for a misspelt name: the nearest known ones, or all of them when none is near."""
    options = list(known)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(option) for option in close) + "?"
    return "Known: " + ", ".join(options[:20]) + ("…" if len(options) > 20 else "") + "."
