"""Secrets are removed from texts, and other texts stay as they are."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import sys
from time import process_time
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.process import logs, redaction
from axon_zmq.process.redaction import MASK, MAX_SECRETS, RedactingStream, Redactor, redacted_standard_streams
from axon_zmq.protocol.plain import PlainMap

ODD = "p/a'ss\"w+rd é\\x"
"""A secret that each encoding changes."""


@pytest.mark.parametrize(
    "name",
    [
        *(
            "OPENAI_API_KEY",
            "openai_api_key",
            "APIKEY",
            "X-Api-Key",
            "GH_TOKEN",
            "TOKEN",
            "AUTH_TOKEN",
            "NPM_AUTHTOKEN",
        ),
        *("CLIENT_SECRET", "DB_PASSWORD", "PASSWORD_OF_DB", "PGPASSWORD", "MYSQL_PASSWD", "SECRET_KEY_BASE", "GH_PAT"),
        *(
            "AWS_SECRET_ACCESS_KEY",
            "KEY_PASSPHRASE",
            "AWS_BEARER_TOKEN_BEDROCK",
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "SMTP_PASS",
        ),
    ],
)
def test_the_name_decides_whether_a_value_is_a_secret(name: str):
    assert Redactor({name: "hidden-value"}).text("a hidden-value here") == f"a {MASK} here"


@pytest.mark.parametrize("name", ["PATH", "HOME", "KEYBOARD", "TOKENIZERS_PARALLELISM", "MONKEY", "COOKIE_DOMAIN"])
def test_values_of_other_names_stay(name: str):
    assert Redactor({name: "plain-value"}).text("a plain-value here") == "a plain-value here"


def test_values_shorter_than_8_characters_stay():
    redactor = Redactor({"A_KEY": "1234567", "B_KEY": "12345678"})
    assert redactor.text("1234567, 12345678") == f"1234567, {MASK}"


@pytest.mark.parametrize(
    "shown",
    [
        ODD,
        repr(ODD),
        repr([ODD]),
        repr(ODD + "'"),
        repr("'" + ODD),
        repr('"' + ODD),
        json.dumps(ODD),
        json.dumps(ODD, ensure_ascii=False),
        quote(ODD),
        quote(ODD, safe=""),
        quote_plus(ODD),
        re.sub("%..", lambda found: found[0].lower(), quote(ODD)),
        *(base64.b64encode(f"{'u' * length}:{ODD}{'!' * length}".encode()).decode() for length in range(3)),
        base64.urlsafe_b64encode(ODD.encode()).decode(),
    ],
)
def test_a_secret_is_found_in_the_encodings_of_texts(shown: str):
    cleaned = Redactor({"A_KEY": ODD}).text(f"before {shown} after")
    assert MASK in cleaned
    # At most some characters at its ends are left, which depend on the characters beside it.
    assert len(cleaned) < len("before  after") + 16
    assert cleaned.startswith("before ") and cleaned.endswith(" after")


@given(st.text(min_size=8, max_size=40).filter(lambda text: len(text.strip()) >= 8), st.text(), st.text())
def test_no_encoding_of_any_secret_is_left(secret: str, before: str, after: str):
    redactor = Redactor({"A_KEY": secret})
    for encode in (str, repr, json.dumps, quote, quote_plus):
        cleaned = redactor.text(f"{before} {encode(secret)} {after}")
        assert secret.strip() not in cleaned.replace(MASK, "") or secret.strip() in f"{before} {after}"
        assert MASK in cleaned


def test_a_secret_that_contains_another_one_is_removed_completely():
    redactor = Redactor({"A_KEY": "sk-12345678", "B_KEY": "sk-12345678-suffix"})
    assert redactor.text("sk-12345678-suffix sk-12345678") == f"{MASK} {MASK}"


def test_the_lines_of_a_private_key_are_removed_one_by_one():
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\nBAQEFAASCBKcwggSjAgEAAo\n-----END KEY-----\n"
    cleaned = Redactor({"TLS_KEY": key}).text("line 2 is BAQEFAASCBKcwggSjAgEAAo")
    assert cleaned == f"line 2 is {MASK}"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("postgres://bob:pw@db/x", "postgres://***@db/x"),
        ("redis://:pw@h:6379/0 or https://token@h/", "redis://***@h:6379/0 or https://***@h/"),
        ("a://u:p@ss@h b://u:p/w?d#@h", "a://***@h b://***@h"),
        ("'a://u:p@h' \"b://u:p@h\"", "'a://***@h' \"b://***@h\""),
        ("https://h/x?api_key=abc&y=2&sig=ok&access_token=t", "https://h/x?api_key=***&y=2&sig=ok&access_token=***"),
        ("Authorization: Bearer abcdefghijklmnop.q", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNzd29yZA=='}", "{'authorization': 'Basic ***'}"),
    ],
)
def test_credentials_in_urls_and_headers_are_removed_even_if_they_are_unknown(text: str, cleaned: str):
    assert Redactor({}).text(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8080/a@b https://h/users/a@b.test tcp://[::1]:80 user@host.test git@host:x",
        "Basic authentication; bearer tokens; ?page=2&key_of_nothing; a=b; key=5 in a sentence",
        "timeout=5 @ 3 s, 12:30://x",
    ],
)
def test_ordinary_texts_stay(text: str):
    assert Redactor({"A_KEY": "12345678"}).text(text) == text


def test_the_password_in_a_url_of_the_environment_is_also_removed_alone():
    redactor = Redactor({"DATABASE_URL": "postgres://bob:p%40ssword1@db/x"})
    assert (
        redactor.text("login of bob with 'p@ssword1' or p%40ssword1 failed")
        == f"login of bob with '{MASK}' or {MASK} failed"
    )


def test_variables_that_are_set_later_are_found_and_removed_ones_are_remembered():
    environment = {"A_KEY": "first-value"}
    redactor = Redactor(environment)
    redactor.text("")
    environment |= {"A_KEY": "second-value", "B_TOKEN": "third-value"}
    redactor.refresh()
    del environment["B_TOKEN"]
    redactor.refresh()
    assert redactor.text("first-value second-value third-value") == f"{MASK} {MASK} {MASK}"


def test_the_number_of_remembered_secrets_is_bounded_and_current_ones_are_kept():
    environment = {"A_KEY": "current-value"}
    redactor = Redactor(environment)
    for number in range(3):
        redactor.learn_values(f"rotated-{number}-{index:05}" for index in range(MAX_SECRETS // 2))
        environment["B_KEY"] = f"changed-{number}"
        redactor.refresh()
    assert repr(redactor) == f"<Redactor {MAX_SECRETS} secrets>"
    assert redactor.text("current-value rotated-2-00001 rotated-0-00001") == f"{MASK} {MASK} rotated-0-00001"


def test_learned_headers_are_removed_with_and_without_their_scheme():
    redactor = Redactor({})
    redactor.learn({"Authorization": "Bearer 12345678", "X-Other": "visible-value"})
    assert redactor.text("12345678; visible-value") == f"{MASK}; visible-value"


def test_values_are_cleaned_at_every_depth_and_keep_their_types():
    redactor = Redactor({"A_KEY": "12345678"})
    value: Any = PlainMap(a=[{"12345678": ("x 12345678", 5, None, b"12345678")}], b=1.5)
    cleaned = redactor.value(value)
    assert cleaned == {"a": [{MASK: (f"x {MASK}", 5, None, b"12345678")}], "b": 1.5}
    assert type(cleaned) is PlainMap
    assert "12345678" in value["a"][0]  # the value itself is not changed


def test_a_stream_removes_secrets_of_everything_that_is_printed():
    target = io.StringIO()
    stream = RedactingStream(target, Redactor({"A_KEY": "12345678"}))
    print("key:", "12345678", file=stream)
    assert stream.write("12345678") == 8
    stream.writelines(["x 12345678\n"])
    assert target.getvalue() == f"key: {MASK}\n{MASK}x {MASK}\n"
    target.close()
    del stream  # without an attempt to flush the closed stream


def test_standard_streams_remove_secrets_only_as_long_as_they_should(monkeypatch: Any, capsys: Any):
    monkeypatch.setenv("STREAM_KEY", "12345678")
    redaction.redactor.refresh()
    with redacted_standard_streams():
        print("12345678")
        print("12345678", file=sys.stderr)
    print("12345678")
    assert capsys.readouterr() == (f"{MASK}\n12345678\n", f"{MASK}\n")


def test_log_lines_and_tracebacks_are_without_secrets(monkeypatch: Any):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure("test", "info")
        monkeypatch.setenv("LATE_KEY", "late-12345678")
        try:
            raise RuntimeError("late-12345678")
        except RuntimeError:
            logging.getLogger("test").exception("failed with %s", "late-12345678")
        written = sys.stderr.getvalue()
    finally:
        root.handlers[:], root.level = before
    assert f"failed with {MASK}" in written
    assert f"RuntimeError: {MASK}" in written
    assert "12345678" not in written


@pytest.mark.parametrize(
    "part",
    ["://", "://a:", "://a:b", "?key", "key", "bearer ", "Bearer a", "@://a", "=@://", "&a", "@", "\\", "%41", "%"],
)
def test_the_time_is_proportional_to_the_length_of_hostile_texts(part: str):
    redactor = Redactor({"A_KEY": ODD, "B_KEY": "a" * 40})

    def seconds(length: int) -> float:
        text = part * (length // len(part)) + "@= earer asic "
        started = process_time()
        redactor.text(text)
        return process_time() - started

    # Quadratic time would be 256 times as long, not 16 times.
    assert seconds(320_000) < 100 * max(seconds(20_000), 0.002)
