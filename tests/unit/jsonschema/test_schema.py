"""JSON Schemas of clients: patterns, references, limits on the cost, and validation errors."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, timezone

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_ai import NativeOutput

from axon_zmq import jsonschema as schema
from axon_zmq.errors import RequestError
from axon_zmq.jsonschema import self_contained
from axon_zmq.jsonschema.compiler import MAX_NESTING
from axon_zmq.worker.adapter.output import output_type


def judge(given):
    made = output_type(given, "tool", "/s").output
    adapter = TypeAdapter(made)

    def fits(value) -> bool:
        try:
            adapter.validate_python(value)
        except ValidationError:
            return False
        return True

    return fits


def refused(given, match: str):
    with pytest.raises(RequestError, match=match) as caught:
        schema.compile_schema(given, "/s")
    assert caught.value.error_type == "invalid_request"


def quickly(call, *args):
    """A task that must take bounded time and would take minutes in a naive implementation."""
    start = time.thread_time()
    result = call(*args)
    assert time.thread_time() - start < 5
    return result


# --- patterns --------------------------------------------------------------------------------------

EVIL = "^(a+)+$"
LONG = "a" * 50_000 + "!"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"pattern": EVIL}, LONG),
        ({"additionalProperties": False, "patternProperties": {EVIL: {}}}, {LONG: 1}),
        ({"patternProperties": {EVIL: {}}, "unevaluatedProperties": False}, {LONG: 1}),
        ({"propertyNames": {"pattern": EVIL}}, {LONG: 1}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"$schema": "http://json-schema.org/draft-07/schema#"}}} | {
            "allOf": [{"$schema": "http://json-schema.org/draft-07/schema#", "pattern": EVIL}]
        }, LONG),
    ],
)  # fmt: skip
def test_a_hostile_pattern_takes_bounded_time(given, value):
    assert not quickly(judge(given), value)


def test_patterns_match_anywhere_and_choose_properties():
    assert judge({"pattern": r"b\d"})("ab1c")
    fits = judge({"patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False})
    assert fits({"n1": 1})
    assert not fits({"n1": "x"})
    assert not fits({"m": 1})


@pytest.mark.parametrize(
    "pattern", [r"a(?=b)", r"(a)\1", "(", r"(?:a{1000}){100}b", r"(?x)(a{100} ) {200}", "x" * 10_001]
)
@pytest.mark.parametrize("make", [lambda p: {"pattern": p}, lambda p: {"patternProperties": {p: {}}}])
def test_a_pattern_that_cannot_run_in_bounded_time_is_rejected(pattern, make):
    start = f"the pattern {pattern!r}, which is not supported: it is invalid, too large, or has look-around"
    refused(make(pattern), f"{re.escape(start)}|its patterns have over 10000 states")


@pytest.mark.parametrize(
    "pattern", [r"^\d{4}-\d{2}-\d{2}$", r"^[\w.+-]{1,64}@[\w-]+\.\w+$", r"^\w{1,200}$", r"a\/b", "^[]a]$", "(?x)a # b"]
)
def test_ordinary_patterns_are_accepted(pattern):
    schema.self_contained({"pattern": pattern}, "/s")


def test_too_many_patterns_are_rejected():
    refused({"patternProperties": {f"a{n:03}": {} for n in range(1_001)}}, "patterns have over 10000 states")
    refused({"allOf": [{"pattern": "[^a]{1000}"}] * 10}, "patterns have over 10000 states")


# --- uniqueItems, unevaluated… ---------------------------------------------------------------------


def test_duplicate_items_are_found_quickly():
    fits = judge({"uniqueItems": True})
    maps = [{"n": n} for n in range(4_000)]
    assert quickly(fits, maps)
    assert not quickly(fits, [*maps, {"n": 7.0}])


def test_a_list_of_mixed_types_is_rejected_quickly():
    quickly(refused, {"type": [n if n % 2 else f"s{n}" for n in range(5_000)]}, "invalid JSON Schema")


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, 1.0], False),
        ([1, True], True),
        ([0, False, None, "", [], {}], True),
        ([{"a": 1, "b": 2}, {"b": 2.0, "a": 1}], False),
        ([[1, 2], [2, 1]], True),
        (["1", 1], True),
        ([1.5, 1.5], False),
    ],
)
def test_values_are_compared_as_json_schema_defines(items, unique):
    assert judge({"uniqueItems": True})(items) is unique


def test_unevaluated_properties():
    fits = judge({
        "allOf": [{"properties": {"a": {}}}],
        "anyOf": [{"properties": {"b": {"const": 1}}}, {"properties": {"c": {}}}],
        "unevaluatedProperties": False,
    })  # fmt: skip
    assert fits({"a": 1, "b": 1, "c": 1})
    assert not fits({"b": 2, "c": 1})
    assert not fits({"d": 1})


def test_unevaluated_items():
    fits = judge({"allOf": [{"prefixItems": [{}]}], "contains": {"const": 1}, "unevaluatedItems": {"type": "string"}})
    assert fits([None, 1, "x"])
    assert not fits([None, 1, 2])


def test_unevaluated_inside_one_another_is_bounded():
    given = {}
    for _ in range(9):
        given = {"anyOf": [given], "unevaluatedProperties": False}
    refused(given, "over 50000 keywords and schemas apply to one value")


# --- references ------------------------------------------------------------------------------------

BASE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_keywords_beside_a_reference_apply():
    given = {"$ref": "#/$defs/base", "required": ["b"], "$defs": {"base": BASE}}
    assert schema.self_contained(given, "/s") == {"type": "object", "allOf": [BASE], "required": ["b"]}
    fits = judge(given)
    assert fits({"a": 1, "b": 2})
    assert not fits({"a": 1})
    assert not fits({"b": 2})
    assert not fits({"a": "x", "b": 2})


def test_all_of_beside_a_reference_applies():
    given = {"$ref": "#/$defs/base", "allOf": [{"required": ["b"]}], "$defs": {"base": BASE}}
    assert schema.self_contained(given, "/s")["allOf"] == [BASE, {"allOf": [{"required": ["b"]}]}]


def test_annotations_beside_a_reference_replace_those_of_its_target():
    given = {"$ref": "#/$defs/base", "description": "mine", "$defs": {"base": {**BASE, "description": "its"}}}
    assert schema.self_contained(given, "/s") == {**BASE, "description": "mine"}


@pytest.mark.parametrize(
    "target",
    [
        {"properties": 5},
        {"allOf": 5},
        {"$ref": 5},
        {"items": [{}]},
        {"pattern": 5},
        {"patternProperties": []},
        {"$ref": "#/$defs/any", "allOf": 5},
    ],
)
def test_the_target_of_a_reference_must_be_a_schema(target):
    refused(
        {"$ref": "#/x/y", "x": {"y": target}, "$defs": {"any": {"type": "object"}}},
        "invalid JSON Schema|only references into",
    )


def test_pointers_may_index_lists_and_use_percent_encoding():
    given = {
        "anyOf": [{"type": "integer"}, {"$ref": "#/anyOf/0"}, {"$ref": "#/$defs/a%20b~1c"}],
        "$defs": {"a b/c": {"type": "null"}},
    }
    assert schema.self_contained(given, "/s") == {"anyOf": [{"type": "integer"}, {"type": "integer"}, {"type": "null"}]}


@pytest.mark.parametrize("step", ["3", "-1", "01", "x", "9" * 5000, "²"])
def test_pointers_to_missing_list_items_are_rejected(step):
    refused({"anyOf": [{}, {"$ref": f"#/anyOf/{step}"}]}, "which is not in it")


def test_references_to_true_and_false_are_supported():
    given = {"properties": {"a": {"$ref": "#/$defs/t"}, "b": {"$ref": "#/$defs/f"}}, "$defs": {"t": True, "f": False}}
    assert judge(given)({"a": 1})
    assert not judge(given)({"b": 1})


def test_a_schema_at_the_nesting_limit_can_be_used():
    chain = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}", "minItems": 1} for n in range(30)}
    fits = judge({"$ref": "#/$defs/d0", "$defs": {**chain, "d30": {"items": {"type": "integer"}}}})
    assert fits([1])
    assert not fits([])
    assert not fits(["x"])
    deep, value = {"type": "integer"}, 1
    for _ in range(62):
        deep, value = {"items": deep}, [value]
    assert judge(deep)(value)
    assert judge({"$ref": "#/$defs/deep", "$defs": {"deep": deep["items"]["items"]}})(value[0][0])
    assert not judge(deep)([value])


def test_references_that_expand_without_end_are_rejected():
    chain = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(1000)}
    refused({"$ref": "#/$defs/d0", "$defs": {**chain, "d1000": {}}}, "nested more than 64 deep")
    big = {"big": {"enum": ["x" * 100_000]}}
    refused({"anyOf": [{"$ref": "#/$defs/big"}] * 100, "$defs": big}, "2097152 bytes")


# --- recursive schemas -------------- -----------------------------------------------------------------

COMMENT = {
    "type": "object",
    "title": "Comment",
    "properties": {"text": {"type": "string"}, "replies": {"type": "array", "items": {"$ref": "#/$defs/Comment"}}},
    "required": ["text"],
    "additionalProperties": False,
}
THREAD = {"$ref": "#/$defs/Comment", "$defs": {"Comment": COMMENT}}
"""A recursive schema as pydantic generates it."""


def test_a_recursive_definition_is_kept_once_and_the_root_is_an_object():
    assert schema.self_contained(THREAD, "/s") == {**COMMENT, "$defs": {"Comment": COMMENT}}
    rooted = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    inner = {"type": "object", "properties": {"child": {"$ref": "#/$defs/root"}}}
    assert schema.self_contained(rooted, "/s") == {**inner, "$defs": {"root": inner}}


def test_other_references_inside_recursive_definitions_are_expanded():
    given = {
        "items": {"$ref": "#/$defs/tree/x%20y"},
        "$defs": {"name": {"type": "string"}, "tree": {"x y": {
            "properties": {"name": {"$ref": "#/$defs/name"}, "left": {"$ref": "#/$defs/tree/x%20y"}}
        }}},
    }  # fmt: skip
    tree = {"properties": {"name": {"type": "string"}, "left": {"$ref": "#/$defs/x_y"}}}
    assert schema.self_contained(given, "/s") == {"items": {"$ref": "#/$defs/x_y"}, "$defs": {"x_y": tree}}


def test_recursive_definitions_with_the_same_name_are_distinguished():
    node = {"properties": {"a": {"$ref": "#/$defs/node"}, "b": {"$ref": "#/x/node"}}}
    given = {"items": {"$ref": "#/$defs/node"}, "$defs": {"node": node}, "x": {"node": {**node, "minProperties": 1}}}
    written = schema.self_contained(given, "/s")
    assert set(written["$defs"]) == {"node", "node_2"}
    assert faults(given, [{"a": {"b": {}}}]) == [("/0/a/b", "{} has less than 1 property")]


def test_recursive_values_are_validated_at_every_depth():
    value = {"text": "a", "replies": [{"text": "b", "replies": []}, {"text": "c", "replies": [{"text": 5}, {"x": 1}]}]}
    assert faults(THREAD, value) == [
        ("/replies/1/replies/0/text", "5 is not of type 'string'"),
        ("/replies/1/replies/1", '"text" is a required property'),
        ("/replies/1/replies/1", "Additional properties are not allowed ('x' was unexpected)"),
    ]
    assert faults(THREAD, {"text": "a", "replies": [{"text": "b"}] * 1_000}) == []


def test_mutually_recursive_definitions_are_validated():
    given = {
        "$ref": "#/$defs/even",
        "$defs": {
            "even": {"properties": {"next": {"$ref": "#/$defs/odd"}, "n": {"multipleOf": 2}}},
            "odd": {"properties": {"next": {"$ref": "#/$defs/even"}, "n": {"not": {"multipleOf": 2}}}},
        },
    }
    assert faults(given, {"n": 0, "next": {"n": 1, "next": {"n": 2}}}) == []
    assert faults(given, {"n": 0, "next": {"n": 1, "next": {"n": 3}}}) == [("/next/next/n", "3 is not a multiple of 2")]


def test_unevaluated_properties_of_a_recursive_schema():
    given = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {
            "allOf": [{"properties": {"child": {"$ref": "#/$defs/node"}}}],
            "properties": {"n": {}}, "unevaluatedProperties": False,
        }},
    }  # fmt: skip
    assert faults(given, {"n": 1, "child": {"n": 2, "child": {}}}) == []
    assert faults(given, {"child": {"m": 2}}) == [
        ("/child", "Unevaluated properties are not allowed ('m' was unexpected)")
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"$ref": "#"},
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}},
        {"items": {"if": {"$ref": "#/items"}}},
        {
            "properties": {"a": {"$ref": "#/$defs/a"}},
            "$defs": {"a": {"dependentSchemas": {"x": {"$ref": "#/$defs/a"}}}},
        },
    ],
)
def test_a_schema_that_refers_to_itself_for_the_same_value_is_rejected(given):
    refused(given, "without end: a schema may refer to itself only for a value inside")


@pytest.mark.parametrize(
    "ref", ["http://example.org/s", "file:///etc/passwd", "other.json", "#anchor", "https://json-schema.org/draft/2020-12/schema"]
)  # fmt: skip
@pytest.mark.parametrize(
    "make", [lambda ref: {"$ref": ref}, lambda ref: {**THREAD, "properties": {"x": {"$ref": ref}}}]
)
def test_references_outside_the_schema_are_rejected(ref, make, monkeypatch):
    refused(make(ref), f"refers to {re.escape(repr(ref))}: only references into the schema itself")


def test_the_library_is_configured_to_fetch_nothing(monkeypatch):
    given = []
    monkeypatch.setattr(jsonschema_rs, "Draft202012Validator", lambda _schema, **options: given.append(options))
    schema.compile_schema({"type": "object"}, "/s")
    [options] = given
    with pytest.raises(ValueError, match="remote references are not fetched"):
        options["retriever"]("http://127.0.0.1:9/x")


def test_dynamic_references_are_rejected():
    refused({"properties": {"a": {"$dynamicRef": "#a"}}}, r"uses \$dynamicRef")


def chained(keyword: str, links: int, end: dict, inside: bool = False):
    """Definitions that refer two or three times to the next one: at least 2**links paths."""
    definitions = {}
    for number in range(links):
        ref = {"$ref": f"#/$defs/d{number + 1}"}
        link = {"properties": {"c": ref}} if inside else ref
        definitions[f"d{number}"] = {
            "not": {"not": {"allOf": [{"not": link}, {"not": link}]}},
            "if": {"if": link, "then": link, "else": link},
        }.get(keyword, {keyword: [link, link]})
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{links}": end}}


def nested(depth: int, innermost, **beside):
    value = innermost
    for _ in range(depth):
        value = {**beside, "c": value}
    return value


END = {"type": "object", "required": ["x"]}
CYCLE = {**END, "properties": {"c": {"$ref": "#/$defs/d0"}}}


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf", "not", "if"])
@pytest.mark.parametrize("links", [8, 26, 60])
@pytest.mark.parametrize(("end", "inside"), [(END, False), (CYCLE, False), (END, True), (CYCLE, True)])
def test_chained_references_are_rejected_or_validated_in_bounded_time(keyword, links, end, inside):
    given = chained(keyword, links, end, inside)
    assert cost(read_or_refused, given) < MOST_S
    if (compiled := read_or_refused(given)) is not None:
        for value in (1, nested(links * 2, {}), nested(links * 2, {}, x=1), nested(400, 1, x=1)):
            most = MOST_S + 0.25  # the search for all faults ends after 0.2 s
            assert cost(compiled.faults, value, most=most) < most


def test_a_recursive_choice_of_two_is_validated_in_bounded_time_64_levels_deep():
    child = {"$ref": "#/$defs/n"}
    branches = [{"properties": {"c": child, "x": {"const": number}}} for number in (1, 2)]
    compiled = schema.compile_schema({"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": branches}}}, "/s")
    for value in (nested(64, {"x": 3}), nested(64, {"x": 3}, x=1), nested(64, {"x": 3}, x=2)):
        assert [place for place, _ in compiled.faults(value)] == [""]
        assert cost(compiled.faults, value) < MOST_S
    assert compiled.faults(nested(64, {"x": 2}, x=1)) == []


def test_values_too_deep_for_the_stack_are_rejected_before_the_library_sees_them():
    given = {"$ref": "#/$defs/n", "$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}}
    value = []
    for _ in range(100_000):
        value = [value]
    [(place, reason)] = faults(given, value)
    assert (place, reason.partition(",")[0]) == ("", "is nested 513 deep")
    value = []
    for _ in range(500):
        value = [value]
    assert faults(given, value) == []


def test_unique_items_that_are_nested_too_deeply_for_the_library_are_a_fault():
    # The library compares 16 items or more by their hashes, and raises ValueError for items nested over 255 deep.
    item = 1
    for _ in range(150):
        item = {"a": [item]}
    [(place, reason)] = faults({"uniqueItems": True}, [item] * 16)
    assert (place, reason.partition(",")[0]) == ("", "is nested 302 deep")


def test_an_error_in_the_only_branch_for_a_type_is_reported_at_its_position():
    given = {"anyOf": [{"type": "null"}, THREAD["$defs"]["Comment"]], "$defs": THREAD["$defs"]}
    assert faults(given, {"text": "a", "replies": [{"text": 1}]}) == [("/replies/0/text", "1 is not of type 'string'")]
    assert faults(given, 5) == [("", "5 is not valid under any of the given schemas")]


# --- values outside of JSON --- ---------------------------------------------------------------------------

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
NAN = float("nan")


@pytest.mark.parametrize("value", [b"x", NOON, (1,), {1, 2}])
def test_values_that_json_does_not_have_match_no_type(value):
    for given in ({"type": "string"}, {"type": ["object", "array", "number", "string", "null", "boolean"]}):
        assert len(faults(given, value)) == 1
        assert faults({"items": given, "properties": {"a": {}}}, [value])[0][0] == "/0"
    for given in (
        {},
        {"minLength": 10},
        {"pattern": "^a$"},
        {"maxLength": 0},
        {"minimum": 5},
        {"not": {"type": "string"}},
    ):
        assert faults(given, value) == []


def test_bytes_and_datetimes_equal_only_themselves():
    assert faults({"const": b"x"}, b"x") == faults({"enum": [1, NOON]}, NOON) == []
    assert faults({"const": b"x"}, "x") == [("", "\"b'x'\" was expected")]
    assert faults({"const": NOON}, NOON.isoformat()) != []
    assert faults({"enum": [NOON]}, NOON.astimezone(timezone(timedelta(hours=2)))) == []


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_nan_and_infinity_are_of_type_number(value):
    assert faults({"type": "number"}, value) == faults({"type": ["null", "number"]}, [value][0]) == []
    assert len(faults({"type": "integer"}, value)) == len(faults({"enum": [1, 2.5, "nan"]}, value)) == 1
    assert len(faults({"items": {"type": ["string", "null"]}}, [value])) == 1


def test_large_integers_and_lone_surrogates_are_validated():
    assert faults({"type": "integer", "minimum": 2**63}, 10**40) == []
    assert faults({"maximum": 2**63}, 10**40) != []
    assert faults({"type": "string", "maxLength": 1}, "\ud800") == []
    assert (
        faults({"additionalProperties": {"type": "integer"}}, {"\ud800": "x"})[0][1] == "'x' is not of type 'integer'"
    )


@pytest.mark.parametrize("format", ["email", "date-time", "uuid", "regex", "no such"])
def test_format_is_an_annotation(format):
    assert faults({"type": "string", "format": format, "contentEncoding": "base64"}, "(%") == []


def test_other_drafts_and_unknown_keywords_are_handled_as_in_draft_2020_12():
    given = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "minimum": 1,
        "exclusiveMinimum": 1,
        "x": {"type": 5},
    }
    assert faults({**given, "dependencies": {"a": ["b"]}}, {"a": 1}) == []
    assert faults(given, 1) == [("", "1 is less than or equal to the minimum of 1")]
    assert faults({"$schema": "https://example.org/mine", "type": "string"}, 1) != []


MESSAGES = [
    ({"type": ["string", "null"]}, 1, [("", "1 is not of type 'null', 'string'")]),
    ({"const": 1}, 2, [("", "1 was expected")]),
    ({"minimum": 2}, 1, [("", "1 is less than the minimum of 2")]),
    ({"maximum": 2}, 3, [("", "3 is greater than the maximum of 2")]),
    ({"exclusiveMaximum": 2}, 2, [("", "2 is greater than or equal to the maximum of 2")]),
    ({"multipleOf": 2}, 3, [("", "3 is not a multiple of 2")]),
    ({"minLength": 2}, "a", [("", '"a" is shorter than 2 characters')]),
    ({"maxLength": 1}, "ab", [("", '"ab" is longer than 1 character')]),
    ({"pattern": "b"}, "a", [("", '"a" does not match "b"')]),
    ({"minItems": 1}, [], [("", "[] has less than 1 item")]),
    ({"maxItems": 1}, [1, 2], [("", "[1,2] has more than 1 item")]),
    ({"prefixItems": [{}], "items": False}, [1, 2], [("/1", "2 is not allowed: the schema accepts no value here")]),
    ({"uniqueItems": True}, [1, 1], [("", "[1,1] has non-unique elements")]),
    ({"contains": {"const": 1}}, [2], [("", "[2] has no item that fits the schema in contains")]),
    (
        {"contains": {"const": 1}, "maxContains": 1},
        [1, 1],
        [("", "[1, 1] has more items that fit the schema in contains than maxContains")],
    ),
    ({"minProperties": 1}, {}, [("", "{} has less than 1 property")]),
    ({"maxProperties": 0}, {"a": 1}, [("", '{"a":1} has more than 0 properties')]),
    ({"required": ["a", "b"]}, {}, [("", '"a" is a required property'), ("", '"b" is a required property')]),
    (
        {"dependentRequired": {"a": ["b"]}},
        {"a": 1},
        [("", '"b" is a required property if other properties are present (dependentRequired)')],
    ),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, {"a": 1}, [("", '"b" is a required property')]),
    ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, [("", '"ab" is longer than 1 character')]),
    ({"patternProperties": {"^a": False}}, {}, []),
    ({"not": {"type": "integer"}}, 1, [("", '{"type":"integer"} is not allowed for 1')]),
    ({"if": {"type": "integer"}, "then": {"minimum": 2}}, 1, [("", "1 is less than the minimum of 2")]),
    ({"if": {"type": "integer"}, "else": {"type": "null"}}, "a", [("", "'a' is not of type 'null'")]),
    (
        {"unevaluatedItems": False, "prefixItems": [{}]},
        [1, 2],
        [("", "Unevaluated items are not allowed ('2' was unexpected)")],
    ),
    ({"not": {}}, 1, [("", "{} is not allowed for 1")]),
]


@pytest.mark.parametrize(("given", "value", "found"), MESSAGES)
def test_error_messages_are_readable(given, value, found):
    assert faults(given, value) == found


def test_a_false_schema_is_reported_at_the_position_of_the_value():
    assert faults({"properties": {"a": False}}, {"a": 1}) == [
        ("/a", "1 is not allowed: the schema accepts no value here")
    ]
    assert faults({"patternProperties": {"^a": False}}, {"ab": 1})[0][0] == "/ab"


def test_an_error_in_a_value_too_large_to_search_is_reported_at_the_root():
    assert faults({"items": {"type": "integer"}}, [*[1] * 90_000, "x"])[0][0] == "/90000"
    names = {f"a{n}": 1 for n in range(900_000)}
    [(place, reason)] = quickly(faults, {"additionalProperties": {"type": "integer"}}, {**names, "b": "x"})
    assert place == ""
    assert reason == "does not fit the schema; the value is too large or too deep to find the place of the error"


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "name"),
    [("Weather", "Weather"), ("Der Wetterbericht!", "Der_Wetterbericht"), ("天気", "Output"), ("x" * 99, "x" * 64)],
)
def test_a_title_becomes_a_name_that_providers_accept(title, name):
    native = output_type({"type": "object", "title": title}, "native", "/s")
    assert isinstance(native, NativeOutput)
    assert (native.name, native.outputs.__name__) == (name, name)


# --- cost limits --------------------- -------------------------------------------------------------


def faults(given, value):
    return schema.load_schema(given, "/s").faults(value)


def copying(name: str, copies: int = 60):
    """A schema of 4 KB whose references expand to 150 properties each."""
    part = {"type": "object", "properties": {f"{name}{n}": {"type": "string"} for n in range(150)}}
    return {"$defs": {"part": part}, "properties": {f"q{n}": {"$ref": "#/$defs/part"} for n in range(copies)}}


def test_schemas_are_compiled_quickly():
    quickly(schema.load_schema, copying("quick"), "/s")
    part = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"enum": ["a", "b"]}]}
    quickly(schema.load_schema, {"properties": {f"quick{n}": part for n in range(2_800)}}, "/s")


@pytest.mark.parametrize("copies", [2, 20])
def test_the_schemas_of_one_request_share_a_cost_limit(copies):
    """A schema uses the budget again for each use, whether it is cached (2 copies) or not (20)."""
    budget, read = schema.Budget(), 0
    with pytest.raises(RequestError, match="over 20000 values") as caught:
        for _ in range(100):
            schema.load_schema(copying("shared", copies), f"/tools/{read}/parameters", budget)
            read += 1
    assert caught.value.error_type == "invalid_request"
    assert caught.value.details["errors"][0]["pointer"] == f"/tools/{read}/parameters"
    assert read == 20_000 // (1 + copies * 303)


def test_unreferenced_definitions_count_toward_the_cost():
    budget = schema.Budget()
    unused = {"$defs": {"unused": {"description": "x" * 200_000}}}
    for _ in range(10):
        schema.load_schema(unused, "/s", budget)
    with pytest.raises(RequestError, match="over 2097152 bytes"):
        schema.load_schema(unused, "/s", budget)


def test_a_compiled_schema_is_cached_unless_it_is_large():
    small = copying("small", 2)
    assert schema.load_schema(small, "/a") is schema.load_schema(small, "/b")
    assert schema.load_schema(copying("large"), "/a") is not schema.load_schema(copying("large"), "/a")


def test_the_cache_is_bounded():
    first = schema.load_schema({"title": "first"}, "/s")
    assert schema.load_schema({"title": "first"}, "/s") is first
    for n in range(256):
        schema.load_schema({"title": str(n), "description": "x" * 7_000}, "/s")
    assert schema.load_schema({"title": "first"}, "/s") is not first


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"type": "text"}, "/type"),
        ({"type": ["string", "string"]}, "/type"),
        ({"type": []}, "/type"),
        ({"type": {}}, "/type"),
        ({"type": [["string"]]}, "/type/0"),
        ({"properties": {"a/b": {"items": 5}}}, "/properties/a~1b/items"),
        ({"properties": {"a": 5}}, "/properties/a"),
        ({"anyOf": []}, "/anyOf"),
        ({"anyOf": [{}, {"minimum": "1"}]}, "/anyOf/1/minimum"),
        ({"minimum": True}, "/minimum"),
        ({"minLength": 1.5}, "/minLength"),
        ({"minItems": -1}, "/minItems"),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"required": ["a", "a"]}, "/required"),
        ({"required": "a"}, "/required"),
        ({"enum": 5}, "/enum"),
        ({"uniqueItems": 1}, "/uniqueItems"),
        ({"$defs": {"unused": {"not": []}}}, "/$defs/unused/not"),
        ({"dependentRequired": {"a": [1]}}, "/dependentRequired/a/0"),
        ({"$id": "a#b"}, "/$id"),
        ({"title": 5}, "/title"),
    ],
)
def test_an_invalid_schema_is_rejected_with_a_reason(given, place):
    with pytest.raises(RequestError, match="invalid JSON Schema") as caught:
        schema.load_schema(given, "/s")
    assert caught.value.details["errors"][0]["pointer"] == "/s" + place


def test_an_invalid_schema_is_quoted_briefly():
    with pytest.raises(
        RequestError, match=r'/s/anyOf: invalid JSON Schema: "x+ … x+" is not of type "array"$'
    ) as caught:
        schema.load_schema({"anyOf": "x" * 10**5}, "/s")
    assert len(str(caught.value)) < 400


def test_every_keyword_is_accepted():
    schema.load_schema(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.org/a",
            "$vocabulary": {"x": True},
            "type": ["object", "null"],
            "properties": {"a": True, "b": False, "c": {"minLength": 1.0, "maximum": -1.5, "format": "date"}},
            "dependencies": {"a": ["b"], "b": {"type": "object"}},
            "dependentRequired": {"a": []},
            "default": [1],
            "examples": [1],
            "enum": [],
            "x-own": {"type": 5},
        },
        "/s",
    )


MANY = {f"a{n}": 0 for n in range(6_000)}
TOO_MUCH = [("", "is too large to validate against this schema: send a smaller value, or simplify the schema")]


def one_name_each(count: int) -> list:
    return [{"properties": {f"a{number}": {}}} for number in range(count)]


MOST_S = 0.3
"""Upper limit in seconds of CPU time. On an idle machine each takes at most 0.1 s; without limits, minutes."""


def cost(call, *args, most: float = MOST_S) -> float:
    """Seconds of CPU time, at most 20 times until it is below the limit: other processes share cores and caches."""
    for _ in range(20):
        start = time.thread_time()
        call(*args)
        seconds = time.thread_time() - start
        if seconds < most:
            break
    return seconds


def read_or_refused(given):
    try:
        return schema.compile_schema(given, "/s")
    except RequestError as refusal:
        assert refusal.error_type == "invalid_request"
        return None


@pytest.mark.parametrize(
    ("given", "value", "verdict"),
    [
        ({"items": {"allOf": [{"minimum": -n} for n in range(1_000)]}}, [1] * 4_000, []),
        ({"items": {"allOf": [{}] * 1_000}}, [1] * 4_000, []),
        ({"items": {"dependentSchemas": {f"p{n}": {} for n in range(3_000)}}}, [{"p1": None}] * 4_000, TOO_MUCH),
        ({"items": {}}, [1] * 400_000, []),
        ({"allOf": [{"uniqueItems": True}] * 500}, list(range(10_000)), TOO_MUCH),
        ({"items": {"enum": [[0] * 50_000 + [n] for n in range(4)]}}, [[0] * 50_001] * 20, TOO_MUCH),
        ({"allOf": [{"pattern": "[ab]*a[ab]{190}c"}] * 50}, "ab" * 1_000_000, TOO_MUCH),
        ({"allOf": [{"pattern": "[ab]*a[ab]{190}c"}, {"type": "string"}] * 500}, "ab" * 1_000_000, "refused"),
        (
            {"items": {"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}] * 5_000}},
            [{"a": 1}] * 4_000,
            "refused",
        ),
        ({"unevaluatedProperties": False, "anyOf": one_name_each(3_000)}, MANY, TOO_MUCH),
        ({"unevaluatedProperties": False, "anyOf": one_name_each(1_000)}, MANY, TOO_MUCH),
    ],
)  # fmt: skip
def test_hostile_schemas_are_rejected_or_validated_in_bounded_time(given, value, verdict):
    assert cost(read_or_refused, given) < MOST_S
    compiled = read_or_refused(given)
    assert (compiled is None) == (verdict == "refused")
    if compiled is not None:
        assert compiled.faults(value) == verdict
        assert cost(compiled.faults, value) < MOST_S


def test_large_ordinary_values_are_validated():
    row = dict.fromkeys("abcde", 1.5)
    shape = {"properties": {name: {"type": "number"} for name in "abcde"}, "required": list("abcde")}
    rows = {"type": "array", "items": {"type": "object", **shape, "additionalProperties": False}}
    assert faults(rows, [row] * 5_000) == []
    assert faults(rows, [*[row] * 5_000, {**row, "f": 1}])[0][0] == "/5000"
    assert faults({"items": {"type": "integer"}}, [1] * 90_000) == []
    assert faults({"items": {"enum": [f"c{n}" for n in range(250)]}}, ["c249"] * 1_000) == []


def test_error_messages_are_few_and_short():
    given = {"allOf": [{"anyOf": [{"type": "string"}, {"minItems": 10**6}]}, {"type": "integer"}] * 200}
    assert quickly(faults, {"contains": {"required": ["k" * 200_000]}}, [{}] * 50_000)
    shown = quickly(faults, given, ["x" * 100] * 4_000)
    assert len(shown) == 1
    assert len(faults({"required": [f"n{n}" for n in range(99)]}, {})) == 10
    assert all(len(reason) < 310 for _, reason in shown)
    for given, value in (
        ({"const": 1}, b"x" * 10**6),
        ({"type": "string"}, b"x" * 10**6),
        ({"pattern": "a"}, "x" * 10**6),
        ({"additionalProperties": False}, {"x" * 10**6: 1}),
        ({"required": ["x" * 10**5]}, {}),
        ({"uniqueItems": True}, [["x" * 10**6]] * 2),
        ({"enum": ["x" * 10**5]}, 1),
        ({"not": {}}, {"x": ["x" * 10**6]}),
        ({"allOf": [False]}, [[[1]] * 10**5]),
    ):
        [(_, reason)] = faults(given, value)
        assert len(reason) < 310


def test_error_messages_show_small_values_completely():
    assert faults({"type": "string"}, {"a": [1, None]}) == [("", "{'a': [1, None]} is not of type 'string'")]
    assert faults({"enum": ["a", 2]}, 3) == [("", '3 is not one of "a" or 2')]
    assert faults({"oneOf": [{}, {"type": "string"}, {}]}, 3) == [
        ("", "3 is valid under more than one of the given schemas: 0 and 2")
    ]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (1, 1.0, True),
        (True, 1, False),
        ([0], [False], False),
        ({"a": [1]}, {"a": [1.0]}, True),
        ({"a": 1}, {"b": 1}, False),
        ("x" * 500, "x" * 500, True),
        ("x" * 500, "x" * 499 + "y", False),
    ],
)
def test_constants_are_compared_as_json_does(one, two, same):
    assert judge({"const": one})(two) is same
    assert judge({"enum": [None, one]})(two) is same


def test_long_bytes_are_distinguished():
    one, two = b"x" * 500 + b"1", b"x" * 500 + b"2"
    assert faults({"uniqueItems": True}, [one, two]) == []
    assert faults({"uniqueItems": True}, [one, two, one]) != []


def test_pointers_contain_every_key_of_the_client():
    given = {"additionalProperties": {"type": "integer"}}
    assert [place for place, _ in faults(given, {"<a>": "", "b/~c": "", "function-d": ""})] == [
        "/<a>",
        "/b~1~0c",
        "/function-d",
    ]


def test_references_are_expanded_and_names_and_data_are_left_alone():
    given_schema = {
        "$defs": {"n": {"type": "integer"}},
        "type": "object",
        "properties": {"$ref": {"$ref": "#/$defs/n"}, "definitions": {"const": {"$ref": "left alone"}}},
    }
    assert self_contained(given_schema, "/s") == {
        "type": "object",
        "properties": {"$ref": {"type": "integer"}, "definitions": {"const": {"$ref": "left alone"}}},
    }


def test_the_expansion_of_references_is_bounded():
    definitions = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(12)}
    bomb = {"$ref": "#/$defs/d0", "$defs": {**definitions, "d12": {"type": "null"}}}
    with pytest.raises(RequestError, match="20000 values"):
        self_contained(bomb, "/s")


def test_a_schema_over_the_nesting_limit_is_rejected():
    deep: dict[str, object] = {}
    for _ in range(MAX_NESTING + 1):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="nested more than 64 deep"):
        self_contained(deep, "/s")
