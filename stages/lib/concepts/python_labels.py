"""Where the concepts of Python source hold, exact, from its tokens and its syntax tree.

What a token itself tells is found once for each different text, and for all tokens together.
"""

import token
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from stages.lib.concepts.docstrings import paint_docstrings
from stages.lib.concepts.python_source import KEYWORDS, Source, Tokens, string_opening
from stages.lib.concepts.python_tokens import (
    AUGMENTED,
    BRACKETS,
    BUILTINS,
    CLOSING,
    CONSTANTS,
    DELIMITERS,
    NUMBERS,
    OPERATOR_CLASSES,
)
from stages.lib.concepts.python_tree import TreePainter
from stages.lib.concepts.spans import Spans

RECENT = 10
"""A name was seen recently if it is among this many names before."""


def label_python(source: Source, names: Sequence[str]) -> Spans:
    """The spans of the wanted concepts of `stages.lib.concepts.python_tokens.SPECS`."""
    spans = Spans(names, len(source.text))
    if len(source.tokens):
        words = Words(source)
        _paint_tokens(words, spans)
        _paint_strings(source.tokens, spans)
        _paint_names(words, spans)
        _paint_brackets(words, spans)
        _paint_sequence(words, spans)
    _paint_comments(source, spans)
    if source.tree is not None:
        painter = TreePainter(source, spans)
        painter.run(source.tree)
        paint_docstrings(source, painter.docstrings, spans)
    return spans


class Words:
    """The different texts of the tokens, by number, and which token has which."""

    def __init__(self, source: Source) -> None:
        self.source, self.tokens = source, source.tokens
        is_string = (self.tokens.kinds == token.STRING).tolist()
        numbers: dict[str, int] = {'""': 0}
        # All strings share a number: nothing that is asked of words depends on what is in them.
        number = [
            0 if string else numbers.setdefault(text, len(numbers))
            for text, string in zip(self.tokens.texts, is_string, strict=True)
        ]
        self.texts = [*numbers]
        self.number = np.array(number)
        kinds = np.full(len(numbers), token.STRING)
        kinds[self.number] = self.tokens.kinds
        self.kinds: list[int] = kinds.tolist()

    def all_that(self, test: Callable[[str], bool]) -> NDArray[np.bool_]:
        """Which tokens have a text that passes a test."""
        passes: NDArray[np.bool_] = np.array([test(text) for text in self.texts], np.bool_)
        return np.asarray(passes[self.number])


def _operator_names() -> dict[str, list[str]]:
    names = {symbol: ["operator", "augmented_operator"] for symbol in AUGMENTED}
    for parent, symbols in OPERATOR_CLASSES:
        names |= {
            symbol: [*dict.fromkeys(("operator", parent)), f"operator_{name}"] for symbol, name in symbols.items()
        }
    names |= {symbol: ["delimiter", name] for symbol, name in DELIMITERS.items()}
    names |= {symbol: ["opening", f"opening_{name}"] for symbol, name in BRACKETS.items()}
    return names | {symbol: ["closing", f"closing_{name}"] for symbol, name in CLOSING.items()}


_OPERATOR_NAMES = _operator_names()


@lru_cache(2**14)
def _token_names(kind: int, text: str) -> list[str]:
    """The concepts that the token itself tells."""
    if kind == token.OP:
        return _OPERATOR_NAMES.get(text, [])
    if kind == token.STRING:
        return ["string"]
    if kind == token.NUMBER:
        return ["number", *_number_names(text)]
    if text in KEYWORDS:
        return ["keyword", f"keyword_{text}", *(["keyword_constant"] if text in CONSTANTS else [])]
    return ["name", _name_form(text), *(name for name, test in _NAME_TESTS.items() if test(text))]


def _number_names(text: str) -> list[str]:
    digits = text.replace("_", "")
    if digits.isdigit():
        value = f"integer_{NUMBERS[digits]}" if digits in NUMBERS else ""
        return ["integer", *([value] if value else []), *(["multi_digit_integer"] if len(digits) > 1 else [])]
    if digits[:2].lower() in ("0x", "0b", "0o"):
        return ["integer"]
    return [] if digits[-1] in "jJ" else ["float_number"]


def _name_form(text: str) -> str:
    """The first form that fits."""
    if text.startswith("__") and text.endswith("__") and len(text) > 4:
        return "dunder_name"
    if text.startswith("_"):
        return "private_name"
    if len(text) == 1:
        return "single_letter_name"
    if text.isupper():
        return "upper_case_name"
    if text[0].isupper():
        return "capitalised_name"
    return "snake_case_name" if "_" in text else "lower_case_name"


_NAME_TESTS: dict[str, Callable[[str], bool]] = {
    "name_with_digit": lambda text: any(character.isdigit() for character in text),
    "builtin_name": BUILTINS.__contains__,
    "self_name": ("self", "cls").__contains__,
    "exception_name": lambda text: text.endswith(("Error", "Exception", "Warning")),
    "test_name": lambda text: text.startswith("test_"),
}


def _paint_tokens(words: Words, spans: Spans) -> None:
    """What each token itself tells."""
    told = map(_token_names, words.kinds, words.texts)
    columns = [[spans.columns[name] for name in names if name in spans.columns] for names in told]
    n = np.array([len(some) for some in columns])
    column = np.fromiter(chain.from_iterable(columns), np.int64, n.sum())
    n_of = n[words.number]
    # The concepts of a word stand together: for each token the places from its word's first on.
    first = (np.cumsum(n) - n)[words.number] - (np.cumsum(n_of) - n_of)
    place = np.repeat(first, n_of) + np.arange(n_of.sum())
    spans.paint_all(column[place], np.repeat(words.tokens.start, n_of), np.repeat(words.tokens.end, n_of))


def _paint_strings(tokens: Tokens, spans: Spans) -> None:
    """Prefix, quotes, and the fields of f-strings."""
    for number in np.flatnonzero(tokens.kinds == token.STRING).tolist():
        text, start, end = tokens.texts[number], tokens.starts[number], tokens.ends[number]
        opening, quotes = string_opening(text)
        prefix, inside = opening.lower(), start + len(opening)
        spans.paint("string_start", start, inside)
        spans.paint("string_end", end - len(quotes), end)
        spans.paint(_QUOTES[quotes], start, end)
        if "r" in prefix:
            spans.paint("raw_string", start, end)
        if "f" in prefix:
            spans.paint("f_string", start, end)
            for first, last in fields(text[len(opening) : -len(quotes)]):
                spans.paint("f_string_field", inside + first, inside + last)


_QUOTES = {"'": "single_quoted_string", '"': "double_quoted_string"}
_QUOTES |= {3 * quote: "triple_quoted_string" for quote in "'\""}


def fields(body: str) -> Iterable[tuple[int, int]]:
    """The replacement fields of an f-string's body, with their braces; `{{` is a brace, not a field."""
    depth = start = place = 0
    while place < len(body):
        character = body[place]
        if depth == 0 and body[place : place + 2] in ("{{", "}}"):
            place += 1
        elif character == "{":
            start = start if depth else place
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                yield start, place + 1
        place += 1


def _paint_comments(source: Source, spans: Spans) -> None:
    for found in source.comments:
        line = source.text[source.text.rfind("\n", 0, found.start) + 1 : found.start]
        spans.paint("comment", found.start, found.end)
        spans.paint("comment_after_code" if line.strip() else "comment_line", found.start, found.end)


def _paint_names(words: Words, spans: Spans) -> None:
    """Names against the names before them."""
    is_name = (words.tokens.kinds == token.NAME) & ~words.all_that(KEYWORDS.__contains__)
    start, end, name = words.tokens.start[is_name], words.tokens.end[is_name], words.number[is_name]
    # In a stable order by name, the same name stands before each that was seen.
    order = np.argsort(name, kind="stable")
    again = np.diff(name[order], prepend=-1) == 0
    since = np.full(len(name), np.iinfo(np.int64).max)
    since[order[again]] = np.diff(order, prepend=0)[again]
    seen = since < np.iinfo(np.int64).max
    for concept, chosen in (
        ("name_seen_in_document", seen),
        ("name_new_in_document", ~seen),
        ("name_seen_recently", since <= RECENT),
    ):
        spans.paint_each(concept, start[chosen], end[chosen])


def _brackets(words: Words) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens open a bracket, and which close one: no token does that has no bracket to close."""
    opens, closes = words.all_that(BRACKETS.__contains__), words.all_that(CLOSING.__contains__)
    balance = np.cumsum(opens.astype(np.int64) - closes)
    # Each new low of the balance below zero is a closing bracket too many.
    low = np.minimum.accumulate(np.append(0, balance))
    return opens, closes & ~(np.diff(low) < 0)


def _paint_brackets(words: Words, spans: Spans) -> None:
    """What is inside brackets, and the lines that begin there."""
    opens, closes = _brackets(words)
    tokens, text = words.tokens, words.source.text
    waiting: list[int] = []
    for number in np.flatnonzero(opens | closes).tolist():
        if opens[number]:
            waiting.append(tokens.ends[number])
        else:
            spans.deepen("bracket", waiting.pop(), tokens.starts[number])
    for start in waiting:
        spans.deepen("bracket", start, len(text))
    newline = np.flatnonzero(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) == ord("\n"))
    depth = np.searchsorted(tokens.end[opens], newline, side="right") - np.searchsorted(
        tokens.start[closes], newline, side="right"
    )
    at = np.searchsorted(tokens.start, newline, side="right") - 1
    in_string = (at >= 0) & (tokens.end[at] > newline) & (tokens.kinds[at] == token.STRING)
    following = np.append(newline, len(text) - 1)[1:]
    goes_on = (depth > 0) & ~in_string
    spans.paint_each("continuation_line", newline[goes_on] + 1, following[goes_on] + 1)


def _paint_sequence(words: Words, spans: Spans) -> None:
    """Tokens by the one before them in the same statement."""
    tokens, text = words.tokens, words.source.text
    opens, closes = _brackets(words)
    inside = np.asarray(np.cumsum(opens) - opens > np.cumsum(closes))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    broken, joined = (_any_between(codes == ord(symbol), tokens) for symbol in "\n\\")
    closing = words.all_that(CLOSING.__contains__)[1:]
    same = ~broken | inside[1:] | closing | joined
    columns = [spans.columns.get(_after(*word) or "", -1) for word in zip(words.kinds, words.texts, strict=True)]
    column = np.array(columns)[words.number[:-1]]
    head = tokens.end.copy()
    strings = np.flatnonzero(tokens.kinds == token.STRING)
    head[strings] = [tokens.head_end(number) for number in strings.tolist()]
    spans.paint_all(column[same], tokens.start[1:][same], head[1:][same])


def _any_between(mask: NDArray[np.bool_], tokens: Tokens) -> NDArray[np.bool_]:
    """Whether any character of a mask is between each token and the next."""
    before = np.append(0, np.cumsum(mask))
    return np.asarray(before[tokens.start[1:]] > before[tokens.end[:-1]])


def _after(kind: int, text: str) -> str | None:
    """What a token says of the next one."""
    if kind == token.OP:
        known = {"=": "after_equals", ",": "after_comma", ".": "after_dot", ":": "after_colon", ";": None}
        if text in known:
            return known[text]
        if text in BRACKETS:
            return "after_opening"
        return "after_closing" if text in CLOSING else "after_operator"
    return "after_keyword" if text in KEYWORDS else None
