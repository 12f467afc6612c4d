"""A data set of the hub, through the real `datasets` library against a hub on 127.0.0.1."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stages.lib.io.errors import UserError
from stages.sources.hf_dataset import SourceParams, documents
from tests.hub import Client, Hub

SCRIPT = """
import datasets
from stages.lib.io.errors import UserError
from stages.sources.hf_dataset import SourceParams, documents

datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 2  # of 20

def answer(**given):
    found = []
    try:
        for document in documents(SourceParams(**given)):
            found.append(list(document))
        return {"documents": found}
    except UserError as error:
        return {"documents": found, "line": str(error)}
"""
DEFAULTS = {
    "config": None, "split": "train", "column": "text", "revision": None, "streaming": False, "max_documents": None,
    "language": "text",
}  # fmt: skip
BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["fetched", "streamed"])
ROWS = [f"row {i} ü" for i in range(10)]


class World:
    """A hub, a client of it, and what it serves: made once, since a client takes seconds to begin."""

    def __init__(self, root, hub, client):
        self.root, self.hub, self.client = root, hub, client

    def repository(self, name, revision="main", **files):
        """Serve files, `data__train_jsonl` being `data/train.jsonl`; returns the folder."""
        directory = self.root / "served" / name / revision
        for path, content in files.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        directory.mkdir(parents=True, exist_ok=True)
        self.hub.add(f"datasets/{name}", directory, revision)
        return directory

    def ask(self, name, **question):
        return self.client.ask(**{**DEFAULTS, "name": name, **question})

    def texts(self, name, **question):
        answer = self.ask(name, **question)
        assert "line" not in answer, answer["line"]
        split, language = question.get("split", "train"), question.get("language", "text")
        assert [row[0] for row in answer["documents"]] == [f"{split}/{i}" for i in range(len(answer["documents"]))]
        assert {row[2] for row in answer["documents"]} <= {language}
        return [row[1] for row in answer["documents"]]

    def line(self, name, **question):
        message = self.ask(name, **question)["line"]
        assert "\n" not in message and "Traceback" not in message
        return message


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    with Hub() as hub, Client(SCRIPT, hub.url, root / "home") as client:
        yield World(root, hub, client)
        assert client.errors() == ""  # nothing but what the stage itself says


def jsonl(rows):
    return b"".join(json.dumps({"text": row}, ensure_ascii=False).encode() + b"\n" for row in rows)


def parquet(rows, **columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": rows, **columns}), sink)
    return sink.getvalue().to_pybytes()


FORMS = {
    "parquet": {f"data/train-0000{i}-of-00002.parquet": parquet(rows) for i, rows in enumerate((ROWS[:6], ROWS[6:]))},
    "jsonl": {"train.jsonl": jsonl(ROWS), "test.jsonl": jsonl(["other"])},
    "gz": {"train.jsonl.gz": gzip.compress(jsonl(ROWS))},
    "bz2": {"train.jsonl.bz2": bz2.compress(jsonl(ROWS))},
    "xz": {"train.jsonl.xz": lzma.compress(jsonl(ROWS))},
    "zst": {f"train/{i}.jsonl.zst": zstandard.compress(jsonl(rows)) for i, rows in enumerate((ROWS[:4], ROWS[4:]))},
    "text": {"train.txt": "".join(f"{row}\n" for row in ROWS).encode()},
}
TWO = b"""---
configs:
- {config_name: en, data_files: en/*.jsonl}
- {config_name: de, data_files: de/*.jsonl}
---
"""
NO_SUCH = "has no such data set, or it is private and HF_TOKEN has no token for it"


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_documents_in_order_whatever_the_files(world, form, streaming):
    world.repository(f"org/{form}", **FORMS[form])
    assert world.texts(f"org/{form}", streaming=streaming) == ROWS


@BOTH
def test_no_more_documents_than_asked_for(world, streaming):
    world.repository("org/first", **FORMS["jsonl"])
    assert world.texts("org/first", streaming=streaming, max_documents=3, language="python") == ROWS[:3]
    assert world.texts("org/first", streaming=streaming, max_documents=30) == ROWS


@BOTH
def test_a_configuration_a_split_a_column_and_a_revision_are_chosen(world, streaming):
    both = {"en/train.jsonl": jsonl(["hello"]), "de/train.jsonl": jsonl(["hallo"]), "README.md": TWO}
    world.repository("org/configs", **both)
    assert world.texts("org/configs", config="de", streaming=streaming) == ["hallo"]
    world.repository("org/splits", **FORMS["jsonl"])
    assert world.texts("org/splits", split="test", streaming=streaming) == ["other"]
    world.repository("org/columns", **{"train.parquet": parquet(["a", "b"], code=["x = 1", "y = 2"])})
    assert world.texts("org/columns", column="code", streaming=streaming) == ["x = 1", "y = 2"]
    world.repository("org/revisions", **{"train.jsonl": jsonl(["new"])})
    world.repository("org/revisions", revision="v1", **{"train.jsonl": jsonl(["old"])})
    assert world.texts("org/revisions", streaming=streaming) == ["new"]
    assert world.texts("org/revisions", revision="v1", streaming=streaming) == ["old"]


@BOTH
def test_columns_that_are_not_asked_for_are_not_decoded(world, streaming):
    features = {"text": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"text": ["a", "b"], "image": pa.array([{"bytes": b"no image"}] * 2, kind)})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    world.repository("org/images", **{"train.parquet": sink.getvalue().to_pybytes()})
    assert world.texts("org/images", streaming=streaming) == ["a", "b"]


@BOTH
def test_a_null_is_a_document_without_text(world, streaming):
    world.repository("org/nulls", **{"train.parquet": parquet(["a", None, "", "b"])})
    assert world.texts("org/nulls", streaming=streaming) == ["a", "", "", "b"]
    world.repository("org/lacking", **{"train.jsonl": b'{"text": "a"}\n{"text": null}\n{"other": 1}\n{"text": "b"}\n'})
    assert world.texts("org/lacking", streaming=streaming) == ["a", "", "", "b"]


@BOTH
def test_a_value_that_is_no_text_is_named(world, streaming):
    world.repository("org/numbers", **{"train.parquet": parquet(["a"] * 3, stars=[1, 2, 3])})
    assert world.line("org/numbers", column="stars", streaming=streaming) == (
        "corpus.hf_dataset.name is 'org/numbers': row 0 has int, not text, in corpus.hf_dataset.column = 'stars'"
    )
    world.repository("org/mixed", **{"train.jsonl": b'{"text": "a"}\n{"text": 7}\n'})
    answer = world.ask("org/mixed", streaming=streaming)
    assert answer["documents"] == [["train/0", "a", "text"]]
    assert answer["line"] == (
        "corpus.hf_dataset.name is 'org/mixed': row 1 has int, not text, in corpus.hf_dataset.column = 'text'"
    )


@BOTH
def test_what_is_asked_for_and_not_there_is_one_clear_line(world, streaming):
    world.repository("org/known", **FORMS["jsonl"])
    hub, what = world.hub.url, "corpus.hf_dataset.name is 'org/known'"
    assert world.line("org/no-texts", streaming=streaming) == (
        f"corpus.hf_dataset.name is 'org/no-texts': {hub} {NO_SUCH}"
    )
    assert world.line("org/known", column="txt", streaming=streaming).startswith(what)
    assert "corpus.hf_dataset.column = 'txt'; did you mean 'text'? (known: text)" in world.line(
        "org/known", column="txt"
    )
    assert world.line("org/known", split="tran", streaming=streaming).startswith(
        f"{what}, config None, split 'tran': it cannot be read ("
    )
    assert "'train', 'test'" in world.line("org/known", split="tran", streaming=streaming)
    assert world.line("org/known", revision="v9", streaming=streaming) == (
        f"{what}: corpus.hf_dataset.revision: it has no branch, tag or commit 'v9'"
    )
    world.repository("org/two", **{"en/a.jsonl": jsonl(["x"]), "de/a.jsonl": jsonl(["x"]), "README.md": TWO})
    assert world.line("org/two", config="dee", streaming=streaming) == (
        "corpus.hf_dataset.name is 'org/two', config 'dee', split 'train': it cannot be read "
        "(BuilderConfig 'dee' not found. Available: ['en', 'de'])"
    )
    assert "pick one among the available configs: ['en', 'de']" in world.line("org/two", streaming=streaming)
    assert "Repo id must use alphanumeric chars" in world.line("no such", streaming=streaming)


@BOTH
def test_a_repository_without_data_or_with_a_program_is_one_clear_line(world, streaming):
    world.repository("org/empty")
    assert "doesn't contain any data files" in world.line("org/empty", streaming=streaming)
    world.repository("org/program", **{"program.py": b"open('ran', 'w')\n"})
    assert "Dataset scripts are no longer supported, but found program.py" in world.line(
        "org/program", streaming=streaming
    )


@BOTH
@pytest.mark.parametrize(
    ("label", "file", "content", "why"),
    [
        ("json", "train.jsonl", b'{"text": "a"}\n{"text":\n', "JSON parse error"),
        ("parquet", "train.parquet", b"PAR1, but no more", "Parquet"),
        ("gz", "train.jsonl.gz", gzip.compress(jsonl(ROWS))[:-12], "Compressed file ended"),
        ("bz2", "train.jsonl.bz2", bz2.compress(jsonl(ROWS))[:-12], "Compressed file ended"),
        ("xz", "train.jsonl.xz", lzma.compress(jsonl(ROWS))[:-30], "Compressed file ended"),
        ("zst", "train.jsonl.zst", zstandard.compress(jsonl(ROWS))[:4] + b"junk" * 9, "zstd decompress"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_a_damaged_file_is_one_clear_line(world, label, file, content, why, streaming):
    world.repository(f"org/damaged-{label}", **{file: content})
    message = world.line(f"org/damaged-{label}", streaming=streaming)
    assert message.startswith(
        f"corpus.hf_dataset.name is 'org/damaged-{label}', config None, split 'train': it cannot be"
    )
    assert why in message


@BOTH
def test_gated_and_private_data_sets_are_for_those_with_the_right_token(world, streaming):
    hub = world.hub.url
    for name in ("org/gated", "org/private"):
        world.repository(name, **FORMS["jsonl"])
    world.hub.gated.add("datasets/org/gated")
    world.hub.private.add("datasets/org/private")
    assert world.line("org/gated", streaming=streaming) == (
        f"corpus.hf_dataset.name is 'org/gated', which is gated: accept its terms at {hub}/datasets/org/gated and set "
        "HF_TOKEN to a token of the account that did"
    )
    assert world.line("org/private", streaming=streaming) == (
        f"corpus.hf_dataset.name is 'org/private': {hub} {NO_SUCH}"
    )
    for name in ("org/gated", "org/private"):
        assert world.line(name, streaming=streaming, token="wrong") == (
            f"corpus.hf_dataset.name is '{name}': {hub} answers 401 Unauthorized: it does not know the token in "
            "HF_TOKEN (or that of `hf auth login`)"
        )
        if streaming:  # fetched, it is in the cache from then on
            assert world.texts(name, streaming=True, token="right") == ROWS


@BOTH
@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (403, "403 Forbidden"),
        (429, "429 Too Many Requests; try again later"),
        (500, "500 Internal Server Error; try again later"),
        (503, "503 Service Unavailable; try again later"),
    ],
)
def test_an_error_of_the_server_is_one_clear_line(world, status, answer, streaming):
    name = f"org/status-{status}"
    world.hub.status[f"datasets/{name}"] = status
    assert (
        world.line(name, streaming=streaming) == f"corpus.hf_dataset.name is {name!r}: {world.hub.url} answers {answer}"
    )


@BOTH
def test_a_hub_that_never_answers_is_given_up(world, streaming):
    for silent in ("org/silent", "org/silent-list"):
        world.repository(silent, **FORMS["jsonl"])
    world.hub.silent |= {"datasets/org/silent", "datasets/org/silent-list/tree"}
    reached = f"{world.hub.url} cannot be reached, or the connection broke off"
    assert f"{reached} (ConnectionError: " in world.line("org/silent", streaming=streaming, timeout=0.3)
    assert f"{reached} (ReadTimeout: " in world.line("org/silent-list", streaming=streaming, timeout=0.3)


LONG = [f"{i} " + "x" * 1000 for i in range(200)]


@BOTH
def test_a_download_that_is_cut_goes_on_from_there(world, streaming):
    name = f"org/cut-{streaming}"
    world.repository(name, **{"train.jsonl": jsonl(LONG)})
    world.hub.cuts[f"datasets/{name}/train.jsonl"] = [50_000]
    world.hub.requests.clear()
    assert world.texts(name, streaming=streaming) == LONG
    parts = [request.bytes for request in world.hub.fetched("train.jsonl")]
    if streaming:  # a part of the file is asked for, and asked for again
        assert parts[0] == parts[1]
    else:
        assert parts == [None, f"bytes={50_000 // 4096 * 4096}-"]


def test_a_stream_that_is_cut_for_good_says_after_which_row(world):
    files = {f"train/{i}.jsonl": jsonl(LONG[100 * i : 100 * (i + 1)]) for i in range(2)}
    world.repository("org/breaks", **files)
    world.hub.cuts["datasets/org/breaks/train/1.jsonl"] = [10] * 100
    answer = world.ask("org/breaks", streaming=True)
    assert [text for _, text, _ in answer["documents"]] == LONG[:100]
    broken = "cannot be reached, or the connection broke off after row 99 (RemoteProtocolError: "
    assert answer["line"].startswith(f"corpus.hf_dataset.name is 'org/breaks': {world.hub.url} {broken}")
    world.hub.cuts.clear()
    assert world.texts("org/breaks", streaming=True) == LONG


def test_a_download_that_is_cut_for_good_is_one_clear_line_and_the_next_run_makes_it_good(world):
    world.repository("org/keeps-cutting", **{"train.jsonl": jsonl(LONG)})
    world.hub.cuts["datasets/org/keeps-cutting/train.jsonl"] = [10] * 10
    message = world.line("org/keeps-cutting")
    assert (
        f"{world.hub.url} cannot be reached, or the connection broke off (RemoteProtocolError: peer closed" in message
    )
    assert message.endswith("; run it again")
    world.hub.cuts.clear()
    assert world.texts("org/keeps-cutting") == LONG


def test_what_was_fetched_can_be_had_again_without_the_hub(world):
    world.repository("org/kept", **FORMS["parquet"])
    assert world.texts("org/kept") == ROWS
    with world.hub.away():
        assert world.texts("org/kept") == ROWS
        assert f"{world.hub.url} cannot be reached" in world.line("org/never")
    with Client(SCRIPT, world.hub.url, world.root / "home", HF_HUB_OFFLINE="1") as client:
        offline = World(world.root, world.hub, client)
        world.hub.requests.clear()
        assert offline.texts("org/kept") == ROWS
        for streaming in (False, True):
            assert offline.line("org/never", streaming=streaming) == (
                "corpus.hf_dataset.name is 'org/never': the cache does not have it, and HF_HUB_OFFLINE is set; "
                "unset it to fetch the data set"
            )
        assert not world.hub.requests
        assert client.errors() == ""


def test_a_folder_here_is_not_taken_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(UserError, match=r"name is 'texts', a file or folder here; for your own text use corpus.source"):
        list(documents(SourceParams(**{**DEFAULTS, "name": "texts"})))
