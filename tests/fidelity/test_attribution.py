"""Node scores against finite differences, exact cases and ablation."""

import pytest
import torch

from stages.lib.fidelity.attribution import (
    Nodes,
    ablations,
    active_nodes,
    completeness_error,
    feature_effects,
    gradient,
    path_gradient,
    removal_scores,
)


class Toy:
    """Two windows of three positions in four dimensions with three features, and a choice of m."""

    def __init__(self, linear: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
        self.W_dec = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        self.acts = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64).relu()
        self.weights = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
        self.linear = linear
        self.clean = self.value(self.x, torch.arange(2))

    def value(self, x: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """A sum of coordinates, or a smooth function that ties positions together."""
        product = x * self.weights[windows]
        return product.sum((1, 2)) if self.linear else (product.sum(2).cumsum(1) * 0.3).sin().sum(1)

    def __call__(self, x: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """The change against the clean x."""
        return self.value(x, windows) - self.clean[windows]

    def scores(self) -> torch.Tensor:
        """Grad x act of all nodes."""
        return removal_scores(active_nodes(self.acts), gradient(self, self.x, 1), self.W_dec)


def test_active_nodes_by_hand() -> None:
    acts = torch.zeros(2, 2, 3)
    acts[0, 1, 2], acts[1, 0, 0] = 5.0, 7.0
    nodes = active_nodes(acts)
    assert [field.tolist() for field in nodes] == [[0, 1], [1, 0], [2, 0], [5.0, 7.0]]
    assert [field.tolist() for field in nodes.take(torch.tensor([1]))] == [[1], [0], [0], [7.0]]


def test_scores_by_hand() -> None:
    # m = x_0 at position 0; f = 2 along (3, 4): without the node, m is less by 6.
    nodes = Nodes(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.tensor([2.0]))
    x = torch.tensor([[[6.0, 8.0]]])
    slopes = gradient(lambda row, windows: row[:, 0, 0], x, 1)
    assert slopes.tolist() == [[[1.0, 0.0]]]
    assert removal_scores(nodes, slopes, torch.tensor([[3.0, 4.0]])).tolist() == [-6.0]


def test_the_score_is_the_derivative_by_finite_differences() -> None:
    toy = Toy(linear=False)
    nodes, step = active_nodes(toy.acts), 1e-6
    for row, score in enumerate(toy.scores()):
        node = nodes.take(torch.tensor([row]))
        moved = node._replace(activation=node.activation * step)
        change = ablations(toy, toy.x, moved, toy.W_dec, 4)[0] / step
        assert score.item() == pytest.approx(change.item(), rel=1e-4, abs=1e-8)


def test_all_scores_are_exact_for_a_linear_m() -> None:
    toy = Toy(linear=True)
    nodes = active_nodes(toy.acts)
    exact = ablations(toy, toy.x, nodes, toy.W_dec, 3)
    torch.testing.assert_close(toy.scores(), exact)
    path = path_gradient(toy, toy.x, toy.acts @ toy.W_dec, 1, 2)
    torch.testing.assert_close(removal_scores(nodes, path, toy.W_dec), exact)


def test_ablation_removes_one_node() -> None:
    toy = Toy(linear=False)
    nodes = active_nodes(toy.acts)
    acts = toy.acts.clone()
    window, pos, feature = (int(field[2]) for field in nodes[:3])
    acts[window, pos, feature] = 0
    x = toy.x + (acts - toy.acts) @ toy.W_dec
    expected = toy(x, torch.arange(2))[window]
    for batch in (1, 4, 100):
        assert ablations(toy, toy.x, nodes, toy.W_dec, batch)[2].item() == pytest.approx(expected.item())


def test_no_nodes_give_no_scores() -> None:
    toy = Toy(linear=True)
    nodes = active_nodes(torch.zeros(2, 3, 3, dtype=torch.float64))
    assert removal_scores(nodes, toy.x, toy.W_dec).shape == (0,)
    assert ablations(toy, toy.x, nodes, toy.W_dec, 4).shape == (0,)


def test_integrated_gradients_are_complete_and_gradients_are_not() -> None:
    toy = Toy(linear=False)
    contribution = toy.acts @ toy.W_dec
    effect = toy(toy.x - contribution, torch.arange(2)).sum().item()
    errors = []
    for n_steps in (4, 8, 64):
        path = path_gradient(toy, toy.x, contribution, n_steps, 2)
        scores = removal_scores(active_nodes(toy.acts), path, toy.W_dec)
        errors.append(abs(completeness_error(scores, effect) or 0))
    assert errors[2] < 1e-3
    # The midpoint rule's error falls with the square of the steps.
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.5)
    assert abs(completeness_error(toy.scores(), effect) or 0) > 0.05


def test_completeness_error_by_hand() -> None:
    assert completeness_error(torch.tensor([1.0, 2.0]), 4.0) == -0.25
    assert completeness_error(torch.tensor([1.0]), 0.0) is None


def test_feature_effects_by_hand() -> None:
    nodes = Nodes(*(torch.zeros(4, dtype=torch.int64) for _ in range(2)), torch.tensor([5, 2, 5, 2]), torch.ones(4))
    table = feature_effects(nodes, torch.tensor([1.0, -2.0, -3.0, 0.5]))
    assert table["feature"].tolist() == [2, 5]
    assert table["effect"].tolist() == [1.25, 2.0]
    assert table["n_firings"].tolist() == [2, 2]
