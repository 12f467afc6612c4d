import math

import numpy as np
import pytest

from stages.lib.language.ngrams import nats_per_token


def test_unigram_by_hand():
    # c(0)=3, c(1)=1 of 4; two distinct tokens; uniform 1/4: P(0)=(3+2/4)/6, P(1)=(1+2/4)/6, P(2)=(2/4)/6.
    train, heldout = np.array([0, 0, 0, 1]), np.array([0, 1, 2])
    expected = -(math.log(3.5 / 6) + math.log(1.5 / 6) + math.log(0.5 / 6)) / 3
    assert nats_per_token(train, heldout, order=1, d_vocab=4) == pytest.approx(expected)


def test_bigram_by_hand():
    # Bigrams 00, 00, 01: after 0 come two distinct tokens in 3 places; after 2 nothing, so P falls back to the unigram.
    train, heldout = np.array([0, 0, 0, 1]), np.array([0, 1])
    unigram_1 = 1.5 / 6
    assert nats_per_token(train, heldout, order=2, d_vocab=4) == pytest.approx(-math.log((1 + 2 * unigram_1) / (3 + 2)))
    assert nats_per_token(train, np.array([2, 0]), order=2, d_vocab=4) == pytest.approx(-math.log(3.5 / 6))


def test_probabilities_sum_to_one():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 5, 200)
    for order in (1, 2, 3):
        history = train[10 : 10 + order - 1]
        total = sum(math.exp(-nats_per_token(train, np.array([*history, w]), order=order, d_vocab=5)) for w in range(5))
        assert total == pytest.approx(1)


def test_a_longer_context_helps_on_text_that_has_one():
    train = np.array([0, 1, 2, 0, 2, 1] * 100)
    losses = [nats_per_token(train, train[:60], order=order, d_vocab=3) for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]
