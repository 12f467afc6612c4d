from itertools import groupby

import numpy as np
import pytest

from stages.lib.concepts.text import BEGINNING, IN_CODE, SPECS, characters, is_whitespace, label_text


def pieces(text: str) -> dict[str, list[str]]:
    """The stretches of the text in which each concept holds."""
    found = {}
    for name, mask in label_text(text).items():
        assert mask.shape == (len(text),)
        assert mask.dtype == np.bool_
        stretches = [[i for i, _ in run] for holds, run in groupby(enumerate(mask), key=lambda pair: pair[1]) if holds]
        found[name] = [text[run[0] : run[-1] + 1] for run in stretches]
    return found


PROSE = """\
Dr. Ada said: "Come here, Bob!"  NASA's 12 men
came (not late) at 9.30.

    - One item
  the end? The End
"""


def test_prose():
    found = pieces(PROSE)
    expected = {
        "newline": ["\n", "\n\n", "\n", "\n"],
        "empty_line": ["\n"],
        "indentation": ["    ", "  "],
        "digit": ["12", "9", "30"],
        "uppercase_letter": ["D", "A", "C", "B", "NASA", "O", "T", "E"],
        "full_stop": [".", ".", "."],
        "question_mark": ["?"],
        "exclamation_mark": ["!"],
        "comma": [","],
        "quotation_mark": ['"', '"'],
        "apostrophe": ["'"],
        "opening_bracket": ["("],
        "closing_bracket": [")"],
        "hyphen": ["-"],
        "capitalised_word": ["Dr", "Ada", "Come", "Bob", "One", "The", "End"],
        "all_capitals_word": ["NASA"],
        "number_word": ["12", "9", "30"],
        "short_word": ["Dr", "Ada", "Bob", "s", "12", "men", "not", "at", "9", "30", "One", "the", "end", "The", "End"],
        "long_word": [],
        "sentence_start": ["Dr", "Ada", "NASA", "One", "The"],
        "sentence_end": [".", "!", ".", "?"],
        "capitalised_inside_sentence": ["Come", "Bob", "End"],
        "word_after_comma": ["Bob"],
        "word_seen_before": ["The", "End"],
        "inside_quotation_marks": ["Come here, Bob!"],
        "inside_parentheses": ["not late"],
        "paragraph_start": ["D", "-"],
        "list_item_line": ["    - One item"],
        "line_start": ["D", "c", "-", "t"],
        "line_last_word": ["men", "9.30.", "item", "End"],
        "indented_line": ["    - One item\n  the end? The End\n"],
        "column_40_up": ["12 men\n"],
        "newline_before_deeper": ["\n\n"],
        "newline_before_shallower": ["\n"],
        "word_fifth_character_up": [],
    }
    assert {name: found[name] for name in expected} == expected


def test_sentence_position():
    words = [f"w{i}" for i in range(25)]
    found = pieces(" ".join(words) + ". next")
    assert found["sentence_tenth_word_up"] == words[9:25]
    assert found["sentence_twentieth_word_up"] == words[19:25]


def test_place_in_word_and_document():
    text = "a longest_word1 " + "x " * 600
    masks = label_text(text)
    assert [text[i] for i in np.flatnonzero(masks["word_start"])][:3] == ["a", "l", "x"]
    assert "".join(text[i] for i in np.flatnonzero(masks["word_continuation"])) == "ongest_word1"
    assert "".join(text[i] for i in np.flatnonzero(masks["word_fifth_character_up"])) == "est_word1"
    assert masks["document_beginning"].sum() == BEGINNING
    assert masks["document_second_half"].sum() == len(text) // 2


def test_unicode():
    found = pieces("Ünder “two words” – ε٣\u3000x")
    assert found["capitalised_word"] == ["Ünder"]
    assert found["inside_quotation_marks"] == ["two words"]
    assert found["hyphen"] == ["–"]
    assert found["digit"] == ["٣"]
    assert found["non_ascii"] == ["Ü", "“", "”", "–", "ε٣\u3000"]
    assert found["whitespace"] == [" ", " ", " ", " ", "\u3000"]


@pytest.mark.parametrize("text", ["", "\n", " ", "a", "\n\n\n", "\ud800"])
def test_short_texts(text):
    pieces(text)
    assert is_whitespace(text).tolist() == [character.isspace() for character in text]
    assert characters(text).tolist() == [ord(character) for character in text]


def random_texts() -> list[str]:
    rng = np.random.default_rng(0)
    alphabet = np.array(list("aAbB 1_.,!?\n\n  \t\"'()[]-:;“”éÉ–*"))
    return ["".join(rng.choice(alphabet, 400)) for _ in range(20)]


def test_labels_are_consistent_in_any_text():
    names = {spec.name for spec in SPECS}
    assert len(names) == len(SPECS)
    assert names >= IN_CODE
    for text in [PROSE, *random_texts()]:
        masks = label_text(text)
        assert set(masks) == names
        for spec in SPECS:
            for parent in spec.parents:
                assert not (masks[spec.name] & ~masks[parent]).any(), (spec.name, parent)
        for group in {spec.group for spec in SPECS if spec.group}:
            assert np.sum([masks[spec.name] for spec in SPECS if spec.group == group], axis=0).max() <= 1, group


def test_concepts_in_code_have_their_parents():
    assert all(set(spec.parents) <= IN_CODE for spec in SPECS if spec.name in IN_CODE)
