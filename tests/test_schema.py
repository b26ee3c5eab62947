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
    """What takes a blink here, and would take minutes if it were done the obvious way."""
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


# --- what reading and judging may take -------------------------------------------------------------


def faults(given, value):
    return schema.enforced(given, "/s").faults(value)


def copying(name: str, copies: int = 60):
    """A schema of 4 KB whose references write out to 150 properties each."""
    part = {"type": "object", "properties": {f"{name}{n}": {"type": "string"} for n in range(150)}}
    return {"$defs": {"part": part}, "properties": {f"q{n}": {"$ref": "#/$defs/part"} for n in range(copies)}}


def test_schemas_are_read_quickly():
    quickly(schema.enforced, copying("quick"), "/s")
    part = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"enum": ["a", "b"]}]}
    quickly(schema.enforced, {"properties": {f"quick{n}": part for n in range(2_800)}}, "/s")


@pytest.mark.parametrize("copies", [2, 20])
def test_the_schemas_of_one_request_share_a_budget(copies):
    """Remembered (2 copies) or not (20), a schema takes as much of the budget again."""
    budget, read = schema.Budget(), 0
    with pytest.raises(RequestError, match="over 20000 values") as caught:
        for _ in range(100):
            schema.enforced(copying("shared", copies), f"/tools/{read}/parameters", budget)
            read += 1
    assert caught.value.error_type == "invalid_request"
    assert caught.value.details["errors"][0]["pointer"] == f"/tools/{read}/parameters"
    assert read == 20_000 // (1 + copies * 303)


def test_what_no_reference_leads_to_counts_too():
    budget = schema.Budget()
    unused = {"$defs": {"unused": {"description": "x" * 200_000}}}
    for _ in range(5):
        schema.enforced(unused, "/s", budget)
    with pytest.raises(RequestError, match="over 1048576 bytes"):
        schema.enforced(unused, "/s", budget)


def test_a_schema_is_remembered_at_each_place_unless_it_is_large():
    small = copying("small", 2)
    assert schema.enforced(small, "/a") is schema.enforced(small, "/b")
    assert schema.enforced(copying("large"), "/a") is not schema.enforced(copying("large"), "/a")


def test_what_is_remembered_is_bounded():
    first = schema.enforced({"title": "first"}, "/s")
    assert schema.enforced({"title": "first"}, "/s") is first
    for n in range(80):
        schema.enforced({"title": str(n), "description": "x" * 30_000}, "/s")
    assert schema.enforced({"title": "first"}, "/s") is not first


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
def test_what_is_no_schema_is_named(given, place):
    with pytest.raises(RequestError, match="is no JSON Schema") as caught:
        schema.enforced(given, "/s")
    assert caught.value.details["errors"][0]["pointer"] == "/s" + place


def test_what_is_no_schema_is_shown_briefly():
    with pytest.raises(RequestError, match=r"/s/anyOf: is no JSON Schema: 'x+'… should be a valid list$") as caught:
        schema.enforced({"anyOf": "x" * 10**5}, "/s")
    assert len(str(caught.value)) < 250


def test_every_kind_of_keyword_is_taken():
    schema.enforced(
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
TOO_MUCH = [("", "is too much to check against this schema: send less, or make the schema simpler")]


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"items": {"allOf": [{"minimum": -n} for n in range(1_000)]}}, [1] * 4_000),
        ({"items": {"allOf": [{}] * 1_000}}, [1] * 4_000),
        ({"items": {"dependentSchemas": {f"p{n}": {} for n in range(3_000)}}}, [dict.fromkeys(["p1"])] * 4_000),
        ({"items": {}}, [1] * 400_000),
        ({"allOf": [{"uniqueItems": True}] * 500}, list(range(10_000))),
        ({"items": {"enum": [[0] * 50_000 + [n] for n in range(4)]}}, [[0] * 50_001] * 20),
        ({"allOf": [{"pattern": "[ab]*a[ab]{190}c"}, {"type": "string"}] * 500}, "ab" * 1_000_000),
        ({"items": {"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}] * 5_000}}, [{"a": 1}] * 4_000),
        ({"unevaluatedProperties": False, "anyOf": [{"properties": {f"a{n}": {}}} for n in range(3_000)]}, MANY),
    ],
)
def test_too_much_to_check_is_one_fault(given, value):
    assert quickly(faults, given, value) == TOO_MUCH


def test_large_ordinary_values_are_judged():
    row = dict.fromkeys("abcde", 1.5)
    shape = {"properties": {name: {"type": "number"} for name in "abcde"}, "required": list("abcde")}
    rows = {"type": "array", "items": {"type": "object", **shape, "additionalProperties": False}}
    assert faults(rows, [row] * 5_000) == []
    assert faults(rows, [*[row] * 5_000, {**row, "f": 1}])[0][0] == "/5000"
    assert faults({"items": {"type": "integer"}}, [1] * 90_000) == []
    assert faults({"items": {"enum": [f"c{n}" for n in range(250)]}}, ["c249"] * 1_000) == []


def test_reasons_are_few_and_short():
    given = {"allOf": [{"anyOf": [{"type": "string"}, {"minItems": 10**6}]}, {"type": "integer"}] * 200}
    assert quickly(faults, {"contains": {"required": ["k" * 200_000]}}, [{}] * 50_000)
    shown = quickly(faults, given, ["x" * 100] * 40_000)
    assert len(shown) == 10
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


def test_reasons_show_small_values_whole():
    assert faults({"type": "string"}, {"a": [1, None]}) == [("", "{'a': [1, None]} is not of type 'string'")]
    assert faults({"enum": ["a", 2]}, 3) == [("", "3 is not one of ['a', 2]")]
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


def test_long_bytes_are_told_apart():
    one, two = b"x" * 500 + b"1", b"x" * 500 + b"2"
    assert faults({"uniqueItems": True}, [one, two]) == []
    assert faults({"uniqueItems": True}, [one, two, one]) != []


def test_pointers_keep_every_name_of_the_clients():
    given = {"additionalProperties": {"type": "integer"}}
    assert [place for place, _ in faults(given, {"<a>": "", "b/~c": "", "function-d": ""})] == [
        "/<a>",
        "/b~1~0c",
        "/function-d",
    ]
