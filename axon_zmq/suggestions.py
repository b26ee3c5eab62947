"""Hints for error messages about unknown names. Internal: may change in any release."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from itertools import islice
from typing import Final

MAX_NAMES_SHOWN: Final = 20
"""Maximum number of known names in one hint."""
_SIMILARITY: Final = 0.6
"""The default `cutoff` of `difflib.get_close_matches`."""


def closest(name: str, known: Collection[str], similarity: float = _SIMILARITY) -> str | None:
    """Return the known name that is most similar to `name`, or None if none is similar.

    Args:
        name: The unknown name.
        known: The known names.
        similarity: The least ratio of `difflib.SequenceMatcher`, between 0 and 1, of a similar name.
    """
    return next(iter(get_close_matches(name, known, n=1, cutoff=similarity)), None)


def suggestion(name: str, known: Collection[str], label: str) -> str:
    """Return the end of an error message about an unknown name.

    It suggests the most similar known name; without one, it lists up to `MAX_NAMES_SHOWN` known names.

    Args:
        name: The unknown name.
        known: The known names, in the order in which they are listed.
        label: Introduces the list, for example `known options`.
    """
    if near := closest(name, known):
        return f"did you mean {near!r}?"
    if not known:
        return f"{label}: none"
    more = ", …" if len(known) > MAX_NAMES_SHOWN else ""
    return f"{label}: {', '.join(islice(known, MAX_NAMES_SHOWN))}{more}"
