from pathlib import Path

import numpy as np
import pytest
import torch

from stages import concepts
from stages.concepts import (
    ConceptsParams,
    Labelled,
    MinPositives,
    choose_columns,
    describe,
    label_split,
    select_columns,
    used_documents,
)
from stages.lib.concepts import labels, python_tokens
from stages.lib.concepts.labels import Spec, pack, read_concepts, read_labels, unpack
from stages.lib.concepts.token_labels import choose_specs
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json
from stages.lib.language import documents
from stages.lib.language.documents import Document, to_line
from stages.lib.language.windows import Windows
from stages.lib.run.log import Log
from tests.settings import write_params

CODE = "def f(x):\n    return x\n"
TOKENS = ["def", " f", "(", "x", "):", "\n   ", " return", " x", "\n"]
LEAST = MinPositives(fit=1, validation=1, test=1)


class NoLog(Log):
    def __init__(self) -> None:
        pass

    def advance(self, units: int = 1, **facts: float | str) -> None:
        pass


def spans_of(tokens: list[str]) -> np.ndarray:
    ends = np.cumsum([len(token) for token in tokens])
    return np.stack([ends - [len(token) for token in tokens], ends], axis=1)


def windows_of(tokens: dict[str, list[str]], n_ctx: int = 5) -> Windows:
    """Windows as the tokens stage makes them, with BOS."""
    rows = []
    for number, pieces in enumerate(tokens.values()):
        spans = spans_of(pieces)
        rows += [(number, spans[i : i + n_ctx - 1]) for i in range(0, len(pieces), n_ctx - 1)]
    shape = (len(rows), n_ctx)
    start, end = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    for row, (_, spans) in enumerate(rows):
        start[row, 1 : len(spans) + 1] = torch.from_numpy(spans[:, 0])
        end[row, 1 : len(spans) + 1] = torch.from_numpy(spans[:, 1])
    return Windows(
        tokens=torch.zeros(shape, dtype=torch.int32),
        length=torch.tensor([len(spans) + 1 for _, spans in rows], dtype=torch.int32),
        document=torch.tensor([number for number, _ in rows], dtype=torch.int32),
        start=start,
        end=end,
        n_ctx=n_ctx,
        document_ids=list(tokens),
        bos=True,
        bos_id=0,
        pad_id=0,
    )


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """One Python document in every split, after one that is not used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labels, "CONCEPTS", tmp_path / "concepts")
    monkeypatch.setattr(concepts, "CONCEPTS", tmp_path / "concepts")
    folder = tmp_path / documents.CORPUS
    folder.mkdir(parents=True)
    for split in ("sae_train", "validation", "test"):
        both = [Document("other.py", "x = 1\n", "python"), Document("code.py", CODE, "python")]
        (folder / f"{split}.jsonl").write_text("".join(map(to_line, both)))
    return folder


EXPECTED = {
    # def f ( x ): \n___ return x \n
    "keyword": "100000100",
    "keyword_def": "100000000",
    "keyword_return": "000000100",
    "function_name": "010000000",
    "opening_parenthesis": "001000000",
    "closing_parenthesis": "000010000",
    "parameter": "000100000",
    "function_body": "000001110",
    "return_value": "000000010",
    "parameter_use": "000000010",
    "function_signature": "111110000",
    "newline": "000001001",
    "newline_before_deeper": "000001000",
    "whitespace": "000001001",
    "line_start": "100000100",
    "statement_start": "100000100",
    "document_second_half": "000000111",
}


def test_labels_of_a_small_function(corpus):
    windows = windows_of({"code.py": TOKENS})
    specs = choose_specs({"python"})
    found = label_split("test", windows, specs, NoLog())
    every = unpack(found.packed, len(specs))
    valid = windows.valid().numpy().ravel()
    assert not every[~valid].any()
    columns = {spec.name: i for i, spec in enumerate(specs)}
    assert {name: "".join(map(str, every[valid, columns[name]].astype(int))) for name in EXPECTED} == EXPECTED
    assert found.n_tokens == len(TOKENS)
    assert np.array_equal(found.positives, every.sum(axis=0))
    # Runs go on from one window to the next: the body is 3 tokens, the white space twice 1.
    assert found.runs[columns["function_body"]] == 1
    assert found.runs[columns["whitespace"]] == 2
    assert found.unparsed == []


def test_position_0_has_no_label_even_without_bos(corpus):
    windows = windows_of({"code.py": TOKENS})._replace(bos=False)
    windows.end[:, 0] = 3
    specs = choose_specs({"python"})
    every = unpack(label_split("test", windows, specs, NoLog()).packed, len(specs))
    assert not every.reshape(-1, windows.n_ctx, len(specs))[:, 0].any()


def test_documents_in_another_order_have_the_same_labels(corpus):
    both = {"code.py": TOKENS, "other.py": ["x", " =", " 1", "\n"]}
    specs = choose_specs({"python"})
    first = label_split("fit", windows_of(both), specs, NoLog())
    second = label_split("fit", windows_of(dict(reversed(both.items()))), specs, NoLog())
    assert np.array_equal(first.packed, np.roll(second.packed, -5, axis=0))
    assert np.array_equal(first.runs, second.runs)


def test_document_that_does_not_parse_is_reported(corpus):
    (corpus / "test.jsonl").write_text(to_line(Document("old.py", 'print "a"\n', "python")))
    found = label_split(
        "test", windows_of({"old.py": ["print", ' "', "a", '"', "\n"]}), choose_specs({"python"}), NoLog()
    )
    assert found.unparsed == ["old.py"]
    assert found.positives.sum() > 0


def test_text_document_has_text_concepts_only(corpus):
    (corpus / "test.jsonl").write_text(to_line(Document("a.txt", "def f(x)", "text")))
    specs = choose_specs({"python", "text"})
    found = label_split("test", windows_of({"a.txt": ["def", " f", "(x", ")"]}), specs, NoLog())
    names = {specs[i].name for i in np.flatnonzero(found.positives)}
    assert "word_start" in names
    assert not names & {spec.name for spec in python_tokens.SPECS}


def test_document_that_the_corpus_lacks(corpus):
    with pytest.raises(UserError, match=r"data/tokens has 'gone.py' in fit, which data/corpus/sae_train.jsonl has not"):
        list(used_documents("fit", windows_of({"gone.py": ["x"]})))


def test_tokens_beyond_the_text(corpus):
    with pytest.raises(UserError, match=r"beyond the end of 'code.py'"):
        label_split("test", windows_of({"code.py": [*TOKENS, "more"]}), choose_specs({"python"}), NoLog())


def labelled(positives: list[int], n_tokens: int = 100) -> Labelled:
    runs = np.maximum(np.array(positives) // 2, 1)
    return Labelled(np.zeros((1, 1), np.uint8), np.array(positives), runs, n_tokens, [])


def test_rare_concepts_are_dropped():
    least = MinPositives(fit=20, validation=10, test=5)
    parts = {
        "fit": labelled([20, 19, 80, 81, 50, 50]),
        "validation": labelled([10, 50, 50, 50, 9, 50]),
        "test": labelled([5, 50, 95, 50, 50, 4]),
    }
    assert choose_columns(parts, least).tolist() == [0, 2]


def test_no_concept_left():
    parts = {split: labelled([1]) for split in ("fit", "validation", "test")}
    with pytest.raises(UserError, match=r"concepts.min_positives leaves no concept: fit has 100 tokens"):
        choose_columns(parts, MinPositives(fit=2, validation=1, test=1))


def test_description():
    specs = [Spec("a", "lexical"), Spec("b", "contextual", ("a", "c"), "g", True), Spec("c", "lexical")]
    parts = {"fit": labelled([40, 20, 2]), "validation": labelled([10, 4, 2], 50), "test": labelled([10, 6, 2])}
    kept, dropped = describe(specs, parts, [0, 1])
    assert [(c.name, c.kind, c.parents, c.group, c.needs_lookahead) for c in kept] == [
        ("a", "lexical", (), None, False),
        ("b", "contextual", ("a",), "g", True),
    ]
    assert kept[0].prevalence == {"fit": 0.4, "validation": 0.2, "test": 0.1}
    assert kept[0].positives == {"fit": 40, "validation": 10, "test": 10}
    assert kept[0].mean_run == 2
    assert dropped == {"c": {"fit": 2, "validation": 2, "test": 2}}


def test_select_columns(monkeypatch):
    monkeypatch.setattr(concepts, "ROWS", 7)
    truth = np.random.default_rng(0).random((20, 19)) < 0.5
    columns = np.array([18, 0, 7, 8])
    assert np.array_equal(unpack(select_columns(pack(truth), columns, 19), 4), truth[:, columns])


def test_main(corpus, tmp_path, monkeypatch):
    windows = windows_of({"code.py": TOKENS})
    monkeypatch.setattr(concepts, "read_windows", lambda split: windows)
    monkeypatch.setattr(concepts, "settings", lambda: ConceptsParams(min_positives=LEAST))
    concepts.main()
    kept = read_concepts()
    names = [concept.name for concept in kept]
    assert len(names) >= 30
    valid = windows.valid().numpy().ravel()
    for split in labels.SPLITS:
        every = read_labels(split)
        assert every.shape == (windows.tokens.numel(), len(kept))
        assert every[valid].sum(axis=0).tolist() == [concept.positives[split] for concept in kept]
        column = names.index("function_body")
        assert "".join(map(str, every[valid, column].astype(int))) == EXPECTED["function_body"]
    assert kept[names.index("function_body")].mean_run == 3
    dropped = read_json(tmp_path / "concepts" / "dropped.json")
    assert dropped["n_too_rare"] == len(dropped["too_rare"]) == len(choose_specs({"python"})) - len(kept)
    assert dropped["too_rare"]["keyword_while"] == {"fit": 0, "validation": 0, "test": 0}
    assert dropped["unparsed"] == {"fit": [], "validation": [], "test": []}


def test_settings(project: Path) -> None:
    write_params("concepts: {min_positives: {fit: 200, validation: 50, test: 0}}\n")
    with pytest.raises(UserError, match=r"concepts.min_positives.test is 0"):
        concepts.settings()
    write_params("concepts: {min_positives: {fit: 200, validation: 50, test: 50}}\n")
    assert concepts.settings().min_positives.fit == 200
