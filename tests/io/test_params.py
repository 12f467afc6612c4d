from pathlib import Path

import pytest
from pydantic import PositiveInt

from stages.lib.io import params
from stages.lib.io.errors import UserError, nearest
from tests.settings import write_params


class Inner(params.Params):
    k: PositiveInt


class Outer(params.Params):
    lr: float
    inner: Inner


def test_reads_yaml_1_2_as_dvc_does(project: Path) -> None:
    write_params("a: {lr: 1e-3, inner: {k: 4}}\nb: no\n")
    assert params.read("a", Outer) == Outer(lr=0.001, inner=Inner(k=4))
    assert params.read("a.inner.k", int) == 4
    assert params.value("b") == "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {lr: 1, inner: {k: 4, kk: 1}}", r"unknown key a\.inner\.kk; did you mean 'k'"),
        ("a: {lr: 1, inner: {k: 0}}", r"a\.inner\.k is 0: input should be greater than 0"),
        ("a: {lr: x, inner: {k: 1}}", r"a\.lr is 'x': input should be a valid number"),
        ("a: {lr: 1, inner: {k: 1.0}}", r"a\.inner\.k is 1\.0: input should be a valid integer"),
        ("a: {lr: 1}", r"a\.inner is missing"),
        ("aa: {lr: 1}", r"a is missing: no 'a' in the top level; did you mean 'aa'"),
        ("a: [", r"params\.yaml is not readable YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(project: Path, text: str, message: str) -> None:
    write_params(text)
    with pytest.raises(UserError, match=message):
        params.read("a", Outer)


def test_a_missing_file_is_named(project: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml does not exist; run from the root"):
        params.value("a")


def test_nearest_names_the_closest_and_all():
    assert nearest("tok", ["topk", "relu"]) == "; did you mean 'topk'? (known: relu, topk)"
    assert nearest("xyz", ["topk"]) == " (known: topk)"
