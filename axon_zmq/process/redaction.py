"""Removes secrets from texts that leave a process: log lines, errors, descriptions of agents, and traces.

Every such text passes `redactor`, the one `Redactor` of the process. Results and chunks of runs never do.

Internal: may change in any release.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import lru_cache
from threading import Lock
from typing import Any, Final, TextIO, cast
from urllib.parse import quote, quote_plus, unquote

MASK: Final = "***"
"""Text that replaces a secret."""
MIN_SECRET_CHARS: Final = 8
"""Shortest secret that is removed. Shorter values, such as `1` or `true`, would occur in ordinary texts."""
MAX_SECRETS: Final = 1_000
"""Maximum number of secrets that are kept. Code that renews tokens for ever must not make the pattern grow for ever;
the oldest secrets that the environment no longer has are forgotten first."""
REFRESH_S: Final = 0.05
"""Seconds between two looks at the environment, which code of agents may change at any time. A look takes 40 µs with 50
variables, so this costs at most 0.1 % of a CPU."""
_MIN_LINE_CHARS: Final = 16
"""Shortest line of a secret of several lines, such as a private key, that is also removed alone."""

SECRET_NAME: Final = re.compile(
    r"(?:^|[_.-])(?:api|access|auth|private)?(?:key|token|secret|pat|pass)$|passw(?:or)?d|passphrase|secret_key"
    r"|bearer|authorization|^(?:set-)?cookie$",
    re.IGNORECASE,
)
"""Matches the name of an environment variable, option or header whose value is a secret."""
_URL_PASSWORD: Final = re.compile(r"://[^\s/?#@:\"'<>]*:([^\s\"'<>]+)@")
# Each alternative takes time in proportion to the length of the text, whatever the text is: after `://`, the repeated
# classes stop at the next `/` or `:`, and so before the next `://`; the other repetitions are bounded.
_URL: Final = re.compile(
    # The second form is for passwords that contain / ? or #; a port number is not a password.
    r"""://(?:[^\s/?#"'<>]+|[^\s/?#@:"'<>]*:(?!\d{1,5}[/?#])[^\s@:"'<>]+)@"""
)
_QUERY: Final = re.compile(
    r"""([?&;][\w.-]{0,32}(?:key|token|secret|passw(?:or)?d|signature|credential|auth)[\w.-]{0,32}=)[^\s&#"'<>]+""",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(r"(\b(?:bearer|basic) {1,8})[A-Za-z0-9._~+/-]{16,}=*", re.IGNORECASE)
_WORD: Final = re.compile(r"[A-Za-z0-9_.~-]+")
"""Matches the characters that no encoding but base64 changes."""


class Redactor:
    """Replaces secrets in texts by `***`.

    A secret is the value, of 8 characters or more, of an environment variable whose name matches `SECRET_NAME`, or a
    value that `learn` was given. It is found as it is, escaped as in Python or JSON, encoded as in URLs, and in base64.
    Credentials in URLs, secret query parameters, and credentials after `Bearer` or `Basic` are removed even if their
    values are unknown.

    Objects are safe to use from any thread.

    Args:
        environment: The environment variables. They are read again at most every `REFRESH_S`. The secrets of variables
            that were removed or changed are still removed from texts.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._seen: dict[str, str] = {}
        """The environment at the last look."""
        self._read_at = float("-inf")
        """When the environment was last read, in seconds of the monotonic clock."""
        self._secrets: dict[str, None] = {}
        """Known secrets, the ones found last at the end."""
        self._cores: Sequence[tuple[str, str]] = ()
        """Parts that occur in each text with a secret in any of its forms, each with its secret."""
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<Redactor {len(self._secrets)} secrets>"

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        if time.monotonic() - self._read_at > REFRESH_S:
            self.refresh()
        # Substring searches first: one regular expression of all forms of ten secrets takes twenty times as long
        # (figures in docs/security.md), and nearly no text has a secret.
        found = {secret for core, secret in self._cores if core in text}
        if found:
            text = _pattern(frozenset(found)).sub(MASK, text)
        if "@" in text:
            text = _URL.sub(f"://{MASK}@", text)
        if "=" in text:
            text = _QUERY.sub(rf"\1{MASK}", text)
        if "earer " in text or "asic " in text or "EARER " in text or "ASIC " in text:
            text = _SCHEME.sub(rf"\1{MASK}", text)
        return text

    def value(self, value: Any) -> Any:
        """Return a value without secrets, in all texts that its maps and lists contain; other types stay as they are.

        The value itself is not changed.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            # The copy keeps the class, because `PlainMap` and `Plain` tell the packer that their content is plain.
            made = {self.value(key): self.value(item) for key, item in value.items()}
            return type(value)(made) if isinstance(value, dict) else made
        if isinstance(value, list | tuple):
            items: Any = map(self.value, value)
            return type(value)(items) if isinstance(value, list) else tuple(items)
        return value

    def learn(self, pairs: Mapping[str, str]) -> None:
        """Add the secrets among named values, such as environment variables or headers: those with a secret name."""
        self._add(_secrets_in(pairs))

    def learn_values(self, values: Iterable[str]) -> None:
        """Add values that are secrets whatever their names are."""
        self._add(part for value in values for part in _parts(value))

    def refresh(self) -> None:
        """Read the environment now, because code that was just executed may have changed it."""
        self._read_at = time.monotonic()
        # A variable that another thread changes meanwhile raises one of these; the next look finds its new value.
        with suppress(RuntimeError, KeyError):
            now = dict(self._environment)
            if now != self._seen:
                self._seen = now
                self._add(_secrets_in(now))

    def _add(self, found: Iterable[str]) -> None:
        with self._lock:
            fresh = False
            for secret in found:
                fresh = fresh or secret not in self._secrets
                self._secrets.pop(secret, None)  # so that it is at the end
                self._secrets[secret] = None
            for secret in list(self._secrets)[: max(0, len(self._secrets) - MAX_SECRETS)]:
                del self._secrets[secret]
            if fresh:
                self._cores = tuple((core, secret) for secret in self._secrets for core in _cores(secret))


@lru_cache(maxsize=64)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern that matches these secrets in all their forms."""
    # The longest first: a secret that contains another one must be replaced completely.
    texts = {form for secret in secrets for form in _forms(secret)}
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _cores(secret: str) -> Iterator[str]:
    """Yield parts of which at least one occurs in each form of a secret."""
    yield max(_WORD.findall(secret), key=len, default="")
    for coded in _in_base64(secret.encode("utf-8", "surrogateescape")):
        yield max(re.findall(r"\w+", coded.replace("_", " "), re.ASCII), key=len, default="")


def _secrets_in(pairs: Mapping[str, str]) -> Iterator[str]:
    for name, value in pairs.items():
        if SECRET_NAME.search(name):
            yield from _parts(value)
        elif "://" in value:
            # Libraries also repeat the password of such a URL alone, for example when a login fails.
            for password in _URL_PASSWORD.findall(value):
                yield from _parts(password)
                yield from _parts(unquote(password))


def _parts(value: str) -> Iterator[str]:
    """Yield the texts that reveal a secret value: the value, its long lines, and a credential without its scheme."""
    stripped = value.strip()
    if len(stripped) < MIN_SECRET_CHARS:
        return
    yield stripped
    lines = stripped.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _MIN_LINE_CHARS and not line.startswith("-----"))
    scheme, _, credential = stripped.partition(" ")
    if scheme.lower() in ("bearer", "basic", "token") and len(credential) >= MIN_SECRET_CHARS:
        yield credential


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is and in the encodings in which libraries show it."""
    yield secret
    # Python quotes a text with `"` in single quotes, and then escapes `'` in it; otherwise it escapes no quotes.
    escaped = repr('"' + secret)[2:-1]
    yield escaped
    yield escaped.replace("\\'", "'")
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    raw = secret.encode("utf-8", "surrogateescape")
    for encoded in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        yield encoded
        yield re.sub("%..", lambda found: found[0].lower(), encoded)
    for coded in _in_base64(raw):
        yield coded
        yield coded.replace("+", "-").replace("/", "_")


def _in_base64(raw: bytes) -> Iterator[str]:
    """Yield the characters of base64 that a secret alone determines, for each of its three positions in a text.

    For example, HTTP's Basic authentication encodes `user:password`, so that the user's length decides the position.
    """
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        # The first characters also depend on the bytes before the secret, the last one on the bytes after it.
        is_complete = (before + len(raw)) % 3 == 0
        yield coded[(0, 2, 3)[before] : None if is_complete else -1]


class RedactingStream:
    """A text stream that removes secrets from everything written to it, one `write` at a time.

    It has all attributes of the stream, such as `fileno`; what is written to the descriptor itself, or to `buffer`,
    keeps its secrets. It is no `io.TextIOBase`, whose objects close and flush themselves when they are deleted.

    Args:
        stream: The stream that gets the text.
        redactor: Removes the secrets.
    """

    def __init__(self, stream: TextIO, redactor: Redactor) -> None:
        self._stream = stream
        self._redactor = redactor

    def __repr__(self) -> str:
        return f"<RedactingStream {self._stream!r}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text without its secrets; return the number of characters of the text."""
        self._stream.write(self._redactor.text(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts without their secrets."""
        for line in lines:
            self.write(line)


redactor: Final = Redactor(os.environ)
"""The redactor of this process."""


def redact_standard_streams() -> None:
    """Remove secrets from what Python code of this process prints: `print`, warnings, and tracebacks of any thread."""
    sys.stdout = _redacting(sys.stdout)
    sys.stderr = _redacting(sys.stderr)


@contextmanager
def redacted_standard_streams() -> Generator[None]:
    """Remove secrets from what Python code of this process prints within the `with` statement."""
    with redirect_stdout(_redacting(sys.stdout)), redirect_stderr(_redacting(sys.stderr)):
        yield


def _redacting(stream: TextIO) -> TextIO:
    return cast("TextIO", RedactingStream(stream, redactor))
