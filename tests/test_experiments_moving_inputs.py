"""The networks whose inputs are moved on purpose."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bnbook import data, layers, training
from bnbook.experiments import moving_inputs
from bnbook.experiments.moving_inputs import LAGS, Moved, Pinned, network


def seeded(build, *args, **settings):
    torch.manual_seed(3)
    return build(*args, **settings)


@pytest.mark.parametrize("kind", ["jumps", "swings", "both"])
def test_a_shift_is_the_dose_in_the_units_own_widths_and_changes_at_every_update(kind):
    layer, x = seeded(Moved, 4, 0.5, kind, 50), torch.randn(30, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    added = torch.stack([(layer(x) - x) for _ in range(50)])
    assert torch.allclose(added, added.mean(1, keepdim=True), atol=1e-5)  # the same for all examples
    doses = added.mean(1) / x.std(0, correction=0)
    largest = doses.abs().amax(0)
    assert (largest <= 0.5 * (2 if kind == "both" else 1) + 1e-5).all()
    assert (largest > 0.4).all()
    steps = doses.diff(dim=0).abs().median()
    assert steps < 0.1 if kind == "swings" else steps > 0.2
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("norms", [("none",), ("batch", "pinned")])
def test_the_first_weights_do_not_depend_on_the_dose_or_on_what_is_pinned(norms):
    built = [
        seeded(network, (5,), 3, norm=norm, dose=dose, updates=10, depth=2, width=4)
        for norm in norms
        for dose in (0.0, 0.5)
    ]
    weights = [[part.weight for part in net if isinstance(part, torch.nn.Linear)] for net in built]
    for others in weights[1:]:
        assert all(map(torch.equal, others, weights[0]))


def test_pinned_has_the_outputs_of_batch_norm_and_another_gradient():
    x, norm = torch.randn(20, 3, dtype=torch.float64), layers.BatchNorm(3, affine=False).double()
    torch.testing.assert_close(Pinned()(x), norm(x))
    gradients = []
    for part in (Pinned(), norm):
        u = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(part(u)[0].sum(), u)[0])
    assert torch.equal(gradients[0][1:], torch.zeros(19, 3, dtype=torch.float64))
    assert (gradients[1][1:] != 0).all()


def test_nothing_moves_where_nothing_learns_and_looking_is_no_update():
    still = moving_inputs.train(data.digits(), rate=0.0, seed=1, steps=60, depth=2, norm="batch")
    assert not still.movement.any()
    assert still.movement.shape == (len(LAGS), 2)
    moved = moving_inputs.train(data.digits(), 0.0, 1, 60, depth=2, norm="batch", dose=0.5, kind="swings")
    # A sine of amplitude .5 and a period of about 40, over a width of about 2 standard deviations.
    assert 0.01 < np.median(moved.movement[0]) < 0.05
    assert (np.diff(np.median(moved.movement[:4], axis=1)) > 0).all()  # up to a quarter of a period


@pytest.mark.parametrize(("norm", "dose"), [("none", 0.0), ("batch", 0.5)])
def test_a_run_alone_is_the_run_of_a_sweep(norm, dose):
    settings = {"depth": 2, "norm": norm, "dose": dose}
    alone = moving_inputs.train(data.digits(), 0.1, 4, 60, **settings).loss
    runs = training.sweep(network, data.digits(), steps=60, seeds=[4], lr=0.1, updates=61, **settings)
    assert runs.loss[0] == pytest.approx(alone, rel=1e-3)


def test_a_shorter_run_of_the_map_is_the_beginning_of_a_longer_one():
    settings = {"depth": 2, "activation": "relu", "norm": "batch", "kind": "both", "dose": 0.5}
    long = moving_inputs.losses("digits", rate=(0.1,), steps=(25, 30), seed=(4,), **settings)
    (short,) = moving_inputs.losses("digits", rate=(0.1,), steps=(25,), seed=(4,), **settings)
    assert short == pytest.approx(long[0], rel=1e-4)


def test_a_run_too_short_for_its_lags_is_refused():
    with pytest.raises(ValueError, match="steps: got 51"):
        moving_inputs.train(data.digits(), 0.1, 4, 51)


def test_a_divergence_is_no_loss():
    (row,) = moving_inputs.losses(
        "digits", 2, "relu", "none", "both", 0.0, rate=(1e6,), steps=(30,), seed=(4,)
    )
    assert np.isnan(row["loss"])
    (row,) = moving_inputs.vgg_losses("he", "none", 1e6, (25,), (4,))
    assert np.isnan(row["loss"])


def test_the_vgg_is_trained_as_the_experiment_of_the_paper_trains_it():
    from bnbook.experiments import _vision, ics

    loss = moving_inputs.vgg("he", "batch", 0.1, 3, seed=4)
    part = _vision.images_of("small", "cpu")
    with _vision.seeded(4, "cpu"):
        model = ics.vgg(part, "batch", ics.SMALL_WIDTHS, "he")
    x, y = next(_vision.batches_of(part, 32, 1, 4))
    assert loss[0] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)
    rows = ics.noisy_batch_norm(
        norm="batch", init="he", images="small", widths=ics.SMALL_WIDTHS, batch_size=32,
        lr=0.1, steps=3, every=3, layers=(), seed=4,
    )  # fmt: skip
    assert rows[0]["loss"] == pytest.approx(loss.mean(), rel=1e-3)
