"""Hints for unknown names."""

from __future__ import annotations

import pytest

from axon_zmq.suggestions import MAX_NAMES_SHOWN, closest, suggestion


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("promt", ["id", "prompt"], "did you mean 'prompt'?"),
        ("zzz", ["id", "prompt"], "known options: id, prompt"),
        ("zzz", [], "known options: none"),
        ("x", [f"name{i}" for i in range(MAX_NAMES_SHOWN + 1)], f"name{MAX_NAMES_SHOWN - 1}, …"),
    ],
)
def test_a_hint_names_the_most_similar_name_or_else_the_known_ones(name, known, hint):
    assert suggestion(name, known, "known options").endswith(hint)


def test_a_name_is_suggested_only_if_it_is_as_similar_as_required():
    assert closest("AXON_FRONTED", ["AXON_FRONTEND"], 0.85) == "AXON_FRONTEND"
    assert closest("AXON_ELIXIR_DEPS", ["AXON_FRONTEND"], 0.85) is None
