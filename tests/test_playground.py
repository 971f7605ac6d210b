"""The numbers that the playground begins with, and what its stories say, on ten seeds of the package."""

import base64
import zlib

import numpy as np
import pytest
import torch

from bnbook import data, layers, models, probes, training
from bookbuild import playground_data
from bookbuild.playground_data import KNOBS, STORIES, Settings, network, swept
from bookbuild.results import BOOK

SEEDS = 10


def test_the_packed_images_are_the_digits():
    packed = playground_data.packed_digits()
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed["packed"])), np.uint8)
    digits, count = data.digits(), len(raw) // 65
    pixels, labels = raw[: 64 * count].reshape(count, 64), raw[64 * count :]
    np.testing.assert_array_equal(pixels / 16, np.concatenate([digits.x_train, digits.x_test]))
    np.testing.assert_array_equal(labels, np.concatenate([digits.y_train, digits.y_test]))
    assert packed["train"] == len(digits.x_train)


def test_every_value_of_a_knob_makes_a_network_that_answers():
    for name, knob in KNOBS.items():
        assert len(knob.get("names", knob["values"])) == len(knob["values"])
        for value in knob["values"]:
            settings = Settings(norm="batch")._replace(**{name: value})
            wanted = swept(settings)
            del wanted["lr"], wanted["batch_size"]
            assert network((64,), 10, **wanted)(torch.zeros(2, 64)).shape == (2, 10)


def test_the_momentum_reaches_every_batch_norm():
    model = network((64,), 10, norm="batch", depth=3, running_momentum=0.01)
    assert [layer.momentum for layer in model if isinstance(layer, layers.BatchNorm)] == [0.01] * 3


def test_rms_norm_keeps_the_bias_before_it():
    assert models.mlp((64,), 10, norm="rms")[0].bias is not None
    assert isinstance(models.mlp((64,), 10, norm="rms")[1], layers.RMSNorm)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_story_stands_on_the_knobs_and_leads_to_a_chapter(story):
    for settings in (story.a, story.b):
        for name, value in settings._asdict().items():
            assert value in KNOBS[name]["values"]
    assert (BOOK / f"{story.chapter}.md").is_file()
    assert story.watch.count(".") - story.watch.count("2.3") - story.watch.count("0.1") == 2  # sentences


# --------------------------------------------------------------------------- what the stories say


def dead(model, step):
    """The dead share of each hidden layer, on the training images."""
    x = torch.from_numpy(data.digits().x_train)
    return {"dead": [probes.dead_share(values) for values in probes.layer_inputs(model, x, torch.nn.ReLU)]}


def runs_of(name, record=None):
    """Both networks of a story on ten seeds, to its end."""
    (story,) = [story for story in STORIES if story.name == name]
    results = []
    for settings in (story.a, story.b):
        wanted = swept(settings)
        results.append(
            training.sweep(
                network,
                data.digits(),
                steps=story.steps,
                seeds=SEEDS,
                record=record,
                evaluate_every=100,
                **wanted,
            )
        )
    return results


def last_loss(runs):
    return runs.loss[:, -20:].mean(1)


def looks(name, steps):
    """What the package finds in both networks of a story, on ten seeds."""
    (story,) = [story for story in STORIES if story.name == name]
    return [
        [playground_data.train(side, seed, steps) for seed in range(SEEDS)] for side in (story.a, story.b)
    ]


def test_stuck_sigmoids():
    plain, batch = runs_of("sigmoid")
    assert (plain.loss > 2.2).all()
    assert (plain.final() < 0.25).all()
    assert (batch.final() > 0.9).all()
    first = [[seen.gradients[0] for seen in side] for side in looks("sigmoid", 0)]
    assert (np.array(first[0]) < np.array(first[1]) / 10).all()


def test_a_deadly_rate():
    plain, batch = runs_of("rate", dead)
    diverged = np.isfinite(plain.diverged)
    assert 0 < diverged.sum() < SEEDS
    guessing, dying = last_loss(plain) > 2.2, plain.series["dead"][:, -1].max(1) > 0.5  # of some layer, most
    assert (guessing & dying)[~diverged].mean() > 0.7
    assert (batch.final() > 0.9).all()


def test_good_first_weights():
    plain, batch = runs_of("weights")
    assert (plain.final() > 0.9).all()
    assert (batch.final() > 0.9).all()


def test_a_batch_of_two():
    batch, group = runs_of("two")
    assert (last_loss(batch) > 2).all()
    assert (batch.final() < 0.4).all()
    assert (group.final() > 0.6).all()


def test_lagging_statistics():
    slow, quick = looks("lag", 100)
    for a, b in zip(slow, quick, strict=True):
        assert a.losses == b.losses
        assert a.accuracy["batch"] == b.accuracy["batch"] > 0.85
        assert 1 - a.accuracy["running"] > 2 * (1 - b.accuracy["running"])


def test_growing_gradients():
    plain, batch = looks("depth", 0)
    grown = np.array([[seen.gradients[0] / seen.gradients[7] for seen in side] for side in (plain, batch)])
    assert (grown[1] > 3).all()
    assert (grown[1] > grown[0]).all()
    plain, batch = runs_of("depth")
    assert (batch.final() > plain.final()).all()
