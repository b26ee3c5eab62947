"""Output of the command line: two rich consoles for a terminal, JSON lines for a pipe."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from pydantic_core import to_json
from rich.console import Console

from axon_zmq.events import Event

_CONTROLS: Final = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


def _printable(text: str) -> str:
    return text.translate(_CONTROLS).encode(errors="backslashreplace").decode()


class _Plain(Console):
    """Console that drops control characters other than newline and tab, and escapes unpaired surrogates.

    Otherwise the text of a model could move the cursor and imitate a question of the command line. A file name that is
    not valid UTF-8 contains surrogates, which cannot be printed.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        plain = (_printable(each) if isinstance(each, str) else each for each in objects)
        super().print(*plain, **options)


out = _Plain(highlight=False, soft_wrap=True)
err = _Plain(stderr=True, highlight=False, soft_wrap=True)


def as_json(value: object, indent: int | None = None) -> str:
    """Return a value as JSON, with bytes in base64 and all control characters escaped."""
    text = to_json(value, indent=indent, bytes_mode="base64").decode()
    # JSON itself only requires that characters below 0x20 are escaped; terminals also obey 0x80 to 0x9f.
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 worker`, `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_line(value: object) -> None:
    """Print one JSON line to standard output."""
    sys.stdout.write(as_json(value) + "\n")
    sys.stdout.flush()


def print_event(event: Event) -> None:
    """Print an event as a JSON line, with the message kind of the wire as `kind`."""
    kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
    print_line({"kind": kind, **{name: getattr(event, name) for name in event.__slots__}})


def print_result(result: object) -> None:
    """Print the result of a run to a terminal: text as it is, anything else as JSON."""
    out.print(result if isinstance(result, str) else as_json(result, indent=2), markup=False)
