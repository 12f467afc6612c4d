"""Which nodes are ablated."""

import numpy as np
import torch

from stages.lib.fidelity.attribution import active_nodes
from stages.lib.fidelity.node_samples import draw_tokens, drawn_nodes, strata


def test_strata() -> None:
    generator = np.random.default_rng(0)
    score, activation = generator.normal(size=1000), generator.exponential(size=1000)
    drawn = dict(strata(score, activation, 100, np.random.default_rng(1)))
    assert {name: len(rows) for name, rows in drawn.items()} == {"top": 100, "activation": 100}
    assert np.abs(score[drawn["top"]]).min() >= np.sort(np.abs(score))[-100]
    assert all(len(np.unique(rows)) == 100 for rows in drawn.values())
    # One from each percentile of f.
    assert (np.sort(np.argsort(np.argsort(activation))[drawn["activation"]]) // 10).tolist() == list(range(100))
    again = dict(strata(score, activation, 100, np.random.default_rng(1)))
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)


def test_strata_of_fewer_nodes_than_wanted() -> None:
    drawn = dict(strata(np.array([1.0, -3.0]), np.array([1.0, 2.0]), 5, np.random.default_rng(0)))
    assert {name: rows.tolist() for name, rows in drawn.items()} == {name: [0, 1] for name in drawn}


def test_tokens_are_drawn_once_among_those_that_count() -> None:
    counted = torch.zeros(5, 8, dtype=torch.bool)
    counted[1:3, 2:6] = True
    draws = draw_tokens(counted, 6, np.random.default_rng(0))
    assert counted[draws.window, draws.pos].all()
    assert len(torch.unique(draws.window * 8 + draws.pos)) == 6
    assert len(draw_tokens(counted, 99, np.random.default_rng(0)).window) == 8


def test_each_drawn_token_gives_one_of_its_active_features_all_alike() -> None:
    acts = torch.rand(40, 30, 6, generator=torch.Generator().manual_seed(0)) - 0.6
    acts[3] = 0.0
    acts = acts.relu()
    draws = draw_tokens(torch.ones(40, 30, dtype=torch.bool), 1200, np.random.default_rng(1))
    rows, nodes = drawn_nodes(draws, acts), active_nodes(acts)
    chosen = nodes.take(torch.from_numpy(rows))
    active = (acts > 0).sum(2)
    some = active[draws.window, draws.pos] > 0
    assert torch.equal(chosen.window, draws.window[some])
    assert torch.equal(chosen.pos, draws.pos[some])
    # Where two are active, the first is taken half of the time.
    two = active[chosen.window, chosen.pos] == 2
    first = (acts > 0).float().argmax(2)[chosen.window, chosen.pos] == chosen.feature
    n = int(two.sum())
    assert n > 200
    assert abs(float(first[two].float().mean()) - 0.5) < 3 * 0.5 / n**0.5
