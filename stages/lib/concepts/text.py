"""Concepts that any text has, told from its characters alone.

`label_text` gives a mask over the characters for each concept of `SPECS`; in source code only those of `IN_CODE` make
sense (a full stop there ends no sentence). A word is a run of letters, digits and underscores; what is said of a word
holds for all of its characters. A sentence ends at `.`, `!` or `?` before white space, or at an empty line.
"""

import re
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.lib.concepts.labels import Spec

Mask = NDArray[np.bool_]

SPECS = (
    Spec("whitespace", "lexical"),
    Spec("newline", "lexical", ("whitespace",), "whitespace"),
    Spec("space", "lexical", ("whitespace",), "whitespace"),
    Spec("tab", "lexical", ("whitespace",), "whitespace"),
    Spec("empty_line", "lexical", ("newline",)),
    Spec("indentation", "positional", ("whitespace",)),
    Spec("newline_before_deeper", "contextual", ("newline",), "newline_indentation", needs_lookahead=True),
    Spec("newline_before_shallower", "contextual", ("newline",), "newline_indentation", needs_lookahead=True),
    Spec("letter", "lexical"),
    Spec("uppercase_letter", "lexical", ("letter",)),
    Spec("digit", "lexical"),
    Spec("underscore", "lexical"),
    Spec("non_ascii", "lexical"),
    Spec("punctuation", "lexical"),
    Spec("full_stop", "lexical", ("punctuation",), "punctuation"),
    Spec("comma", "lexical", ("punctuation",), "punctuation"),
    Spec("colon", "lexical", ("punctuation",), "punctuation"),
    Spec("semicolon", "lexical", ("punctuation",), "punctuation"),
    Spec("question_mark", "lexical", ("punctuation",), "punctuation"),
    Spec("exclamation_mark", "lexical", ("punctuation",), "punctuation"),
    Spec("hyphen", "lexical", ("punctuation",), "punctuation"),
    Spec("quotation_mark", "lexical", ("punctuation",), "punctuation"),
    Spec("apostrophe", "lexical", ("punctuation",), "punctuation"),
    Spec("opening_bracket", "lexical", ("punctuation",), "punctuation"),
    Spec("closing_bracket", "lexical", ("punctuation",), "punctuation"),
    Spec("word", "lexical"),
    Spec("word_start", "positional", ("word",), "place_in_word"),
    Spec("word_continuation", "positional", ("word",), "place_in_word"),
    Spec("word_fifth_character_up", "positional", ("word_continuation",)),
    Spec("capitalised_word", "lexical", ("word",), "word_case", needs_lookahead=True),
    Spec("all_capitals_word", "lexical", ("word",), "word_case", needs_lookahead=True),
    Spec("short_word", "lexical", ("word",), "word_length", needs_lookahead=True),
    Spec("long_word", "lexical", ("word",), "word_length", needs_lookahead=True),
    Spec("number_word", "lexical", ("word",), needs_lookahead=True),
    Spec("sentence_start", "contextual", ("word",)),
    Spec("sentence_end", "contextual", ("punctuation",), needs_lookahead=True),
    Spec("sentence_tenth_word_up", "contextual", ("word",)),
    Spec("sentence_twentieth_word_up", "contextual", ("sentence_tenth_word_up",)),
    Spec("capitalised_inside_sentence", "contextual", ("capitalised_word",), needs_lookahead=True),
    Spec("word_after_comma", "local", ("word",)),
    Spec("word_seen_before", "contextual", ("word",), "word_history", needs_lookahead=True),
    Spec("word_not_seen_before", "contextual", ("word",), "word_history", needs_lookahead=True),
    Spec("inside_parentheses", "contextual"),
    Spec("inside_quotation_marks", "contextual"),
    Spec("paragraph_start", "contextual", ("line_start",)),
    Spec("list_item_line", "contextual"),
    Spec("line_start", "positional"),
    Spec("line_last_word", "positional", needs_lookahead=True),
    Spec("column_20_up", "positional"),
    Spec("column_40_up", "positional", ("column_20_up",)),
    Spec("column_60_up", "positional", ("column_40_up",)),
    Spec("indented_line", "positional"),
    Spec("document_beginning", "positional"),
    Spec("document_second_half", "positional", needs_lookahead=True),
)
"""In this order in `concepts.json`."""

_IN_CODE = (
    "whitespace newline space tab empty_line indentation newline_before_deeper newline_before_shallower letter "
    "uppercase_letter digit underscore non_ascii word word_start word_continuation word_fifth_character_up "
    "line_start line_last_word column_20_up column_40_up column_60_up document_beginning document_second_half"
)
IN_CODE = frozenset(_IN_CODE.split())
"""What can be said of source code too, without confusing it with `python_concepts`."""

BEGINNING = 500
"""Characters that are the beginning of a document."""
LONG, SHORT = 9, 3
"""A word is long from, and short up to, this many characters."""
_SYMBOLS = {
    "full_stop": ".",
    "comma": ",",
    "colon": ":",
    "semicolon": ";",
    "question_mark": "?",
    "exclamation_mark": "!",
    "hyphen": "-\u2010\u2011\u2012\u2013\u2014",
    "quotation_mark": '"\u201c\u201d\u201e\u00ab\u00bb',
    "apostrophe": "'\u2018\u2019`",
    "opening_bracket": "([{",
    "closing_bracket": ")]}",
}
_SENTENCE_END = re.compile(r"[.!?]+(?=[\"'\u2019\u201d)\]]*(?:\s|\Z))")
_BREAK = re.compile(r"[.!?]+[\"'\u2019\u201d)\]]*(?=\s|\Z)|\n[^\S\n]*\n")
_QUOTATION = re.compile(r'"(?:[^"\n]|\n(?!\s*\n))*"|\u201c[^\u201d]*\u201d')
_PARENTHESES = re.compile(r"\((?:[^()\n]|\n(?!\s*\n))*\)")
_LIST_LINE = re.compile(r"^[^\S\n]*(?:[-*\u2022]|\d+[.)])[^\S\n]+[^\n]*", re.MULTILINE)
_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")


_LINE_CONCEPTS = (
    "indentation empty_line line_start paragraph_start line_last_word indented_line column_20_up column_40_up "
    "column_60_up newline_before_deeper newline_before_shallower"
)


class _Words(NamedTuple):
    """The words of a text: masks and numbers per word can be spread over their characters."""

    is_word: Mask
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    def spread(self, per_word: Mask) -> Mask:
        """A mask over the characters that has each word's value at all of its characters."""
        mask = np.zeros(len(self.is_word), np.bool_)
        mask[self.is_word] = np.repeat(per_word, self.end - self.start)
        return mask

    def sum_of(self, mask: Mask) -> NDArray[np.int64]:
        """How many characters of each word are in the mask."""
        total = np.concatenate([[0], np.cumsum(mask)])
        return np.asarray(total[self.end] - total[self.start])


def characters(text: str) -> NDArray[np.uint32]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def is_whitespace(text: str) -> Mask:
    """Which characters `str.isspace` calls white space."""
    return _where(characters(text), "isspace")


def _where(codes: NDArray[np.uint32], test: str) -> Mask:
    """Which characters pass a test of `str`; every distinct character is asked once."""
    if not len(codes) or int(codes.max()) < 128:
        return np.asarray(_ascii_where(test)[codes])
    distinct, inverse = np.unique(codes, return_inverse=True)
    return np.asarray(np.array([getattr(chr(code), test)() for code in distinct], np.bool_)[inverse])


@cache
def _ascii_where(test: str) -> Mask:
    return np.array([getattr(chr(code), test)() for code in range(128)], np.bool_)


def label_text(text: str) -> dict[str, Mask]:
    """A mask over the characters of the text for every concept of `SPECS`."""
    codes = characters(text)
    masks = _character_masks(codes)
    is_word = _where(codes, "isalnum") | masks["underscore"]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_word, [False]]).astype(np.int8)))
    words = _Words(is_word, edges[::2], edges[1::2])
    masks |= _word_masks(words, masks)
    masks |= _sentence_masks(text, words, masks)
    masks |= _span_masks(text)
    masks |= _line_masks(text)
    place = np.arange(len(text))
    masks["document_beginning"] = place < BEGINNING
    masks["document_second_half"] = 2 * place >= len(text)
    return masks


def _character_masks(codes: NDArray[np.uint32]) -> dict[str, Mask]:
    masks = {
        "whitespace": _where(codes, "isspace"),
        "letter": _where(codes, "isalpha"),
        "uppercase_letter": _where(codes, "isupper") & _where(codes, "isalpha"),
        "digit": _where(codes, "isdigit"),
        "non_ascii": codes > 127,
    }
    one = {"newline": "\n", "space": " ", "tab": "\t", "underscore": "_"}
    for name, symbols in (one | _SYMBOLS).items():
        masks[name] = np.isin(codes, [ord(symbol) for symbol in symbols])
    masks["punctuation"] = np.logical_or.reduce([masks[name] for name in _SYMBOLS])
    return masks


def _word_masks(words: _Words, masks: dict[str, Mask]) -> dict[str, Mask]:
    length = words.end - words.start
    upper, digits, letters = (words.sum_of(masks[name]) for name in ("uppercase_letter", "digit", "letter"))
    first_upper = masks["uppercase_letter"][words.start]
    start, fifth = np.zeros_like(words.is_word), np.zeros_like(words.is_word)
    start[words.start] = True
    fifth[words.is_word] = (np.arange(len(fifth)) - np.maximum.accumulate(np.where(start, np.arange(len(fifth)), 0)))[
        words.is_word
    ] >= 4
    return {
        "word": words.is_word,
        "word_start": start,
        "word_continuation": words.is_word & ~start,
        "word_fifth_character_up": fifth,
        "capitalised_word": words.spread(first_upper & ((upper == 1) | (upper < letters))),
        "all_capitals_word": words.spread((upper >= 2) & (upper == letters)),
        "short_word": words.spread(length <= SHORT),
        "long_word": words.spread(length >= LONG),
        "number_word": words.spread(digits == length),
    }


def _sentence_masks(text: str, words: _Words, masks: dict[str, Mask]) -> dict[str, Mask]:
    ends = np.zeros(len(text), np.bool_)
    for match in _SENTENCE_END.finditer(text):
        ends[match.start() : match.end()] = True
    breaks = np.array([match.end() for match in _BREAK.finditer(text)], np.int64)
    sentence = np.searchsorted(breaks, words.start, side="right")
    is_first = np.diff(sentence, prepend=-1) != 0
    place = np.arange(len(sentence)) - np.maximum.accumulate(np.where(is_first, np.arange(len(sentence)), 0))
    seen, before, after_comma = set(), [], []
    for start, end in zip(words.start.tolist(), words.end.tolist(), strict=True):
        word = text[start:end].lower()
        before.append(word in seen)
        seen.add(word)
        after_comma.append(text[max(0, start - 2) : start].rstrip().endswith(","))
    repeated = words.spread(np.array(before, np.bool_))
    first = words.spread(is_first)
    return {
        "sentence_start": first,
        "sentence_end": ends,
        "sentence_tenth_word_up": words.spread(place >= 9),
        "sentence_twentieth_word_up": words.spread(place >= 19),
        "capitalised_inside_sentence": masks["capitalised_word"] & ~first,
        "word_after_comma": words.spread(np.array(after_comma, np.bool_)),
        "word_seen_before": repeated,
        "word_not_seen_before": words.is_word & ~repeated,
    }


def _span_masks(text: str) -> dict[str, Mask]:
    masks = {}
    patterns = {
        "inside_parentheses": (_PARENTHESES, 1),
        "inside_quotation_marks": (_QUOTATION, 1),
        "list_item_line": (_LIST_LINE, 0),
    }
    for name, (pattern, margin) in patterns.items():
        masks[name] = np.zeros(len(text), np.bool_)
        for match in pattern.finditer(text):
            masks[name][match.start() + margin : match.end() - margin] = True
    return masks


def _line_masks(text: str) -> dict[str, Mask]:
    masks = {name: np.zeros(len(text), np.bool_) for name in _LINE_CONCEPTS.split()}
    newlines: list[int] = []  # ends of the last line with text and of the empty ones after it
    indent, after_empty = 0, True
    for match in _LINE.finditer(text):
        start, end, line = match.start(), match.end(), match.group()
        body = line.strip()
        if not body:
            masks["empty_line"][end - 1 : end] = line.endswith("\n")
            masks["indentation"][start : end - line.endswith("\n")] = True
            after_empty = True
        else:
            own = len(line) - len(line.lstrip())
            first, last = start + own, start + len(line.rstrip())
            masks["indentation"][start:first] = True
            masks["line_start"][first] = True
            masks["paragraph_start"][first] = after_empty
            masks["indented_line"][start:end] = own > 0
            masks["line_last_word"][last - len(body.split()[-1]) : last] = True
            for column in (20, 40, 60):
                masks[f"column_{column}_up"][start + column : end] = True
            if newlines and own != indent:
                name = "newline_before_deeper" if own > indent else "newline_before_shallower"
                masks[name][newlines] = True
            newlines, indent, after_empty = [], own, False
        if line.endswith("\n"):
            newlines.append(end - 1)
    return masks
