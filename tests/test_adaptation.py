"""Adaptation at test time: each number against PyTorch, SciPy or a closed form, and the model left alone."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import nn
from torch.optim.swa_utils import update_bn

from bnbook import adaptation, data, layers, models, shifts
from bnbook.experiments import adaptation as experiment

f32, f64 = torch.float32, torch.float64
BUILDS = {
    "PyTorch, dense": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    "PyTorch, images": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(20, 3),
    ),
    "PyTorch, sequences": lambda: nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(12, 3)
    ),
    "ours, dense": lambda: models.mlp((6,), 3, depth=2, width=5, norm="batch"),
    "ours, images": lambda: models.vgg((2, 4, 4), 3, widths=(4, 0, 5), norm="batch"),
}
SHAPES = {"dense": (6,), "images": (2, 4, 4), "sequences": (2, 4)}
every_build = pytest.mark.parametrize("name", BUILDS)


def made(name, seed=0):
    """A model whose every parameter and statistic is random, in evaluation mode, and inputs for it."""
    g = torch.Generator().manual_seed(seed)
    model = BUILDS[name]().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=f64) + 0.2)
        for layer in adaptation.batch_norms(model).values():
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=g))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=g))
    x = torch.randn(12, *SHAPES[name.split(", ")[1]], generator=g, dtype=f64)
    return model.eval(), x


def one_norm(C=4, seed=0):
    """A single layer, so that its statistics are those of the inputs."""
    g = torch.Generator().manual_seed(seed)
    layer = nn.BatchNorm1d(C).double().eval()
    layer.running_mean.copy_(torch.randn(C, generator=g))
    layer.running_var.copy_(0.5 + torch.rand(C, generator=g))
    return layer


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def snapshot(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [
        (part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()
    ]
    return state, flags, [(p.requires_grad, p.grad) for p in model.parameters()]


def same(one, other):
    assert one[1:] == other[1:]
    for name, value in one[0].items():
        torch.testing.assert_close(other[0][name], value, rtol=0, atol=0)


# --- Which layers --------------------------------------------------------------------------------


def test_the_norms_of_the_batch_are_found_in_order_and_no_other_norm():
    parts = [nn.BatchNorm1d(4), layers.GroupNorm(2, 4), layers.BatchNorm(4), nn.InstanceNorm1d(4)]
    ghost = layers.GhostBatchNorm(4, 2)
    model = nn.Sequential(*parts, nn.LayerNorm(4), nn.Sequential(ghost))
    assert adaptation.batch_norms(model) == {"0": parts[0], "2": parts[2], "5.0": ghost}


def test_a_model_without_batch_norm_is_refused():
    with pytest.raises(ValueError, match="model: has no batch normalization layer"):
        adaptation.batch_norms(nn.Linear(2, 2))


def test_a_norm_without_a_variance_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model: layer 1 is LpBatchNorm.*no variance"):
        adaptation.batch_norms(nn.Sequential(nn.BatchNorm1d(2), layers.LpBatchNorm(2, 1)))
    adaptation.batch_norms(nn.Sequential(layers.LpBatchNorm(2, 2)))  # whose scale is a standard deviation


# --- Statistics ----------------------------------------------------------------------------------


@every_build
def test_prior_0_is_the_forward_of_training_mode(name):
    model, x = made(name)
    expected = copy.deepcopy(model).train()(x)
    close(adaptation.predict(model, [x]), expected.detach())


@every_build
def test_an_infinite_prior_is_evaluation_mode_to_the_last_bit(name):
    model, x = made(name)
    with torch.no_grad():
        torch.testing.assert_close(adaptation.predict(model, [x], math.inf), model(x), rtol=0, atol=0)


@every_build
def test_the_gradient_flows_through_the_statistics_as_in_training_mode(name):
    model, x = made(name)
    dy = torch.randn(12, 3, generator=torch.Generator().manual_seed(9), dtype=f64)
    gradients = []
    for train in (True, False):
        net, z = copy.deepcopy(model), x.clone().requires_grad_()
        if train:
            out = net.train()(z)
        else:
            with adaptation.adapted(net):
                out = net(z)
        (out * dy).sum().backward()
        gradients.append([z.grad, *(p.grad for p in net.parameters())])
    for one, other in zip(*gradients, strict=True):
        close(one, other, 1e-8)


@pytest.mark.parametrize("prior", [0.5, 8.0, 100.0])
@pytest.mark.parametrize("shape", [(12, 4), (12, 4, 3)])
def test_a_prior_is_a_moving_average_with_the_momentum_of_the_batch(prior, shape):
    layer = one_norm()
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=f64) + 1
    # PyTorch averages the means as we do; it stores unbiased variances, and we use biased ones.
    reference, m = copy.deepcopy(layer).train(), x.numel() // 4
    reference.momentum = weight = 12 / (12 + prior)
    reference(x)
    new = (reference.running_var - (1 - weight) * layer.running_var) * (m - 1) / m
    expected = F.batch_norm(
        x,
        reference.running_mean,
        (1 - weight) * layer.running_var + new,
        layer.weight,
        layer.bias,
        eps=layer.eps,
    )
    close(adaptation.predict(layer, [x], prior), expected.detach())


def test_each_batch_has_its_own_statistics():
    model, x = made("ours, dense")
    both = adaptation.predict(model, x.split(5), 3.0)
    one_by_one = [adaptation.predict(model, [part], 3.0) for part in x.split(5)]
    close(both, torch.cat(one_by_one))


# update_bn looks for PyTorch's own layers only.
@pytest.mark.parametrize("name", [name for name in BUILDS if name.startswith("PyTorch")])
def test_one_batch_is_what_update_bn_would_store_but_for_the_biased_variance(name):
    model, x = made(name)
    stored = copy.deepcopy(model)
    sizes = {}
    for key, layer in adaptation.batch_norms(stored).items():
        layer.register_forward_pre_hook(
            lambda layer, args, key=key: sizes.update({key: args[0].numel() // args[0].shape[1]})
        )
    update_bn([x], stored)
    for key, layer in adaptation.batch_norms(stored).items():
        layer.running_var.mul_((sizes[key] - 1) / sizes[key])
    with torch.no_grad():
        close(adaptation.predict(model, [x]), stored.eval()(x))


def test_a_layer_without_gamma_and_beta_is_only_standardized():
    layer, x = nn.BatchNorm1d(4, affine=False).double(), made("PyTorch, dense")[1][:, :4]
    y = adaptation.predict(layer, [x])
    close(y.mean(0), torch.zeros(4, dtype=f64))
    close(y.var(0, correction=0), x.var(0, correction=0) / (x.var(0, correction=0) + 1e-5))


@pytest.mark.parametrize("prior", [0, 3.0, "auto"])
def test_float32_inputs_far_from_zero_come_out_right(prior):
    g = torch.Generator().manual_seed(0)
    x = (1e6 + torch.randn(200, 3, generator=g, dtype=f64)).to(f32)
    layer = nn.BatchNorm1d(3).eval()
    layer.running_mean.fill_(1e6)
    y = adaptation.predict(layer, [x], prior)
    assert y.dtype == f32
    close(y.double(), adaptation.predict(copy.deepcopy(layer).double(), [x.double()], prior), 1e-5)


@given(a=st.floats(0.05, 20), b=st.floats(-20, 20))
def test_an_affine_change_of_the_input_is_undone(a, b):
    model, x = made("ours, dense")
    for layer in adaptation.batch_norms(model).values():
        layer.eps = 0.0
    close(adaptation.predict(model, [a * x + b]), adaptation.predict(model, [x]), 1e-7)


def test_one_value_per_channel_is_refused_with_prior_0_only():
    model, x = made("ours, dense")
    with pytest.raises(ValueError, match=r"x: got 1 value per channel \(shape \(1, 5\)\), at least 2"):
        adaptation.predict(model, [x[:1]])
    assert adaptation.predict(model, [x[:1]], 1.0).isfinite().all()


def test_one_image_with_several_positions_is_enough():
    model, x = made("PyTorch, images")
    assert adaptation.predict(model, [x[:1]]).isfinite().all()


@pytest.mark.parametrize("prior", [-1, math.nan, "batch"])
def test_a_prior_out_of_range_is_refused(prior):
    model, x = made("ours, dense")
    with pytest.raises(
        ValueError, match=r"prior: got .*, allowed are numbers from 0 to infinity, and 'auto'"
    ):
        adaptation.predict(model, [x], prior)


@pytest.mark.parametrize("prior", [1.0, math.inf, "auto"])
def test_without_running_statistics_only_prior_0_is_allowed(prior):
    model = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)).double()
    _, x = made("ours, dense")
    with pytest.raises(ValueError, match="model: layer 0 keeps no running statistics"):
        adaptation.predict(model, [x], prior)
    close(adaptation.predict(model, [x]), model(x).detach())


def test_no_batch_is_refused():
    model, _ = made("ours, dense")
    with pytest.raises(ValueError, match="batches: got none"):
        adaptation.predict(model, [])


# --- The model stays as it is --------------------------------------------------------------------


@every_build
@pytest.mark.parametrize("training", [True, False])
def test_no_function_changes_the_model(name, training):
    model, x = made(name)
    model.train(training)
    next(model.children()).train(not training)  # mixed modes come back, too
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    y = torch.arange(12) % 3
    adaptation.predict(model, [x], 0)
    adaptation.predict(model, [x], "auto")
    adaptation.shift_scores(model, x, adaptation.class_means(model, x, y))
    same(before, snapshot(model))


def test_the_model_is_put_back_after_an_error_as_well():
    model, x = made("ours, dense")
    model.train()
    before = snapshot(model)
    with pytest.raises(ValueError, match="at least 2"):
        adaptation.predict(model, [x[:1]])
    with pytest.raises(RuntimeError):
        adaptation.shift_scores(model, x[:, :2])
    same(before, snapshot(model))


def test_dropout_is_off_inside_the_block():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(6)).double().train()
    _, x = made("ours, dense")
    with adaptation.adapted(model) as inside:
        assert inside is model
        close(model(x), F.batch_norm(x, None, None, training=True))


# --- Entropy -------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_softmax():
    scores = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0), dtype=f64)
    expected = stats.entropy(scores.softmax(-1).numpy(), axis=-1)
    np.testing.assert_allclose(adaptation.entropy(scores).numpy(), expected, rtol=1e-12)


def test_entropy_is_0_for_certainty_and_log_K_for_none():
    scores = torch.tensor([[1e4, 0.0, 0.0], [3.0, 3.0, 3.0]], dtype=f64, requires_grad=True)
    H = adaptation.entropy(scores)
    close(H.detach(), torch.tensor([0.0, math.log(3)], dtype=f64))
    (gradient,) = torch.autograd.grad(H.sum(), scores)
    close(gradient, torch.zeros(2, 3, dtype=f64))


# --- Scores of a shift ---------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [(), (3,), (2, 2)])
def test_the_score_by_hand(spatial):
    layer, x = one_norm(), torch.randn(12, 4, *spatial, generator=torch.Generator().manual_seed(1), dtype=f64)
    layer._check_input_dim = lambda x: None
    layer.eps = 0.5  # not to be forgotten beside a variance near it
    var = layer.running_var.numpy() + 0.5
    z = x.numpy().reshape(12, 4, -1).mean(2)
    far = ((z.mean(0) - layer.running_mean.numpy()) ** 2 / var).sum()
    chance = (z.var(0, ddof=1) / 12 / var).sum()
    assert adaptation.shift_scores(nn.Sequential(layer), x) == {"0": pytest.approx(far / chance)}


def test_without_a_shift_the_expectation_is_1_and_with_one_it_is_1_plus_n_delta_squared():
    layer = nn.Sequential(nn.BatchNorm1d(3).double())
    rng = np.random.default_rng(0)
    for delta in (0.0, 0.5):
        draws = torch.from_numpy(delta + rng.normal(size=(2000, 20, 3)))
        scores = [adaptation.shift_scores(layer, x)["0"] for x in draws]
        # The noise in the denominator raises the ratio a little: E[1/s²] for 3 x 19 degrees of freedom.
        expected = (1 + 20 * delta**2) * 57 / 55
        assert np.mean(scores) == pytest.approx(expected, rel=0.05)


def test_positions_are_no_independent_draws():
    layer = nn.Sequential(one_norm())
    x = torch.randn(12, 4, 1, generator=torch.Generator().manual_seed(1), dtype=f64)
    once = adaptation.shift_scores(layer, x)["0"]
    assert adaptation.shift_scores(layer, x.expand(-1, -1, 9))["0"] == pytest.approx(once)


def test_upper_layers_are_scored_on_the_inputs_of_the_usual_inference():
    model, x = made("PyTorch, images")
    above = nn.Sequential(model[4])
    with torch.no_grad():
        expected = adaptation.shift_scores(above, model[:4](x))["0"]
    assert adaptation.shift_scores(model, x)["4"] == pytest.approx(expected)


def test_one_example_has_no_score():
    model, x = made("ours, dense")
    with pytest.raises(ValueError, match="x: got 1 example, at least 2"):
        adaptation.shift_scores(model, x[:1])
    with pytest.raises(ValueError, match="x: got 1 example, at least 2"):
        adaptation.predict(model, [x[:1]], "auto")


@pytest.mark.parametrize("shift", [0.2, 1.0, 30.0])
def test_the_automatic_prior_is_n_over_the_score_minus_1(shift):
    layer = nn.Sequential(one_norm())
    x = shift + torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=f64)
    score = adaptation.shift_scores(layer, x)["0"]
    assert score > 1
    close(adaptation.predict(layer, [x], "auto"), adaptation.predict(layer, [x], 12 / (score - 1)))


def test_the_automatic_prior_is_infinite_where_the_means_agree():
    layer = nn.Sequential(one_norm())
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=f64)
    x = x - x.mean(0) + layer[0].running_mean
    assert adaptation.shift_scores(layer, x)["0"] < 1e-12
    close(adaptation.predict(layer, [x], "auto"), layer(x).detach())


def test_each_layer_has_an_automatic_prior_of_its_own():
    model, x = made("PyTorch, images")
    x[:, 0] += 5
    with torch.no_grad():
        first = adaptation.predict(nn.Sequential(model[1]), [model[0](x)], "auto")
        second = adaptation.predict(nn.Sequential(model[4]), [model[2:4](first)], "auto")
        close(adaptation.predict(model, [x], "auto"), model[5:](second))


# --- What the classes explain --------------------------------------------------------------------


@every_build
def test_class_means_are_those_of_each_class_alone(name):
    model, x = made(name)
    y = torch.tensor([0, 2, 1, 1, 2, 0, 0, 0, 2, 1, 2, 1])
    means = adaptation.class_means(model, x, y)
    assert list(means) == list(adaptation.batch_norms(model))
    for k in range(3):
        of_class = adaptation._example_means(model, x[y == k])
        for key, z in of_class.items():
            close(means[key][k], z.mean(0))


def test_a_mixture_of_the_classes_is_explained_and_nothing_else():
    layer = nn.Sequential(one_norm())
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=f64)
    y = torch.arange(40) % 3
    x[:, 0] += 3 * y
    x[:, 1] -= 2 * (y == 1)
    classes = adaptation.class_means(layer, x, y)
    for chosen in (y == 0, y == 2, y < 2, y >= 0):
        assert adaptation.shift_scores(layer, x[chosen], classes)["0"] < 1e-9
        assert adaptation.shift_scores(layer, x[chosen])["0"] > 1
    x[:, 3] += 2
    assert adaptation.shift_scores(layer, x, classes)["0"] > 10


@given(seed=st.integers(0, 10_000), far=st.sampled_from([0.1, 1.0, 100.0]))
def test_the_nearest_mixture_is_the_one_of_a_general_optimizer(seed, far):
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(3, 5, generator=g, dtype=f64)
    target = far * torch.randn(5, generator=g, dtype=f64)
    var = 0.5 + torch.rand(5, generator=g, dtype=f64)

    def distance(weights):
        return float(((torch.from_numpy(weights) @ means - target) ** 2 / var).sum())

    found = adaptation.nearest_mixture(target, means, var)
    best = optimize.minimize(
        distance,
        np.full(3, 1 / 3),
        method="SLSQP",
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    ours = float(((found - target) ** 2 / var).sum())
    assert ours == pytest.approx(best.fun, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"y: got shape \(3,\), expected \(12,\)"),
        (2 * torch.ones(12, dtype=torch.int64), r"y: got \[0, 0, 12\] inputs of the classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y, message):
    model, x = made("ours, dense")
    with pytest.raises(ValueError, match=message):
        adaptation.class_means(model, x, y)


def test_class_means_of_nothing_are_refused():
    model, x = made("ours, dense")
    with pytest.raises(ValueError, match=r"y: got \[\] inputs"):
        adaptation.class_means(model, x[:0], torch.zeros(0, dtype=torch.int64))


# --------------------------------------------------------------------------- the chapter's map


def test_the_map_begins_at_clean_images_and_ends_in_the_chapters_haze():
    part = data.mnist5k()
    for family in experiment.FAMILIES.values():
        np.testing.assert_array_equal(family(part, 0.0), part.x_test)
    dark_hazy = shifts.SHIFTS["dark, hazy"](part.x_test, np.random.default_rng(0))
    np.testing.assert_allclose(experiment.FAMILIES["haze"](part, 1.0), dark_hazy, rtol=1e-6)


def test_a_batch_of_few_classes_holds_different_images_of_these_classes_only():
    y = torch.arange(10).repeat(20)
    chosen = experiment.of_classes(y, 30, [3, 7], np.random.default_rng(0))
    assert set(y[chosen].tolist()) == {3, 7}
    assert len(chosen.unique()) == 30
