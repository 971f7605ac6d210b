"""The identities of the chapter on scale invariance, and what its experiments measure."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnbook import data, training
from bnbook.experiments import scale_invariance as scale

DIGITS = data.digits()
EXACT = DIGITS._replace(x_train=DIGITS.x_train.astype(float), x_test=DIGITS.x_test[:20].astype(float))
EXACT = EXACT._replace(y_test=DIGITS.y_test[:20])
X, Y = torch.from_numpy(EXACT.x_train[:64]), torch.from_numpy(EXACT.y_train[:64])


def network(norm, times=1.0):
    torch.manual_seed(0)
    return scale.invariant((64,), 10, norm=norm, times=times, dtype=torch.float64)


def losses(norm, **settings):
    shared = dict(steps=40, evaluate_every=40, seeds=[0, 1], norm=norm, dtype=torch.float64)
    return training.sweep(scale.invariant, EXACT, **shared, **settings).loss


@pytest.mark.parametrize("norm", ["batch", "weight", "centred"])
def test_longer_weights_have_the_same_outputs_and_a_gradient_divided_by_their_factor(norm):
    one, three = network(norm), network(norm, times=3.0)
    assert torch.allclose(one(X), three(X), rtol=1e-10)
    gradients = [torch.autograd.grad(F.cross_entropy(m(X), Y), list(m.parameters())) for m in (one, three)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, 3 * b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "weight", "centred"])
def test_a_step_lengthens_and_turns_every_unit_as_the_right_triangle_says(norm):
    model, rate = network(norm), 0.3
    weights = list(model.parameters())
    for w, dw in zip(weights, torch.autograd.grad(F.cross_entropy(model(X), Y), weights), strict=True):
        new = w - rate * dw
        length, step = w.norm(dim=1), rate * dw.norm(dim=1)
        assert torch.allclose(new.norm(dim=1), (length**2 + step**2).sqrt(), rtol=1e-12)
        cosine = F.cosine_similarity(new, w, dim=1)
        assert torch.allclose(cosine, 1 / (1 + (step / length) ** 2).sqrt(), rtol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "weight", "centred"])
def test_weights_times_a_at_the_rate_times_a_squared_train_alike(norm):
    one = losses(norm, lr=0.3)
    assert np.allclose(losses(norm, lr=0.3 * 9, times=3.0), one, rtol=0, atol=1e-9)
    assert not np.allclose(losses(norm, lr=0.3, times=3.0), one, rtol=0, atol=1e-3)


def test_decay_at_a_constant_rate_is_a_growing_rate_without_decay():
    growing = losses("batch", lr=0.3, schedule=lambda t: (1 - 0.3 * 0.02) ** -(2 * t + 1.0))
    assert np.allclose(losses("batch", lr=0.3, weight_decay=0.02), growing, rtol=0, atol=1e-9)


def test_the_angle_of_sgd_with_decay_is_that_of_the_right_triangle():
    length, angle = scale.turning(DIGITS, seed=0, steps=30, rate=0.3, decay=0.08, start=3.0)
    # Far above its balance the length only shrinks, by rate times decay each step.
    assert length[30] / length[0] == pytest.approx((1 - 0.024) ** 30, rel=0.01)
    assert angle[0] < scale.predicted_angle(0.024) / 10


def test_predicted_angles_agree_with_simulated_random_walks():
    """Gradients that are random, orthogonal to the weights, and divided by their length."""
    for optimizer, beta in (("SGD", 0.0), ("SGD", 0.9), ("AdamW", 0.9)):
        rate, product = 0.1, 0.01
        rng = np.random.default_rng(0)
        w = nn.Parameter(torch.from_numpy(rng.normal(size=400)))
        shared = dict(lr=rate, weight_decay=product / rate)
        steps = (
            torch.optim.SGD([w], momentum=beta, **shared)
            if optimizer == "SGD"
            else torch.optim.AdamW([w], betas=(beta, 0.999), **shared)
        )
        angles = []
        for _ in range(2000):
            g = torch.from_numpy(rng.normal(size=400))
            unit = w.detach() / w.detach().norm()
            w.grad = (g - (g @ unit) * unit) / w.detach().norm()
            steps.step()
            angles.append(torch.arccos((w.detach() @ unit) / w.detach().norm()).item())
        measured = np.sqrt(np.square(angles[1000:]).mean())
        assert measured == pytest.approx(scale.predicted_angle(product, optimizer, beta), rel=0.05)


def test_a_balanced_network_computes_the_same_and_turns_all_its_layers_alike():
    def of(kind):
        torch.manual_seed(0)
        model = scale.deep((64,), 10, kind=kind)
        for part in model:
            if hasattr(part, "running_mean"):
                part.eps = 1e-12  # with the usual one short weights are not invariant
        return model

    x = torch.from_numpy(DIGITS.x_train[:256]).double()
    torch.testing.assert_close(of("as it is").double()(x), of("balanced").double()(x), atol=1e-4, rtol=1e-4)
    (_, before), (_, after) = map(scale.first_angles, (of("as it is"), of("balanced")))
    assert before.max() / before.min() > 10
    assert after.max() / after.min() < 1.1


def test_hes_layers_keep_the_gradient_and_normalized_ones_stretch_it():
    factor = {
        kind: (v[1] / v[-1]) ** (1 / 7)
        for kind in ("he", "relu", "linear")
        for v in [scale.gradient_lengths(kind, seed=0, depth=8, m=64)]
    }
    assert factor["he"] == pytest.approx(1, abs=0.06)
    assert factor["relu"] == pytest.approx(np.sqrt(np.pi / (np.pi - 1)), abs=0.06)
    assert factor["linear"] == pytest.approx(1, abs=0.06)


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="norm: got 'layer'"):
        scale.invariant((64,), 10, norm="layer")
    with pytest.raises(ValueError, match="optimizer: got 'Adam'"):
        scale.predicted_angle(0.1, "Adam")
    with pytest.raises(ValueError, match="kind: got"):
        scale.gradient_lengths("tanh", seed=0, depth=2, m=4)
