"""Concepts of what is inside the docstrings of Python source."""

import re
from collections.abc import Iterable

from stages.lib.concepts.python_source import Source, string_opening
from stages.lib.concepts.python_tokens import SECTIONS
from stages.lib.concepts.spans import Spans

_HEADING = re.compile(r"^[^\S\n]*(\S[^\n]*)\n[^\S\n]*(([=\-~])\3{2,})[^\S\n]*$", re.MULTILINE)
_CODE = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]+\1(?!`)")


def paint_docstrings(source: Source, numbers: Iterable[int], spans: Spans) -> None:
    """What is inside docstrings, which are tokens of these numbers."""
    for number in numbers:
        text = source.tokens.texts[number]
        opening, quotes = string_opening(text)
        start, end = source.tokens.starts[number] + len(opening), source.tokens.ends[number] - len(quotes)
        body = source.text[start:end]
        first = len(body) - len(body.lstrip())
        line_end = body.find("\n", first)
        spans.paint("docstring_first_line", start + first, end if line_end < 0 else start + line_end)
        if "`" in body:
            for code in _CODE.finditer(body):
                spans.paint("docstring_code", start + code.start(), start + code.end())
        _paint_sections(body, start, spans)
        if ">>>" in body:
            _paint_doctests(body, start, spans)


def _paint_sections(body: str, start: int, spans: Spans) -> None:
    headings = list(_HEADING.finditer(body))
    ends = [*(heading.start() for heading in headings), len(body)][1:]
    for heading, end in zip(headings, ends, strict=True):
        spans.paint("docstring_title", start + heading.start(1), start + heading.end(1))
        spans.paint("docstring_underline", start + heading.start(2), start + heading.end(2))
        section = SECTIONS.get(heading.group(1).strip().lower())
        if section:
            spans.paint(section, start + heading.end(), start + end)


def _paint_doctests(body: str, start: int, spans: Spans) -> None:
    """Lines from a prompt on: input at a prompt, output up to the next prompt or empty line."""
    place, state = start, ""
    for line in body.split("\n"):
        text = line.strip()
        if text.startswith(">>>") or (state == "doctest_input" and text.startswith("...")):
            state = "doctest_input"
        else:
            state = "doctest_output" if state and text else ""
        if state:
            for name in ("doctest", state):
                spans.paint(name, place, min(place + len(line) + 1, start + len(body)))
        place += len(line) + 1
