"""Tokens: every character of every document, in order, once; samples; what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import tokens
from stages.lib.io.errors import UserError
from stages.lib.io.files import sha256
from stages.lib.language.documents import Document, to_line
from stages.lib.language.encoding import encode, special_ids
from stages.lib.language.windows import Windows, read_windows
from stages.tokens import main
from tests.hub import D_VOCAB, END, tiny_tokenizer, write_tiny
from tests.settings import write_params

DEFAULTS = {"n_ctx": 16, "excerpt": 100_000, "n_fit": 200, "n_validation": 100, "n_test": 100, "seed": 0}
TEXTS = ["x_hat = (x ** 2).sum()\n" * 5, "naïve 🙂 текст\n" * 6, f"END = '{END}'  # in a string\n" * 4]


def configure(**changes: int) -> None:
    write_params({"tokens": {**DEFAULTS, **changes}})


def write_corpus(n_documents: int = 12) -> None:
    Path("data/corpus").mkdir(parents=True, exist_ok=True)
    for split in ("sae_train", "validation", "test"):
        documents = [
            Document(f"{split}/{i}.py", f"# file {i}\n" + TEXTS[i % len(TEXTS)], "python") for i in range(n_documents)
        ]
        documents.insert(3, Document(f"{split}/empty.py", "", "python"))
        Path(f"data/corpus/{split}.jsonl").write_text("".join(map(to_line, documents)), encoding="utf-8")


@pytest.fixture
def project(project: Path) -> Path:
    """The directory with settings, texts and a model."""
    configure()
    write_corpus()
    write_tiny("gpt2", Path("data/model"))
    return project


def text_of(split: str) -> dict[str, str]:
    lines = Path(f"data/corpus/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record["text"] for record in map(json.loads, lines)}


def ids_of(windows: Windows, index: int) -> list[int]:
    return windows.tokens[windows.valid() & (windows.document == index)[:, None]].tolist()


def test_tokens_of_a_document_decode_to_its_text_and_their_spans_cover_it(project: Path) -> None:
    main()
    texts, windows, tokenizer = text_of("sae_train"), read_windows("train"), tiny_tokenizer()
    assert windows.document_ids == [name for name, text in texts.items() if text]
    for index, name in enumerate(windows.document_ids):
        assert tokenizer.decode(ids_of(windows, index), clean_up_tokenization_spaces=False) == texts[name]
        mask = windows.valid() & (windows.document == index)[:, None]
        covered = {i for s, e in zip(windows.start[mask], windows.end[mask], strict=True) for i in range(s, e)}
        assert covered == set(range(len(texts[name])))


def test_a_token_stands_where_its_span_says(project: Path) -> None:
    main()
    texts, windows, tokenizer = text_of("sae_train"), read_windows("train"), tiny_tokenizer()
    for window, pos in torch.nonzero(windows.valid()).tolist():
        piece = tokenizer.decode([int(windows.tokens[window, pos])])
        text = texts[windows.document_ids[windows.document[window]]]
        where = text[windows.start[window, pos] : windows.end[window, pos]]
        assert piece == where or not where.isascii()  # a part of a character's bytes has the whole character's span


def test_special_tokens_in_a_text_are_text(project: Path) -> None:
    main()
    windows = read_windows("train")
    assert not (windows.tokens[windows.valid()] == 0).any()
    assert (windows.tokens[:, 0] == 0).all()


def test_the_description_counts_everything(project: Path) -> None:
    main()
    facts = json.loads(Path("data/tokens/tokens.json").read_text())
    assert {key: facts[key] for key in ("n_ctx", "bos", "bos_id", "pad_id", "d_vocab")} == {
        "n_ctx": 16,
        "bos": True,
        "bos_id": 0,
        "pad_id": 0,
        "d_vocab": D_VOCAB,
    }
    assert facts["tokenizer"] == sha256(Path("data/model/tokenizer.json"))
    assert facts["splits"]["train"]["dropped"] == {"empty": 1, "not_drawn": 0}
    for split, counts in facts["splits"].items():
        windows = read_windows(split)
        assert counts["tokens"] == int(windows.valid().sum())
        assert counts["windows"] == len(windows.length)
        assert len(counts["documents"]) + sum(counts["dropped"].values()) == 13
        assert windows.document.unique_consecutive().tolist() == list(
            range(len(counts["documents"]))
        )  # in order, none left out


def test_samples_are_whole_documents_up_to_the_first_that_reaches_the_number(project: Path) -> None:
    main()
    train = read_windows("train")
    for split, wanted in (("fit", 200), ("validation", 100), ("test", 100)):
        windows = read_windows(split)
        sizes = [len(ids_of(windows, index)) for index in range(len(windows.document_ids))]
        assert sum(sizes[:-1]) < wanted <= sum(sizes)
    fit = read_windows("fit")
    for index, name in enumerate(fit.document_ids):
        assert ids_of(fit, index) == ids_of(train, train.document_ids.index(name))


def test_the_seed_alone_decides_what_is_drawn(project: Path) -> None:
    def drawn(seed: int) -> tuple[list[str], str]:
        configure(seed=seed)
        main()
        return read_windows("fit").document_ids, sha256(Path("data/tokens/fit.safetensors"))

    first, other, again = drawn(0), drawn(1), drawn(0)
    assert first == again
    assert first != other


def test_how_much_is_tokenised_at_once_changes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digests() -> dict[str, str]:
        main()
        return {path.name: sha256(path) for path in sorted(Path("data/tokens").iterdir())}

    whole = digests()
    monkeypatch.setattr("stages.lib.language.encoding.CHUNK", 100)
    assert digests() == whole


def test_encoding_adds_drops_and_pads_nothing() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (document,) = encode(tokenizer.backend_tokenizer, iter([Document("a", "é1\n", "text")]))
    assert tokenizer.decode(document.ids) == "é1\n"
    assert document.spans.tolist() == [[0, 1], [0, 1], [1, 2], [2, 3]]  # two bytes of one character, then two


def test_a_window_begins_with_bos_or_else_the_end_of_text_token() -> None:
    vocabulary = tiny_tokenizer().get_vocab()
    assert special_ids(tiny_tokenizer(bos_token="x", pad_token="y")) == (vocabulary["x"], vocabulary["y"])
    assert special_ids(tiny_tokenizer(bos_token=None)) == (0, 0)
    with pytest.raises(UserError, match="neither a bos_token nor an eos_token"):
        special_ids(tiny_tokenizer(bos_token=None, eos_token=None))


@pytest.mark.parametrize("key", ["n_fit", "n_validation", "n_test"])
def test_too_few_tokens_name_the_setting(project: Path, key: str) -> None:
    configure(**{key: 10**6})
    split = "sae_train" if key == "n_fit" else key.removeprefix("n_")
    where = f"{split}.jsonl has only"
    message = rf"tokens.{key} is 1000000, but data/corpus/{where} \d+ tokens in .* 100000; .* corpus.split.{split}"
    with pytest.raises(UserError, match=message):
        main()


def test_a_window_longer_than_the_model_takes_is_refused(project: Path) -> None:
    configure(n_ctx=33)
    with pytest.raises(UserError, match=r"tokens.n_ctx is 33, but the model's windows have at most 32 tokens"):
        main()
    assert not Path("data/tokens").exists()


def test_tokens_that_the_model_has_no_embedding_for_are_refused(project: Path) -> None:
    path = Path("data/model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 200}))
    with pytest.raises(UserError, match=r"gives token 2\d\d in sae_train/\d+.py, but the model has only d_vocab = 200"):
        main()


def test_a_missing_corpus_is_named(project: Path) -> None:
    Path("data/corpus/validation.jsonl").unlink()
    with pytest.raises(UserError, match=r"data/corpus/validation.jsonl is missing"):
        main()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_ctx", 1, "tokens.n_ctx is 1"),
        ("n_fit", 0, "tokens.n_fit is 0"),
        ("seed", -1, "tokens.seed is -1"),
        ("n_tests", 1, "unknown key tokens.n_tests; did you mean 'n_test'"),
    ],
)
def test_settings_are_checked(
    key: str, value: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configure(**{key: value})
    with pytest.raises(UserError, match=message):
        tokens.settings()


def test_an_excerpt_is_a_run_of_whole_windows_at_a_random_place():
    ids = np.arange(100, dtype=np.int32)
    document = tokens.Encoded("a", ids, np.stack([ids, ids + 1], axis=1))
    short = document._replace(ids=ids[:20], spans=document.spans[:20])
    generator = np.random.default_rng(0)
    cut = [next(tokens.excerpts(iter([document]), 30, 15, generator)) for _ in range(50)]
    assert all(len(excerpt.ids) == 30 and excerpt.ids[0] % 15 == 0 for excerpt in cut)
    assert {int(excerpt.ids[0]) for excerpt in cut} == {0, 15, 30, 45, 60}
    assert all((np.diff(excerpt.ids) == 1).all() and (excerpt.spans[:, 0] == excerpt.ids).all() for excerpt in cut)
    assert next(tokens.excerpts(iter([short]), 30, 15, generator)) is not short
    assert (next(tokens.excerpts(iter([short]), 30, 15, generator)).ids == short.ids).all()
