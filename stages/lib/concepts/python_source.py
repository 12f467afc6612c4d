"""Python source as `tokenize` and `ast` see it, with every place as an index of characters.

Made to agree on all Python versions from 3.11: f-strings, which 3.12 splits into several tokens, are one string token
here, and nothing that `ast` says about the inside of an f-string is used, since 3.11 gives wrong places there. `ast`
counts columns in UTF-8 bytes; `Source.offset` turns them into characters. Line ends may be of any kind.
"""

import ast
import io
import re
import token
import tokenize
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from keyword import kwlist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEYWORDS = frozenset(kwlist)
"""The reserved words, the same from 3.7 on; `match`, `case`, `type` and `_` are names to the tokenizer and here."""
_FSTRING_STARTS = {getattr(token, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(token, name)}
_FSTRING_ENDS = {getattr(token, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(token, name)}
_KEPT = {token.NAME, token.NUMBER, token.STRING, token.OP, token.COMMENT}

_OPENING = re.compile(r"[A-Za-z]*(\"{3}|'{3}|\"|')")


class Token(NamedTuple):
    """A token that is text: name, number, string, operator (`token.OP`) or comment."""

    kind: int
    text: str
    start: int
    end: int

    def head(self) -> tuple[int, int]:
        """The token, or of a string only its prefix and quotes: what comes first in a statement or after a comma."""
        if self.kind != token.STRING:
            return self.start, self.end
        return self.start, self.start + len(string_opening(self.text)[0])


def string_opening(text: str) -> tuple[str, str]:
    """The prefix with the quotes that open a string token, and the quotes alone."""
    match = _OPENING.match(text)
    assert match is not None, text
    return match.group(), match.group(1)


class Source:
    """Python source with its tokens and its syntax tree.

    `tree` is None if the text is no Python to the running version; `tokens` and `comments` are empty if it is not even
    a sequence of tokens. Places are indices into `text`, which has unix line ends; `original` maps masks back.
    """

    def __init__(self, text: str) -> None:
        self.text, self._index = _unix(text)
        self._line_starts = [0, *accumulate(len(line) + 1 for line in self.text.split("\n"))]
        self._is_ascii = self.text.isascii()
        self.tree = _parse(self.text)
        try:
            found = list(self._tokens())
        except (tokenize.TokenError, SyntaxError):
            # The tokens before an error differ between Python versions.
            found, self.tree = [], None
        self.tokens = [t for t in found if t.kind != token.COMMENT]
        self.comments = [t for t in found if t.kind == token.COMMENT]
        self._starts = [t.start for t in self.tokens]

    def original(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask over the characters of `text` as one over those of the text as given."""
        return mask if self._index is None else mask[self._index]

    def offset(self, line: int, column: int) -> int:
        """The index of the character at a line (from 1) and a column in UTF-8 bytes, as `ast` counts them."""
        start = self._line_starts[line - 1]
        if self._is_ascii:
            return start + column
        encoded = self.text[start : self._line_starts[line]].encode()
        return start + len(encoded[:column].decode())

    def span(
        self, node: ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias | ast.excepthandler
    ) -> tuple[int, int]:
        """The characters of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def at(self, place: int) -> int:
        """The number of the first token that starts at or after a place."""
        return bisect_left(self._starts, place)

    def before(self, place: int) -> int:
        """The number of the token before a place, not counting the parentheses that open in between."""
        number = self.at(place) - 1
        while self.tokens[number].text == "(":
            number -= 1
        return number

    def _tokens(self) -> Iterator[Token]:
        for t in join_fstrings(tokenize.generate_tokens(io.StringIO(self.text).readline)):
            if t.type == token.ERRORTOKEN and self.tree is None:
                raise tokenize.TokenError(f"unexpected {t.string!r}")
            if t.type in _KEPT:
                # Tokens come in characters, unlike nodes of the tree.
                start = self._line_starts[t.start[0] - 1] + t.start[1]
                end = self._line_starts[t.end[0] - 1] + t.end[1]
                yield Token(t.type, self.text[start:end], start, end)


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
