"""The circular shift null: its mechanics, and what it is for."""

import numpy as np
import torch

from stages.lib.detectors.firings import firings, level_of
from stages.lib.detectors.label_sums import bits
from stages.lib.detectors.null import Track, concept_null, offsets, record
from stages.lib.detectors.shifted import circle
from tests.toy_concepts import runs


def identity(x: torch.Tensor) -> torch.Tensor:
    """An encoder that changes nothing."""
    return x


def track_of(acts: np.ndarray, labels: np.ndarray) -> Track:
    """The track of dense activations."""
    return record(identity, torch.from_numpy(acts.astype(np.float32)), acts.max(0).astype(np.float32), labels)


def test_offsets_keep_away_from_no_shift() -> None:
    found = offsets(1000, 12.0, 500, np.random.default_rng(0))
    assert found.min() >= 120 and found.max() <= 880
    assert len(np.unique(found)) > 200


def test_offsets_of_a_short_track_keep_to_its_middle() -> None:
    found = offsets(100, 50.0, 200, np.random.default_rng(0))
    assert found.min() >= 25 and found.max() <= 75


def test_a_part_of_the_circle_is_the_rolled_labels() -> None:
    labels = np.random.default_rng(0).random((20, 3)) < 0.5
    closed = circle(labels)
    by = np.array([0, 1, 7, 19, 20])
    for start, offset in zip(closed.starts(by), by, strict=True):
        part = closed.twice.rows(slice(start, start + 20))
        assert np.array_equal(part.labels(), np.roll(labels, offset, axis=0))
    assert len(closed) == 20 and np.array_equal(closed.positives, labels.sum(0))
    assert np.array_equal(closed.tracks, bits(labels.T))


def test_a_record_is_the_firings_with_their_levels() -> None:
    acts = np.maximum(np.random.default_rng(0).standard_normal((50, 4)), 0)
    track = track_of(acts, np.zeros((50, 1), bool))
    found = firings(torch.from_numpy(acts.astype(np.float32)))
    maximum = acts.max(0).astype(np.float32)
    assert np.array_equal(track.row, found.row) and np.array_equal(track.feature, found.feature)
    assert np.array_equal(track.level, level_of(found.activation, maximum[found.feature]))


def test_the_concept_null_selects_and_scores_as_on_rolled_labels() -> None:
    generator = np.random.default_rng(0)
    tracks = []
    for _ in range(2):
        acts = np.maximum(generator.standard_normal((200, 5)) - 0.3, 0)
        tracks.append((acts, generator.random((200, 3)) < 0.3))
    maximum = tracks[0][0].max(0)
    by = np.array([31, 90]), np.array([55, 120])
    parts = [record(identity, torch.from_numpy(a.astype(np.float32)), maximum.astype(np.float32), y) for a, y in tracks]
    null = concept_null(*parts, *by)
    for shift in range(2):
        for concept in range(3):
            rolled = [np.roll(y[:, concept], by[split][shift]) for split, (_, y) in enumerate(tracks)]
            scores = {}
            for feature in range(5):
                for level in range(10):
                    fires = [a[:, feature] > max(level / 10 * maximum[feature], 0) for a, _ in tracks]
                    scores[feature, level] = [
                        2 * (f & y).sum() / (f.sum() + y.sum()) for f, y in zip(fires, rolled, strict=True)
                    ]
            best = max(scores.values(), key=lambda both: both[0])
            assert np.isclose(null[shift, concept], best[1])


def test_bursty_labels_do_not_exceed_the_shift_null_but_a_permutation_null() -> None:
    """The demonstration for which the null exists: tracks in runs, independent by construction, best of many."""
    n, n_features, above = 6000, 64, {"shift": 0, "permutation": 0}
    for repeat in range(5):
        generator = np.random.default_rng(repeat)
        labels = runs(n, 0.1, 100, generator)[:, None]
        acts = np.stack([runs(n, 0.1, 100, generator) for _ in range(n_features)], 1)

        def largest(y: np.ndarray, fires: np.ndarray = acts) -> float:
            return float((2 * (fires & y).sum(0) / (fires.sum(0) + y.sum())).max())

        observed = largest(labels)
        shifts = offsets(n, 100.0, 40, generator)
        nulls = {
            "shift": [largest(np.roll(labels, offset, axis=0)) for offset in shifts],
            "permutation": [largest(generator.permutation(labels)) for _ in range(40)],
        }
        for name, null in nulls.items():
            above[name] += observed > np.quantile(null, 0.99)
    assert above["permutation"] == 5
    assert above["shift"] <= 1
