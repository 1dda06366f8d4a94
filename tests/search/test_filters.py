"""Filters: what they let through is the same in Python, in Lance's SQL, and for Milvus' expressions."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipdistill.errors import SearchError
from clipdistill.search.filters import SEARCHABLE, Filter, searchable

#: Words that break what is pasted together.
HOSTILE = [
    *(
        "beach",
        "Night",
        "100%",
        "a_b",
        "it's",
        'say "x"',
        "back\\slash",
        "%",
        "_",
        "'; DROP TABLE rows; --",
        "x') OR 1",
    ),
    *(
        "",
        " ",
        "两只狗",
        "Ä",
        "ΣΑΣ",
        "İ",
        "line\nbreak",
        "null",
        "NULL",
        "tags",
        "not",
        "{x}",
        "$meta",
        "\\'",
        "\\",
        "\0",
    ),
]
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), max_size=6)
)
numbers = st.sampled_from([0, 1, 640, 1024, 2**31 - 1])


def quoted(text: str, quote: str) -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


quotes = st.sampled_from("'\"")
values = st.builds(quoted, texts, quotes)
comparisons = st.one_of(
    st.builds("tags {}has {}".format, st.sampled_from(["", "not "]), values),
    st.builds("caption {} {}".format, st.sampled_from(["contains", "=", "!=", "not contains"]), values),
    st.builds("id {} {}".format, st.sampled_from(["=", "!="]), values),
    st.builds("id in ({})".format, st.lists(values, min_size=1, max_size=3).map(", ".join)),
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["width", "height"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        numbers,
    ),
)
filters = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "OR"]), inner),
        st.builds("{} or {} and {}".format, comparisons, comparisons, comparisons),
    ),
    max_leaves=6,
)
ROWS: list[dict[str, Any]] = [
    {
        "id": HOSTILE[place % len(HOSTILE)] + ("" if place < len(HOSTILE) else str(place)),
        "caption": "".join(HOSTILE[(place * step) % len(HOSTILE)] for step in range(place % 4)),
        "tags": [HOSTILE[(place + step * 5) % len(HOSTILE)] for step in range(place % 3)],
        "width": [0, 1, 640, 641, 1024][place % 5],
        "height": [2000, 640, 0][place % 3],
    }
    for place in range(2 * len(HOSTILE))
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real table of those rows."""
    fields = [
        *(("id", pa.string()), ("caption", pa.string()), ("tags", pa.list_(pa.string()))),
        *(("width", pa.int32()), ("height", pa.int32()), ("vector", pa.list_(pa.float32(), 2))),
    ]
    rows = pa.Table.from_pylist([{**row, "vector": [1.0, 0.0]} for row in ROWS], pa.schema(fields))
    return lancedb.connect(tmp_path_factory.mktemp("filters")).create_table("rows", rows)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=filters)
def test_lance_lets_through_what_python_does(table: Any, text: str) -> None:
    found = Filter.parse(text)
    query = table.search(np.ones(2, np.float32)).where(found.to_sql(), prefilter=True).select(["id"]).limit(1000)
    expected = sorted(row["id"] for row in ROWS if found.matches(row))
    assert sorted(query.to_arrow()["id"].to_pylist()) == expected


@settings(max_examples=200, deadline=None)
@given(text=filters)
def test_milvus_expressions_let_through_what_python_does(text: str) -> None:
    """By the parser and the rows of Milvus' small engine, which has an evaluator in Python."""
    engine = "milvus_lite.search.filter"
    backend, parser, tokens = (
        importlib.import_module(f"{engine}.{name}") for name in ("eval.python_backend", "parser", "tokens")
    )
    found = Filter.parse(text)
    expression = found.to_milvus()
    tree = parser.Parser(tokens.tokenize(expression), expression).parse()
    for row in ROWS:
        told = {**row, SEARCHABLE: searchable(str(row["caption"]))}
        assert bool(backend._eval_row(tree, told)) == found.matches(row), (expression, row)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("tags has beach and not tags has night", ["a"]),
        ("tags has beach or tags has night and width < 100", ["a", "b"]),
        ("(tags has beach or tags has night) and width < 100", ["b"]),
        ("caption contains 'DOG'", ["a", "c"]),
        ("id in ('b', c)", ["b", "c"]),
        ("caption = 'two ''dogs'''", ["a"]),
        ("NOT (id = a) AND height>=5", ["b"]),
        ("tags not has beach", ["c"]),
    ],
)
def test_what_a_filter_means(text: str, ids: list[str]) -> None:
    rows: list[Mapping[str, Any]] = [
        {"id": "a", "caption": "two 'dogs'", "tags": ["beach", "day"], "width": 640, "height": 5},
        {"id": "b", "caption": "", "tags": ["beach", "night"], "width": 10, "height": 5},
        {"id": "c", "caption": "a Dog", "tags": [], "width": 640, "height": 4},
    ]
    assert [row["id"] for row in rows if Filter.parse(text).matches(row)] == ids


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", 1, "expected a field, found the end"),
        ("widht > 3", 1, "Did you mean 'width'"),
        ("width > 3 height", 11, "expected 'and', 'or' or the end, found 'height'"),
        ("(width > 3", 11, "expected ')', found the end"),
        ("width > 10px", 9, "expected a number of pixels, at most 2147483647, found '10px'"),
        ("width > 2147483648", 9, "found '2147483648'"),
        ("width > " + "0" * 12 + "1" * 5000, 9, "expected a number of pixels"),
        ("width > ٣", 9, "found '٣'"),
        ("tags = a", 6, "tags is compared by has; found '='"),
        ("caption contains and", 18, "expected a word or a text in quotes, found 'and'"),
        ("tags has 'x", 10, "a quote that is not closed"),
        ("caption = 'a\\n'", 13, "'\\n' means nothing"),
        ("width; 3", 6, "found the character ';'"),
        ("not " * 30 + "width > 3", 81, "more than 20"),
        (" or ".join(["width > 3"] * 201), 2601, "more than 200 comparisons"),
        ("location = '/home'", 1, "expected a field, found 'location'"),
    ],
)
def test_an_error_points_at_its_place(text: str, place: int, said: str) -> None:
    with pytest.raises(SearchError) as error:
        Filter.parse(text)
    message, shown, arrow = str(error.value).split("\n")
    assert f"wrong at character {place}: " in message
    assert said in message
    assert (shown + " ")[arrow.index("^")] == (text + " ")[place - 1]


def test_the_deepest_filter_is_understood_by_lance(table: Any) -> None:
    """Nothing that is accepted here is too deep for the engine."""
    deep = "width >= 640"
    for turn in range(9):
        deep = f"not (height = {turn} or {deep})"
    found = Filter.parse(deep)
    query = table.search(np.ones(2, np.float32)).where(found.to_sql(), prefilter=True).limit(1000)
    assert len(query.to_arrow()) == sum(map(found.matches, ROWS)) > 0


def test_too_long_a_filter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="more than 20000"):
        Filter.parse("width > 1 and " * 2000)
