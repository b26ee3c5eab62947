"""Schemas from clients: hostile patterns, references in every form, and how the judge judges."""

import re
import time

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_ai import NativeOutput

from axon_zmq.errors import RequestError
from axon_zmq.worker import schema


def judge(given):
    made = schema.output_type(given, "tool", "/s").output
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
        schema.self_contained(given, "/s")
    assert caught.value.error_type == "invalid_request"


def quickly(call, *args):
    start = time.perf_counter()
    result = call(*args)
    assert time.perf_counter() - start < 1
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
def test_an_evil_pattern_takes_no_time(given, value):
    assert not quickly(judge(given), value)


def test_patterns_match_anywhere_and_choose_properties():
    assert judge({"pattern": r"b\d"})("ab1c")
    fits = judge({"patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False})
    assert fits({"n1": 1})
    assert not fits({"n1": "x"})
    assert not fits({"m": 1})


@pytest.mark.parametrize("pattern", [r"a(?=b)", r"(a)\1", "(", r"(?:a{1000}){100}b", "x" * 1001])
@pytest.mark.parametrize("make", [lambda p: {"pattern": p}, lambda p: {"patternProperties": {p: {}}}])
def test_a_pattern_that_cannot_run_in_bounded_time_is_refused(pattern, make):
    refused(make(pattern), re.escape(f"the pattern {pattern[:100]!r}, which is not supported"))


@pytest.mark.parametrize(
    "pattern", [r"^\d{4}-\d{2}-\d{2}$", r"^[\w.+-]{1,64}@[\w-]+\.\w+$", r"^\w{1,200}$", r"a\/b", "^[]a]$", "(?x)a # b"]
)
def test_ordinary_patterns_are_taken(pattern):
    schema.self_contained({"pattern": pattern}, "/s")


def test_too_many_patterns_are_refused():
    refused({"patternProperties": {f"a{n}": {} for n in range(101)}}, "over 100 patterns")


# --- uniqueItems, unevaluated… ---------------------------------------------------------------------


def test_unique_items_are_found_quickly():
    fits = judge({"uniqueItems": True})
    maps = [{"n": n} for n in range(4_000)]
    assert quickly(fits, maps)
    assert not quickly(fits, [*maps, {"n": 7.0}])


def test_a_mixed_list_of_types_is_refused_quickly():
    quickly(refused, {"type": [n if n % 2 else f"s{n}" for n in range(5_000)]}, "is no JSON Schema")


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
def test_what_is_equal(items, unique):
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
    refused(given, "unevaluated")


# --- references ------------------------------------------------------------------------------------

BASE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_keywords_beside_a_reference_hold_too():
    given = {"$ref": "#/$defs/base", "required": ["b"], "$defs": {"base": BASE}}
    assert schema.self_contained(given, "/s") == {"type": "object", "allOf": [BASE], "required": ["b"]}
    fits = judge(given)
    assert fits({"a": 1, "b": 2})
    assert not fits({"a": 1})
    assert not fits({"b": 2})
    assert not fits({"a": "x", "b": 2})


def test_all_of_beside_a_reference_is_kept():
    given = {"$ref": "#/$defs/base", "allOf": [{"required": ["b"]}], "$defs": {"base": BASE}}
    assert schema.self_contained(given, "/s")["allOf"] == [BASE, {"allOf": [{"required": ["b"]}]}]


def test_remarks_beside_a_reference_replace():
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
def test_what_is_referred_to_must_be_a_schema(target):
    refused(
        {"$ref": "#/x/y", "x": {"y": target}, "$defs": {"any": {"type": "object"}}},
        "is no JSON Schema|only references into",
    )


def test_pointers_through_lists_and_percent_encoding():
    given = {
        "anyOf": [{"type": "integer"}, {"$ref": "#/anyOf/0"}, {"$ref": "#/$defs/a%20b~1c"}],
        "$defs": {"a b/c": {"type": "null"}},
    }
    assert schema.self_contained(given, "/s") == {"anyOf": [{"type": "integer"}, {"type": "integer"}, {"type": "null"}]}


@pytest.mark.parametrize("step", ["3", "-1", "01", "x", "9" * 5000, "²"])
def test_pointers_to_no_item_of_a_list(step):
    refused({"anyOf": [{}, {"$ref": f"#/anyOf/{step}"}]}, "which is not in it")


def test_references_to_true_and_false():
    given = {"properties": {"a": {"$ref": "#/$defs/t"}, "b": {"$ref": "#/$defs/f"}}, "$defs": {"t": True, "f": False}}
    assert judge(given)({"a": 1})
    assert not judge(given)({"b": 1})


def test_the_deepest_schema_is_judged():
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


def test_references_that_nest_or_copy_without_end_are_refused():
    chain = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(1000)}
    refused({"$ref": "#/$defs/d0", "$defs": {**chain, "d1000": {}}}, "nested more than 64 deep")
    big = {"big": {"enum": ["x" * 100_000]}}
    refused({"anyOf": [{"$ref": "#/$defs/big"}] * 100, "$defs": big}, "1048576 bytes")


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "name"),
    [("Weather", "Weather"), ("Der Wetterbericht!", "Der_Wetterbericht"), ("天気", "Output"), ("x" * 99, "x" * 64)],
)
def test_a_title_becomes_a_name_that_providers_take(title, name):
    native = schema.output_type({"type": "object", "title": title}, "native", "/s")
    assert isinstance(native, NativeOutput)
    assert (native.name, native.outputs.__name__) == (name, name)
