"""Mini-batches, update rules and gradient noise: against torch.optim, full enumeration and closed forms."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnbook import sgd

f32, f64 = np.float32, np.float64


@st.composite
def sizes(draw):
    """M examples, and N of them in a mini-batch."""
    M = draw(st.integers(1, 60))
    return M, draw(st.integers(1, M))


seeds = st.integers(0, 2**32 - 1)


# --------------------------------------------------------------------------- epochs and mini-batches


@given(sizes(), seeds)
def test_an_epoch_without_replacement_holds_every_example_exactly_once(size, seed):
    batches = sgd.mini_batches(*size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(size[0]))


@given(sizes(), seeds, st.booleans(), st.booleans())
def test_all_batches_have_n_indices_of_the_set_but_a_last_short_one(size, seed, replace, drop_last):
    M, N = size
    batches = sgd.mini_batches(M, N, np.random.default_rng(seed), replace, drop_last)
    rest = [M % N] if M % N and not drop_last else []
    assert [len(B) for B in batches] == [N] * (M // N) + rest
    assert all(((B >= 0) & (B < M)).all() for B in batches)


@given(sizes(), seeds)
def test_dropping_the_last_short_batch_changes_no_other(size, seed):
    M, N = size
    kept, dropped = (
        sgd.mini_batches(M, N, np.random.default_rng(seed), drop_last=drop) for drop in (False, True)
    )
    for a, b in zip(dropped, kept[: M // N], strict=True):
        np.testing.assert_array_equal(a, b)


@given(sizes(), seeds, st.booleans())
def test_a_seed_gives_the_same_epochs_again_whatever_the_global_state(size, seed, replace):
    def epochs():
        rng = np.random.default_rng(seed)
        return [np.concatenate(sgd.mini_batches(*size, rng, replace)) for _ in range(3)]

    np.random.seed(1)  # noqa: NPY002
    first = epochs()
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, epochs())


@pytest.mark.parametrize("replace", [False, True])
def test_one_epoch_differs_from_the_next(replace):
    rng = np.random.default_rng(0)
    first, second = (np.concatenate(sgd.mini_batches(50, 7, rng, replace)) for _ in range(2))
    assert (first != second).any()


def test_an_epoch_with_replacement_misses_about_1_in_e_examples():
    M = 20_000
    drawn = np.concatenate(sgd.mini_batches(M, 100, np.random.default_rng(0), replace=True))
    assert abs(1 - len(np.unique(drawn)) / M - np.exp(-1)) < 0.01


def test_a_shuffle_puts_every_example_everywhere_equally_often():
    rng = np.random.default_rng(0)
    orders = [tuple(np.concatenate(sgd.mini_batches(3, 2, rng))) for _ in range(6000)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 6000
    assert min(counts) > 880  # 1000 +- 29


@given(sizes(), seeds)
def test_endless_batches_are_those_of_one_shuffled_epoch_after_another(size, seed):
    M, N = size
    rng = np.random.default_rng(seed)
    expected = [B for _ in range(3) for B in sgd.mini_batches(M, N, rng, drop_last=True)]
    for start in (seed, np.random.default_rng(seed)):
        np.testing.assert_array_equal(
            list(itertools.islice(sgd.endless(M, N, start), len(expected))), expected
        )


def test_two_endless_streams_of_one_generator_share_its_draws():
    shared, rng = np.random.default_rng(3), np.random.default_rng(3)
    first, second = sgd.endless(9, 9, shared), sgd.endless(9, 9, shared)
    for stream in (first, second, first):
        np.testing.assert_array_equal(next(stream), sgd.mini_batches(9, 9, rng)[0])


@given(sizes(), st.integers(0, 5), st.booleans())
def test_iterations_count_the_batches_of_all_epochs(size, epochs, drop_last):
    M, N = size
    rng = np.random.default_rng(0)
    batches = [B for _ in range(epochs) for B in sgd.mini_batches(M, N, rng, drop_last=drop_last)]
    assert sgd.num_iterations(M, N, epochs, drop_last) == len(batches)


def test_2000_examples_in_batches_of_500_for_20_epochs_are_80_iterations():
    assert sgd.num_iterations(2000, 500, 20) == 80
    assert [sgd.num_iterations(2001, 500, 20, drop_last=drop) for drop in (False, True)] == [100, 80]


# --------------------------------------------------------------------------- update rules

RULES = {
    "step": (sgd.step, {}, lambda p, lr: torch.optim.SGD(p, lr)),
    "momentum": (sgd.momentum, {}, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    "momentum .5": (sgd.momentum, {"mu": 0.5}, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.5)),
}


def rosenbrock(theta):
    """Not convex, badly scaled, and its gradient mixes the parameters."""
    return ((1 - theta[:-1]) ** 2 + 3 * (theta[1:] - theta[:-1] ** 2) ** 2).sum()


@pytest.mark.parametrize("name", RULES)
def test_rules_agree_with_torch_over_300_steps(name):
    rule, settings, optimizer = RULES[name]
    theta = torch.tensor([-1.2, 1.0, 0.3, -0.4], dtype=torch.float64, requires_grad=True)

    def gradient(value):
        at = torch.tensor(value, requires_grad=True)
        return torch.autograd.grad(rosenbrock(at), at)[0].numpy()

    path = sgd.descend(rule, gradient, theta.detach().numpy().copy(), 300, lr=0.01, **settings)
    reference = optimizer([theta], 0.01)
    expected = [theta.detach().numpy().copy()]
    for _ in range(300):
        reference.zero_grad()
        rosenbrock(theta).backward()
        reference.step()
        expected.append(theta.detach().numpy().copy())
    np.testing.assert_allclose(path, expected, rtol=0, atol=1e-12)
    assert np.linalg.norm(path[-1] - path[0]) > 0.1


@pytest.mark.parametrize("name", RULES)
def test_rules_agree_with_torch_when_the_rate_changes_at_each_step(name):
    rule, settings, optimizer = RULES[name]
    rng = np.random.default_rng(0)
    theta, state = rng.standard_normal((3, 2)), np.zeros((3, 2))
    parameter = torch.tensor(theta)
    reference = optimizer([parameter], 0.1)
    for lr in 0.1 / np.arange(1, 50):
        grad = rng.standard_normal((3, 2))
        theta, state = rule(theta, grad, state, lr=lr, **settings)
        parameter.grad = torch.tensor(grad)
        reference.param_groups[0]["lr"] = lr
        reference.step()
    np.testing.assert_allclose(theta, parameter.numpy(), rtol=0, atol=1e-12)


def test_the_other_convention_of_momentum_agrees_only_while_the_rate_is_constant():
    def distance(rates):
        rng = np.random.default_rng(0)
        ours = theirs = rng.standard_normal(3)
        velocity = v = np.zeros(3)
        for lr in rates:
            grad = rng.standard_normal(3)
            ours, velocity = sgd.momentum(ours, grad, velocity, lr, mu=0.8)
            v = 0.8 * v - lr * grad
            theirs = theirs + v
        return np.abs(ours - theirs).max()

    assert distance([0.1] * 20) < 1e-14
    assert distance([0.1] * 10 + [0.01] * 10) > 0.01


def test_no_rule_changes_its_inputs_and_both_keep_shape_and_dtype():
    for rule, settings, _ in RULES.values():
        for dtype in (f32, f64):
            inputs = [np.full((2, 3), value, dtype) for value in (1.0, 0.5, 0.25)]
            outputs = rule(*inputs, lr=0.1, **settings)
            assert [a.dtype for a in outputs] == [dtype] * 2
            assert [a.shape for a in outputs] == [(2, 3)] * 2
            for a, value in zip(inputs, (1.0, 0.5, 0.25), strict=True):
                assert (a == value).all()


@given(
    st.floats(0.1, 10),
    st.integers(1, 200).map(lambda k: k / 100),
    st.floats(-5, 5).filter(lambda w: abs(w) > 1e-3),
)
def test_descent_on_a_parabola_shrinks_the_distance_by_1_minus_lr_times_curvature(curvature, lr_h, start):
    path = sgd.descend(sgd.step, lambda w: curvature * w, np.array([start]), 20, lr=lr_h / curvature)
    np.testing.assert_allclose(path[:, 0], start * (1 - lr_h) ** np.arange(21), rtol=1e-9, atol=1e-12)


def test_a_parameter_without_gradient_stays():
    for rule, settings, _ in RULES.values():
        theta, _ = rule(np.ones(2), np.array([0.0, 1.0]), np.zeros(2), lr=0.1, **settings)
        assert theta[0] == 1 > theta[1]


def test_the_path_holds_the_start_and_every_step_and_the_gradient_is_asked_once_a_step():
    asked = []
    path = sgd.descend(sgd.step, lambda w: asked.append(w) or np.ones_like(w), np.zeros((2, 2)), 3, lr=0.5)
    assert path.shape == (4, 2, 2)
    np.testing.assert_array_equal(path[:, 0, 0], [0, -0.5, -1, -1.5])
    np.testing.assert_array_equal(asked, path[:-1])
    assert sgd.descend(sgd.step, lambda w: w, np.zeros(2), 0, lr=0.1).shape == (1, 2)


# --------------------------------------------------------------------------- gradient noise


def all_batches(M, N, replace):
    """Every mini-batch that can be drawn, each as likely as any other."""
    return itertools.product(range(M), repeat=N) if replace else itertools.combinations(range(M), N)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(("M", "N"), [(1, 1), (2, 1), (2, 2), (5, 2), (5, 5), (6, 3), (6, 5)])
def test_mean_and_variance_over_all_mini_batches_are_the_closed_forms_exactly(M, N, replace):
    g = [Fraction(n) for n in (3, -1, 4, 1, -5, 9)[:M]]
    mean = sum(g) / M
    variance = sum((value - mean) ** 2 for value in g) / M
    of_batches = [sum(g[i] for i in B) / N for B in all_batches(M, N, replace)]
    assert sum(of_batches) / len(of_batches) == mean
    found = sum((value - mean) ** 2 for value in of_batches) / len(of_batches)
    assert float(found) == pytest.approx(sgd.variance_factor(N, M, replace) * float(variance), rel=1e-14)


@given(sizes())
def test_the_factor_is_1_for_one_example_and_without_replacement_0_for_all(size):
    M, N = size
    assert sgd.variance_factor(1, M, False) == sgd.variance_factor(1, M, True) == 1
    assert sgd.variance_factor(M, M, False) == (0 if M > 1 else 1)
    assert sgd.variance_factor(N, M, False) <= sgd.variance_factor(N, M, True) == 1 / N


@given(sizes(), seeds, st.booleans())
def test_counts_add_up_to_n_and_without_replacement_are_0_or_1(size, seed, replace):
    M, N = size
    counts = sgd.draw_counts(M, N, 4, np.random.default_rng(seed), replace)
    assert counts.shape == (4, M)
    assert counts.dtype == f64
    np.testing.assert_array_equal(counts.sum(1), N)
    assert counts.min() >= 0
    assert replace or counts.max() <= 1


def test_with_replacement_an_example_can_come_twice():
    assert sgd.draw_counts(5, 5, 100, np.random.default_rng(0), replace=True).max() > 1


@pytest.mark.parametrize("replace", [False, True])
def test_every_mini_batch_is_drawn_equally_often(replace):
    M, N, draws = 4, 2, 40_000
    counts = sgd.draw_counts(M, N, draws, np.random.default_rng(0), replace)
    batches = list(all_batches(M, N, replace))
    wanted = {}
    for B in batches:
        key = tuple(np.bincount(B, minlength=M))
        wanted[key] = wanted.get(key, 0) + 1 / len(batches)
    rows, found = np.unique(counts, axis=0, return_counts=True)
    assert {tuple(map(int, row)) for row in rows} == set(wanted)
    for row, number in zip(rows, found, strict=True):
        assert abs(number / draws - wanted[tuple(map(int, row))]) < 0.01  # standard deviation < .002


def test_inner_products_are_those_of_the_centred_rows_and_their_diagonal_has_the_mean_variance():
    G = 5 + np.random.default_rng(0).standard_normal((7, 11))
    K = sgd.inner_products(G)
    centred = G - G.mean(0)
    for i, j in itertools.product(range(7), repeat=2):
        assert K[i, j] == pytest.approx(centred[i] @ centred[j], abs=1e-12)
    assert K.diagonal().mean() == pytest.approx(G.var(0).sum())
    single = sgd.inner_products(G.astype(f32))
    assert single.dtype == f64
    np.testing.assert_allclose(single, K, atol=1e-4)


@pytest.mark.parametrize("replace", [False, True])
def test_noise_is_the_squared_distance_of_the_drawn_mean_from_the_mean_of_all(replace):
    G = np.random.default_rng(0).standard_normal((6, 3))
    noise = sgd.batch_noise(sgd.inner_products(G), 4, 10, np.random.default_rng(1), replace)
    counts = sgd.draw_counts(6, 4, 10, np.random.default_rng(1), replace)
    for row, found in zip(counts, noise, strict=True):
        of_batch = np.mean([G[i] for i in range(6) for _ in range(int(row[i]))], axis=0)
        assert found == pytest.approx(((of_batch - G.mean(0)) ** 2).sum())


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("N", [1, 3, 8, 15])
def test_the_mean_noise_is_the_closed_form_times_the_variance_of_one_example(N, replace):
    G = np.random.default_rng(0).standard_normal((16, 40))
    noise = sgd.batch_noise(sgd.inner_products(G), N, 20_000, np.random.default_rng(1), replace)
    assert noise.mean() / G.var(0).sum() == pytest.approx(sgd.variance_factor(N, 16, replace), rel=0.02)


@pytest.mark.parametrize("M", [1, 9])
def test_the_whole_set_has_no_noise_without_replacement(M):
    G = np.random.default_rng(0).standard_normal((M, 4))
    noise = sgd.batch_noise(sgd.inner_products(G), M, 5, np.random.default_rng(1), replace=False)
    np.testing.assert_allclose(noise, 0, atol=1e-15)


# --------------------------------------------------------------------------- bad input

rng = np.random.default_rng(0)
v = np.zeros(2)
nan = np.array([0.0, np.nan])
BAD = {
    "M 0": (lambda: sgd.mini_batches(0, 1, rng), "M: got 0, expected a whole number, 1 or more"),
    "M float": (lambda: sgd.mini_batches(10.0, 1, rng), "M: got 10.0, expected a whole number"),
    "N 0": (lambda: sgd.mini_batches(10, 0, rng), "N: got 0, expected a whole number from 1 to 10"),
    "N > M": (lambda: sgd.mini_batches(10, 11, rng), "N: got 11, expected a whole number from 1 to 10"),
    "N of a count": (
        lambda: sgd.num_iterations(10, 11, 1),
        "N: got 11, expected a whole number from 1 to 10",
    ),
    "epochs": (lambda: sgd.num_iterations(10, 5, -1), "epochs: got -1, expected a whole number, 0 or more"),
    "epochs half": (lambda: sgd.num_iterations(10, 5, 0.5), "epochs: got 0.5, expected a whole number"),
    "lr negative": (lambda: sgd.step(v, v, v, -0.1), "lr: got -0.1, expected a finite number, 0 or larger"),
    "lr infinite": (lambda: sgd.momentum(v, v, v, np.inf), "lr: got inf, expected a finite number"),
    "lr nan": (lambda: sgd.momentum(v, v, v, np.nan), "lr: got nan, expected a finite number"),
    "mu 1": (
        lambda: sgd.momentum(v, v, v, 0.1, mu=1.0),
        "mu: got 1.0, allowed are numbers from 0 to below 1",
    ),
    "mu -": (
        lambda: sgd.momentum(v, v, v, 0.1, mu=-0.5),
        "mu: got -0.5, allowed are numbers from 0 to below 1",
    ),
    "theta int": (
        lambda: sgd.step(np.zeros(2, int), v, v, 0.1),
        "theta: got dtype int64, allowed are float32",
    ),
    "grad nan": (
        lambda: sgd.step(v, nan, v, 0.1),
        "grad: got NaN or infinity in 1 of 2 values, all must be finite",
    ),
    "theta nan": (lambda: sgd.step(nan, v, v, 0.1), "theta: got NaN or infinity in 1 of 2 values"),
    "velocity nan": (lambda: sgd.momentum(v, v, nan, 0.1), "velocity: got NaN or infinity in 1 of 2 values"),
    "grad shape": (
        lambda: sgd.step(v, np.zeros((2, 1)), v, 0.1),
        "grad: got shape (2, 1), expected that of theta, (2,)",
    ),
    "state shape": (
        lambda: sgd.step(v, v, np.zeros(3), 0.1),
        "state: got shape (3,), expected that of theta, (2,)",
    ),
    "steps": (
        lambda: sgd.descend(sgd.step, np.sin, v, -1, lr=0.1),
        "steps: got -1, expected a whole number, 0 or more",
    ),
    "diverged": (
        lambda: sgd.descend(sgd.step, lambda w: 1e200 * w**3, v + 1e10, 3, lr=1.0),
        "grad: got NaN or infinity in 2 of 2 values, all must be finite",
    ),
    "factor": (lambda: sgd.variance_factor(3, 2, True), "N: got 3, expected a whole number from 1 to 2"),
    "draws": (
        lambda: sgd.draw_counts(3, 2, 0, rng, True),
        "draws: got 0, expected a whole number, 1 or more",
    ),
    "counts N": (
        lambda: sgd.draw_counts(3, 4, 1, rng, True),
        "N: got 4, expected a whole number from 1 to 3",
    ),
    "G flat": (lambda: sgd.inner_products(v), "G: got shape (2,), expected (M, P) with at least one example"),
    "G empty": (
        lambda: sgd.inner_products(np.zeros((0, 3))),
        "G: got shape (0, 3), expected (M, P) with at least",
    ),
    "G int": (
        lambda: sgd.inner_products(np.eye(2, dtype=int)),
        "G: got dtype int64, allowed are float32 and float64",
    ),
    "G nan": (
        lambda: sgd.inner_products(nan[None]),
        "G: got NaN or infinity in 1 of 2 values, all must be finite",
    ),
    "K nan": (
        lambda: sgd.batch_noise(np.full((2, 2), np.nan), 1, 1, rng, True),
        "K: got NaN or infinity in 4",
    ),
    "endless": (lambda: next(sgd.endless(3, 4, 0)), "N: got 4, expected a whole number from 1 to 3"),
    "theta list": (lambda: sgd.step([0.0], v, v, 0.1), "theta: got list, expected a NumPy array"),
    "M text": (lambda: sgd.mini_batches("10", 1, rng), "M: got '10', expected a whole number, 1 or more"),
    "K": (lambda: sgd.batch_noise(np.zeros((2, 3)), 1, 1, rng, True), "K: got shape (2, 3), expected (M, M)"),
    "K flat": (lambda: sgd.batch_noise(v, 1, 1, rng, True), "K: got shape (2,), expected (M, M)"),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_message_that_names_the_argument_what_came_and_what_is_allowed(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=r"^[^:]+: got ") as error:
        call()
    assert message in str(error.value)
