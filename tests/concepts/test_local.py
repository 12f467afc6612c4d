"""Local concepts are those that a Python token and the kinds of the two before it tell, on source that nobody chose."""

import argparse
import inspect
import token

import numpy as np
import pytest

from stages.lib.concepts.python_labels import label_python
from stages.lib.concepts.python_source import KEYWORDS, Source, Token
from stages.lib.concepts.python_tokens import SPECS

FAR = ("if_test", "call_argument", "return_value", "first_argument", "assignment_value", "display",
       "keyword_argument_equals", "call_closing_parenthesis", "function_signature", "later_parameter")  # fmt: skip


def kind_of(found: Token) -> str:
    if found.kind == token.OP or found.text in KEYWORDS or found.text in ("self", "cls"):
        return found.text
    return token.tok_name[found.kind]


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    """For each concept the F1 of the best list of triples of kinds, on the first characters of tokens."""
    triples: list[str] = []
    source = Source(inspect.getsource(argparse))
    kinds, end = ["\n", "\n"], 0
    for found in source.tokens:
        if "\n" in source.text[end : found.start]:
            kinds.append("\n")
        kinds.append(kind_of(found))
        triples.append(" ".join(kinds[-3:]))
        end = found.end
    names = [spec.name for spec in SPECS]
    labels = label_python(source, names).labels(source.tokens.start)
    _, triple = np.unique(triples, return_inverse=True)
    total, best = np.bincount(triple), {}
    for name, label in zip(names, labels.T, strict=True):
        positive = np.bincount(triple[label], minlength=len(total))
        if positive.sum() >= 20:
            order = np.argsort(-positive / total)
            both = positive[order].cumsum()
            best[name] = float((2 * both / (total[order].cumsum() + both[-1])).max())
    return best


def test_local_concepts_are_told_by_the_words_nearby(scores: dict[str, float]) -> None:
    local = [spec.name for spec in SPECS if spec.kind == "local" and spec.name in scores]
    assert len(local) >= 18
    assert {name: score for name in local if (score := scores[name]) < 0.95} == {}


def test_roles_in_a_statement_are_not(scores: dict[str, float]) -> None:
    assert {name: score for name in FAR if (score := scores[name]) >= 0.92} == {}
