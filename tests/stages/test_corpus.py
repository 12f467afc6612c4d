import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import corpus
from stages.lib.io.errors import UserError
from stages.lib.language.documents import SPLITS, Document, read_documents
from stages.sources import local_files, python_packages
from tests.settings import write_params

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
def workspace(project: Path) -> Path:
    """A directory with settings and an empty folder of texts."""
    (project / "texts").mkdir()
    write_params(
        "corpus:\n  source: local_files\n  seed: 0\n  min_characters: 1\n  near_copy: 0.9\n"
        "  split: {lm_train: 1, sae_train: 1, validation: 1, test: 1}\n"
        "  local_files: {glob: '**/*', column: text}\n"
    )
    return project


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(glob="**/*", column="text"):
    return list(local_files.documents(local_files.SourceParams(glob=glob, column=column)))


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


@pytest.mark.parametrize("ending", PACK)
def test_every_compression_gives_the_same_text(workspace, ending):
    rows = "".join(json.dumps({"text": f"row {i} ü\u2028"}, ensure_ascii=False) + "\n" for i in range(3))
    # Two streams one after the other are one file, as programs write that compress in parallel or append.
    packed = b"".join(PACK[ending](part.encode()) for part in (rows[:10], rows[10:]))
    (workspace / f"texts/a.jsonl{ending}").write_bytes(packed)
    (workspace / f"texts/b.py{ending}").write_bytes(PACK[ending](b"x = 1\n"))
    assert read() == [
        *(Document(f"a.jsonl{ending}#{i + 1}", f"row {i} ü\u2028", "text") for i in range(3)),
        Document(f"b.py{ending}", "x = 1\n", "python"),
    ]


def test_byte_order_marks_line_ends_blank_lines_nulls_and_empty_files(workspace):
    texts = workspace / "texts"
    (texts / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    (texts / "b.md").write_bytes(b"")
    (texts / "c.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\r\n\r\n  \n{"text": null}\n{"text": ""}\n{"text": "last"}'
    )
    (texts / "d.jsonl").write_bytes(b"")
    pq.write_table(pa.table({"text": ["first", None, "last"]}), texts / "e.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), texts / "f.parquet")
    assert {document.id: document.text for document in read()} == {
        "a.txt": "one\r\ntwo\n",
        "b.md": "",
        "c.jsonl#1": "first",
        "c.jsonl#4": "",
        "c.jsonl#5": "",
        "c.jsonl#6": "last",
        "e.parquet#1": "first",
        "e.parquet#2": "",
        "e.parquet#3": "last",
    }
    for i in range(20):
        (texts / f"{i}.txt").write_text(words(100 * i, 100 * i + 20))
    corpus.main()
    dropped = json.loads((workspace / "data/corpus/corpus.json").read_text())["dropped"]
    assert dropped == {"short": 4, "near_copy": 2}  # the empty ones; the second "first" and "last"


def test_a_folder_links_to_folders_and_hidden_files(workspace):
    texts, elsewhere = workspace / "texts", workspace / "elsewhere"
    for name in ("books/a.txt", "books/deep/b.txt", "books/.cache/c.txt", "books/.hidden.txt", "d.txt"):
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        (texts / name).write_text(name)
    elsewhere.mkdir()
    (elsewhere / "e.txt").write_text("linked")
    (texts / "link").symlink_to(elsewhere)
    assert [document.id for document in read("books")] == ["books/a.txt", "books/deep/b.txt"]
    assert [document.id for document in read("*.txt")] == ["d.txt"]
    assert [document.id for document in read("books/.*.txt")] == ["books/.hidden.txt"]
    assert [document.id for document in read()] == ["books/a.txt", "books/deep/b.txt", "d.txt", "link/e.txt"]
    (elsewhere / "e.txt").unlink()
    elsewhere.rmdir()
    with pytest.raises(UserError, match=r"texts/link is a link to what is not there; mend it"):
        read()


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst"])
def test_a_table_is_read_line_by_line(workspace, ending):
    line = json.dumps({"text": "x" * 10_000}).encode() + b"\n"
    whole = line * 2000 + b"not JSON\n"
    (workspace / f"texts/a{ending}").write_bytes(PACK[ending.removeprefix(".jsonl")](whole))
    rows = local_files.documents(local_files.SourceParams(glob="*", column="text"))
    tracemalloc.start()
    try:
        assert sum(1 for _ in zip(range(2000), rows, strict=False)) == 2000
        assert tracemalloc.get_traced_memory()[1] < len(whole) / 2  # xz has a dictionary of 8 MiB
    finally:
        tracemalloc.stop()
    with pytest.raises(UserError, match=r"line 2001, is not JSON"):
        next(rows)


def test_a_parquet_file_is_read_one_part_at_a_time(workspace):
    table = pa.table({"text": [f"{i} " + "x" * 10_000 for i in range(5000)], "other": ["y" * 1000] * 5000})
    pq.write_table(table, workspace / "texts/a.parquet", row_group_size=500, compression="none", use_dictionary=False)
    size = table.nbytes
    del table
    before, most = pa.total_allocated_bytes(), 0
    for _ in local_files.documents(local_files.SourceParams(glob="*", column="text")):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < size / 4


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


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
LONG_WINDOW = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + ((5 << 3) | 1).to_bytes(3, "little") + b"hello"
"""A Zstandard frame with a window of 2 GiB, as `zstd --long=31` makes them."""
ROWS = b"".join(b'{"text": "row %d"}\n' % i for i in range(3))
MEND = "; mend it, take it away or narrow corpus.local_files.glob"


def parquet(column):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": column}), sink, compression="none", use_dictionary=False)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo \xff\xfe", "texts/a.txt, line 2, is not UTF-8 text ('utf-8' codec can't decode byte 0xff"),
        ("a.txt", "utf-16".encode("utf-16"), "texts/a.txt, line 1, is not UTF-8 text"),
        ("a.png", PNG, "texts/a.png, line 1, is not UTF-8 text"),
        ("a.bin", b"abc\n\0\0\0", "texts/a.bin, line 2, has a NUL byte, so it is no text"),
        ("a.tar.gz", gzip.compress(b"name" + bytes(508)), "texts/a.tar.gz, line 1, has a NUL byte"),
        ("a.txt.gz", gzip.compress(ROWS)[:-9], "texts/a.txt.gz cannot be read beyond line 3 (Compressed file ended"),
        ("a.txt.gz", b"no gzip", "texts/a.txt.gz cannot be read beyond line 0 (Not a gzipped file"),
        ("a.txt.gz", b"", "texts/a.txt.gz cannot be read beyond line 0 (it is empty, which no compressed file is)"),
        ("a.txt.bz2", bz2.compress(ROWS)[:-1], "texts/a.txt.bz2 cannot be read beyond line 3 (Compressed file ended"),
        ("a.txt.bz2", b"no bzip", "texts/a.txt.bz2 cannot be read beyond line 0 (Invalid data stream)"),
        ("a.txt.xz", lzma.compress(ROWS)[:-1], "texts/a.txt.xz cannot be read beyond line"),
        ("a.txt.xz", b"no lzma", "texts/a.txt.xz cannot be read beyond line 0 (Input format not supported"),
        ("a.txt.zst", zstd(ROWS)[:-1], "texts/a.txt.zst cannot be read beyond line"),
        ("a.txt.zst", b"no zstd", "texts/a.txt.zst cannot be read beyond line 0 (ZSTD decompress failed"),
        (
            "a.txt.zst",
            LONG_WINDOW,
            "texts/a.txt.zst cannot be read beyond line 0 (ZSTD decompress failed: Frame requires",
        ),
        ("a.jsonl.gz", gzip.compress(ROWS) + gzip.compress(ROWS)[:-9], "texts/a.jsonl.gz cannot be read beyond line 6"),
        ("a.jsonl", ROWS + b"{", "texts/a.jsonl, line 4, is not JSON (Expecting property name"),
        ("a.jsonl", ROWS + b"[" * 100_000, "texts/a.jsonl, line 4, is not JSON (maximum recursion depth"),
        ("a.jsonl", ROWS + b"\n[1]", "texts/a.jsonl, line 5, is not an object of JSON, with names and values"),
        ("a.jsonl", ROWS + b'{"text": "\xff"}', "texts/a.jsonl, line 4, is not UTF-8 text"),
        ("a.jsonl", ROWS + b'{"text": 7}', "texts/a.jsonl, line 4, has int, not text, in corpus.local_files.column = "),
        ("a.jsonl", ROWS + b'{"text": "\\ud83d"}', "texts/a.jsonl, line 4, is not Unicode text"),
        ("a.parquet", b"nothing at all", "texts/a.parquet is not a Parquet file, or damaged after row 0 ("),
        ("a.parquet", parquet(["x"])[:-1], "texts/a.parquet is not a Parquet file, or damaged after row 0 ("),
        (
            "a.parquet",
            parquet([1, 2]),
            "texts/a.parquet, row 1, has int, not text, in corpus.local_files.column = 'text'",
        ),
        ("a.parquet.gz", gzip.compress(parquet(["x"])), "texts/a.parquet.gz is not a Parquet file"),
        (
            "a.parquet",
            parquet(pa.array([b"\xff"]).cast(pa.string(), safe=False)),
            "texts/a.parquet, after row 0, is not UTF-8",
        ),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_unreadable_local_files_are_named(workspace, name, content, message):
    (workspace / "texts" / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        corpus.main()
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(MEND)
    assert not list((workspace / "data/corpus").iterdir())


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_column_of_local_files_is_named_with_those_there_are(workspace, name):
    content = ROWS + b'{"txt": "x"}' if name == "a.jsonl" else parquet(["x"])
    (workspace / "texts" / name).write_bytes(content)
    where, column = ("texts/a.jsonl, line 4,", "text") if name == "a.jsonl" else ("texts/a.parquet", "txt")
    other = "txt" if column == "text" else "text"
    with pytest.raises(UserError) as caught:
        read(column=column)
    known = f"corpus.local_files.column = {column!r}; did you mean {other!r}? (known: {other})"
    assert str(caught.value) == f"{where} has no {known}"


def test_pages_of_a_parquet_file_that_are_damaged_are_named(workspace):
    content = bytearray(parquet([f"{i} " + "x" * 100 for i in range(5000)]))
    content[4:4000] = b"\xff" * 3996
    (workspace / "texts/a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"texts/a.parquet is not a Parquet file, or damaged after row 0 \("):
        read()


@pytest.mark.parametrize(("glob", "message"), [("*.rst", "matches no file"), ("../*", "must stay below")])
def test_a_glob_outside_or_without_files_is_refused(workspace, glob, message):
    with pytest.raises(UserError, match=message):
        read(glob)


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
