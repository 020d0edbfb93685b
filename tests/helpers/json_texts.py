"""JSON in any spelling, for tests of what takes it apart."""

import json

from hypothesis import strategies as st

whitespace = st.text(" \t\r\n", max_size=2)


@st.composite
def json_texts(draw: st.DrawFn, depth: int = 3) -> str:
    """The text of a JSON value in any spelling: whitespace, escapes, forms of numbers."""
    if depth == 0 or draw(st.booleans()):
        return draw(
            st.from_regex(
                r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True
            )
            | st.sampled_from(["null", "true", "false", r'"\u0041\/\"\\"', '"[{,}]"', '"\\\\"'])
            | st.builds(json.dumps, st.text(st.characters(exclude_categories=["Cs"])))
        )
    inner = [draw(whitespace) + draw(json_texts(depth - 1)) for _ in range(draw(st.integers(0, 3)))]
    if draw(st.booleans()):
        return "[" + ",".join(inner) + draw(whitespace) + "]"
    return "{" + ",".join(f'"k{n}"{draw(whitespace)}:{text}' for n, text in enumerate(inner)) + "}"


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
