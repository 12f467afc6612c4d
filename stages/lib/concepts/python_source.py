"""Python source as `tokenize` and `ast` see it, with every place as an index of characters.

Made to agree on all Python versions from 3.11: f-strings, which 3.12 splits into several tokens, are one string token
here, and nothing that `ast` says about the inside of an f-string is used, since 3.11 gives wrong places there. `ast`
counts columns in UTF-8 bytes; `Source.offset` turns them into characters. Line ends may be of any kind.
"""

import ast
import io
import re
import sys
import token
import tokenize
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, compress
from keyword import kwlist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEYWORDS = frozenset(kwlist)
"""The reserved words, the same from 3.7 on; `match`, `case`, `type` and `_` are names to the tokenizer and here."""
_FSTRING_STARTS = {getattr(token, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(token, name)}
_FSTRING_ENDS = {getattr(token, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(token, name)}
_KEPT = {token.NAME, token.NUMBER, token.STRING, token.OP, token.COMMENT}

Ints = NDArray[np.int64]
_OPENING = re.compile(r"[A-Za-z]*(\"{3}|'{3}|\"|')")


class Token(NamedTuple):
    """A token that is text: name, number, string, operator (`token.OP`) or comment."""

    kind: int
    text: str
    start: int
    end: int


class Tokens:
    """Tokens side by side, in text order: much less work than an object for each."""

    def __init__(self, texts: list[str], kinds: list[int], start: Ints, end: Ints) -> None:
        self.texts, self.kinds, self.start, self.end = texts, np.array(kinds, np.int64), start, end
        self.starts: list[int] = start.tolist()
        """`start`, for single looks, for which lists are faster; `ends` as well."""
        self.ends: list[int] = end.tolist()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.texts)

    def __iter__(self) -> Iterator[Token]:
        """One by one."""
        return map(Token, self.kinds.tolist(), self.texts, self.starts, self.ends)

    def where(self, chosen: NDArray[np.bool_]) -> "Tokens":
        """Some of them."""
        texts = [*compress(self.texts, chosen.tolist())]
        return Tokens(texts, self.kinds[chosen].tolist(), self.start[chosen], self.end[chosen])

    def head_end(self, number: int) -> int:
        """The end of a token, or of a string's prefix and quotes: what comes first in a statement or after a comma."""
        if self.texts[number][-1] not in "\"'":
            return self.ends[number]
        return self.starts[number] + len(string_opening(self.texts[number])[0])


def string_opening(text: str) -> tuple[str, str]:
    """The prefix with the quotes that open a string token, and the quotes alone."""
    match = _OPENING.match(text)
    assert match is not None, text
    return match.group(), match.group(1)


class Source:
    """Python source with its tokens and its syntax tree.

    `tree` is None if the text is no Python to the running version; `tokens` and `comments` are empty if it is not even
    a sequence of tokens. Places are indices into `text`, which has unix line ends; `place` finds them.
    """

    def __init__(self, text: str) -> None:
        self.text, self._index = _unix(text)
        lines = self.text.split("\n")
        self._line_starts = [0, *accumulate(len(line) + 1 for line in lines)]
        self._lines = None if self.text.isascii() else lines
        self.tree = _parse(self.text)
        found = None if self.tree is None else split_tokens(self.text)
        if found is None:
            try:
                found = self._tokens()
            except (tokenize.TokenError, SyntaxError):
                # The tokens before an error differ between Python versions.
                self.tree, found = None, Tokens([], [], *np.zeros((2, 0), np.int64))
        is_comment = found.kinds == token.COMMENT
        self.tokens, self.comments = found.where(~is_comment), found.where(is_comment)
        self._starts = self.tokens.starts

    def place(self, places: Ints) -> Ints:
        """The places in `text` of characters of the text as given."""
        return places if self._index is None else self._index[places]

    def offset(self, line: int, column: int) -> int:
        """The index of the character at a line (from 1) and a column in UTF-8 bytes, as `ast` counts them."""
        start = self._line_starts[line - 1]
        if self._lines is None or self._lines[line - 1].isascii():
            return start + column
        return start + len(self._lines[line - 1].encode()[:column].decode())

    def span(
        self, node: ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias | ast.excepthandler
    ) -> tuple[int, int]:
        """The characters of a node."""
        line, end_line, end = node.lineno, node.end_lineno, node.end_col_offset
        assert end_line is not None
        assert end is not None
        if self._lines is None:
            return self._line_starts[line - 1] + node.col_offset, self._line_starts[end_line - 1] + end
        return self.offset(line, node.col_offset), self.offset(end_line, end)

    def at(self, place: int) -> int:
        """The number of the first token that starts at or after a place."""
        return bisect_left(self._starts, place)

    def before(self, place: int) -> int:
        """The number of the token before a place, not counting the parentheses that open in between."""
        number = bisect_left(self._starts, place) - 1
        while self.tokens.texts[number] == "(":
            number -= 1
        return number

    def _tokens(self) -> Tokens:
        kinds, spans = [], []
        for t in join_fstrings(tokenize.generate_tokens(io.StringIO(self.text).readline)):
            if t.type == token.ERRORTOKEN and self.tree is None:
                raise tokenize.TokenError(f"unexpected {t.string!r}")
            if t.type in _KEPT:
                # Tokens come in characters, unlike nodes of the tree.
                kinds.append(t.type)
                spans.append([self._line_starts[line - 1] + column for line, column in (t.start, t.end)])
        start, end = np.array(spans, np.int64).reshape(-1, 2).T
        return Tokens([self.text[first:last] for first, last in spans], kinds, start, end)


_STRING = "|".join(
    (
        r'"{3}[^"\\]*(?:(?:\\(?s:.)|"(?!""))[^"\\]*)*"{3}',
        r"'{3}[^'\\]*(?:(?:\\(?s:.)|'(?!''))[^'\\]*)*'{3}",
        r'"[^"\\\n]*(?:\\(?s:.)[^"\\\n]*)*"',
        r"'[^'\\\n]*(?:\\(?s:.)[^'\\\n]*)*'",
    )
)
_DIGITS = r"[0-9](?:_?[0-9])*"
_NUMBER = (
    r"0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+"
    rf"|(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS}|{_DIGITS})(?:[eE][-+]?{_DIGITS})?[jJ]?"
)
_OPERATOR = r"\*\*=?|//=?|>>=?|<<=?|!=|->|\.\.\.|[-+*/%&|^@=<>:]=?|[~()\[\]{},.;]"
_TOKENS = re.compile(
    # The first, a name that is no string's prefix, is one of the names of the last, found without a look at the others.
    rf"""([^\W\d]\w*(?![\w"'])|#[^\n]*|(?i:[bruf]|br|rb|fr|rf)?(?:{_STRING})|{_NUMBER}|{_OPERATOR}|\w+)"""
)
_BETWEEN = re.compile(r"(?:[ \t\f\n]|\\\n)*")
_NESTING = re.compile(r"(?i:f|fr|rf|t|tr|rt)[\"']") if sys.version_info >= (3, 12) else None
"""Strings that may have strings of the same quotes inside, which a pattern cannot follow."""


def split_tokens(text: str) -> Tokens | None:
    """The tokens of Python source that has a syntax tree; None if only `tokenize`, ten times slower, can tell.

    In such source a pattern is enough, since no string and no bracket is left open.
    """
    if _NESTING is not None and _NESTING.search(text):
        return None
    parts = _TOKENS.split(text)
    if not _BETWEEN.fullmatch("".join(parts[::2])):
        return None
    texts, edges = parts[1::2], np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
    kind_of = {found: _kind(found) for found in set(texts)}
    return Tokens(texts, [kind_of[found] for found in texts], edges[:-1:2], edges[1::2])


def _kind(text: str) -> int:
    first = text[0]
    if first == "#":
        return token.COMMENT
    if text[-1] in "\"'":
        return token.STRING
    if first in "0123456789" or (first == "." and text[1:2].isdigit()):
        return token.NUMBER
    return token.NAME if first == "_" or first.isalnum() else token.OP


def join_fstrings(tokens: Iterable[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
    """The tokens with each f-string as one `STRING`, as Python 3.11 gives it."""
    open_: list[tokenize.TokenInfo] = []
    for t in tokens:
        if t.type in _FSTRING_STARTS:
            open_.append(t)
        elif t.type in _FSTRING_ENDS:
            first = open_.pop()
            if not open_:
                yield tokenize.TokenInfo(token.STRING, "", first.start, t.end, "")
        elif not open_:
            yield t


def _unix(text: str) -> tuple[str, NDArray[np.int64] | None]:
    """The text with unix line ends, and for each character its index there (None if nothing changes)."""
    if text.startswith("\ufeff"):  # a form feed may stand at the start of a line; a byte order mark may not
        text = "\f" + text[1:]
    if "\r" not in text:
        return text, None
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    gone = (codes == 10) & (np.concatenate([[0], codes[:-1]]) == 13)
    return text.replace("\r\n", "\n").replace("\r", "\n"), np.cumsum(~gone) - 1


def _parse(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are not ours to report
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # ValueError: null bytes, lone surrogates; the last two: nesting deeper than the parser goes.
        return None
