"""Which layers a user means: names, glob patterns, regular expressions, class names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nettrim.errors import InputError, near, should


@dataclass(frozen=True)
class Candidate:
    """A layer as the user may call it: its names (several when weights are shared) and its classes."""

    names: tuple[str, ...]
    classes: tuple[str, ...]

    def matches(self, pattern: str) -> bool:
        """Whether a pattern means this layer; the name of a module means every layer in it."""
        if pattern.startswith("re:"):
            return any(re.match(pattern[3:], name) for name in self.names)
        if pattern in self.classes:
            return True
        return any(
            name == pattern or fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
            for name in self.names
        )


def select(
    candidates: Sequence[Candidate], targets: str | Iterable[str] | None, ignore: str | Iterable[str]
) -> list[bool]:
    """For each candidate whether it is to be trimmed: in `targets` (None: all) and not in `ignore`.

    Raises InputError for a pattern that means no layer, with the near names, and for a broken regex.
    """
    wanted = None if targets is None else _matching("targets", _listed(targets), candidates)
    unwanted = _matching("ignore", _listed(ignore), candidates)
    return [(wanted is None or place in wanted) and place not in unwanted for place in range(len(candidates))]


def _listed(patterns: str | Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matching(argument: str, patterns: Sequence[str], candidates: Sequence[Candidate]) -> set[int]:
    chosen: set[int] = set()
    for pattern in patterns:
        try:
            found = {place for place, candidate in enumerate(candidates) if candidate.matches(pattern)}
        except re.error as error:
            raise InputError(should(argument, "patterns that can be read", repr(pattern), f"{error}.")) from None
        if not found:
            known = [name for candidate in candidates for name in candidate.names]
            known += sorted({name for candidate in candidates for name in candidate.classes})
            raise InputError(
                should(argument, "names of layers, patterns or class names", repr(pattern), near(pattern, known))
            )
        chosen |= found
    return chosen
