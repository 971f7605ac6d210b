"""Scaling, standardizing and whitening in NumPy, and what goes wrong outside the gradient.

Every ``fit_`` function reads one affine map off the data, ``x -> (x - shift) @ matrix.T``; :func:`apply` maps
the same or other data with it. A map is fitted on training data and then applied to all data.

=========================  ==================  =============================================
function                   shift               matrix
=========================  ==================  =============================================
:func:`fit_centring`       mean                identity
:func:`fit_min_max`        minimum             diagonal, 1 / (maximum - minimum)
:func:`fit_standardizing`  mean                diagonal, 1 / standard deviation
:func:`fit_pca_whitening`  mean                rows v_i / sqrt(λ_i): axes of the covariance Σ
:func:`fit_zca_whitening`  mean                Σ^(-1/2), symmetric
=========================  ==================  =============================================

``norms.standardize`` is another thing: it normalizes a batch with its own statistics, and keeps no map.

Conventions: rows are examples. Covariances divide by M, like batch norm's variance and scikit-learn's
``StandardScaler``; scikit-learn's ``PCA(whiten=True)`` divides by M - 1, which ``ddof=1`` gives. Maps are
computed and kept in float64.

Sources: [lecun1991]_ and [lecun1998backprop]_ for the condition number, [bell1997]_ and [kessy2018]_ for ZCA,
[ioffe2015]_ section 2 for the bias that grows outside the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnbook._checks import check_choice, check_examples, check_not_negative, check_positive, check_whole

Array = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]


class AffineMap(NamedTuple):
    """An affine map of examples, x -> matrix (x - shift), that was read off some data.

    Attributes
    ----------
    shift : ndarray of shape (d,)
        What is subtracted from every example, in the unit of the data.
    matrix : ndarray of shape (d, d)
        What it is multiplied by then, in one over the unit of the data.
    """

    shift: Floats
    matrix: Floats


def apply(fit: AffineMap, x: Array) -> Array:
    """Map examples (n, d) with a fitted map; the result has the dtype of `x`.

    >>> fit = fit_min_max(np.array([[0.0, 5], [10, 7]]))
    >>> apply(fit, np.array([[5.0, 5], [20, 6]]))
    array([[0.5, 0. ],
           [2. , 0.5]])
    """
    check_examples(x)
    if x.shape[1] != len(fit.shift):
        raise ValueError(f"x: got {x.shape[1]} columns, the map was fitted to {len(fit.shift)}")
    mapped: Array = ((x.astype(np.float64) - fit.shift) @ fit.matrix.T).astype(x.dtype)
    return mapped


# --------------------------------------------------------------------------- covariance and condition


def covariance(x: Array, ddof: int = 0) -> Floats:
    """Covariance matrix of the columns, in two passes; it divides by M, or by M - 1 with ``ddof=1``.

    Its rank is at most min(d, M - 1): the centred rows add up to zero.

    >>> covariance(np.array([[1.0, 2], [3, 6]]))
    array([[1., 2.],
           [2., 4.]])
    """
    _, centred, divisor = _centred(x, ddof)
    return np.asarray(centred.T @ centred / divisor)


def condition_number(matrix: Array) -> float:
    """Largest over smallest eigenvalue of a symmetric matrix without negative eigenvalues.

    The matrix is a covariance, or the Hessian of a convex loss. The result is infinity if the smallest
    eigenvalue is zero, up to the rounding of the largest one.

    >>> condition_number(np.diag([8.0, 2.0])), condition_number(np.ones((2, 2)))
    (4.0, inf)
    """
    if np.ndim(matrix) != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"matrix: got shape {np.shape(matrix)}, expected (d, d)")
    if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max() > 1e-6 * np.abs(matrix).max():
        raise ValueError("matrix: got one that is not symmetric and finite")
    eigenvalues = np.linalg.eigvalsh(matrix)
    rounding = len(matrix) * np.finfo(eigenvalues.dtype).eps * np.abs(eigenvalues).max()
    if eigenvalues[0] < -rounding or eigenvalues[-1] <= 0:
        raise ValueError(
            f"matrix: got eigenvalues from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}, "
            "expected none below zero and at least one above"
        )
    return float(eigenvalues[-1] / eigenvalues[0]) if eigenvalues[0] > rounding else np.inf


# --------------------------------------------------------------------------- column by column


def fit_centring(x: Array) -> AffineMap:
    """Subtract the mean of each column of (M, d), and nothing else.

    >>> fit_centring(np.array([[1.0, 2], [3, 6]])).shift
    array([2., 4.])
    """
    mean, _, _ = _centred(x)
    return AffineMap(mean, np.eye(len(mean)))


def fit_min_max(x: Array) -> AffineMap:
    """Map the smallest value of each column of (M, d) to 0 and the largest to 1.

    A constant column is only shifted and comes out as 0, as in scikit-learn's ``MinMaxScaler``.

    >>> x = np.array([[1.0, 7], [3, 7], [5, 7]])
    >>> apply(fit_min_max(x), x).T
    array([[0. , 0.5, 1. ],
           [0. , 0. , 0. ]])
    """
    check_examples(x)
    wide = x.astype(np.float64)
    low, high = wide.min(0), wide.max(0)
    return AffineMap(low, np.diag(1 / np.where(low == high, 1.0, high - low)))


def fit_standardizing(x: Array) -> AffineMap:
    """Give each column the mean 0 and the (biased) variance 1 ([lecun1998backprop]_, section 4.3).

    A constant column is only shifted and comes out as 0, as in scikit-learn's ``StandardScaler``.

    >>> x = np.array([[1.0, 7], [5, 7]])
    >>> apply(fit_standardizing(x), x).T
    array([[-1.,  1.],
           [ 0.,  0.]])
    """
    mean, centred, _ = _centred(x)
    constant = np.ptp(x, axis=0) == 0  # exactly; a computed variance may be a rounding error instead
    std = np.sqrt(np.square(centred).mean(0))
    return AffineMap(mean, np.diag(1 / np.where(constant, 1.0, std)))


# --------------------------------------------------------------------------- whitening


def fit_pca_whitening(x: Array, ddof: int = 0, eps: float = 0.0, singular: str = "error") -> AffineMap:
    """Rotate to the axes of the covariance, and divide by the standard deviation along each.

    Row i of the matrix is v_i / sqrt(λ_i + eps), where Σ v_i = λ_i v_i and λ_1 >= λ_2 >= ... The sign of an
    axis is free; here its largest entry in absolute value is positive, as in scikit-learn.

    Parameters
    ----------
    x : ndarray of shape (M, d)
        A row for each example.
    ddof : int
        0 divides the covariance by M, 1 by M - 1.
    eps : float
        Added to the eigenvalues, 0 or larger. Larger than 0 it keeps weak axes from being blown up to full
        size: the variance along axis i comes out as λ_i / (λ_i + eps).
    singular : {'error', 'zero'}
        What to do, with eps = 0, about axes along which the data do not vary: refuse, or map them to 0.
        They occur if M <= d, or if a column is constant or follows from others. They are told from weak
        axes by rounding: sqrt(λ_i) <= max(M, d) * (eps of the dtype of `x`) * max(sqrt(λ_1), largest |mean|).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 3)) * [1, 10, 100]
    >>> z = apply(fit_pca_whitening(x), x)
    >>> np.allclose(covariance(z), np.eye(3))
    True
    """
    mean, axes, scale = whitening_axes(x, ddof, eps, singular)
    return AffineMap(mean, scale[:, None] * axes)


def fit_zca_whitening(x: Array, ddof: int = 0, eps: float = 0.0, singular: str = "error") -> AffineMap:
    """Whiten, and rotate back: the whitening that changes the data least ([bell1997]_, [kessy2018]_).

    The matrix is the sum of v_i v_iᵀ / sqrt(λ_i + eps) over all axes, which is Σ^(-1/2) for eps = 0. It is
    symmetric, and does not depend on the signs or the order of the axes. The parameters are those of
    :func:`fit_pca_whitening`.

    >>> x = np.random.default_rng(0).normal(size=(100, 3)) * [1, 10, 100]
    >>> root = fit_zca_whitening(x).matrix
    >>> np.allclose(root, root.T), np.allclose(root @ covariance(x) @ root, np.eye(3))
    (True, True)
    """
    mean, axes, scale = whitening_axes(x, ddof, eps, singular)
    root = (axes.T * scale) @ axes
    return AffineMap(mean, (root + root.T) / 2)


def whitening_axes(x: Array, ddof: int, eps: float, singular: str) -> tuple[Floats, Floats, Floats]:
    """Mean, axes of the covariance as rows (largest variance first), and 1 / sqrt(λ + eps) for each.

    >>> mean, axes, scale = whitening_axes(np.array([[0.0, 2], [0, -2], [1, 0], [-1, 0]]), 0, 0.0, "error")
    >>> np.allclose(axes, [[0, 1], [1, 0]]), np.allclose(1 / scale**2, [2, 0.5])
    (True, True)
    """
    check_not_negative(eps=eps)
    check_choice(("error", "zero"), singular=singular)
    mean, centred, divisor = _centred(x, ddof)
    M, d = centred.shape
    # The singular values of the centred data are sqrt(divisor * λ_i). Not to square the data keeps twice as
    # many digits of the weak axes.
    _, lengths, axes = np.linalg.svd(centred, full_matrices=d > M)
    std = np.zeros(d)
    std[: len(lengths)] = lengths / np.sqrt(divisor)
    largest = axes[np.arange(d), np.abs(axes).argmax(1)]
    axes = axes * np.sign(largest)[:, None]
    if eps > 0:
        return mean, axes, 1 / np.sqrt(np.square(std) + eps)
    # Rounding of the data, and of the mean that was subtracted from them.
    size = max(std[0], np.abs(mean).max())
    varies = std > max(M, d) * np.finfo(x.dtype).eps * size
    if singular == "error" and not varies.all():
        raise ValueError(
            f"x: {M} examples of {d} columns have a covariance of rank {varies.sum()}: nothing whitens it. "
            f"Take more than {d} examples and leave out constant and dependent columns, or give eps > 0, "
            "or singular='zero'"
        )
    return mean, axes, np.where(varies, 1 / np.where(varies, std, 1.0), 0.0)


def _centred(x: Array, ddof: int = 0) -> tuple[Floats, Floats, int]:
    """Mean of the columns, what is left after subtracting it, and the divisor of a covariance."""
    check_examples(x)
    check_choice((0, 1), ddof=ddof)
    if len(x) <= ddof:
        raise ValueError(f"x: got {len(x)} example, more than ddof = {ddof} are needed")
    wide = x.astype(np.float64)
    mean = wide.mean(0)
    return mean, wide - mean, len(wide) - ddof


# --------------------------------------------------------------------------- speed of gradient descent


def descent_terms(x: Array, targets: Array) -> tuple[Floats, Floats]:
    """Eigenvalues of a linear model's Hessian, and the share of the excess loss that lies along each axis.

    The model is W x + b with the loss mean(|W x + b - t|²) / 2, and starts at W = 0, b = 0. The Hessian is
    that of the inputs (M, d) with a 1 appended, so d + 1 eigenvalues come back, the largest first. At the
    learning rate η the excess loss after n steps is sum(shares * (1 - η * eigenvalues) ** (2 * n)).

    >>> eigenvalues, shares = descent_terms(np.array([[-2.0], [2.0]]), np.array([[1.0], [3.0]]))
    >>> eigenvalues, shares
    (array([4., 1.]), array([0.2, 0.8]))
    """
    check_examples(x)
    if np.ndim(targets) != 2 or len(targets) != len(x) or not np.isfinite(targets).all():
        raise ValueError(f"targets: got shape {np.shape(targets)}, expected ({len(x)}, outputs), all finite")
    ones = np.column_stack([x.astype(np.float64), np.ones(len(x))])
    axes, lengths, _ = np.linalg.svd(ones, full_matrices=False)
    along = np.square(axes.T @ targets).sum(1)
    if along.sum() == 0:
        raise ValueError("targets: got zeros, which the model has at its start; nothing is to be learned")
    return np.square(lengths) / len(x), along / along.sum()


def steps_to(eigenvalues: Floats, shares: Floats, rate: float, level: float) -> float:
    """Steps until the excess loss is at most `level` of its start; infinity after 2⁵⁰ or if it never is.

    `rate` is in units of one over the largest eigenvalue, so that descent is stable below 2.

    >>> steps_to(np.array([4.0, 1.0]), np.array([0.2, 0.8]), rate=1, level=0.1)
    4.0
    """
    check_positive(rate=rate, level=level)
    shrink = np.square(1 - rate * eigenvalues / eigenvalues[0])
    if rate >= 2:
        return np.inf
    low, high = -1, 1
    while (shares * shrink**high).sum() > level:  # the loss only falls: double, then halve the interval
        low, high = high, 2 * high
        if high > 2**50:
            return np.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if (shares * shrink**middle).sum() <= level else (middle, high)
    return float(high)


# --------------------------------------------------------------------------- outside the gradient


class CentredRun(NamedTuple):
    """What gradient descent did to a centred unit.

    Attributes
    ----------
    bias, beta, loss : ndarray of shape (steps + 1,)
        The bias before the centring, the shift after it, and the loss: before the first step and after each.
    """

    bias: Floats
    beta: Floats
    loss: Floats


def train_centred(
    u: Array, target: Array, lr: float, steps: int, *, through: bool, learn_beta: bool = False
) -> CentredRun:
    """Train the bias of a unit that is centred over its batch ([ioffe2015]_, section 2).

    The unit is x_i = u_i + b, centred to y_i = x_i - mean(x) + beta, and its loss mean((y_i - t_i)²) / 2. The
    gradient with respect to x_j is (y_j - t_j) / m if the mean is taken for a constant. Through the mean,
    every x_j moves every y_i by another -1/m, so that the mean of (y_i - t_i) / m over i comes off.

    Parameters
    ----------
    u, target : ndarray of shape (m,)
        Inputs u_i of the unit and values t_i that it should have.
    lr : float
        Learning rate, larger than 0.
    steps : int
        Number of updates, 0 or more.
    through : bool
        Whether the gradient passes through the mean, or the mean is computed outside it.
    learn_beta : bool
        Whether beta is trained too; otherwise it stays 0.

    Examples
    --------
    Outside the gradient the bias grows without end, and the loss stays:

    >>> run = train_centred(np.array([0.0, 2]), np.array([1.0, 3]), lr=0.5, steps=3, through=False)
    >>> run.bias, run.loss
    (array([0., 1., 2., 3.]), array([2., 2., 2., 2.]))
    """
    if np.ndim(u) != 1 or np.size(u) == 0 or np.shape(u) != np.shape(target):
        raise ValueError(f"u, target: got shapes {np.shape(u)} and {np.shape(target)}, expected (m,) twice")
    check_positive(lr=lr)
    check_whole(0, steps=steps)
    u, target = np.asarray(u, np.float64), np.asarray(target, np.float64)
    m, b, beta, path = len(u), 0.0, 0.0, []
    for _ in range(steps + 1):
        x = u + b
        dy = (x - x.mean() + beta - target) / m
        path.append((b, beta, np.square(m * dy).mean() / 2))
        dx = dy - dy.mean() if through else dy
        b -= lr * dx.sum()
        beta -= lr * dy.sum() if learn_beta else 0.0
    return CentredRun(*np.transpose(path))
