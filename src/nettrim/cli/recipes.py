"""From the options of the command line to a recipe: the file first, then every option that was given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nettrim.errors import RecipeError, should
from nettrim.programs import penalties
from nettrim.recipe import Recipe

# without their arguments that need arrays
PENALTIES = {"l1": "L1", "max-norm": "MaxNorm", "group-inputs": "GroupL2Inputs", "group-outputs": "GroupL2Outputs"}


def make_recipe(file: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe: `given` options that are not None win over those of the file. Raises RecipeError."""
    options = {name: value for name, value in given.items() if value is not None}
    if file is not None:
        return Recipe.read(file).replace(**options)
    if "epsilon" not in options:
        cure = "Say --epsilon 0.05 for 5 %, or name a recipe with --recipe."
        raise RecipeError(should("--epsilon", "given", "none", cure))
    return Recipe(**options)


def number_or_table(name: str, values: list[str] | None) -> Any:
    """`0.05`, or `layer=0.05` several times with `*=0.1` for the rest, as a number or a table."""
    return _table(name, values, _number)


def word_or_table(name: str, values: list[str] | None) -> Any:
    """`cascade`, or `layer=cascade` several times."""
    return _table(name, values, lambda option, text: text)


def budget(text: str | None) -> str | int | None:
    """`layer`, `neuron`, or a number of clusters."""
    return int(text) if text is not None and re.fullmatch(r"\d+", text) else text


def penalty(text: str | None) -> penalties.Penalty | None:
    """A penalty by its name on the command line."""
    if text is None:
        return None
    if text not in PENALTIES:
        cure = "Others go into a recipe: [penalty] kind = ..."
        raise RecipeError(should("--penalty", "one of " + ", ".join(PENALTIES), repr(text), cure))
    return getattr(penalties, PENALTIES[text])()


def _table(name: str, values: list[str] | None, read: Any) -> Any:
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return read(name, values[0])
    table = {}
    for value in values:
        layer, equals, text = value.rpartition("=")
        if not equals or not layer:
            cure = "Give one value for all layers, or LAYER=VALUE for each, with '*=VALUE' for the rest."
            raise RecipeError(should(name, "one value, or LAYER=VALUE several times", repr(value), cure))
        table[layer] = read(name, text)
    return table


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecipeError(should(name, "a number", repr(text))) from None
