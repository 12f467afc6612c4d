"""A data set of the hub, through the real `datasets` library against a hub on 127.0.0.1."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.closure import ROOT
from tests.hub import Hub

# The hub's address is read when its library is imported, so all cases run in one process of their own.
CLIENT = """
import json, sys, urllib.request, os
from stages.lib.errors import UserError
from stages.sources.hf_dataset import SourceParams, documents
results = {}
for label, changes in json.loads(sys.argv[1]).items():
    if label == "stop":
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/_stop").close()
        continue
    given = dict(name="org/texts", config=None, split="train", column="text", revision=None, streaming=False,
                 max_documents=None, language="text") | changes
    try:
        results[label] = [list(document) for document in documents(SourceParams(**given))]
    except UserError as error:
        results[label] = str(error)
print(json.dumps(results))
"""
CASES = {
    "whole": {},
    "streamed": {"streaming": True, "max_documents": 3},
    "first": {"max_documents": 2, "language": "python"},
    "column": {"column": "txt"},
    "split": {"split": "tran"},
    "missing": {"name": "org/no-texts"},
    "stop": {},
    "refused": {"name": "org/other", "streaming": True},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    (root / "texts").mkdir()
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(5)]}), root / "texts/train-00000-of-00001.parquet")
    with Hub() as hub:
        hub.add("datasets/org/texts", root / "texts")
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        ran = subprocess.run(
            [sys.executable, "-c", CLIENT, json.dumps(CASES)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_rows_are_documents_in_order(results):
    assert results["whole"] == [[f"train/{i}", f"text {i}", "text"] for i in range(5)]


def test_streaming_gives_the_same_and_stops_where_asked(results):
    assert results["streamed"] == results["whole"][:3]
    assert results["first"] == [[f"train/{i}", f"text {i}", "python"] for i in range(2)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("column", "row 0 has no text in corpus.hf_dataset.column = 'txt'; did you mean 'text'"),
        ("split", "tran"),
        ("missing", "corpus.hf_dataset.name = 'org/no-texts': not found on the hub"),
        ("refused", "corpus.hf_dataset.name = 'org/other'"),
    ],
)
def test_what_goes_wrong_is_one_message(results, label, message):
    assert isinstance(results[label], str)
    assert message in results[label]
