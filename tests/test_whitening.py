"""Scaling and whitening: what the maps promise, scikit-learn's conventions, awkward data, a runaway bias."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from bnbook import whitening as w

f32, f64 = np.float32, np.float64
WHITENINGS = [w.fit_pca_whitening, w.fit_zca_whitening]
FITS = [w.fit_centring, w.fit_min_max, w.fit_standardizing, *WHITENINGS]
both_whitenings = pytest.mark.parametrize("fit", WHITENINGS, ids=["PCA", "ZCA"])
every_fit = pytest.mark.parametrize("fit", FITS, ids=lambda f: f.__name__)


def cloud(M=200, d=6, seed=0, condition=100.0, mean=5.0):
    """Correlated data, whose population covariance has a given condition number."""
    rng = np.random.default_rng(seed)
    widths = np.geomspace(1, condition**0.5, d)
    return mean + (rng.standard_normal((M, d)) * widths) @ ortho_group.rvs(d, random_state=seed)


F32 = cloud().astype(f32)


# --------------------------------------------------------------------------- what whitening promises


@both_whitenings
@given(
    seed=st.integers(0, 10**6), d=st.integers(2, 12), decades=st.floats(0, 6), ddof=st.sampled_from([0, 1])
)
def test_whitened_covariance_is_the_identity_to_1e_10(fit, seed, d, decades, ddof):
    x = cloud(M=5 * d, d=d, seed=seed, condition=10**decades, mean=0.0)
    z = w.apply(fit(x, ddof=ddof), x)
    assert np.abs(w.covariance(z, ddof) - np.eye(d)).max() < 1e-10
    assert np.abs(z.mean(0)).max() < 1e-10


def test_zca_is_symmetric_and_the_inverse_root_of_the_covariance():
    x = cloud()
    matrix = w.fit_zca_whitening(x).matrix
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0
    np.testing.assert_allclose(matrix @ w.covariance(x) @ matrix, np.eye(6), atol=1e-12)


@given(seed=st.integers(0, 10**6))
def test_no_rotation_of_a_whitening_is_closer_to_the_input_than_zca(seed):
    x = cloud(seed=seed)
    centred = x - x.mean(0)
    z = w.apply(w.fit_zca_whitening(x), x)
    rotated = z @ ortho_group.rvs(6, random_state=seed)
    np.testing.assert_allclose(w.covariance(rotated), np.eye(6), atol=1e-10)  # it is a whitening, too
    assert np.sum((z - centred) ** 2) <= np.sum((rotated - centred) ** 2)


def test_pca_whitening_sorts_the_axes_by_variance():
    x = cloud()
    variances = 1 / np.square(w.fit_pca_whitening(x).matrix).sum(1)
    np.testing.assert_allclose(variances, np.linalg.eigvalsh(w.covariance(x))[::-1], rtol=1e-10)


@both_whitenings
def test_eps_shrinks_weak_axes_as_documented(fit):
    x = cloud()
    z = w.apply(fit(x, eps=0.5), x)
    values = np.linalg.eigvalsh(w.covariance(x))
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvalsh(w.covariance(z))), values / (values + 0.5), rtol=1e-9
    )


# --------------------------------------------------------------------------- scikit-learn's conventions


@pytest.mark.parametrize("constant", [False, True])
def test_standardizing_equals_standard_scaler(constant):
    x = cloud()
    x[:, 2] = 0.1 if constant else x[:, 2]
    expected = StandardScaler().fit(x).transform(x)
    np.testing.assert_allclose(w.apply(w.fit_standardizing(x), x), expected, atol=1e-12)


@pytest.mark.parametrize("constant", [False, True])
def test_min_max_equals_min_max_scaler_on_new_data_too(constant):
    x, new = cloud(seed=0), cloud(seed=1)
    x[:, 2] = 0.1 if constant else x[:, 2]
    expected = MinMaxScaler().fit(x).transform(new)
    np.testing.assert_allclose(w.apply(w.fit_min_max(x), new), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(200, 6), (30, 29)])
def test_pca_whitening_with_ddof_1_equals_scikit_learns_and_with_ddof_0_is_wider(shape):
    x, new = cloud(*shape, seed=0), cloud(*shape, seed=1)
    reference = PCA(whiten=True, svd_solver="full").fit(x)
    expected = reference.transform(new)
    actual = w.apply(w.fit_pca_whitening(x, ddof=1), new)
    np.testing.assert_allclose(actual, expected, atol=1e-9)  # signs included
    biased = w.apply(w.fit_pca_whitening(x), new)
    np.testing.assert_allclose(biased, expected * np.sqrt(shape[0] / (shape[0] - 1)), atol=1e-9)


@pytest.mark.parametrize("ddof", [0, 1])
def test_covariance_equals_numpys(ddof):
    x = cloud()
    np.testing.assert_allclose(w.covariance(x, ddof), np.cov(x.T, ddof=ddof), rtol=1e-12)


def test_centring_subtracts_the_mean_and_nothing_else():
    x, new = cloud(seed=0), cloud(seed=1)
    np.testing.assert_allclose(w.apply(w.fit_centring(x), new), new - x.mean(0), atol=1e-12)


# --------------------------------------------------------------------------- awkward data


@both_whitenings
@pytest.mark.parametrize(
    ("x", "rank"),
    [
        (cloud(5, 6), 4),
        (cloud(6, 6), 5),
        (np.column_stack([cloud(), np.full(200, 0.1)]), 6),
        (np.column_stack([cloud(), cloud()[:, 0]]), 6),
        (np.column_stack([cloud(), cloud().astype(f32)[:, 0]]).astype(f32), 6),
        (np.column_stack([F32, F32[:, 0] + F32[:, 1]]), 6),
        (np.ones((1, 3)), 0),
        (np.full((7, 3), 0.1), 0),
        (np.full((1000, 3), 0.1), 0),
    ],
    ids=[
        "M<d",
        "M=d",
        "constant",
        "duplicate",
        "duplicate in float32",
        "sum in float32",
        "one example",
        "all constant",
        "constant, rounded mean",
    ],
)
def test_singular_data_are_refused_with_their_rank_or_whitened_where_they_vary(fit, x, rank):
    with pytest.raises(ValueError, match=f"x: .* rank {rank}: nothing whitens it"):
        fit(x)
    z = w.apply(fit(x, singular="zero"), x)
    spectrum = np.linalg.eigvalsh(w.covariance(z))
    np.testing.assert_allclose(np.sort(spectrum), [0] * (x.shape[1] - rank) + [1] * rank, atol=1e-5)
    assert np.isfinite(w.apply(fit(x, eps=0.1), x)).all()  # eps > 0 needs no rank


@both_whitenings
def test_a_whitened_batch_of_at_most_d_plus_1_is_a_regular_simplex(fit):
    for M in (2, 4, 7):
        z = w.apply(fit(cloud(M, 6), singular="zero"), cloud(M, 6))
        np.testing.assert_allclose(z @ z.T, M * np.eye(M) - 1, atol=1e-9)


def test_just_more_examples_than_dimensions_can_be_whitened():
    x = cloud(7, 6)
    np.testing.assert_allclose(w.covariance(w.apply(w.fit_zca_whitening(x), x)), np.eye(6), atol=1e-10)


def test_a_constant_column_comes_out_as_zero_whatever_its_value():
    x = np.column_stack([cloud(), np.full(200, 0.1)])
    for fit in (w.fit_min_max, w.fit_standardizing):
        np.testing.assert_allclose(w.apply(fit(x), x)[:, -1], 0, atol=1e-15)


def test_a_weak_but_real_axis_is_not_taken_for_rounding():
    x = cloud(mean=0.0) * [1, 1, 1, 1, 1, 1e-9]
    np.testing.assert_allclose(w.covariance(w.apply(w.fit_pca_whitening(x), x)), np.eye(6), atol=1e-6)


def test_a_large_mean_costs_no_digits_of_the_width():
    x = np.random.default_rng(0).standard_normal((500, 3)).astype(f32) + f32(1e6)
    z = w.apply(w.fit_standardizing(x), x)
    exact = x.astype(f64)
    np.testing.assert_allclose(z, (exact - exact.mean(0)) / exact.std(0), atol=1e-5)


@every_fit
@pytest.mark.parametrize("dtype", [f32, f64], ids=["float32", "float64"])
def test_apply_keeps_the_dtype_and_leaves_the_input_alone(fit, dtype):
    x = cloud().astype(dtype)
    before = x.copy()
    fitted = fit(x)
    assert w.apply(fitted, x).dtype == dtype
    assert fitted.matrix.dtype == fitted.shift.dtype == f64
    np.testing.assert_array_equal(x, before)


@every_fit
def test_an_example_does_not_depend_on_its_neighbours_once_the_map_is_fitted(fit):
    x, fitted = cloud(), fit(cloud(seed=1))
    np.testing.assert_allclose(w.apply(fitted, x[3:4]), w.apply(fitted, x)[3:4], atol=1e-12)


@every_fit
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 2), int), "x: got dtype int64, allowed are float32 and float64"),
        (np.zeros(3), r"x: got shape \(3,\), expected \(examples, columns\)"),
        (np.zeros((0, 3)), r"x: got shape \(0, 3\)"),
        (np.array([[1.0, np.nan], [np.inf, 2.0]]), "x: got NaN or infinity in 2 of 4 values"),
    ],
    ids=["dtype", "shape", "empty", "NaN"],
)
def test_bad_data_are_refused_by_name(fit, x, message):
    with pytest.raises(ValueError, match=message):
        fit(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: w.apply(w.fit_centring(cloud()), cloud()[:, :5]),
            "x: got 5 columns, the map was fitted",
        ),
        (lambda: w.covariance(cloud(), ddof=2), "ddof: got 2, allowed are 0, 1"),
        (lambda: w.covariance(cloud()[:1], ddof=1), "x: got 1 example, more than ddof = 1 are needed"),
        (lambda: w.fit_zca_whitening(cloud(), eps=-1), "eps: got -1, expected a finite number, 0 or larger"),
        (lambda: w.fit_pca_whitening(cloud(), eps=np.inf), "eps: got inf"),
        (
            lambda: w.fit_pca_whitening(cloud(), singular="drop"),
            "singular: got 'drop', allowed are",
        ),
        (lambda: w.condition_number(np.ones((2, 3))), r"matrix: got shape \(2, 3\)"),
        (lambda: w.condition_number(np.ones(3)), r"matrix: got shape \(3,\)"),
        (lambda: w.condition_number(np.ones((0, 0))), r"matrix: got shape \(0, 0\)"),
        (
            lambda: w.condition_number(np.array([[1.0, 2.0], [0.0, 1.0]])),
            "matrix: got one that",
        ),
        (
            lambda: w.condition_number(np.full((2, 2), np.nan)),
            "matrix: got one that is",
        ),
        (lambda: w.condition_number(np.diag([1.0, -1.0])), "matrix: got eigenvalues from -1 to 1"),
        (lambda: w.condition_number(np.zeros((2, 2))), "matrix: got eigenvalues from 0 to 0"),
        (lambda: w.train_centred(np.ones(3), np.ones(2), 0.1, 1, through=True), "u, target: got shapes"),
        (lambda: w.train_centred(np.ones((2, 2)), np.ones((2, 2)), 0.1, 1, through=True), "u, target"),
        (lambda: w.train_centred(np.ones(0), np.ones(0), 0.1, 1, through=True), "u, target"),
        (lambda: w.train_centred(np.ones(3), np.ones(3), 0.0, 1, through=True), "lr: got 0.0"),
        (lambda: w.train_centred(np.ones(3), np.ones(3), 0.1, -1, through=True), "steps: got -1"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --------------------------------------------------------------------------- condition number


def test_condition_number_equals_numpys_and_is_infinite_for_singular_matrices():
    cov = w.covariance(cloud())
    assert w.condition_number(cov) == pytest.approx(np.linalg.cond(cov))
    assert w.condition_number(np.eye(3)) == 1
    assert w.condition_number(w.covariance(cloud(5, 6))) == np.inf
    assert w.condition_number(np.diag([1.0, 0.0])) == np.inf


# --------------------------------------------------------------------------- outside the gradient

U = np.random.default_rng(0).standard_normal(50)
T = 2 + U**2


def test_outside_the_gradient_the_bias_grows_linearly_at_a_constant_loss():
    run = w.train_centred(U, T, 0.1, 300, through=False)
    np.testing.assert_allclose(run.bias, 0.1 * T.mean() * np.arange(301), rtol=1e-9)
    np.testing.assert_allclose(run.loss, np.mean((U - U.mean() - T) ** 2) / 2, rtol=1e-9)
    assert not run.beta.any()


@pytest.mark.parametrize("learn_beta", [False, True])
def test_through_the_gradient_the_bias_rests(learn_beta):
    run = w.train_centred(U, T, 0.1, 300, through=True, learn_beta=learn_beta)
    assert np.abs(run.bias).max() < 1e-12
    assert run.loss[-1] < run.loss[0] if learn_beta else run.loss[-1] == pytest.approx(run.loss[0])


def test_with_beta_the_bias_stops_where_beta_stops():
    run = w.train_centred(U, T, 0.1, 300, through=False, learn_beta=True)
    np.testing.assert_allclose(run.bias, run.beta, rtol=1e-12)
    np.testing.assert_allclose(run.beta, T.mean() * (1 - 0.9 ** np.arange(301)), rtol=1e-9)


def test_its_gradients_equal_finite_differences_of_the_centred_loss():
    def loss(b, beta):
        x = U + b
        return np.mean((x - x.mean() + beta - T) ** 2) / 2

    run = w.train_centred(U, T, 1e-3, 1, through=True, learn_beta=True)
    slope = [(loss(1e-5, 0) - loss(-1e-5, 0)) / 2e-5, (loss(0, 1e-5) - loss(0, -1e-5)) / 2e-5]
    np.testing.assert_allclose([-run.bias[1] / 1e-3, -run.beta[1] / 1e-3], slope, atol=1e-8)
    assert len(w.train_centred(U, T, 0.1, 0, through=True).loss) == 1


# --------------------------------------------------------------------------- speed of gradient descent


@pytest.mark.parametrize("rate", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("level", [0.5, 0.1, 1e-3])
def test_the_predicted_steps_are_those_that_gradient_descent_takes(rate, level):
    x = np.random.default_rng(1).normal(size=(40, 3)) * [1, 2, 4] + 1
    targets = np.random.default_rng(2).normal(size=(40, 2)) + x[:, :2]
    z = np.column_stack([x, np.ones(40)])
    best = np.linalg.lstsq(z, targets)[0]
    theta, excess = np.zeros((4, 2)), []
    for _ in range(2000):
        excess.append(np.square(z @ (theta - best)).sum())
        theta -= rate / np.linalg.eigvalsh(z.T @ z)[-1] * z.T @ (z @ theta - targets)
    taken = np.argmax(np.array(excess) <= level * excess[0])
    assert taken > 0
    assert w.steps_to(*w.descent_terms(x, targets), rate, level) == taken


def test_descent_terms_are_the_eigenvalues_of_the_hessian_with_the_bias():
    x = cloud()
    z = np.column_stack([x, np.ones(len(x))])
    eigenvalues, shares = w.descent_terms(x, x)
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(z.T @ z / len(x))[::-1], rtol=1e-9)
    assert shares.sum() == pytest.approx(1)


def test_whitened_inputs_arrive_in_one_step_and_the_largest_stable_rate_never_does():
    x = cloud()
    targets = x[:, :1] ** 2
    terms = w.descent_terms(w.apply(w.fit_zca_whitening(x), x), targets)
    assert w.steps_to(*terms, 1.0, 1e-9) == 1
    assert w.steps_to(*terms, 2.0, 0.5) == np.inf
    assert w.steps_to(*terms, 1.0, 1.5) == 0


def test_a_share_of_the_loss_that_only_a_flat_axis_holds_is_never_reached():
    assert w.steps_to(np.array([1.0, 0.0]), np.array([0.5, 0.5]), 1.0, 0.1) == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: w.descent_terms(cloud(), np.ones(3)), r"targets: got shape \(3,\)"),
        (lambda: w.descent_terms(cloud(), np.zeros((len(cloud()), 1))), "targets: got zeros"),
        (lambda: w.steps_to(np.ones(1), np.ones(1), -1.0, 0.1), "rate: got -1"),
        (lambda: w.steps_to(np.ones(1), np.ones(1), 1.0, 0.0), "level: got 0"),
    ],
)
def test_bad_arguments_of_the_descent_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
