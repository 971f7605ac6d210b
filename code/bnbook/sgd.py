"""Stochastic gradient descent in NumPy: mini-batches, update rules and gradient noise.

Symbols are those of the text: theta are the parameters Θ, lr is the learning rate η, M counts the
examples of the training set and N those of a mini-batch B, g_i is the gradient of the loss of
example i. (The letter m is kept for the batch that a normalizer sees.)

Sources: [robbins1951]_ and [bottou2018]_ for the method, [polyak1964]_ and [sutskever2013]_ for momentum,
[duchi2011]_ for AdaGrad, [cochran1977]_ for sampling without replacement.

.. [robbins1951] H. Robbins, S. Monro. A Stochastic Approximation Method. Ann. Math. Statist. 22, 1951.
.. [bottou2018] L. Bottou, F. E. Curtis, J. Nocedal. Optimization Methods for Large-Scale Machine Learning.
   SIAM Review 60, 2018; arXiv:1606.04838.
.. [polyak1964] B. T. Polyak. Some methods of speeding up the convergence of iteration methods.
   USSR Comput. Math. and Math. Phys. 4, 1964.
.. [sutskever2013] I. Sutskever, J. Martens, G. Dahl, G. Hinton. On the importance of initialization and
   momentum in deep learning. ICML 2013.
.. [duchi2011] J. Duchi, E. Hazan, Y. Singer. Adaptive Subgradient Methods for Online Learning and
   Stochastic Optimization. JMLR 12, 2011.
.. [cochran1977] W. G. Cochran. Sampling Techniques. 3rd edition, Wiley, 1977.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

__all__ = [
    "adagrad",
    "batch_noise",
    "descend",
    "draw_counts",
    "inner_products",
    "mini_batches",
    "momentum",
    "num_iterations",
    "step",
    "variance_factor",
]

# --------------------------------------------------------------------------- epochs and mini-batches


def mini_batches(
    M: int, N: int, rng: np.random.Generator, replace: bool = False, drop_last: bool = False
) -> list[NDArray[np.intp]]:
    """Draw M of the indices 0 to M - 1 and cut them into the mini-batches of one epoch.

    Parameters
    ----------
    M : int
        Number of examples, at least 1.
    N : int
        Examples in a mini-batch, from 1 to M.
    rng : numpy.random.Generator
        Its state moves on, so that the next epoch is another one.
    replace : bool
        Whether an index may be drawn again. If not, the M draws are a shuffle, and an epoch holds every
        example exactly once.
    drop_last : bool
        Whether to leave out the last mini-batch if it is shorter than N.

    Returns
    -------
    list of ndarray of int
        Mini-batches B of N indices; the last one is shorter if N does not divide M.

    Raises
    ------
    ValueError
        If M or N is no whole number or out of range.
    """
    M, N = _sizes(M, N)
    order = rng.integers(M, size=M) if replace else rng.permutation(M)
    stop = M - M % N if drop_last else M
    return [order[start : start + N] for start in range(0, stop, N)]


def num_iterations(M: int, N: int, epochs: int, drop_last: bool = False) -> int:
    """Return the number of updates of a training: mini-batches in an epoch, times epochs.

    Parameters
    ----------
    M : int
        Number of examples, at least 1.
    N : int
        Examples in a mini-batch, from 1 to M.
    epochs : int
        Passes over the data, 0 or more.
    drop_last : bool
        As in :func:`mini_batches`.

    Returns
    -------
    int
        epochs * M / N, where M / N is rounded down with `drop_last` and up without.

    Raises
    ------
    ValueError
        If a number is not whole or out of range.
    """
    M, N = _sizes(M, N)
    epochs = _whole("epochs", epochs, 0)
    return epochs * (M // N if drop_last else -(-M // N))


# --------------------------------------------------------------------------- update rules


def step(theta: Array, grad: Array, state: Array, lr: float) -> tuple[Array, Array]:
    """One step of gradient descent: theta - lr * grad ([robbins1951]_, [bottou2018]_ section 3.2).

    Whether it is stochastic depends only on where `grad` comes from.

    Parameters
    ----------
    theta, grad : ndarray
        Parameters, and the gradient of the loss there; same shape.
    state : ndarray
        This rule remembers nothing: it hands the state back, so that all rules fit one loop.
    lr : float
        Learning rate, 0 or larger. Its unit is that of theta² / loss.

    Returns
    -------
    theta, state : ndarray
        New parameters, and the state as it came.

    Raises
    ------
    ValueError
        For a negative or infinite rate, arrays of different shapes, or a gradient with NaN or infinity.
    """
    theta, grad, state = _checked(theta, grad, state, lr)
    return theta - lr * grad, state


def momentum(theta: Array, grad: Array, velocity: Array, lr: float, mu: float = 0.9) -> tuple[Array, Array]:
    """One step with momentum, in PyTorch's convention ([sutskever2013]_ section 2; [polyak1964]_).

    velocity <- mu * velocity + grad, then theta <- theta - lr * velocity.

    [sutskever2013]_ keeps the rate inside the velocity: v <- mu * v - lr * grad, theta <- theta + v.
    At a constant rate both take the same path (v = -lr * velocity). When the rate changes they differ:
    here a new rate acts at once on all that was gathered, there only on the gradients to come.

    Parameters
    ----------
    theta, grad : ndarray
        Parameters, and the gradient of the loss there; same shape.
    velocity : ndarray
        Sum of the past gradients, each multiplied by mu once a step; zeros at the start.
    lr : float
        Learning rate, 0 or larger.
    mu : float
        The share of the velocity that is kept, 0 <= mu < 1.

    Returns
    -------
    theta, velocity : ndarray

    Raises
    ------
    ValueError
        As :func:`step`; also for mu out of range.
    """
    theta, grad, velocity = _checked(theta, grad, velocity, lr, "velocity")
    if not 0 <= mu < 1:
        raise ValueError(f"mu: got {mu}, allowed are numbers from 0 to below 1")
    velocity = mu * velocity + grad
    return theta - lr * velocity, velocity


def adagrad(theta: Array, grad: Array, squares: Array, lr: float, eps: float = 1e-10) -> tuple[Array, Array]:
    """One step of AdaGrad with a rate for each parameter ([duchi2011]_, figure 1, diagonal form).

    squares <- squares + grad², then theta <- theta - lr * grad / (sqrt(squares) + eps).

    Parameters
    ----------
    theta, grad : ndarray
        Parameters, and the gradient of the loss there; same shape.
    squares : ndarray
        Sum of the squares of all past gradients, for each parameter; zeros at the start.
    lr : float
        Learning rate, 0 or larger. Its unit is that of theta: the first step has this length in
        each parameter, however large the gradient.
    eps : float
        Larger than 0; keeps 0 / 0 away from parameters without a gradient.

    Returns
    -------
    theta, squares : ndarray

    Raises
    ------
    ValueError
        As :func:`step`; also for eps that is not larger than 0, or negative `squares`.
    """
    theta, grad, squares = _checked(theta, grad, squares, lr, "squares")
    if not 0 < eps < np.inf:
        raise ValueError(f"eps: got {eps}, expected a finite number larger than 0")
    if (squares < 0).any():
        raise ValueError(f"squares: got {squares.min():.3g}, a sum of squares is 0 or larger")
    squares = squares + grad**2
    return theta - lr * grad / (np.sqrt(squares) + eps), squares


def descend(
    rule: Callable[..., tuple[Array, Array]],
    gradient: Callable[[Array], Array],
    theta: Array,
    steps: int,
    **settings: float,
) -> Array:
    """Follow an update rule and return the path.

    Parameters
    ----------
    rule : function
        :func:`step`, :func:`momentum` or :func:`adagrad`; its state starts at zero.
    gradient : function
        From theta to the gradient there. It is called once a step, so it may draw another mini-batch
        each time.
    theta : ndarray
        Where to start, float32 or float64.
    steps : int
        Number of updates, 0 or more.
    **settings
        For `rule`, such as ``lr=0.1``.

    Returns
    -------
    ndarray of shape (steps + 1, *theta.shape)
        The parameters before the first step and after each one.

    Raises
    ------
    ValueError
        What `rule` rejects, such as a gradient that is infinite because the path has diverged; also for
        `steps` that is no whole number or negative.
    """
    theta = np.asarray(theta)
    state = np.zeros_like(theta)
    path = [theta]
    for _ in range(_whole("steps", steps, 0)):
        theta, state = rule(theta, gradient(theta), state, **settings)
        path.append(theta)
    return np.stack(path)


# --------------------------------------------------------------------------- gradient noise


def variance_factor(N: int, M: int, replace: bool) -> float:
    """Variance of a mini-batch mean over that of a single draw ([cochran1977]_, theorem 2.2).

    Parameters
    ----------
    N : int
        Examples in a mini-batch, from 1 to M.
    M : int
        Number of examples, at least 1.
    replace : bool
        Whether an example may be drawn again.

    Returns
    -------
    float
        1 / N with replacement. (1 / N) (M - N) / (M - 1) without: the same for N = 1, and 0 for N = M,
        where the mini-batch is the whole set.

    Raises
    ------
    ValueError
        If M or N is no whole number or out of range.
    """
    M, N = _sizes(M, N)
    return 1 / N if replace or N == 1 else (M - N) / (M - 1) / N


def draw_counts(M: int, N: int, draws: int, rng: np.random.Generator, replace: bool) -> NDArray[np.float64]:
    """Draw mini-batches, and count how often each of them holds each example.

    Parameters
    ----------
    M : int
        Number of examples, at least 1.
    N : int
        Examples in a mini-batch, from 1 to M.
    draws : int
        Number of mini-batches, at least 1.
    rng : numpy.random.Generator
    replace : bool
        Whether an example may be drawn again. If not, every count is 0 or 1.

    Returns
    -------
    ndarray of shape (draws, M)
        Each row adds up to N.

    Raises
    ------
    ValueError
        If a number is not whole or out of range.
    """
    M, N = _sizes(M, N)
    draws = _whole("draws", draws, 1)
    if replace:
        return rng.multinomial(N, np.full(M, 1 / M), size=draws).astype(np.float64)
    first = np.broadcast_to(np.arange(M) < N, (draws, M))
    return rng.permuted(first, axis=1).astype(np.float64)


def inner_products(G: Array) -> NDArray[np.float64]:
    """Inner products (g_i - mean) · (g_j - mean) of all pairs of examples.

    Their diagonal has the mean σ², the variance of the gradient of a single example, added up over
    the parameters.

    Parameters
    ----------
    G : ndarray of shape (M, P)
        A row for each example: its gradient, or whatever else is averaged over a mini-batch.

    Returns
    -------
    ndarray of shape (M, M)
        Multiplied in the dtype of `G`, returned in float64.

    Raises
    ------
    ValueError
        If `G` has another number of axes, another dtype than float32 and float64, no value, or NaN or
        infinity.
    """
    G = _finite("G", G)
    if G.ndim != 2 or G.size == 0:
        raise ValueError(f"G: got shape {G.shape}, expected (M, P) with at least one example and parameter")
    centred = G - G.mean(0, dtype=np.float64).astype(G.dtype)
    products: NDArray[np.float64] = (centred @ centred.T).astype(np.float64)
    return products


def batch_noise(
    K: NDArray[np.float64], N: int, draws: int, rng: np.random.Generator, replace: bool
) -> NDArray[np.float64]:
    """Draw mini-batches and return how far the gradient of each is from the mean gradient, squared.

    With c_i the number of times that B holds example i, g_B - mean = (1/N) Σ c_i (g_i - mean), so that its
    squared length is c·Kc / N². No gradient is touched: a draw costs M² multiplications, not N times the
    number of parameters.

    Parameters
    ----------
    K : ndarray of shape (M, M)
        From :func:`inner_products`.
    N : int
        Examples in a mini-batch, from 1 to M.
    draws : int
        Number of mini-batches, at least 1.
    rng : numpy.random.Generator
    replace : bool
        Whether an example may be drawn again.

    Returns
    -------
    ndarray of shape (draws,)
        The unit is that of the gradient, squared. The mean estimates the variance of the mini-batch gradient,
        :func:`variance_factor` times σ².

    Raises
    ------
    ValueError
        If `K` is not square, or a number is not whole or out of range.
    """
    K = np.asarray(K)
    if K.ndim != 2 or K.shape[0] != K.shape[1]:
        raise ValueError(f"K: got shape {K.shape}, expected (M, M)")
    counts = draw_counts(len(K), N, draws, rng, replace)
    return np.asarray(((counts @ K) * counts).sum(1) / N**2)


# --------------------------------------------------------------------------- small shared parts


def _whole(name: str, value: int, low: int, high: int | None = None) -> int:
    """Return `value` as an int from `low` to `high`, or say what is wrong with it."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: got {value!r}, expected a whole number") from None
    if whole < low or (high is not None and whole > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: got {whole}, allowed is {allowed}")
    return whole


def _sizes(M: int, N: int) -> tuple[int, int]:
    M = _whole("M", M, 1)
    return M, _whole("N", N, 1, M)


def _finite(name: str, value: Array) -> Array:
    """Return `value` as an array of finite floats, or say what is wrong with it."""
    value = np.asarray(value)
    if value.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name}: got dtype {value.dtype}, allowed are float32 and float64")
    if not np.isfinite(value).all():
        bad = np.count_nonzero(~np.isfinite(value))
        raise ValueError(f"{name}: got NaN or infinity in {bad} of {value.size} values, all must be finite")
    return value


def _checked(
    theta: Array, grad: Array, state: Array, lr: float, state_name: str = "state"
) -> tuple[Array, Array, Array]:
    """Return the three arrays that a rule works on, or say what is wrong with them or with the rate."""
    theta, grad, state = _finite("theta", theta), _finite("grad", grad), _finite(state_name, state)
    for name, value in (("grad", grad), (state_name, state)):
        if value.shape != theta.shape:
            raise ValueError(f"{name}: got shape {value.shape}, expected that of theta, {theta.shape}")
    if not 0 <= lr < np.inf:
        raise ValueError(f"lr: got {lr}, expected a finite number, 0 or larger")
    return theta, grad, state
