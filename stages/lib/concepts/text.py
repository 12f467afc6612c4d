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
    words = _words(codes)
    masks = _code_masks(codes, words) | _symbol_masks(codes)
    masks |= _word_masks(words, masks)
    masks |= _sentence_masks(text, words, masks)
    masks |= _span_masks(text)
    return masks


def label_code(text: str) -> dict[str, Mask]:
    """Those of `IN_CODE` alone."""
    codes = characters(text)
    masks = _code_masks(codes, _words(codes))
    return {name: masks[name] for name in IN_CODE}


def _words(codes: NDArray[np.uint32]) -> _Words:
    is_word = _where(codes, "isalnum") | (codes == ord("_"))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_word, [False]]).astype(np.int8)))
    return _Words(is_word, edges[::2], edges[1::2])


def _code_masks(codes: NDArray[np.uint32], words: _Words) -> dict[str, Mask]:
    """What can be said of source code too."""
    masks = {
        "whitespace": _where(codes, "isspace"),
        "letter": _where(codes, "isalpha"),
        "uppercase_letter": _where(codes, "isupper") & _where(codes, "isalpha"),
        "digit": _where(codes, "isdigit"),
        "non_ascii": codes > 127,
    }
    one = {"newline": "\n", "space": " ", "tab": "\t", "underscore": "_"}
    masks |= {name: codes == ord(symbol) for name, symbol in one.items()}
    start, fifth = np.zeros_like(words.is_word), np.zeros_like(words.is_word)
    start[words.start] = True
    if len(codes) > 4:  # word characters whose fourth one before is in the same word: as many as begin no word
        fifth[4:] = words.is_word[4:]
        for back in range(4):
            fifth[4:] &= (words.is_word & ~start)[4 - back : len(fifth) - back]
    masks |= {"word": words.is_word, "word_start": start, "word_continuation": words.is_word & ~start}
    masks["word_fifth_character_up"] = fifth
    masks |= _line_masks(masks["newline"], masks["whitespace"])
    place = np.arange(len(codes))
    masks["document_beginning"] = place < BEGINNING
    masks["document_second_half"] = 2 * place >= len(codes)
    return masks


def _symbol_masks(codes: NDArray[np.uint32]) -> dict[str, Mask]:
    masks = {name: np.isin(codes, [ord(symbol) for symbol in symbols]) for name, symbols in _SYMBOLS.items()}
    return masks | {"punctuation": np.logical_or.reduce([*masks.values()])}


def _word_masks(words: _Words, masks: dict[str, Mask]) -> dict[str, Mask]:
    length = words.end - words.start
    upper, digits, letters = (words.sum_of(masks[name]) for name in ("uppercase_letter", "digit", "letter"))
    first_upper = masks["uppercase_letter"][words.start]
    return {
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


def _line_masks(is_newline: Mask, is_space: Mask) -> dict[str, Mask]:
    """What the lines tell; a line has its newline, and an empty one nothing but white space."""
    size = len(is_space)
    place, newlines = np.arange(size), np.flatnonzero(is_newline)
    end = newlines + 1 if not size or is_newline[-1] else np.append(newlines + 1, size)
    start = np.append(0, end)[:-1]
    lines = _lines(start, end, is_space)
    line = np.repeat(np.arange(len(start)), end - start)
    shallow = np.zeros((2, size), np.bool_)
    shallow[:, newlines] = _next_indent(lines, len(newlines))
    paragraph = lines.has_text & np.append(True, ~lines.has_text)[:-1]
    # In an empty line all but the newline is indentation.
    text_start = np.where(lines.has_text, lines.first, end - np.append(is_newline, False)[end - 1])
    starts = np.zeros((2, size), np.bool_)
    starts[0, lines.first[lines.has_text]] = True
    starts[1, lines.first[paragraph]] = True
    column = np.where(lines.has_text[line], place - start[line], -1)
    return {
        "indentation": place < text_start[line],
        "empty_line": is_newline & ~lines.has_text[line],
        "line_start": starts[0],
        "paragraph_start": starts[1],
        "line_last_word": (place >= lines.last_word[line]) & (place < lines.last[line]),
        "indented_line": (lines.has_text & (lines.first > start))[line],
        **{f"column_{first}_up": column >= first for first in (20, 40, 60)},
        "newline_before_deeper": shallow[0],
        "newline_before_shallower": shallow[1],
    }


class _Lines(NamedTuple):
    """The lines of a text."""

    has_text: Mask
    indent: NDArray[np.int64]
    first: NDArray[np.int64]
    """The first character that is no white space, ..."""
    last: NDArray[np.int64]
    """... one past the last, ..."""
    last_word: NDArray[np.int64]
    """... and the first of those that stand without white space before it. All three mean nothing in empty lines,
    except that `last` is not beyond `last_word`."""


def _lines(start: NDArray[np.int64], end: NDArray[np.int64], is_space: Mask) -> _Lines:
    place = np.arange(len(is_space))
    following = np.minimum.accumulate(np.where(is_space, len(is_space), place)[::-1])[::-1]
    text_before = np.maximum.accumulate(np.where(is_space, -1, place))
    space_before = np.maximum.accumulate(np.where(is_space, place, -1))
    first = following[start]
    has_text = first < end
    last = np.where(has_text, text_before[end - 1] + 1, 0)
    last_word = np.where(has_text, np.maximum(first, space_before[last - 1] + 1), 0)
    return _Lines(has_text, first - start, first, last, last_word)


def _next_indent(lines: _Lines, n_newlines: int) -> NDArray[np.bool_]:
    """Which newlines stand before a deeper line and before a shallower one, lines without text left out."""
    number = np.arange(len(lines.has_text))
    indent = np.append(lines.indent, 0)  # of no line: that of the beginning of the text
    before = np.maximum.accumulate(np.where(lines.has_text, number, -1))[:n_newlines]
    following = np.minimum.accumulate(np.where(lines.has_text, number, len(number))[::-1])[::-1]
    after = np.append(following, len(number))[1 : n_newlines + 1]
    here, there = indent[before], indent[np.minimum(after, len(number))]
    exists = after < len(number)
    return np.stack([exists & (there > here), exists & (there < here)])
