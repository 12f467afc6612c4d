import numpy as np

from stages.lib.run import seeds


def test_streams_are_told_apart_by_name_and_by_root():
    draws = [
        seeds.numpy_generator(*key).random(4).tolist()
        for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1), (0, "a", "b")]
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_a_stream_is_the_same_in_every_process():
    # crc32("a") = 0xE8B7BE43; numpy's SeedSequence is stable by its documentation.
    expected = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0xE8B7BE43,))).random()
    assert seeds.numpy_generator(0, "a").random() == expected
    assert 0 <= seeds.integer(0, "a") < 2**63
