"""Normalization in NumPy: forward, hand-derived backward, inference and folding.

One idea carries the module: **a normalizer is an index set**. Each function below
chooses the axes that share one mean and one variance; :func:`standardize` and
:func:`standardize_backward` do the rest, the same for all of them.

==============  ==========================================  =======================  ==================
normalizer      one mean and variance for each              computed over            source
==============  ==========================================  =======================  ==================
batch norm      channel c                                   N and all positions      [ioffe2015]_
layer norm      example n                                   the normalized shape     [ba2016]_
instance norm   example n and channel c                     all positions            [ulyanov2016]_
group norm      example n and group of channels             C / G and all positions  [wu2018]_
RMS norm        example n (no mean is subtracted)           the normalized shape     [zhang2019]_
==============  ==========================================  =======================  ==================

Inputs are float32 or float64, and outputs have their dtype. Everywhere `eps` is added to the variance, under
the root, and gamma and beta are scale and shift: of shape (C,), or of the normalized shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnbook._checks import (
    check_batch,
    check_choice,
    check_floats,
    check_not_negative,
    check_out_axis,
    check_several,
    check_shape,
    check_trailing,
    check_variance,
    check_whole,
)

Array = NDArray[np.floating[Any]]


class Cache(NamedTuple):
    """What the backward pass needs from the forward pass.

    Attributes
    ----------
    x_hat : ndarray
        Normalized input, in the shape in which it was normalized (group norm: (N, G, C/G, ...)).
    inv_std : ndarray
        1 / sqrt(var + eps), one value for each index set, of a shape that broadcasts against `x_hat`.
    gamma : ndarray
        The scale, of a shape that broadcasts against `x`.
    axes : tuple of int
        The axes of `x_hat` that one statistic is computed over.
    param_axes : tuple of int
        The axes of `x` along which gamma and beta are shared.
    shape : tuple of int
        The shape of `x`.
    """

    x_hat: Array
    inv_std: Array
    gamma: Array
    axes: tuple[int, ...]
    param_axes: tuple[int, ...]
    shape: tuple[int, ...]


# --------------------------------------------------------------------------- the shared core


def moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Mean, biased variance (it divides by m) and x - mean, over `axes`, which stay with length 1.

    The variance has two passes: subtract the mean, then average the squares. The one-pass
    form E[x^2] - E[x]^2 cancels: in float32 with mean 1e6 and unit spread no digit is right.
    The mean is subtracted twice, since the mean of float32 numbers near 1e6 is itself rounded
    by up to 0.03; what the first subtraction leaves is small, so the second removes it to full
    precision. If a square is larger than the dtype can hold, that is an error.

    >>> mean, var, centred = moments(np.array([1.0, 2, 3, 4]), (0,))
    >>> print(mean, var, centred)
    [2.5] [1.25] [-1.5 -0.5  0.5  1.5]
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows here does so in the squares, too
        first = _mean(x, axes)
        centred = x - first
        rest = _mean(centred, axes)
        centred -= rest
        mean = first + rest
    return mean, _mean_square(centred, axes, "variance"), centred


def standardize(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """Subtract the mean and divide by sqrt(variance + eps), both over `axes`.

    Returns
    -------
    x_hat : ndarray
        Of the shape of `x`.
    inv_std : ndarray
        1 / sqrt(var + eps), of the shape of `x` with 1 in place of each of `axes`.

    Examples
    --------
    Two examples of two channels; each channel is an index set:

    >>> x_hat, inv_std = standardize(np.array([[1.0, 10], [3, 30]]), axes=(0,), eps=0)
    >>> print(x_hat, inv_std)
    [[-1. -1.]
     [ 1.  1.]] [[1.  0.1]]
    """
    _, var, centred = moments(x, axes)
    check_variance(var, eps)
    inv_std = 1 / np.sqrt(var + x.dtype.type(eps))
    return centred * inv_std, inv_std


def standardize_backward(dx_hat: Array, x_hat: Array, inv_std: Array, axes: tuple[int, ...]) -> Array:
    """Gradient of a loss with respect to x, through :func:`standardize`.

    The six equations of [ioffe2015]_ (section 3) collapse to

    dx = (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat)) / sqrt(var + eps),

    with means over the same `axes`: the parts of the gradient along 1 and along x_hat are
    taken out, because shifting or scaling the whole index set does not change the output.

    >>> x_hat, inv_std = standardize(np.array([1.0, 2, 6]), axes=(0,), eps=1e-5)
    >>> dx = standardize_backward(np.array([1.0, 0, 0]), x_hat, inv_std, axes=(0,))
    >>> bool(abs(dx.sum()) < 1e-12)
    True
    """
    along_one = _mean(dx_hat, axes)
    along_x_hat = _mean(dx_hat * x_hat, axes)
    return (dx_hat - along_one - x_hat * along_x_hat) * inv_std


def along_channels(x: Array, *parameters: Array) -> list[Array]:
    """Parameters of shape (C,) in the dtype of `x`, shaped so that they broadcast against it.

    >>> (gamma,) = along_channels(np.zeros((2, 3, 4, 4)), np.ones(3))
    >>> gamma.shape
    (1, 3, 1, 1)
    """
    return [np.asarray(values, x.dtype).reshape(1, -1, *[1] * (x.ndim - 2)) for values in parameters]


def affine_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx_hat, dgamma, dbeta) through y = gamma * x_hat + beta; dx_hat in the shape of x_hat.

    >>> _, cache = batch_norm(np.array([[1.0], [3]]), np.array([5.0]), np.zeros(1), eps=0)
    >>> dx_hat, dgamma, dbeta = affine_backward(np.array([[1.0], [2]]), cache)
    >>> print(dx_hat.ravel(), dgamma, dbeta)
    [ 5. 10.] [1.] [3.]
    """
    if np.shape(dy) != cache.shape:
        raise ValueError(f"dy: got shape {np.shape(dy)}, expected that of the output, {cache.shape}")
    if dy.dtype != cache.x_hat.dtype:
        raise ValueError(f"dy: got dtype {dy.dtype}, expected that of the output, {cache.x_hat.dtype}")
    dx_hat = (dy * cache.gamma).reshape(cache.x_hat.shape)
    dgamma = _sum(dy * cache.x_hat.reshape(cache.shape), cache.param_axes)
    return dx_hat, dgamma, _sum(dy, cache.param_axes)


# --------------------------------------------------------------------------- batch norm


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """Batch normalizing transform, in training ([ioffe2015]_, Algorithm 1).

    Each channel is normalized with its mean and biased variance over the batch and all
    positions, then scaled by gamma and shifted by beta. At least two values per channel are
    needed: one value is its own mean, and y would be beta, whatever x is.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, *spatial)
    gamma, beta : ndarray of shape (C,)
    eps : float

    Returns
    -------
    y : ndarray
        Of the shape and dtype of `x`.
    cache : Cache
        For :func:`batch_norm_backward`.

    Examples
    --------
    >>> y, cache = batch_norm(np.array([[1.0, 10], [3, 30]]), np.array([1, 2]), np.array([0, 5]), eps=0)
    >>> y
    array([[-1.,  3.],
           [ 1.,  7.]])
    """
    check_batch(x, eps, gamma=gamma, beta=beta)
    axes = (0, *range(2, x.ndim))
    check_several(x, axes, "channel")
    x_hat, inv_std = standardize(x, axes, eps)
    gamma, beta = along_channels(x, gamma, beta)
    return gamma * x_hat + beta, Cache(x_hat, inv_std, gamma, axes, axes, x.shape)


def batch_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of a loss through :func:`batch_norm` ([ioffe2015]_, section 3).

    A gradient that is the same for all examples changes beta alone:

    >>> x = np.array([[1.0], [2], [6]])
    >>> _, cache = batch_norm(x, np.ones(1), np.zeros(1))
    >>> dx, dgamma, dbeta = batch_norm_backward(np.ones_like(x), cache)
    >>> np.allclose(dx, 0), np.allclose(dgamma, 0), dbeta
    (True, True, array([3.]))
    """
    dx_hat, dgamma, dbeta = affine_backward(dy, cache)
    dx = standardize_backward(dx_hat, cache.x_hat, cache.inv_std, cache.axes)
    return dx.reshape(cache.shape), dgamma, dbeta


def batch_norm_inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float = 1e-5
) -> Array:
    """Batch norm with fixed statistics ([ioffe2015]_, Algorithm 2, step 11).

    y = gamma / sqrt(var + eps) * (x - mean) + beta, one affine map per channel: the output of
    an example does not depend on its neighbours in the batch. Shapes are those of
    :func:`batch_norm`, with (C,) for `mean` and `var`; a batch of one is enough.

    >>> one = np.ones(1)
    >>> batch_norm_inference(np.array([[7.0]]), mean=3 * one, var=4 * one, gamma=one, beta=one, eps=0)
    array([[3.]])
    """
    check_batch(x, eps, mean=mean, var=var, gamma=gamma, beta=beta)
    mean, var, gamma, beta = along_channels(x, mean, var, gamma, beta)
    check_variance(var, eps)
    return gamma * ((x - mean) / np.sqrt(var + x.dtype.type(eps))) + beta


def population_stats(batches: Iterable[Array]) -> tuple[Array, Array]:
    """Population mean and variance from training batches ([ioffe2015]_, Algorithm 2, step 10).

    mean = E_B[mu_B] and var = m / (m - 1) * E_B[var_B], where each batch has the same weight:
    what PyTorch's ``momentum=None`` computes. The factor m / (m - 1) undoes the bias of the
    batch variance; variances are averaged, not standard deviations. m counts positions too,
    and may differ between batches.

    >>> population_stats([np.array([[1.0], [3]]), np.array([[5.0], [7]])])
    (array([4.]), array([2.]))
    """
    stats: RunningStats | None = None
    for x in batches:
        check_batch(x)
        if stats is None:
            stats = RunningStats(x.shape[1], momentum=None, dtype=x.dtype)
        stats.update(x)
    if stats is None:
        raise ValueError("batches: got none, at least one batch is needed")
    return stats.mean, stats.var


class RunningStats:
    """Moving average of batch statistics, in PyTorch's convention.

    new = (1 - momentum) * old + momentum * batch: `momentum` weighs the **new** value
    (Keras, Flax and ONNX weigh the old one). The variance that is stored is unbiased,
    with m - 1, although the one that normalizes a training batch is biased, with m.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    momentum : float in [0, 1] or None
        None gives every batch the same weight, as :func:`population_stats` does.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    mean, var : ndarray of shape (C,)
        They begin at 0 and 1.
    num_batches : int
        How many batches were seen.

    Examples
    --------
    >>> stats = RunningStats(1, momentum=0.5)
    >>> stats.update(np.array([[1.0], [3]]))
    >>> stats.mean, stats.var
    (array([1.]), array([1.5]))
    """

    def __init__(self, num_features: int, momentum: float | None = 0.1, dtype: Any = np.float64) -> None:
        check_whole(1, num_features=num_features)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum: got {momentum}, allowed are None and numbers from 0 to 1")
        check_choice(("float32", "float64"), dtype=str(np.dtype(dtype)))
        self.momentum = momentum
        self.mean: Array = np.zeros(num_features, dtype)
        self.var: Array = np.ones(num_features, dtype)
        self.num_batches = 0

    def update(self, x: Array) -> None:
        """Take the statistics of one batch into the average; a batch that is refused leaves it as it was."""
        check_batch(x)
        if x.shape[1] != len(self.mean):
            raise ValueError(f"x: got {x.shape[1]} channels (shape {x.shape}), expected {len(self.mean)}")
        axes = (0, *range(2, x.ndim))
        check_several(x, axes, "channel")
        m = math.prod(x.shape[axis] for axis in axes)
        mean, var, _ = moments(x, axes)
        kept = self.mean.dtype
        with np.errstate(over="ignore"):
            mean, var = mean.reshape(-1).astype(kept), (m / (m - 1) * var.reshape(-1)).astype(kept)
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            raise ValueError(f"x: its unbiased variance overflows {min(kept, x.dtype)}; scale x down")
        self.num_batches += 1
        weight = 1 / self.num_batches if self.momentum is None else self.momentum
        self.mean = self.mean + weight * (mean - self.mean)
        self.var = self.var + weight * (var - self.var)


def fold_batch_norm(
    weight: Array,
    bias: Array | None,
    mean: Array,
    var: Array,
    gamma: Array,
    beta: Array,
    eps: float = 1e-5,
    out_axis: int | None = None,
) -> tuple[Array, Array]:
    """Fold batch norm at inference into the linear or convolution layer before it.

    With s = gamma / sqrt(var + eps): W' = s W for each output channel, b' = s (b - mean) + beta.

    Parameters
    ----------
    weight : ndarray of shape (C_out, C_in) or (C_out, C_in, *kernel)
        Weight of the layer, output channels on `out_axis`.
    bias : ndarray of shape (C_out,) or None
        Bias of the layer; None counts as zero.
    mean, var, gamma, beta : ndarray of shape (C_out,)
        State of the batch norm that follows.
    eps : float
    out_axis : {0, 1}, optional
        0, or 1 for PyTorch's transposed convolutions (without groups), whose weight has shape
        (C_in, C_out, *kernel). Must be given where a kernel has C_in = C_out: nothing else tells them apart.

    Returns
    -------
    weight, bias : ndarray
        Of one layer that computes the same as the two, up to rounding.

    Examples
    --------
    >>> one = np.ones(1)
    >>> fold_batch_norm(np.array([[6.0]]), None, mean=one, var=9 * one, gamma=one, beta=one, eps=0)
    (array([[2.]]), array([0.66666667]))
    """
    check_floats(weight=weight)
    if weight.ndim < 2:
        raise ValueError(f"weight: got shape {weight.shape}, expected (C_out, C_in, *kernel)")
    check_not_negative(eps=eps)
    check_out_axis(out_axis, weight)
    axis = out_axis or 0
    check_shape(weight.shape[axis : axis + 1], mean=mean, var=var, gamma=gamma, beta=beta)
    if bias is None:
        bias = np.zeros(weight.shape[axis])
    check_shape(weight.shape[axis : axis + 1], bias=bias)
    bias, mean, var, gamma, beta = (np.asarray(p, weight.dtype) for p in (bias, mean, var, gamma, beta))
    check_variance(var, eps)
    scale = gamma / np.sqrt(var + weight.dtype.type(eps))
    by_output = scale.reshape(-1, *[1] * (weight.ndim - 1 - axis))
    return weight * by_output, scale * (bias - mean) + beta


# --------------------------------------------------------------------------- the rest of the family


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """Layer norm: each example by its own mean and variance ([ba2016]_, equation 4).

    Parameters
    ----------
    x : ndarray of shape (*leading, *normalized)
    gamma, beta : ndarray of shape normalized
        One scale and shift for each normalized position, as in PyTorch. Their number of axes
        says how many trailing axes of `x` are normalized together.
    eps : float

    Returns
    -------
    y : ndarray
        Of the shape and dtype of `x`.
    cache : Cache
        For :func:`layer_norm_backward`.

    Examples
    --------
    >>> layer_norm(np.array([[1.0, 3], [10, 30]]), np.ones(2), np.zeros(2), eps=0)[0]
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    check_trailing(x, eps, gamma=gamma, beta=beta)
    first = x.ndim - np.ndim(gamma)
    axes = tuple(range(first, x.ndim))
    check_several(x, axes, "example")
    x_hat, inv_std = standardize(x, axes, eps)
    gamma, beta = np.asarray(gamma, x.dtype), np.asarray(beta, x.dtype)
    return gamma * x_hat + beta, Cache(x_hat, inv_std, gamma, axes, tuple(range(first)), x.shape)


def layer_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of a loss through :func:`layer_norm`.

    >>> _, cache = layer_norm(np.array([[1.0, 3]]), np.ones(2), np.zeros(2), eps=0)
    >>> layer_norm_backward(np.array([[4.0, 6]]), cache)
    (array([[0., 0.]]), array([-4.,  6.]), array([4., 6.]))
    """
    return batch_norm_backward(dy, cache)  # the cache knows which axes were normalized


def instance_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """Instance norm: each channel of each example on its own ([ulyanov2016]_, equation 4).

    As :func:`batch_norm`, for `x` of shape (N, C, *spatial) with at least two positions.

    >>> x = np.array([[[1.0, 3], [10, 30]]])
    >>> instance_norm(x, np.ones(2), np.array([0, 5]), eps=0)[0]
    array([[[-1.,  1.],
            [ 4.,  6.]]])
    """
    check_batch(x, eps, spatial=True, gamma=gamma, beta=beta)
    axes = tuple(range(2, x.ndim))
    check_several(x, axes, "channel of an example")
    x_hat, inv_std = standardize(x, axes, eps)
    gamma, beta = along_channels(x, gamma, beta)
    return gamma * x_hat + beta, Cache(x_hat, inv_std, gamma, axes, (0, *axes), x.shape)


def instance_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of a loss through :func:`instance_norm`.

    >>> _, cache = instance_norm(np.array([[[1.0, 3]]]), np.ones(1), np.zeros(1), eps=0)
    >>> instance_norm_backward(np.array([[[4.0, 6]]]), cache)
    (array([[[0., 0.]]]), array([2.]), array([10.]))
    """
    return batch_norm_backward(dy, cache)  # the cache knows which axes were normalized


def group_norm(
    x: Array, num_groups: int, gamma: Array, beta: Array, eps: float = 1e-5
) -> tuple[Array, Cache]:
    """Group norm: each group of C / G channels of an example together ([wu2018]_, equation 7).

    As :func:`batch_norm`, with at least two values per group; `num_groups`, G, divides C. As many
    groups as channels (G = C) is instance norm, and one group (G = 1) is layer norm:

    >>> x = np.random.default_rng(0).normal(size=(2, 6, 3))
    >>> by_group, _ = group_norm(x, 1, np.ones(6), np.zeros(6))
    >>> by_layer, _ = layer_norm(x, np.ones((6, 3)), np.zeros((6, 3)))
    >>> np.testing.assert_allclose(by_group, by_layer)
    """
    check_batch(x, eps, gamma=gamma, beta=beta)
    N, C = x.shape[:2]
    if num_groups < 1 or C % num_groups:
        raise ValueError(f"num_groups: got {num_groups}, allowed are the divisors of {C} channels")
    grouped = x.reshape(N, num_groups, C // num_groups, *x.shape[2:])
    axes = tuple(range(2, grouped.ndim))
    check_several(grouped, axes, "group of an example")
    x_hat, inv_std = standardize(grouped, axes, eps)
    gamma, beta = along_channels(x, gamma, beta)
    param_axes = (0, *range(2, x.ndim))
    return gamma * x_hat.reshape(x.shape) + beta, Cache(x_hat, inv_std, gamma, axes, param_axes, x.shape)


def group_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of a loss through :func:`group_norm`.

    >>> _, cache = group_norm(np.array([[1.0, 3]]), 1, np.ones(2), np.zeros(2), eps=0)
    >>> group_norm_backward(np.array([[4.0, 6]]), cache)
    (array([[0., 0.]]), array([-4.,  6.]), array([4., 6.]))
    """
    return batch_norm_backward(dy, cache)  # the cache knows which axes were normalized


def rms_norm(x: Array, gamma: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """RMS norm: layer norm without the mean ([zhang2019]_, equation 4).

    y = gamma * x / sqrt(mean(x^2) + eps). Shapes are those of :func:`layer_norm`, but there is no beta, and
    one value per example is enough.

    >>> rms_norm(np.array([[1.0, 7]]), np.ones(2), eps=0)[0]
    array([[0.2, 1.4]])
    """
    check_trailing(x, eps, gamma=gamma)
    if not np.size(gamma):
        raise ValueError(f"gamma: got shape {np.shape(gamma)}, at least 1 value per example is needed")
    first = x.ndim - np.ndim(gamma)
    axes = tuple(range(first, x.ndim))
    mean_square = _mean_square(x, axes, "mean square")
    check_variance(mean_square, eps)
    inv_rms = 1 / np.sqrt(mean_square + x.dtype.type(eps))
    x_hat, gamma = x * inv_rms, np.asarray(gamma, x.dtype)
    return gamma * x_hat, Cache(x_hat, inv_rms, gamma, axes, tuple(range(first)), x.shape)


def rms_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """Gradients (dx, dgamma) of a loss through :func:`rms_norm`.

    >>> _, cache = rms_norm(np.array([[1.0, 7]]), np.ones(2), eps=0)
    >>> dx, dgamma = rms_norm_backward(np.array([[1.0, 7]]), cache)
    >>> np.allclose(dx, 0), np.allclose(dgamma, [0.2, 9.8])
    (True, True)
    """
    dx_hat, dgamma, _ = affine_backward(dy, cache)
    x_hat, inv_rms = cache.x_hat, cache.inv_std
    # No mean was subtracted, so only the part of the gradient along x_hat is taken out.
    return (dx_hat - x_hat * _mean(dx_hat * x_hat, cache.axes)) * inv_rms, dgamma


# --------------------------------------------------------------------------- small shared parts


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean over `axes`, which stay with length 1.

    Summed in float64: NumPy adds the rows of a float32 array one after another and would lose
    a digit for every hundred of them.
    """
    mean: Array = x.mean(axes, keepdims=True, dtype=np.float64).astype(x.dtype)
    return mean


def _mean_square(x: Array, axes: tuple[int, ...], name: str) -> Array:
    """Mean of the squares over `axes`, or an error if one is too large for the dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = _mean(np.square(x), axes)
    if not np.isfinite(squares).all():
        raise ValueError(
            f"x: its {name} overflows {x.dtype} (largest magnitude {np.abs(x).max():.3g}); "
            "scale x down or pass float64"
        )
    return squares


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    """Sum over `axes`, which go away; in float64, for the same reason as :func:`_mean`."""
    total: Array = x.sum(axes, dtype=np.float64).astype(x.dtype)
    return total
