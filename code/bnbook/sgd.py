"""Stochastic gradient descent in NumPy: mini-batches, update rules and gradient noise.

Symbols are those of the text: theta are the parameters Θ, lr is the learning rate η, M counts the
examples of the training set and N those of a mini-batch B, g_i is the gradient of the loss of
example i. (The letter m is kept for the batch that a normalizer sees.) With `replace` an example may be drawn
again; with `drop_last` an epoch leaves out its last mini-batch if it is shorter than N.

Sources: [robbins1951]_ and [bottou2018]_ for the method, [polyak1964]_ and [sutskever2013]_ for momentum,
[cochran1977]_ for sampling without replacement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook._checks import check_alike, check_floats, check_not_negative, check_whole

Array = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]

# --------------------------------------------------------------------------- epochs and mini-batches


def mini_batches(
    M: int, N: int, rng: np.random.Generator, replace: bool = False, drop_last: bool = False
) -> list[Indices]:
    """Draw M of the indices 0 to M - 1 and cut them into the mini-batches of one epoch.

    Without `replace` the M draws are a shuffle, and an epoch holds every example exactly once. The state of
    `rng` moves on, so that the next epoch is another one.

    >>> batches = mini_batches(10, 4, np.random.default_rng(0))
    >>> [len(B) for B in batches]
    [4, 4, 2]
    """
    check_whole(1, M=M)
    check_whole(1, M, N=N)
    order = rng.integers(M, size=M) if replace else rng.permutation(M)
    stop = M - M % N if drop_last else M
    return [order[start : start + N] for start in range(0, stop, N)]


def endless(M: int, N: int, seed: int | np.random.Generator) -> Iterator[Indices]:
    """Mini-batches of N without end: shuffled epochs without their short last batch.

    Parameters
    ----------
    M, N : int
        As in :func:`mini_batches`.
    seed : int or Generator
        A generator's state moves on.

    Examples
    --------
    Three steps; the third begins the second epoch:

    >>> batches = list(itertools.islice(endless(10, 4, seed=0), 3))
    >>> np.unique(np.concatenate(batches[:2])).size
    8
    """
    rng = np.random.default_rng(seed)
    epochs = (mini_batches(M, N, rng, drop_last=True) for _ in itertools.count())
    return itertools.chain.from_iterable(epochs)


def num_iterations(M: int, N: int, epochs: int, drop_last: bool = False) -> int:
    """Return the number of updates of a training: mini-batches in an epoch, times epochs.

    >>> num_iterations(M=10, N=4, epochs=2), num_iterations(M=10, N=4, epochs=2, drop_last=True)
    (6, 4)
    """
    check_whole(1, M=M)
    check_whole(1, M, N=N)
    check_whole(0, epochs=epochs)
    return epochs * (M // N if drop_last else math.ceil(M / N))


# --------------------------------------------------------------------------- update rules


def step(theta: Array, grad: Array, state: Array, lr: float) -> tuple[Array, Array]:
    """One step of gradient descent: theta - lr * grad ([robbins1951]_, [bottou2018]_ section 3.2).

    Whether it is stochastic depends only on where `grad` comes from. This rule remembers nothing: it hands
    the state back, so that both rules fit one loop. The unit of `lr` is that of theta² / loss.

    >>> theta, _ = step(np.array([1.0, 2]), np.array([10.0, 0]), np.zeros(2), lr=0.1)
    >>> theta
    array([0., 2.])
    """
    check_alike(theta=theta, grad=grad, state=state)
    check_not_negative(lr=lr)
    return theta - lr * grad, state


def momentum(theta: Array, grad: Array, velocity: Array, lr: float, mu: float = 0.9) -> tuple[Array, Array]:
    """One step with momentum, in PyTorch's convention ([sutskever2013]_ section 2; [polyak1964]_).

    velocity <- mu * velocity + grad, then theta <- theta - lr * velocity; 0 <= mu < 1, and the velocity, the
    sum of the past gradients, each multiplied by mu once a step, starts at zero.

    [sutskever2013]_ keeps the rate inside the velocity: v <- mu * v - lr * grad, theta <- theta + v.
    At a constant rate both take the same path (v = -lr * velocity). When the rate changes they differ:
    here a new rate acts at once on all that was gathered, there only on the gradients to come.

    >>> theta, velocity = np.zeros(1), np.zeros(1)
    >>> for _ in range(2):
    ...     theta, velocity = momentum(theta, np.ones(1), velocity, lr=1.0, mu=0.5)
    >>> theta, velocity
    (array([-2.5]), array([1.5]))
    """
    check_alike(theta=theta, grad=grad, velocity=velocity)
    check_not_negative(lr=lr)
    if not 0 <= mu < 1:
        raise ValueError(f"mu: got {mu}, allowed are numbers from 0 to below 1")
    velocity = mu * velocity + grad
    return theta - lr * velocity, velocity


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
        :func:`step` or :func:`momentum`; its state starts at zero.
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
        The parameters before the first step and after each one. If the path diverges, the rule refuses the
        infinite gradient.

    Examples
    --------
    >>> descend(step, lambda theta: theta, np.array([8.0]), steps=3, lr=0.5).ravel()
    array([8., 4., 2., 1.])
    """
    check_whole(0, steps=steps)
    state = np.zeros_like(theta)
    path = [theta]
    for _ in range(steps):
        theta, state = rule(theta, gradient(theta), state, **settings)
        path.append(theta)
    return np.stack(path)


# --------------------------------------------------------------------------- gradient noise


def variance_factor(N: int, M: int, replace: bool) -> float:
    """Variance of a mini-batch mean over that of a single draw ([cochran1977]_, theorem 2.2).

    1 / N with replacement. (1 / N) (M - N) / (M - 1) without: the same for N = 1, and 0 for N = M,
    where the mini-batch is the whole set.

    >>> variance_factor(N=5, M=9, replace=True), variance_factor(N=5, M=9, replace=False)
    (0.2, 0.1)
    """
    check_whole(1, M=M)
    check_whole(1, M, N=N)
    return 1 / N if replace or N == 1 else (M - N) / (M - 1) / N


def draw_counts(M: int, N: int, draws: int, rng: np.random.Generator, replace: bool) -> NDArray[np.float64]:
    """Draw mini-batches, and count how often each of them holds each example: of shape (draws, M).

    >>> counts = draw_counts(M=6, N=4, draws=3, rng=np.random.default_rng(0), replace=False)
    >>> counts.shape, counts.sum(1), counts.max()
    ((3, 6), array([4., 4., 4.]), np.float64(1.0))
    """
    check_whole(1, M=M, draws=draws)
    check_whole(1, M, N=N)
    if replace:
        return rng.multinomial(N, np.full(M, 1 / M), size=draws).astype(np.float64)
    first = np.broadcast_to(np.arange(M) < N, (draws, M))
    return rng.permuted(first, axis=1).astype(np.float64)


def inner_products(G: Array) -> NDArray[np.float64]:
    """Inner products (g_i - mean) · (g_j - mean) of all pairs of examples, of shape (M, M).

    Their diagonal has the mean σ², the variance of the gradient of a single example, added up over
    the parameters. They are multiplied in the dtype of `G`, and returned in float64.

    Parameters
    ----------
    G : ndarray of shape (M, P)
        A row for each example: its gradient, or whatever else is averaged over a mini-batch.

    Examples
    --------
    >>> inner_products(np.array([[1.0, 0], [3, 0]]))
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    check_floats(G=G)
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
    squared length is c·Kc / N² with `K` from :func:`inner_products`. No gradient is touched: a draw costs M²
    multiplications, not N times the number of parameters. The mean of the result, of shape (draws,), is an
    estimate of the variance of the mini-batch gradient, :func:`variance_factor` times σ².

    >>> K = inner_products(np.array([[1.0], [3]]))
    >>> batch_noise(K, N=1, draws=3, rng=np.random.default_rng(0), replace=False)
    array([1., 1., 1.])
    """
    check_floats(K=K)
    if K.ndim != 2 or K.shape[0] != K.shape[1]:
        raise ValueError(f"K: got shape {K.shape}, expected (M, M)")
    counts = draw_counts(len(K), N, draws, rng, replace)
    return np.asarray(((counts @ K) * counts).sum(1) / N**2)
