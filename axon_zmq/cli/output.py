"""Where the command line writes: two rich consoles for a terminal, JSON lines for a pipe."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from pydantic_core import to_json
from rich.console import Console

from axon_zmq.events import Event

_CONTROLS: Final = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


class _Plain(Console):
    """Prints no control character but newline and tab: a model's text cannot pass for a question of ours."""

    def print(self, *objects: Any, **options: Any) -> None:
        plain = (each.translate(_CONTROLS) if isinstance(each, str) else each for each in objects)
        super().print(*plain, **options)


out = _Plain(highlight=False, soft_wrap=True)
err = _Plain(stderr=True, highlight=False, soft_wrap=True)


def as_json(value: object, indent: int | None = None) -> str:
    """A value as JSON; bytes in base64, no control character unescaped."""
    made = to_json(value, indent=indent, bytes_mode="base64").decode()
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", made)


def print_line(value: object) -> None:
    """One JSON line on standard output."""
    sys.stdout.write(as_json(value) + "\n")
    sys.stdout.flush()


def print_event(event: Event) -> None:
    """An event as a JSON line; `kind` as on the wire."""
    kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
    print_line({"kind": kind, **{name: getattr(event, name) for name in event.__slots__}})


def print_result(result: object) -> None:
    """An answer on a terminal."""
    out.print(result if isinstance(result, str) else as_json(result, indent=2), markup=False)
