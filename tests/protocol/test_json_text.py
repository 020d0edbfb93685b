"""JSON as text: values are found to the letter, and everything that is JSON can be read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.protocol.json_text import (
    check_bounds,
    find_items,
    find_members,
    is_utf8,
    loads,
    split_members,
)
from tests.helpers.json_texts import json_texts, names, whitespace


@given(
    st.dictionaries(names, json_texts(), max_size=6),
    whitespace,
    st.booleans(),
)
def test_members_are_found_to_the_letter(
    members: dict[str, str], space: str, ascii_only: bool
) -> None:
    """An object is taken apart into its members' own texts, however it is spelt."""
    texts = {
        name: json.dumps(name, ensure_ascii=ascii_only) + space + ":" + space + value
        for name, value in members.items()
    }
    text = space + "{" + space + f"{space},{space}".join(texts.values()) + space + "}" + space
    assert dict(split_members(text)) == texts
    assert find_members(text) == {name: value.strip() for name, value in members.items()}


@given(st.lists(json_texts(), max_size=6), whitespace)
def test_items_are_found_to_the_letter(items: list[str], space: str) -> None:
    """However a list is spelt, and no more of them than asked for."""
    text = "[" + space + f"{space},{space}".join(items) + space + "]"
    assert find_items(text, 10) == items
    assert find_items(text, 2) == items[:2]


def test_of_a_member_that_is_there_twice_the_last_is_found() -> None:
    """As every reader of the object takes it."""
    assert find_members('{"a":1,"a":[2]}') == {"a": "[2]"}


def test_an_object_of_very_many_members_is_not_looked_through() -> None:
    """A message of a client costs a bounded amount of work."""
    assert find_members(json.dumps({str(n): n for n in range(64)}))["63"] == "63"
    assert find_members(json.dumps({str(n): n for n in range(100)})) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud800"', "\ud800"),
        ("1e999", float("inf")),
        ("1" * 30, int("1" * 30)),
        ("[" + "1" * 5000 + "]", [float("inf")]),
    ],
    ids=["surrogate", "huge", "long", "very long"],
)
def test_everything_that_is_json_is_read(text: str, value: object) -> None:
    """Also what orjson refuses or rounds."""
    assert loads(text) == value


@pytest.mark.parametrize("text", ["", "NaN", "[Infinity]", "{'a':1}", "[1]x", "[" * 100_000])
def test_what_is_not_json_is_an_error(text: str) -> None:
    """One kind of error, whatever is wrong."""
    with pytest.raises(ValueError, match=r"."):
        loads(text)


@given(st.text(st.characters()))
def test_what_can_be_encoded_is_known(text: str) -> None:
    """A string with a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        assert not is_utf8(text)
    else:
        assert is_utf8(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[[]]]", "nested more than 2 deep"),
        ('{"a":{"b":[]}}', "nested more than 2 deep"),
        ("[" + "1" * 401 + "]", "more than 400 characters"),
        ("[1.23e-51]", "exponent beyond 50"),
        ("1E+100", "exponent beyond 50"),
        ("-0e51", "exponent beyond 50"),
        ("1" * 400, "range of a double"),
    ],
)
def test_bounds_are_held(text: str, reason: str) -> None:
    """Each has its words."""
    with pytest.raises(ValueError, match=reason):
        check_bounds(text, max_depth=2, max_number_characters=400, max_exponent=50)


@pytest.mark.parametrize(
    "text", ["[[],[],[]]", '["[[[[","1e99","\\"[[["]', "[1e50,-1E-050,1234567890]", "true"]
)
def test_what_is_within_the_bounds_is_taken(text: str) -> None:
    """Strings do not count, nor what is side by side."""
    check_bounds(text, max_depth=2, max_number_characters=10, max_exponent=50)
