"""Jacobians and Hessians of a network: against linear algebra, full matrices and finite differences."""

import copy

import pytest
import torch
from test_probes_training import (
    MODELS,
    Backwards,
    X,
    Y,
    bn_mlp,
    build,
    close,
    f64,
    flat,
    gradient,
    hessian,
    linear,
    normal,
    squares,
    stepped,
)
from torch import nn

from bnbook import layers, probes

# --------------------------------------------------------------------------- Jacobian


def test_each_example_of_a_linear_layer_has_the_singular_values_of_its_weight():
    model = build(linear)
    found = probes.jacobian_singular_values(model, X)
    close(found, torch.linalg.svdvals(model[0].weight.detach()).expand(7, 2))


def test_a_deep_orthogonal_network_stretches_no_direction():
    model = build(lambda: nn.Sequential(*[nn.Linear(5, 5) for _ in range(20)]))
    for layer in model:
        nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(4))
    close(probes.jacobian_singular_values(model, normal(3, 5)), torch.ones(3, 5))


@pytest.mark.parametrize("name", MODELS)
def test_in_evaluation_there_is_one_map_for_each_example(name):
    model = build(MODELS[name]).eval()
    found = probes.jacobian_singular_values(model, X)
    expected = [
        torch.linalg.svdvals(torch.autograd.functional.jacobian(lambda a: model(a[None])[0], x)) for x in X
    ]
    close(found, torch.stack(expected))


def test_with_statistics_of_the_batch_the_whole_batch_is_one_map():
    model = build(bn_mlp)
    found = probes.jacobian_singular_values(model, X)
    full = torch.autograd.functional.jacobian(copy.deepcopy(model), X).reshape(14, 21)
    close(found, torch.linalg.svdvals(full)[None])


@pytest.mark.parametrize(
    "norm",
    [
        lambda: layers.BatchNorm(1, eps=0, affine=False),
        lambda: layers.BatchNorm(1, 0, track_running_stats=False).eval(),
    ],
)
def test_batch_norm_takes_out_two_directions_and_divides_the_others_by_the_deviation(norm):
    x = normal(6, 1)
    found = probes.jacobian_singular_values(norm().to(f64), x)
    close(found, [[1 / x.std(correction=0)] * 4 + [0, 0]])


# --------------------------------------------------------------------------- Hessian


def test_hessian_vector_product_of_a_quadratic():
    v = normal(6, seed=5)
    close(probes.hessian_vector_product(build(linear), squares, X, Y, v), hessian() @ v)


@pytest.mark.parametrize("name", MODELS)
def test_hessian_vector_product_is_the_change_of_the_gradient_along_the_vector(name):
    model = build(MODELS[name])
    sizes = {n: p.shape for n, p in model.named_parameters()}
    v = normal(sum(s.numel() for s in sizes.values()), seed=5)
    parts = v.split([s.numel() for s in sizes.values()])
    direction = {n: part.view(s) for (n, s), part in zip(sizes.items(), parts, strict=True)}
    h = 1e-6
    ahead, behind = (flat(gradient(stepped(model, -sign * h, direction))) for sign in (1, -1))
    close(probes.hessian_vector_product(model, squares, X, Y, v), (ahead - behind) / (2 * h), atol=1e-7)


def test_a_parameter_that_is_not_used_has_no_curvature():
    model = build(Backwards)
    size = {n: p.numel() for n, p in model.named_parameters()}
    product = probes.hessian_vector_product(model, squares, X, Y, torch.ones(sum(size.values()), dtype=f64))
    parts = dict(zip(size, product.split(list(size.values())), strict=True))
    assert {n for n, part in parts.items() if not part.any()} == {"idle.weight", "idle.bias"}


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature():
    model = build(linear)
    v = normal(6)
    assert torch.equal(
        probes.hessian_vector_product(model, lambda o, _: o.sum(), X, Y, v), torch.zeros_like(v)
    )
    assert probes.top_eigenvalue(model, lambda o, _: o.sum(), X, Y) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_top_eigenvalue_of_a_quadratic_has_its_sign(sign):
    found = probes.top_eigenvalue(build(linear), lambda o, t: sign * squares(o, t), X, Y, tolerance=1e-6)
    assert found == pytest.approx(sign * torch.linalg.eigvalsh(hessian())[-1].item(), rel=1e-6)


def test_top_eigenvalue_is_that_of_the_whole_hessian_whatever_the_seed():
    model = build(bn_mlp)
    size = sum(p.numel() for p in model.parameters())
    columns = [probes.hessian_vector_product(model, squares, X, Y, e) for e in torch.eye(size, dtype=f64)]
    eigenvalues = torch.linalg.eigvalsh(torch.stack(columns))
    top = eigenvalues[eigenvalues.abs().argmax()].item()
    found = [probes.top_eigenvalue(model, squares, X, Y, seed=seed) for seed in (0, 1)]
    assert found == [pytest.approx(top, rel=1e-3)] * 2
    assert found[0] != found[1]
    assert found[0] == probes.top_eigenvalue(model, squares, X, Y)


def test_gradient_descent_diverges_just_above_two_over_the_top_eigenvalue():
    model = build(linear)
    top = probes.top_eigenvalue(model, squares, X, Y, tolerance=1e-6)
    for factor, shrinks in ((0.98, True), (1.02, False)):
        walker = model
        for _ in range(400):
            walker = stepped(walker, factor * 2 / top, gradient(walker))
        end = flat(gradient(walker)).norm()
        assert (end < flat(gradient(model)).norm()) == shrinks


def test_two_eigenvalues_of_opposite_sign_are_reported_and_not_averaged():
    model, one = nn.Linear(1, 2, bias=False).to(f64), torch.ones(1, 1, dtype=f64)
    with pytest.raises(RuntimeError, match=r"not within tolerance 0.001 after 30 iterations"):
        probes.top_eigenvalue(model, lambda o, _: o[0, 0] ** 2 - o[0, 1] ** 2, one, one, iterations=30)
