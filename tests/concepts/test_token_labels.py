"""From characters to tokens, by hand and against a loop."""

import numpy as np

from stages.lib.concepts import python_tokens
from stages.lib.concepts import text as text_concepts
from stages.lib.concepts.token_labels import choose_specs, first_characters


def test_token_has_the_label_of_its_first_visible_character() -> None:
    text = "ab  cd \n  \u3000e"
    spans = [(0, 2), (2, 5), (5, 6), (6, 8), (7, 11), (8, 11), (11, 12), (12, 12)]
    start, end = np.array(spans).T
    # "ab" a; "  c" c; "d" d; " \n" and "\n  ideographic space" are white space: their first character.
    assert first_characters(text, start, end).tolist() == [0, 4, 5, 6, 7, 8, 11, 11]


def test_first_characters_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("ab \n\t"), 300))
    start = rng.integers(0, 299, 200)
    end = np.minimum(start + rng.integers(1, 6, 200), 300)
    expected = [
        next((i for i in range(a, b) if not text[i].isspace()), a)
        for a, b in zip(start.tolist(), end.tolist(), strict=True)
    ]
    assert first_characters(text, start, end).tolist() == expected


def test_languages_choose_the_concepts() -> None:
    text, python = ({spec.name for spec in module.SPECS} for module in (text_concepts, python_tokens))
    assert not text & python
    assert {spec.name for spec in choose_specs({"text"})} == text
    assert {spec.name for spec in choose_specs({"text", "python"})} == text | python
    assert {spec.name for spec in choose_specs({"python"})} == text_concepts.IN_CODE | python
