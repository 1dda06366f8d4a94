"""Which pictures may be among the hits: ``tags has beach and not (width < 640 or caption contains 'logo')``.

::

    tags has beach                         one of its tags is that
    caption contains 'dog'                 whatever the case
    width >= 1024   height < 500           in pixels; = != < <= > >=
    id = 'a.jpg'    id in ('a.jpg', b)     also: caption = '...', and != for both
    not ...   ... and ...   ... or ...   ( ... )

Words and numbers stand as they are, all else in quotes, ``'`` or ``"``, where ``\\`` comes before a quote or another
``\\``; a quote can also be doubled. A text is parsed to a tree of a few kinds of comparison, and every engine's
expression is written anew from it: nothing that was typed is ever pasted.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from clipdistill.errors import SearchError, did_you_mean

#: What each field is compared by.
FIELDS = {
    "tags": ("has",),
    "caption": ("contains", "=", "!="),
    "id": ("=", "!=", "in"),
    "width": ("=", "!=", "<", "<=", ">", ">="),
    "height": ("=", "!=", "<", "<=", ">", ">="),
}
#: The column of a Milvus collection that holds :func:`searchable` captions.
SEARCHABLE = "caption_searchable"
#: Engines' own parsers give up soon after.
_DEEPEST, _LONGEST, _MOST = 20, 20_000, 200
_LARGEST = 2**31 - 1
_KEYWORDS = ("and", "or", "not", "has", "contains", "in")
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")|(?P<word>[\w][\w.:/-]*)"""
    r"""|(?P<sign>>=|<=|!=|[=<>(),])""",
    re.DOTALL,
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "has": lambda tags, tag: tag in (tags or ()),
    "contains": lambda caption, part: part.lower() in caption.lower(),
    "in": lambda value, values: value in values,
}
#: Wild cards of LIKE, which not every version of Milvus lets one escape, as characters that no text has.
_TAME = str.maketrans({"%": "\ufdd0", "_": "\ufdd1", "\\": "\ufdd2"})


@dataclass(frozen=True)
class Comparison:
    """One field against a value, or several for ``in``."""

    field: str
    how: str
    value: str | int | tuple[str, ...]

    def to_sql(self) -> str:
        value = self.value
        if self.how == "has":
            return f"array_has(tags, {_sql(value)})"
        if self.how == "contains":
            return f"contains(lower(caption), {_sql(str(value).lower())})"
        if isinstance(value, tuple):
            return f"{self.field} IN ({', '.join(map(_sql, value))})"
        return f"{self.field} {self.how} {_sql(value)}"

    def to_milvus(self) -> str:
        value = self.value
        if self.how == "has":
            return f"array_contains(tags, {_milvus(value)})"
        if self.how == "contains":
            return f"{SEARCHABLE} like {_milvus('%' + searchable(str(value)) + '%')}"
        if isinstance(value, tuple):
            return f"{self.field} in [{', '.join(map(_milvus, value))}]"
        return f"{self.field} {'==' if self.how == '=' else self.how} {_milvus(value)}"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return _COMPARE[self.how](row[self.field], self.value)


@dataclass(frozen=True)
class Not:
    inner: Node

    def to_sql(self) -> str:
        return f"NOT ({self.inner.to_sql()})"

    def to_milvus(self) -> str:
        return f"not ({self.inner.to_milvus()})"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return not self.inner.matches(row)


@dataclass(frozen=True)
class Several:
    """Two or more, all of which must hold (``and``), or one (``or``)."""

    word: str
    inner: tuple[Node, ...]

    def to_sql(self) -> str:
        return f"({f' {self.word.upper()} '.join(one.to_sql() for one in self.inner)})"

    def to_milvus(self) -> str:
        return f"({f' {self.word} '.join(one.to_milvus() for one in self.inner)})"

    def matches(self, row: Mapping[str, Any]) -> bool:
        hold = (one.matches(row) for one in self.inner)
        return all(hold) if self.word == "and" else any(hold)


Node = Comparison | Not | Several


@dataclass(frozen=True)
class Filter:
    """A filter that was understood; ``text`` is what was typed. Columns that it is used on hold no nulls."""

    text: str
    root: Node

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Understand a filter; raises :class:`SearchError` that points at what is wrong."""
        return cls(text, _Parser(text).parse())

    def to_sql(self) -> str:
        """Write it for Lance, whose SQL is DataFusion's."""
        return self.root.to_sql()

    def to_milvus(self) -> str:
        """Write it for Milvus, whose collection has the columns of an index and :data:`SEARCHABLE`."""
        return self.root.to_milvus()

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Say whether a row, with all the fields that are compared, is let through."""
        return self.root.matches(row)


def searchable(caption: str) -> str:
    """Write a caption as what ``contains`` is found in by an engine that has LIKE alone: small, without wild cards."""
    return caption.lower().translate(_TAME)


def _sql(value: object) -> str:
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def _milvus(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r") + '"'


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int

    @property
    def word(self) -> str:
        """Of a word that stands as it is, in small letters; else what it is."""
        return self.text.lower() if self.kind == "word" else self.text if self.kind == "sign" else ""

    def __str__(self) -> str:
        return f"'{self.text}'" if self.text else "the end"


class _Parser:
    """Reads one filter, from left to right, with one function for each level of the grammar."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.depth, self.compared = text, 0, 0, 0
        if len(text) > _LONGEST:
            raise SearchError(f"the filter has {len(text)} characters, more than {_LONGEST}. Make it shorter.")
        self.tokens = self._split()

    def parse(self) -> Node:
        found = self._any()
        if self._now.kind != "end":
            self._wrong(f"expected 'and', 'or' or the end, found {self._now}")
        return found

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                what = "a quote that is not closed" if self.text[at] in "'\"" else f"the character '{self.text[at]}'"
                self._wrong(f"found {what}", at)
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match[0], at))
            at = match.end()
        return [*tokens, _Token("end", "", len(self.text))]

    @property
    def _now(self) -> _Token:
        return self.tokens[self.place]

    def _take(self, *words: str) -> str:
        """Step over one of those words or signs and return it, ``""`` where none of them is next."""
        word = self._now.word
        if not word or word not in words:
            return ""
        self.place += 1
        return word

    def _any(self) -> Node:
        return self._several("or", self._all)

    def _all(self) -> Node:
        return self._several("and", self._one)

    def _several(self, word: str, part: Callable[[], Node]) -> Node:
        found = [part()]
        while self._take(word):
            found.append(part())
        return found[0] if len(found) == 1 else Several(word, tuple(found))

    def _one(self) -> Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            self._wrong(f"more than {_DEEPEST} 'not' and brackets inside each other")
        found = self._inner()
        self.depth -= 1
        return found

    def _inner(self) -> Node:
        if self._take("not"):
            return Not(self._one())
        if self._take("("):
            found = self._any()
            self._expect(")")
            return found
        return self._comparison()

    def _comparison(self) -> Node:
        self.compared += 1
        if self.compared > _MOST:
            self._wrong(f"more than {_MOST} comparisons")
        field = self._take(*FIELDS)
        if not field:
            hint = did_you_mean(self._now.word, FIELDS)
            self._wrong(f"expected a field, found {self._now}.{hint}".rstrip("."))
        refused = self._take("not")
        how = self._take(*FIELDS[field])
        if not how:
            self._wrong(f"{field} is compared by {' '.join(FIELDS[field])}; found {self._now}")
        value = self._values() if how == "in" else self._number() if FIELDS[field][-1] == ">=" else self._value()
        found = Comparison(field, how, value)
        return Not(found) if refused else found

    def _values(self) -> tuple[str, ...]:
        self._expect("(")
        found = [self._value()]
        while self._take(","):
            found.append(self._value())
        self._expect(")")
        return tuple(found)

    def _number(self) -> int:
        token = self._now
        digits = token.text.lstrip("0") or "0"  # of thousands of them Python makes no number
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 12 or int(digits) > _LARGEST:
            self._wrong(f"expected a number of pixels, at most {_LARGEST}, found {token}")
        self.place += 1
        return int(digits)

    def _value(self) -> str:
        token = self._now
        if token.kind not in ("word", "quoted") or token.word in _KEYWORDS:
            self._wrong(f"expected a word or a text in quotes, found {token}")
        self.place += 1
        return token.text if token.kind == "word" else self._unquoted(token)

    def _unquoted(self, token: _Token) -> str:
        quote = token.text[0]

        def plain(match: re.Match[str]) -> str:
            if match[0][1] not in "\\'\"":
                self._wrong(f"'{match[0]}' means nothing; a '\\' is written twice", token.at + 1 + match.start())
            return match[0][1]

        return re.sub(r"\\.|" + quote * 2, plain, token.text[1:-1], flags=re.DOTALL)

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            self._wrong(f"expected '{sign}', found {self._now}")

    def _wrong(self, what: str, at: int | None = None) -> NoReturn:
        at = self._now.at if at is None else at
        start = max(0, at - 40)
        shown = "".join(one if one.isprintable() else " " for one in self.text[start : at + 40])
        raise SearchError(f"the filter is wrong at character {at + 1}: {what}.\n    {shown}\n    {' ' * (at - start)}^")
