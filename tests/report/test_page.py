"""The page: nothing in the data can break it, pictures are inside it, Markdown says the same."""

import base64

from stages.lib.report.page import Figure, Note, Passage, Passages, Section, Table, Text, to_html, to_markdown, visible

SECTIONS = [
    Section("1. First & foremost?", [
        Text("FVU is **0.25** for `topk` where a < b."),
        Note("Caveat", "one seed"),
        Table(["arm", "FVU | L0"], [["`topk`", "0.1"], ["<b>", "–"]], "Mean."),
        Figure("curve", b"\x89PNG fake", "A `caption`."),
        Passages("Feature 3", [Passage(["if", " <x>", "\n"], [0.0, 1.0, 0.25])]),
    ]),
]  # fmt: skip


def test_html_escapes_marks_and_embeds() -> None:
    page = to_html("Title <1>", "lead", SECTIONS)
    assert "<strong>0.25</strong> for <code>topk</code> where a &lt; b" in page
    assert "&lt;b&gt;" in page
    assert "<title>Title &lt;1&gt;</title>" in page
    picture = base64.b64encode(b"\x89PNG fake").decode()
    assert f"data:image/png;base64,{picture}" in page
    assert '<a href="#1-first-foremost">' in page
    assert 'id="1-first-foremost"' in page


def test_tokens_are_shaded_by_strength() -> None:
    page = to_html("t", "l", SECTIONS)
    assert '<div class="passage">if<span style="background:rgba(230,120,20,1.00)"> &lt;x&gt;</span>' in page
    assert "rgba(230,120,20,0.25)" in page


def test_markdown_has_the_same_and_refers_to_pictures() -> None:
    page = to_markdown("Title", "lead", SECTIONS, "figures")
    assert page.startswith("# Title\n\nlead\n\n## 1. First & foremost?\n\n")
    assert "> **Caveat:** one seed" in page
    assert "| arm | FVU \\| L0 |\n|---|---|\n| `topk` | 0.1 |" in page
    assert "![curve](figures/curve.png)\n\nA `caption`." in page
    assert "```text\nif⟦ <x>⟧⏎\n```" in page


def test_line_ends_and_tabs_are_visible() -> None:
    assert visible("a\n\tb\r") == "a⏎\n→   b␍"
