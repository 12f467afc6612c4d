"""Tables of n-grams against values worked out by hand, and against a chain whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from stages.lib.concepts.labelled import Batch
from stages.lib.concepts.labels import Concept, write_concepts
from stages.lib.concepts.ngrams import Asked, Ngrams, read_ngrams, write_ngrams
from stages.lib.concepts.tally import tally
from stages.lib.detectors.ngram_lookup import STRENGTH, NgramLookup, best_threshold, lookups
from stages.lib.io.errors import UserError

D_VOCAB = 5


class Part:
    """What is asked of a labelled part."""

    def __init__(self, context: np.ndarray, labels: np.ndarray) -> None:
        self.context, self.labels = context, labels

    def batch(self) -> Batch:
        return Batch(None, self.labels, self.context, np.zeros(len(self.labels), np.int64))  # type: ignore[arg-type]


def contexts_of(tokens: np.ndarray) -> np.ndarray:
    """The two tokens before each and its own; token 0 stands before the text."""
    padded = np.concatenate([[0, 0], tokens])
    return np.stack([padded[:-2], padded[1:-1], padded[2:]], 1)


def random_part(n: int, seed: int) -> Part:
    """Tokens with a concept of the token, one of the pair, one of the triple, and one of none of them."""
    generator = np.random.default_rng(seed)
    context = contexts_of(generator.integers(1, D_VOCAB, n))
    two, one, own = context.T
    labels = [own == 1, (own == 2) & (one == 3), (own == 3) & (one == 1) & (two == 4), generator.random(n) < 0.1]
    return Part(context, np.stack(labels, 1))


@pytest.fixture(autouse=True)
def directory(project: Path) -> None:
    """Counts are written to and read from a directory of the test's own."""


def count(text: Part, asked: np.ndarray) -> Ngrams:
    """What is counted in a text of the contexts that are asked about."""
    nodes = Asked(asked, D_VOCAB)
    names = [str(column) for column in range(text.labels.shape[1])]
    write_concepts([Concept(name, "local", prevalence={}, positives={}, mean_run=1.0) for name in names])
    write_ngrams(nodes, tally(nodes, text.context, text.labels, np.ones(len(text.labels), np.bool_)), names)
    return read_ngrams(np.arange(len(names)))


def chosen(counted: Part, validation: Part, test: Part) -> dict[str, NgramLookup]:
    asked = np.concatenate([validation.context, test.context])
    found = lookups(count(counted, asked), asked, D_VOCAB)
    for one in found.values():
        one.observe(validation.batch())
        one.choose()
    return found


def f1(fires: np.ndarray, labels: np.ndarray) -> np.ndarray:
    scores: np.ndarray = 2 * (fires & labels).sum(0) / (fires.sum(0) + labels.sum(0))
    return scores


def test_probabilities_by_hand() -> None:
    # The text 1 2 2, whose last token has the concept; asked about: 1 2, 2 2, and 3, which is not in the text.
    counted = Part(contexts_of(np.array([1, 2, 2])), np.array([[False], [False], [True]]))
    asked = np.array([[0, 1, 2], [1, 2, 2], [2, 2, 3]])
    found = lookups(count(counted, asked), asked, D_VOCAB)
    rate, s = 1 / 3, STRENGTH
    token = (1 + s * rate) / (2 + s)
    pair_12, pair_22 = s * token / (1 + s), (1 + s * token) / (1 + s)
    assert found["token"].probability[:, 0] == pytest.approx([token, rate])
    assert found["bigram"].keys.tolist() == [7, 12, 13]
    assert found["bigram"].probability[:, 0] == pytest.approx([pair_12, pair_22, rate])
    assert found["trigram"].keys.tolist() == [7, 37, 63]
    three_12, three_22 = s * pair_12 / (1 + s), (1 + s * pair_22) / (1 + s)
    assert found["trigram"].probability[:, 0] == pytest.approx([three_12, three_22, rate])


def test_each_table_tells_the_concepts_of_its_length() -> None:
    counted, validation, test = (random_part(4000, seed) for seed in range(3))
    found = chosen(counted, validation, test)
    scores = {name: f1(one.predict(test.batch()), test.labels) for name, one in found.items()}
    assert scores["token"][0] == scores["bigram"][1] == scores["trigram"][2] == 1
    # A token tells a pair as often as the other token of it stands there; 4 tokens are equally frequent.
    assert scores["token"][1] == pytest.approx(2 / (1 + 4), abs=0.05)
    assert scores["bigram"][2] == pytest.approx(2 / (1 + 4), abs=0.08)
    assert all(one[3] < 0.3 for one in scores.values())  # 2 p / (1 + p) = 0.18 is that of always firing


def dense(text: Part, asked: np.ndarray) -> dict[str, np.ndarray]:
    """The probabilities of the n-grams that are asked about, in lexicographic order, from counts without any tree."""
    before, found = {(): text.labels.sum(0) / len(text.labels)}, {}
    for name, n in {"token": 1, "bigram": 2, "trigram": 3}.items():
        probability = {}
        for gram in sorted({*map(tuple, asked[:, -n:].tolist())}):
            same = (text.context[:, -n:] == gram).all(1)
            probability[gram] = (text.labels[same].sum(0) + STRENGTH * before[gram[1:]]) / (same.sum() + STRENGTH)
        before, found[name] = probability, np.stack([*probability.values()]).astype(np.float32)
    return found


def test_tables_are_to_the_bit_those_of_all_labels() -> None:
    counted, validation, test = (random_part(300, seed) for seed in range(3))
    found = chosen(counted, validation, test)
    expected = dense(counted, np.concatenate([validation.context, test.context]))
    assert all(np.array_equal(found[name].probability, expected[name]) for name in expected)


def test_what_is_not_asked_for_changes_nothing() -> None:
    counted, validation, test = (random_part(600, seed) for seed in range(3))
    few = Part(test.context[:9], test.labels[:9])
    one, other = chosen(counted, validation, test), chosen(counted, validation, few)
    for name, table in one.items():
        rows = np.searchsorted(table.keys, other[name].keys)
        assert np.array_equal(table.keys[rows], other[name].keys)
        assert np.array_equal(table.probability[rows], other[name].probability)
        assert np.array_equal(table.threshold, other[name].threshold)  # type: ignore[arg-type]


def test_counts_of_other_tokens_are_refused() -> None:
    counted, validation, test = (random_part(30, seed) for seed in range(3))
    found = count(counted, validation.context)
    with pytest.raises(UserError, match="lacks contexts of up to 3 tokens of validation and test: it was made from"):
        lookups(found, test.context, D_VOCAB)


def test_the_threshold_is_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    totals = generator.integers(1, 40, 30)
    positives = generator.binomial(totals[:, None], generator.random((30, 5)) ** 3)
    probability = np.round(generator.random((30, 5)), 1)  # with equal ones
    found = best_threshold(probability, positives, totals)
    for c in range(5):
        scores = {}
        for p in probability[:, c]:
            taken = probability[:, c] >= p
            scores[p] = 2 * positives[taken, c].sum() / (totals[taken].sum() + positives[:, c].sum())
        assert scores[found[c]] == pytest.approx(max(scores.values()))


def test_more_text_comes_nearer_to_what_is_true() -> None:
    """Two noisy concepts whose best F1 is known, told apart by pairs: tables of more text miss it by less."""
    share = np.random.default_rng(9).random((D_VOCAB, D_VOCAB)) ** 2

    def part(n: int, seed: int) -> Part:
        generator = np.random.default_rng(seed)
        context = contexts_of(generator.integers(1, D_VOCAB, n))
        return Part(context, (generator.random(n) < share[context[:, 1], context[:, 2]])[:, None])

    test, validation = part(50_000, 0), part(20_000, 1)
    known = max(
        float(f1((share[test.context[:, 1], test.context[:, 2]] >= p)[:, None], test.labels)[0]) for p in share.ravel()
    )
    missed = []
    for n in (30, 300, 30_000):
        fires = chosen(part(n, 2), validation, test)["bigram"].predict(test.batch())
        missed.append(known - float(f1(fires, test.labels)[0]))
    assert missed[0] > missed[1] > missed[2] and abs(missed[2]) < 0.005
