"""Proof that the harnesses check the bounds: each named bound is removed in a copy, and a harness must fail on it.

`tests/system/test_fuzz.py` runs this in CI: in a copy of the package without one of the bounds, the CI run of the
bound's harness must fail with a broken invariant. With all bounds, it passes (`tests/unit/fuzz`).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

# Imported before the fork, so that each copy need not import them again: they take longer than the run itself.
import jsonschema_rs  # noqa: F401
import msgpack  # noqa: F401
import pydantic  # noqa: F401

ROOT: Final = Path(__file__).parents[1]
FAILED, PASSED, NO_RESULT = 1, 0, 99
"""Exit codes of a forked process."""


class Bound(NamedTuple):
    """A bound, and the change that removes it."""

    name: str
    about: str
    harness: str
    """Harness whose CI run must fail."""
    file: str
    old: str
    """Text that occurs once in the file."""
    new: str


BOUNDS: Final[Sequence[Bound]] = (
    Bound(
        "request-id",
        "a request id has at most 64 bytes",
        "parsers",
        "axon_zmq/protocol/frames.py",
        "if not 1 <= len(id) <= limits.MAX_ID:",
        "if not id:",
    ),
    Bound(
        "body",
        "a body has at most max_body bytes",
        "parsers",
        "axon_zmq/protocol/frames.py",
        "if len(body) > max_body:",
        "if len(body) < 0:",
    ),
    Bound(
        "echoed-id",
        "an invalid id of over 256 bytes is not repeated in the error",
        "parsers",
        "axon_zmq/protocol/frames.py",
        "readable = len(frames) > 1 and len(frames[1]) <= MAX_ECHOED_ID",
        "readable = len(frames) > 1",
    ),
    Bound(
        "items",
        "a body has at most max_items msgpack items",
        "parsers",
        "axon_zmq/protocol/msgpack.py",
        "if counted > max_items:",
        "if counted < 0:",
    ),
    Bound(
        "frames",
        "a message with over 64 frames is dropped",
        "broker",
        "axon_zmq/broker/core/broker.py",
        "if len(event.frames) > limits.MAX_FRAMES:",
        "if len(event.frames) < 0:",
    ),
    Bound(
        "client-queue",
        "a client has at most max_queued_per_client queued runs in a mode",
        "broker",
        "axon_zmq/broker/core/admission.py",
        "if of_client >= bounds.max_queued_per_client:",
        "if of_client < 0:",
    ),
    Bound(
        "undelivered",
        "at most 16 messages are kept for a queued run",
        "broker",
        "axon_zmq/broker/core/admission.py",
        "is_full = len(run.undelivered) >= UNDELIVERED_KEPT",
        "is_full = False",
    ),
    Bound(
        "schema",
        "the schemas of a request have at most 20,000 values after references were replaced",
        "schemas",
        "axon_zmq/jsonschema/compiler.py",
        "if self.nodes < 0 or self.bytes < 0:",
        "if self.bytes < -(10**12):",
    ),
)
"""The named bounds."""


def main(names: Sequence[str]) -> int:
    """Print which harness fails without which bound; the first row is a run without a change.

    Args:
        names: Names of bounds, or `none` for the run without a change; an empty list means all.

    Returns:
        The exit code: 1 if a harness passes without its bound, or fails with all bounds.
    """
    wrong = 0
    for bound in (None, *BOUNDS):
        name, about = ("none", "all harnesses pass with all bounds") if bound is None else (bound.name, bound.about)
        if names and name not in names:
            continue
        began = time.monotonic()
        code, text = removed(bound)
        wrong += code != (PASSED if bound is None else FAILED)
        print(f"{name} | {about} | {text} | {time.monotonic() - began:.1f} s", flush=True)
    return 1 if wrong else 0


def removed(bound: Bound | None) -> tuple[int, str]:
    """Run the CI run of a harness, or of all, in a copy of the package without a bound.

    Returns:
        `PASSED`, `FAILED` or `NO_RESULT`, and the last line of the output.
    """
    with tempfile.TemporaryDirectory(prefix="axon-fuzz-") as folder:
        copy = Path(folder)
        _copy(copy, bound)
        output = copy / "output"
        child = os.fork()
        if not child:
            _child(copy, output, bound)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = output.read_text(encoding="utf-8").strip() if output.exists() else ""
        return code, text.splitlines()[-1] if text else f"ended with {code}"


def _copy(folder: Path, bound: Bound | None) -> None:
    for name in ("axon_zmq", "fuzz", "tests/support"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "findings"))
    (folder / "tests/__init__.py").touch()
    if bound is None:
        return
    broken = folder / bound.file
    text = broken.read_text(encoding="utf-8")
    assert text.count(bound.old) == 1, f"bound {bound.name}: its text is {text.count(bound.old)} times in {bound.file}"
    broken.write_text(text.replace(bound.old, bound.new), encoding="utf-8")


def _child(folder: Path, output: Path, bound: Bound | None) -> None:
    """Run in the forked process, and end it."""
    code = NO_RESULT
    try:
        os.chdir(folder)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "axon_zmq", "fuzz")]:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        code, text = _run(folder, bound)
        output.write_text(text, encoding="utf-8")
    except BaseException:
        output.write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


def _run(folder: Path, bound: Bound | None) -> tuple[int, str]:
    from fuzz import engine, harness, harnesses

    if not Path(engine.__file__).is_relative_to(folder.resolve()):
        return NO_RESULT, f"the copy was not imported, but {engine.__file__}"
    chosen = harnesses.HARNESSES.values() if bound is None else [harnesses.HARNESSES[bound.harness]]
    for each in chosen:
        try:
            engine.short(each)
        except harness.BrokenInvariantError as fault:
            return FAILED, f"{each.name}: {fault}"
    return PASSED, "no harness fails"
