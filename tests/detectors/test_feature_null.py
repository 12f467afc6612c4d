"""The chance level of a feature's concept: its mechanics, and tracks of which it is known that they are independent."""

import numpy as np
import torch

from stages.lib.detectors.counts import mcc
from stages.lib.detectors.coverage import corrected
from stages.lib.detectors.null import Track, feature_null, offsets, record
from tests.toy_concepts import runs

N, LENGTH, N_FEATURES, N_CONCEPTS, N_SHIFTS = 4000, 10, 32, 12, 19
RATES = np.geomspace(0.01, 0.3, N_FEATURES)


def track_of(fires: np.ndarray, labels: np.ndarray) -> Track:
    """The track of features that fire with strength 1."""
    return record(lambda x: x, torch.from_numpy(fires.astype(np.float32)), np.ones(fires.shape[1], np.float32), labels)


def chosen_and_scored(fires: list[np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    """For each feature the test MCC of the concept with the highest validation MCC, one pair at a time."""
    scores = []
    for feature in range(fires[0].shape[1]):
        both = [
            [mcc(np.array((f[:, feature] & y).sum()), np.array(f[:, feature].sum()), np.array(y.sum()), len(y))
             for y in own.T]
            for f, own in zip(fires, labels, strict=True)
        ]  # fmt: skip
        scores.append(both[1][int(np.argmax(both[0]))])
    return np.array(scores, np.float64)


def test_concepts_are_chosen_and_scored_on_rolled_labels() -> None:
    generator = np.random.default_rng(0)
    sizes = (150, 130)
    fires = [generator.random((n, 5)) < 0.3 for n in sizes]
    labels = [generator.random((n, 3)) < 0.4 for n in sizes]
    by = np.array([40, 77, 100]), np.array([35, 90, 64])
    found = feature_null(*(track_of(f, y) for f, y in zip(fires, labels, strict=True)), *by)
    for shift in range(3):
        rolled = [np.roll(y, own[shift], axis=0) for y, own in zip(labels, by, strict=True)]
        assert np.allclose(found[shift], chosen_and_scored(fires, rolled))


def test_a_feature_that_is_silent_on_validation_is_at_chance_with_the_first_concept() -> None:
    fires = [np.zeros((60, 1), bool), np.arange(60)[:, None] % 3 == 0]
    labels = [np.arange(60)[:, None] % 4 == k for k in (0, 1)]
    found = feature_null(*(track_of(f, y) for f, y in zip(fires, labels, strict=True)), *[np.array([20])] * 2)
    assert found.shape == (1, 1) and abs(found[0, 0]) < 0.2


def independent(repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """The observed MCC of features and their nulls, [feature] and [shift, feature], with bursty tracks of all rates."""
    generator = np.random.default_rng(repeat)
    fires = [np.stack([runs(N, rate, LENGTH, generator) for rate in RATES], 1) for _ in range(2)]
    labels = [np.stack([runs(N, 0.1, LENGTH, generator) for _ in range(N_CONCEPTS)], 1) for _ in range(2)]
    tracks = [track_of(f, y) for f, y in zip(fires, labels, strict=True)]
    by = [offsets(N, float(LENGTH), N_SHIFTS, generator) for _ in range(2)]
    return chosen(tracks), feature_null(tracks[0], tracks[1], *by)


def chosen(tracks: list[Track]) -> np.ndarray:
    """The observed number: no shift at all."""
    found: np.ndarray = feature_null(tracks[0], tracks[1], *[np.zeros(1, np.int64)] * 2)[0]
    return found


def test_independent_bursty_tracks_are_calibrated_to_0_and_have_the_right_p() -> None:
    """What is independent by construction: no bias at any rate, and a p of at most a in a share a of the features."""
    pairs = [independent(repeat) for repeat in range(12)]
    null = np.stack([one for _, one in pairs])
    calibrated = np.stack([corrected(own, one.mean(0)) for own, one in pairs])
    error = calibrated.std() / calibrated.size**0.5
    assert abs(calibrated.mean()) < 4 * error and abs(null.mean()) < 0.005
    for part in (slice(0, 10), slice(22, 32)):  # rare and frequent alike
        assert abs(calibrated[:, part].mean()) < 0.008
    p = np.stack([(1 + (one >= own).sum(0)) / (1 + N_SHIFTS) for own, one in pairs])
    for level in (0.05, 0.25, 0.5):
        assert abs((p <= level).mean() - level) < 4 * (level * (1 - level) / p.size) ** 0.5 + 0.01


def test_the_highest_mcc_on_one_set_of_labels_is_above_chance_and_grows_for_rare_features() -> None:
    """Why the choice is repeated on other labels: the maximum over concepts alone is no null of the observed number."""
    generator = np.random.default_rng(0)
    fires = np.stack([runs(N, rate, LENGTH, generator) for rate in RATES], 1)
    labels = np.stack([runs(N, 0.1, LENGTH, generator) for _ in range(N_CONCEPTS)], 1)
    both = fires.T.astype(int) @ labels
    largest = mcc(both, fires.sum(0)[:, None], labels.sum(0), N).max(1)
    assert largest.mean() > 0.05


def test_a_feature_that_is_a_concept_is_far_from_chance() -> None:
    generator = np.random.default_rng(3)
    labels = [np.stack([runs(N, 0.1, LENGTH, generator) for _ in range(4)], 1) for _ in range(2)]
    tracks = [track_of(y[:, :2] ^ (generator.random((N, 2)) < 0.02), y) for y in labels]
    null = feature_null(tracks[0], tracks[1], *[offsets(N, float(LENGTH), N_SHIFTS, generator) for _ in range(2)])
    assert (chosen(tracks) > 0.8).all() and (null < 0.3).all()
