"""Settings and the papers' numbers of every experiment, from the TOML files beside this module."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from nettrim.errors import InputError, near, should
from nettrim.experiments.verdicts import Expected, Sense

_FOLDER = "settings"


@dataclass(frozen=True)
class Settings:
    """What one experiment is: words for the list, options of the full and the quick version, and expected numbers."""

    name: str
    title: str
    source: str
    minutes: Mapping[str, float]  # expected time of "full" and "quick", measured on two cores
    full: Mapping[str, Any]
    quick: Mapping[str, Any]  # over those of `full`
    expected: tuple[Expected, ...]
    notes: tuple[str, ...] = ()

    def options(self, quick: bool) -> dict[str, Any]:
        """The options of one version."""
        return {**self.full, **(self.quick if quick else {})}


def names() -> tuple[str, ...]:
    """Every experiment that has settings, by name."""
    folder = files("nettrim.experiments") / _FOLDER
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def read_settings(name: str) -> Settings:
    """The settings of one experiment. Raises InputError, with the nearest names, for one that there is not."""
    known = names()
    if name not in known:
        raise InputError(should("NAME", "an experiment", repr(name), near(name, known)))
    data = tomllib.loads((files("nettrim.experiments") / _FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    expected = tuple(_expected(entry) for entry in _flat(data.get("paper", ())))
    return Settings(
        name=name,
        title=data["title"],
        source=data["source"],
        minutes=data["minutes"],
        full=data.get("full", {}),
        quick=data.get("quick", {}),
        expected=expected,
        notes=tuple(data.get("notes", ())),
    )


def _flat(blocks: Any) -> list[dict[str, Any]]:
    """A block holds one number (`key`, `value`) or a row of them: `numbers` by key, with what they share."""
    flat = []
    for block in blocks:
        shared = {name: block[name] for name in ("where", "sense", "within", "why") if name in block}
        reasons = block.get("whys", {})
        if "numbers" in block:
            for key, value in block["numbers"].items():
                flat.append({**shared, "key": block.get("prefix", "") + key, "value": value, **_reason(reasons, key)})
        else:
            flat.append({**shared, "key": block["key"], "value": block["value"]})
    return flat


def _reason(reasons: Mapping[str, str], key: str) -> dict[str, str]:
    return {"why": reasons[key]} if key in reasons else {}


def _expected(entry: Mapping[str, Any]) -> Expected:
    value = entry["value"]
    words = value if isinstance(value, str) else ""
    return Expected(
        key=entry["key"],
        value=math.nan if words else float(value),
        where=entry.get("where", ""),
        sense=Sense(entry.get("sense", "match")),
        within=float(entry.get("within", 0.0)),
        why=entry.get("why", ""),
        instead=words,
    )
