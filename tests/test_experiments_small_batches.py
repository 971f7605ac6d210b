"""The experiments on small batches: what is frozen stays, and what is recomputed is."""

import numpy as np
import pytest
import torch

from bnbook import data
from bnbook.experiments import inference, small_batches


@pytest.fixture(scope="module")
def clothes():
    return inference.images_of("fashion")


@pytest.fixture(scope="module")
def state(clothes):
    return small_batches.trained(clothes, seed=0, steps=20)


def test_without_steps_of_learning_only_the_statistics_differ(clothes, state):
    lying = small_batches.turned(clothes)
    error = {
        side: small_batches.tune(state, lying, side, N=2, seen=(4,), rate=0.0, seed=0)
        for side in ("frozen", "recomputed, frozen", "batch")
    }
    old = inference.error(inference.with_statistics(state), lying.x_test, lying.y_test)
    few = lying.x_train[torch.cat(inference.batches(lying, 3000, 30))]
    new = inference.error(inference.recomputed(state, few), lying.x_test, lying.y_test)
    assert error == {"frozen": [old], "recomputed, frozen": [new], "batch": [new]}


def test_turned_images_lie_on_their_side_with_less_contrast(clothes):
    lying = small_batches.turned(clothes)
    pixels = [x[0, 0] * clothes.width + clothes.centre for x in (clothes.x_test, lying.x_test)]
    torch.testing.assert_close(pixels[1], 0.3 * pixels[0].T + 0.35)


def test_statistics_of_all_images_are_those_that_a_whole_batch_has():
    small = data.digits()
    small = small._replace(x_train=small.x_train[:64], y_train=small.y_train[:64])
    settings = {"N": 64, "seen": (64,), "rate": 0.0, "seeds": [0]}
    runs = small_batches.mlps(small, ("ghost", 64), **settings)
    assert runs.final("error") != runs.final("precise")  # one step of a moving average is not enough
    runs = small_batches.mlps(small, ("group", 2), **settings)
    np.testing.assert_array_equal(runs.series["error"], runs.series["precise"])


def test_a_network_reads_all_positions_or_their_mean():
    values = {
        name: small_batches.cnn((1, 14, 14), 10, sizes=(2, 2, 2, 2), **settings)[-1].in_features
        for name, settings in small_batches.NETWORKS.items()
    }
    assert values == {"A": 16, "B": 64, "B, mean": 16}
