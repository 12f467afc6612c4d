import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import corpus
from stages.lib import params
from stages.lib.documents import SPLITS, Document, read_documents
from stages.lib.errors import UserError
from stages.sources import local_files, python_packages

SHARES = corpus.Shares(lm_train=0.6, sae_train=0.2, validation=0.1, test=0.1)


def words(start, stop):
    return " ".join(f"w{i}" for i in range(start, stop))


def test_resemblance_is_the_jaccard_index_of_short_texts():
    # 12 words have 5 shingles of 8; shifted by one word, 4 are shared out of 6.
    assert corpus.resemblance(corpus.sketch(words(0, 12)), corpus.sketch(words(1, 13))) == pytest.approx(4 / 6)


def test_resemblance_of_long_texts_is_near_the_jaccard_index():
    a, b = words(0, 3000), words(1000, 4000)
    shared, union = 2000 - 7, 4000 - 7
    assert corpus.resemblance(corpus.sketch(a), corpus.sketch(b)) == pytest.approx(shared / union, abs=0.18)  # 3 sd


def test_near_copies_are_dropped_and_others_kept():
    copies = corpus.Deduplicator(0.5)
    assert not copies.is_near_copy(words(0, 100))
    assert copies.is_near_copy(words(0, 100) + " changed")
    assert not copies.is_near_copy(words(500, 600))


def test_splits_have_their_shares_and_do_not_move_when_documents_come():
    names = [corpus.split_of(f"file{i}", SHARES, 0) for i in range(20_000)]
    counts = Counter(names)
    assert [round(counts[name] / len(names), 2) for name in SPLITS] == [0.6, 0.2, 0.1, 0.1]
    assert corpus.split_of("file7", SHARES, 0) == names[7]
    assert [corpus.split_of(f"file{i}", SHARES, 1) for i in range(100)] != names[:100]


def test_clean_makes_unix_line_ends_and_counts_what_it_drops():
    own = corpus.CorpusParams(source="x", seed=0, min_characters=10, near_copy=0.5, split=SHARES)
    dropped = Counter()
    given = [Document("a", "short", "text"), Document("b", words(0, 30) + "\r\n", "text")]
    given.append(Document("c", words(0, 30) + "\n", "text"))
    assert [d.text for d in corpus.clean(iter(given), own, dropped)] == [words(0, 30) + "\n"]
    assert dropped == {"short": 1, "near_copy": 1}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "params.yaml").write_text(
        "corpus:\n  source: local_files\n  seed: 0\n  min_characters: 1\n  near_copy: 0.9\n"
        "  split: {lm_train: 1, sae_train: 1, validation: 1, test: 1}\n"
        "  local_files: {glob: '**/*', column: text}\n"
    )
    params._document.cache_clear()
    yield tmp_path
    params._document.cache_clear()


def test_local_files_of_every_kind_end_in_some_split(workspace):
    texts = workspace / "texts"
    (texts / "a.py").write_text("x = 1\n")
    (texts / "b.txt.gz").write_bytes(gzip.compress("zipped ü".encode()))
    (texts / "c.jsonl").write_text("".join(json.dumps({"text": f"row {i} {i * 7}"}) + "\n" for i in range(20)))
    pq.write_table(pa.table({"text": [f"cell {i} {i * 3}" for i in range(20)]}), texts / "d.parquet")
    corpus.main()
    documents = {d.id: d for name in SPLITS for d in read_documents(name)}
    assert len(documents) == 42
    assert documents["a.py"] == Document("a.py", "x = 1\n", "python")
    assert documents["b.txt.gz"].text == "zipped ü"
    assert documents["c.jsonl#3"].text == "row 2 14"
    assert documents["d.parquet#1"].text == "cell 0 0"
    counts = json.loads((workspace / "data/corpus/corpus.json").read_text())["splits"]
    assert sum(split["documents"] for split in counts.values()) == 42


def test_two_runs_write_the_same_bytes(workspace):
    (workspace / "texts/c.jsonl").write_text("".join(json.dumps({"text": f"r {i}"}) + "\n" for i in range(40)))
    corpus.main()
    first = {path.name: path.read_bytes() for path in (workspace / "data/corpus").iterdir()}
    corpus.main()
    assert {path.name: path.read_bytes() for path in (workspace / "data/corpus").iterdir()} == first


def test_a_corpus_that_leaves_a_split_empty_is_refused_and_leaves_no_file(workspace):
    (workspace / "texts/a.txt").write_text("only one document")
    with pytest.raises(UserError, match=r"gives no document for .*1 kept, 0 shorter than corpus.min_characters = 1"):
        corpus.main()
    assert not list((workspace / "data/corpus").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\xff", "is not UTF-8 text"),
        ("a.jsonl", b"{", "line 1, is not JSON"),
        ("a.jsonl", b'{"txt": "x"}', "no text in corpus.local_files.column = 'text'; did you mean 'txt'"),
        ("a.parquet", b"nothing", "is not a Parquet file"),
    ],
)
def test_unreadable_local_files_are_named(workspace, name, content, message):
    (workspace / "texts" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        corpus.main()


@pytest.mark.parametrize(("glob", "message"), [("*.rst", "matches no file"), ("../*", "must stay below")])
def test_a_glob_outside_or_without_files_is_refused(workspace, glob, message):
    with pytest.raises(UserError, match=message):
        list(local_files.documents(local_files.SourceParams(glob=glob, column="text")))


def test_python_packages_reads_the_wheel_in_order_of_paths():
    found = python_packages.documents(python_packages.SourceParams(packages=["networkx==3.6.1"]))
    ids = [document.id for document in found]
    assert ids == sorted(ids)
    assert "networkx/algorithms/clique.py" in ids


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("networkx", "a version is needed, such as networkx==1.0"),
        ("networkx==0.1", r"but 3\.6\.1 is installed; pip install networkx==0.1"),
        ("no-such-package==1", "is not installed"),
    ],
)
def test_another_version_than_the_pinned_one_is_refused(requirement, message):
    with pytest.raises(UserError, match=message):
        list(python_packages.documents(python_packages.SourceParams(packages=[requirement])))
