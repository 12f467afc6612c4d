"""Labels of small documents, what is kept of them, and a whole run on a small corpus."""

import json
import shutil
from collections import Counter as Bag
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import concepts, tokens
from stages.concepts import ConceptsParams, MinPositives, choose_columns, describe
from stages.lib.concepts import labels, python_tokens
from stages.lib.concepts.counting import Chunk, Counter, context_of_split
from stages.lib.concepts.labels import Spec, pack, read_concepts, read_labels, select_columns, unpack
from stages.lib.concepts.ngrams import FACTS, FILE, ORDERS, Asked, read_ngrams
from stages.lib.concepts.split_labels import CORPUS_SPLIT, Labelled, label_split, used_documents
from stages.lib.concepts.token_labels import choose_specs
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, write_json
from stages.lib.language.documents import CORPUS, Document, read_documents, to_line
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.seeds import numpy_generator
from tests.hub import write_tiny
from tests.settings import forget_params, write_params
from tests.toy import ROOT

CODE = "def f(x):\n    return x\n"
TOKENS = ["def", " f", "(", "x", "):", "\n   ", " return", " x", "\n"]
LEAST = MinPositives(fit=1, validation=1, test=1)


def silent(n: int) -> None:
    """Is told of progress."""


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


def write_corpus(documents: dict[str, list[Document]]) -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    for split, some in documents.items():
        (CORPUS / f"{split}.jsonl").write_text("".join(map(to_line, some)))
    characters = {split: {"characters": sum(len(one.text) for one in some)} for split, some in documents.items()}
    write_json(CORPUS / "corpus.json", {"splits": characters})


@pytest.fixture
def corpus(project: Path) -> Path:
    """One Python document in every split, after one that is not used."""
    both = [Document("other.py", "x = 1\n", "python"), Document("code.py", CODE, "python")]
    write_corpus(dict.fromkeys(("sae_train", "validation", "test"), both))
    return CORPUS


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
    found = label_split("test", windows, specs, silent)
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
    every = unpack(label_split("test", windows, specs, silent).packed, len(specs))
    assert not every.reshape(-1, windows.n_ctx, len(specs))[:, 0].any()


def test_documents_in_another_order_have_the_same_labels(corpus):
    both = {"code.py": TOKENS, "other.py": ["x", " =", " 1", "\n"]}
    specs = choose_specs({"python"})
    first = label_split("fit", windows_of(both), specs, silent)
    second = label_split("fit", windows_of(dict(reversed(both.items()))), specs, silent)
    assert np.array_equal(first.packed, np.roll(second.packed, -5, axis=0))
    assert np.array_equal(first.runs, second.runs)


def test_document_that_does_not_parse_is_reported(corpus):
    (corpus / "test.jsonl").write_text(to_line(Document("old.py", 'print "a"\n', "python")))
    found = label_split(
        "test", windows_of({"old.py": ["print", ' "', "a", '"', "\n"]}), choose_specs({"python"}), silent
    )
    assert found.unparsed == ["old.py"]
    assert found.positives.sum() > 0


def test_text_document_has_text_concepts_only(corpus):
    (corpus / "test.jsonl").write_text(to_line(Document("a.txt", "def f(x)", "text")))
    specs = choose_specs({"python", "text"})
    found = label_split("test", windows_of({"a.txt": ["def", " f", "(x", ")"]}), specs, silent)
    names = {specs[i].name for i in np.flatnonzero(found.positives)}
    assert "word_start" in names
    assert not names & {spec.name for spec in python_tokens.SPECS}


def test_document_that_the_corpus_lacks(corpus):
    with pytest.raises(UserError, match=r"data/tokens has 'gone.py' in fit, which data/corpus/sae_train.jsonl has not"):
        list(used_documents("fit", windows_of({"gone.py": ["x"]})))


def test_tokens_beyond_the_text(corpus):
    with pytest.raises(UserError, match=r"beyond the end of 'code.py'"):
        label_split("test", windows_of({"code.py": [*TOKENS, "more"]}), choose_specs({"python"}), silent)


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
    monkeypatch.setattr(labels, "ROWS", 7)
    truth = np.random.default_rng(0).random((20, 19)) < 0.5
    columns = np.array([18, 0, 7, 8])
    assert np.array_equal(unpack(select_columns(pack(truth), columns, 19), 4), truth[:, columns])


BLOCKS = ["x_hat = (x ** 2).sum()\n" * 3, 'NAME = "a"\n', "for i in range(9):\n    print(i)\n", CODE, "# text\n"]
N_TRAIN = 14


def code(split: str, number: int) -> Document:
    """A document of some of the blocks, each time others."""
    generator = np.random.default_rng([number, *split.encode()])
    blocks = [*generator.choice(BLOCKS, generator.integers(4, 20)), f"v = {generator.integers(10**9)}\n"]
    return Document(f"{split}/{number}.py", "".join(blocks), "python")


@pytest.fixture(scope="module")
def before(shared_project: Path) -> Path:
    """Corpus, model and tokens as the stages before leave them; one document is empty, one is no Python."""
    sizes = {"sae_train": N_TRAIN, "lm_train": 2 * N_TRAIN, "validation": 6, "test": 6}
    documents = {split: [code(split, number) for number in range(n)] for split, n in sizes.items()}
    documents["lm_train"][3:3] = [Document("empty.py", "", "python"), Document("old.py", 'print "a"\n' * 9, "python")]
    write_corpus(documents)
    write_tiny("gpt2", Path("data/model"))
    configure()
    tokens.main()
    return shared_project


@pytest.fixture
def run(before: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, as the working directory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where processes find the project
    shutil.copytree(before, project, dirs_exist_ok=True)
    forget_params()
    return project


def configure(**changes: object) -> None:
    least = {"fit": 5, "validation": 5, "test": 5}
    sizes = {"n_ctx": 16, "excerpt": 200, "n_fit": 300, "n_validation": 300, "n_test": 300, "seed": 0}
    write_params({"tokens": sizes, "concepts": {"min_positives": least, "n_counted": None, "seed": 0, **changes}})


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(labels.CONCEPTS.iterdir())}


def of_windows(split: str, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The contexts and labels of all tokens of a split."""
    windows, specs = read_windows(split), choose_specs({"python"})
    every = unpack(label_split(split, windows, specs, silent).packed, len(specs))
    columns = [number for name in names for number, spec in enumerate(specs) if spec.name == name]
    return context_of_split(windows), every[windows.valid().numpy().ravel()][:, columns]


def test_counts_are_those_of_the_labels_of_the_same_windows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concepts, "COUNTED", ("sae_train",))
    concepts.main()
    monkeypatch.setitem(CORPUS_SPLIT, "train", "sae_train")
    names = [concept.name for concept in read_concepts()]
    context, every = of_windows("train", names)
    found = read_ngrams(np.arange(len(names)))
    assert found.rate.tolist() == every.mean(0).tolist()
    held_out = np.concatenate([context_of_split(read_windows(split)) for split in ("validation", "test")])
    for name, n in ORDERS.items():
        grams, asked = [*map(tuple, context[:, -n:].tolist())], sorted({*map(tuple, held_out[:, -n:].tolist())})
        table, total = found.tables[name], Bag(grams)
        assert [*map(tuple, table.grams.tolist())] == asked
        assert table.total.tolist() == [total[gram] for gram in asked]
        dense = {gram: np.zeros(len(names), np.int64) for gram in asked}
        for gram, row in zip(grams, every, strict=True):
            if gram in dense:
                dense[gram] += row
        assert np.array_equal(table.positives.toarray(), np.stack([*dense.values()]))


def test_both_splits_are_counted_and_nothing_that_is_scored(run: Path) -> None:
    concepts.main()
    facts = read_json(FACTS)
    windows = {split: read_windows(split) for split in ("train", "test")}
    assert facts["n_documents"] == 3 * N_TRAIN + 2 and facts["n_unparsed"] == 1
    lengths = {document.id: len(document.text) for split in concepts.COUNTED for document in read_documents(split)}
    assert facts["n_tokens"] > 2 * int(windows["train"].valid().sum()) and len(lengths) == facts["n_documents"]
    before = written()
    for split in ("validation", "test"):  # more of what is scored, of which no window was drawn
        with (CORPUS / f"{split}.jsonl").open("a") as handle:
            handle.write(to_line(Document(f"{split}/more.py", CODE * 50, "python")))
    concepts.main()
    assert written() == before


def test_shares_that_were_seen(run: Path) -> None:
    concepts.main()
    seen = read_json(FACTS)["seen"]
    found = read_ngrams(np.zeros(0, np.int64))
    for split in ("validation", "test"):
        context = context_of_split(read_windows(split))
        for name, n in ORDERS.items():
            table = found.tables[name]
            known = {tuple(gram) for gram, total in zip(table.grams.tolist(), table.total, strict=True) if total}
            share = np.mean([tuple(gram) in known for gram in context[:, -n:].tolist()])
            assert seen["all"][split][name] == pytest.approx(share)
            assert seen["half"][split][name] <= seen["all"][split][name]
        assert seen["all"][split]["trigram"] < seen["all"][split]["token"] <= 1
        assert seen["half"][split]["trigram"] < seen["all"][split]["trigram"]


def drawn_lengths(seed: int) -> list[int]:
    """The tokens of all documents in the order in which they are drawn."""
    every = [document for split in concepts.COUNTED for document in read_documents(split)]
    backend = tokens.load_tokenizer().backend_tokenizer
    order = numpy_generator(seed, "concepts", "counted").permutation(len(every))
    return [len(backend.encode(every[index].text).ids) for index in order]


def small_counter() -> Counter:
    """Counts two concepts, and one context of small numbers."""
    specs = [spec for spec in choose_specs({"python"}) if spec.name in ("digit", "keyword")]
    return concepts.counter(specs, Asked(np.array([[0, 1, 2]]), 4))


def test_the_limit_is_reached_with_the_first_document_that_reaches_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, least = small_counter(), MinPositives(fit=1, validation=1, test=1)
    for seed, size in ((0, 1), (1, 400)):
        total = np.cumsum(drawn_lengths(seed))
        monkeypatch.setattr("stages.lib.concepts.counting.CHUNK", size)
        for limit in (1, int(total[7]), int(total[7]) + 1, int(total[-1]), int(total[-1]) + 1):
            own = ConceptsParams(min_positives=least, n_counted=limit, seed=seed)
            counts = concepts.count(call, own, silent, 1)
            n = min(int(np.searchsorted(total, limit)) + 1, len(total))
            assert (counts.facts["n_documents"], counts.facts["n_tokens"]) == (n, total[n - 1])
            assert counts.own[:, -2:].sum() == total[n - 1]


def test_null_is_all(run: Path) -> None:
    concepts.main()
    before = written()
    configure(n_counted=10**9)
    concepts.main()
    assert written() == before
    configure(seed=1)  # another order, other halves
    concepts.main()
    assert written()[FILE.name] == before[FILE.name]


def test_any_number_of_processes_gives_the_same_bytes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concepts.main()
    before = written()
    monkeypatch.setattr("stages.lib.concepts.counting.CHUNK", 400)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    concepts.main()
    assert written() == before


def test_another_tokenizer_is_refused(run: Path) -> None:
    path = Path("data/model/tokenizer.json")
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(UserError, match="data/tokens was made with another tokenizer than data/model has"):
        concepts.main()


def test_tokens_that_the_model_does_not_know_are_in_no_context(run: Path) -> None:
    found = small_counter()(Chunk(0, [Document("a.py", "if x:\n    y = 10\n", "python")]))
    # Two digits, the two letters of a keyword, and all tokens in the first half.
    assert found.own.toarray().tolist() == [[2, 2, 14, 0], [0] * 4, [0] * 4, [0] * 4] and found.lengths == [14]


def test_what_is_written_of_the_labels(run: Path) -> None:
    concepts.main()
    kept = read_concepts()
    assert len(kept) >= 30
    for split in labels.SPLITS:
        every, windows = read_labels(split), read_windows(split)
        assert every.shape == (windows.tokens.numel(), len(kept))
        valid = windows.valid().numpy().ravel()
        assert every[valid].sum(axis=0).tolist() == [concept.positives[split] for concept in kept]
    dropped = read_json(labels.CONCEPTS / "dropped.json")
    assert dropped["n_too_rare"] == len(dropped["too_rare"]) == len(choose_specs({"python"})) - len(kept)
    assert dropped["too_rare"]["keyword_while"] == {"fit": 0, "validation": 0, "test": 0}
    assert dropped["unparsed"] == {"fit": [], "validation": [], "test": []}


def test_settings(project: Path) -> None:
    own = "concepts: {min_positives: {fit: 200, validation: 50, test: %s}, n_counted: %s, seed: 0}\n"
    write_params(own % (0, 9))
    with pytest.raises(UserError, match=r"concepts.min_positives.test is 0"):
        concepts.settings()
    write_params(own % (50, 0))
    with pytest.raises(UserError, match=r"concepts.n_counted is 0"):
        concepts.settings()
    write_params(own % (50, "null"))
    assert concepts.settings() == ConceptsParams(
        min_positives=MinPositives(fit=200, validation=50, test=50), n_counted=None, seed=0
    )
