"""A page a person reads, from sections of blocks: one self-contained HTML file, and the same as Markdown.

Text marks **strong** and `code`; everything else is shown as it is, so no number or token can break the page. Pictures
are embedded in the HTML as base64 and referred to by path in the Markdown.
"""

import base64
import html
import re
from collections.abc import Sequence
from typing import NamedTuple


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Note(NamedTuple):
    """A caveat or control: a paragraph set apart, with what kind it is."""

    kind: str
    text: str


class Table(NamedTuple):
    """A table of text cells; the first column is the row's name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


class Figure(NamedTuple):
    """A picture with its caption; the file is `<name>.png`."""

    name: str
    png: bytes
    caption: str


class Passage(NamedTuple):
    """A stretch of text whose tokens are shaded by strength in [0, 1]."""

    tokens: Sequence[str]
    strengths: Sequence[float]


class Passages(NamedTuple):
    """Passages under one heading, such as the strongest contexts of a feature."""

    title: str
    passages: Sequence[Passage]


Block = Text | Note | Table | Figure | Passages


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


STYLE = """
:root { --ink: #1b1f24; --muted: #5c6670; --line: #dfe3e8; --soft: #f5f7f9; --accent: #0b5f9e; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 56px 0 12px; padding-top: 16px; border-top: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 28px 0 4px; }
nav { background: var(--soft); border-radius: 8px; padding: 12px 20px; margin: 20px 0 0; }
nav ul { margin: 0; padding: 0; list-style: none; }
a { color: var(--accent); }
code { font: 0.9em ui-monospace, "DejaVu Sans Mono", Menlo, monospace;
  background: var(--soft); padding: 1px 4px; border-radius: 4px; }
figure { margin: 24px 0; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption, .caption { color: var(--muted); font-size: 0.9rem; margin: 8px 0 20px; }
.wide { overflow-x: auto; margin: 20px 0 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.note { border-left: 4px solid var(--line); background: var(--soft); padding: 8px 14px; margin: 14px 0; }
.note b { color: var(--accent); }
.passage { font: 0.82rem/1.75 ui-monospace, "DejaVu Sans Mono", Menlo, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); border-radius: 6px; padding: 4px 10px; margin: 6px 0; }
.passage span { border-radius: 3px; padding: 1px 0; }
"""


def _inline(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def visible(token: str) -> str:
    """A token with its line ends shown, so that a shaded one can be seen."""
    return token.replace("\r", "␍").replace("\n", "⏎\n").replace("\t", "→   ")


def _passage_html(passage: Passage) -> str:
    spans = []
    for token, strength in zip(passage.tokens, passage.strengths, strict=True):
        text = html.escape(visible(token), quote=False)
        shade = f' style="background:rgba(230,120,20,{min(max(strength, 0.0), 1.0):.2f})"' if strength > 0 else ""
        spans.append(f"<span{shade}>{text}</span>" if shade else text)
    return f'<div class="passage">{"".join(spans)}</div>'


def _table_html(table: Table) -> str:
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in table.header)
    body = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    caption = f'<p class="caption">{_inline(table.caption)}</p>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{caption}'


def _block_html(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Note(kind, text):
            return f'<div class="note"><b>{_inline(kind)}:</b> {_inline(text)}</div>'
        case Table():
            return _table_html(block)
        case Figure(name, png, caption):
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            image = f'<img alt="{html.escape(name)}" src="{source}">'
            return f"<figure>{image}<figcaption>{_inline(caption)}</figcaption></figure>"
        case Passages(title, passages):
            return f"<h3>{_inline(title)}</h3>{''.join(_passage_html(passage) for passage in passages)}"


def to_html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as one HTML file that needs nothing else."""
    contents = "".join(f'<li><a href="#{_slug(s.title)}">{_inline(s.title)}</a></li>' for s in sections)
    body = "".join(
        f'<section id="{_slug(s.title)}"><h2>{_inline(s.title)}</h2>{"".join(map(_block_html, s.blocks))}</section>\n'
        for s in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        "<body><main>\n"
        f"<h1>{_inline(title)}</h1><p>{_inline(lead)}</p><nav><ul>{contents}</ul></nav>\n{body}</main></body></html>\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _block_markdown(block: Block, figures: str) -> str:
    match block:
        case Text(text):
            return text
        case Note(kind, text):
            return f"> **{kind}:** {text}"
        case Table(header, rows, caption):
            lines = ["| " + " | ".join(map(_cell, header)) + " |", "|" + "---|" * len(header)]
            lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
            return "\n".join([*lines, "", f"*{caption}*" if caption else ""]).rstrip()
        case Figure(name, _, caption):
            return f"![{name}]({figures}/{name}.png)\n\n{caption}"
        case Passages(title, passages):
            return "\n".join([f"**{title}**", "", "```text", *(_passage_markdown(p) for p in passages), "```"])


def _passage_markdown(passage: Passage) -> str:
    """The passage on one line, with its strongest token in brackets (Markdown has no shading)."""
    strongest = max(range(len(passage.strengths)), key=lambda i: passage.strengths[i])
    tokens = [token.replace("\n", "⏎").replace("`", "'") for token in passage.tokens]
    return "".join(f"⟦{token}⟧" if i == strongest else token for i, token in enumerate(tokens))


def to_markdown(title: str, lead: str, sections: Sequence[Section], figures: str) -> str:
    """The page as Markdown, with pictures in the folder `figures` beside it."""
    parts = [f"# {title}", lead]
    for section in sections:
        parts += [f"## {section.title}", *(_block_markdown(block, figures) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"
