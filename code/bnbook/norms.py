"""Normalization in NumPy: forward, hand-derived backward, inference and folding.

One idea carries the module: **a normalizer is an index set**. Each function below
chooses the axes that share one mean and one variance; :func:`standardize` and
:func:`standardize_backward` do the rest, the same for all of them.

==============  ==========================================  =======================
normalizer      one mean and variance for each              computed over
==============  ==========================================  =======================
batch norm      channel c                                   N and all positions
layer norm      example n                                   the normalized shape
instance norm   example n and channel c                     all positions
group norm      example n and group of channels             C / G and all positions
RMS norm        example n (no mean is subtracted)           the normalized shape
==============  ==========================================  =======================

Sources: [ioffe2015]_ for batch norm, [ba2016]_ layer norm, [ulyanov2016]_ instance norm,
[wu2018]_ group norm, [zhang2019]_ RMS norm.

.. [ioffe2015] S. Ioffe, C. Szegedy. Batch Normalization. arXiv:1502.03167.
.. [ba2016] J. L. Ba, J. R. Kiros, G. E. Hinton. Layer Normalization. arXiv:1607.06450.
.. [ulyanov2016] D. Ulyanov, A. Vedaldi, V. Lempitsky. Instance Normalization. arXiv:1607.08022.
.. [wu2018] Y. Wu, K. He. Group Normalization. arXiv:1803.08494.
.. [zhang2019] B. Zhang, R. Sennrich. Root Mean Square Layer Normalization. arXiv:1910.07467.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

__all__ = [
    "Cache",
    "RunningStats",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "fold_batch_norm",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "moments",
    "population_stats",
    "rms_norm",
    "rms_norm_backward",
    "standardize",
    "standardize_backward",
]


class Cache(NamedTuple):
    """What the backward pass needs from the forward pass.

    Attributes
    ----------
    xhat : ndarray
        Normalized input, in the shape in which it was normalized (group norm: (N, G, C/G, ...)).
    inv_std : ndarray
        1 / sqrt(var + eps), one value for each index set, of a shape that broadcasts against `xhat`.
    gamma : ndarray
        The scale, of a shape that broadcasts against `x`.
    axes : tuple of int
        The axes of `xhat` that one statistic is computed over.
    param_axes : tuple of int
        The axes of `x` along which gamma and beta are shared.
    shape : tuple of int
        The shape of `x`.
    """

    xhat: Array
    inv_std: Array
    gamma: Array
    axes: tuple[int, ...]
    param_axes: tuple[int, ...]
    shape: tuple[int, ...]


# --------------------------------------------------------------------------- the shared core


def moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Mean, biased variance and centred input, over `axes`.

    The variance has two passes: subtract the mean, then average the squares. The one-pass
    form E[x^2] - E[x]^2 cancels: in float32 with mean 1e6 and unit spread no digit is right.
    The mean is subtracted twice, since the mean of float32 numbers near 1e6 is itself rounded
    by up to 0.03; what the first subtraction leaves is small, so the second removes it to full
    precision.

    Parameters
    ----------
    x : ndarray
        Any shape, float32 or float64.
    axes : tuple of int
        The axes to compute over.

    Returns
    -------
    mean, var : ndarray
        Of the shape of `x` with 1 in place of each of `axes`. The unit of `mean` is that of `x`;
        `var` divides by the number of values m, not m - 1.
    centred : ndarray
        x - mean, of the shape of `x`.

    Raises
    ------
    ValueError
        If the squares of `x` are larger than its dtype can hold.
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

    Parameters
    ----------
    x : ndarray
        Any shape, float32 or float64.
    axes : tuple of int
        The index set that shares a mean and a variance.
    eps : float
        Added to the variance, under the root.

    Returns
    -------
    xhat : ndarray
        Of the shape of `x`.
    inv_std : ndarray
        1 / sqrt(var + eps), of the shape of `x` with 1 in place of each of `axes`.

    Raises
    ------
    ValueError
        As :func:`moments`; also if `eps` and a variance are both 0.
    """
    _, var, centred = moments(x, axes)
    _not_both_zero(var, eps)
    inv_std = 1 / np.sqrt(var + x.dtype.type(eps))
    return centred * inv_std, inv_std


def standardize_backward(dxhat: Array, xhat: Array, inv_std: Array, axes: tuple[int, ...]) -> Array:
    """Gradient of a loss through :func:`standardize`.

    The six equations of [ioffe2015]_ (section 3) collapse to

    dx = (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sqrt(var + eps),

    with means over the same `axes`: the parts of the gradient along 1 and along xhat are
    taken out, because shifting or scaling the whole index set does not change the output.

    Parameters
    ----------
    dxhat, xhat : ndarray
        Gradient with respect to xhat, and xhat itself; same shape.
    inv_std : ndarray
        As :func:`standardize` returned it.
    axes : tuple of int
        As given to :func:`standardize`.

    Returns
    -------
    ndarray
        Gradient with respect to x, of the shape of `xhat`.
    """
    along_one = _mean(dxhat, axes)
    along_xhat = _mean(dxhat * xhat, axes)
    return (dxhat - along_one - xhat * along_xhat) * inv_std


# --------------------------------------------------------------------------- batch norm


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """Batch normalizing transform, in training ([ioffe2015]_, Algorithm 1).

    Each channel is normalized with its mean and biased variance over the batch and all
    positions, then scaled by gamma and shifted by beta.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, *spatial)
        A mini-batch, float32 or float64.
    gamma, beta : ndarray of shape (C,)
        Scale and shift of each channel.
    eps : float
        Added to the variance, under the root.

    Returns
    -------
    y : ndarray
        Of the shape and dtype of `x`.
    cache : Cache
        For :func:`batch_norm_backward`.

    Raises
    ------
    ValueError
        For a wrong shape or dtype, NaN or infinity in `x`, a negative eps, or fewer than two
        values per channel (one value is its own mean: y would be beta, whatever x is).
    """
    x = _checked(x, eps, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
    axes = (0, *range(2, x.ndim))
    _at_least_two(x, axes, "channel")
    gamma, beta = _per_channel(x, gamma=gamma, beta=beta)
    xhat, inv_std = standardize(x, axes, eps)
    return gamma * xhat + beta, Cache(xhat, inv_std, gamma, axes, axes, x.shape)


def batch_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients of a loss through :func:`batch_norm` ([ioffe2015]_, section 3).

    Parameters
    ----------
    dy : ndarray
        Gradient with respect to the output, of its shape.
    cache : Cache
        From :func:`batch_norm`.

    Returns
    -------
    dx : ndarray
        Of the shape of `dy`.
    dgamma, dbeta : ndarray of shape (C,)

    Raises
    ------
    ValueError
        If `dy` has another shape than the output.
    """
    dxhat, dgamma, dbeta = _affine_backward(dy, cache)
    dx = standardize_backward(dxhat, cache.xhat, cache.inv_std, cache.axes)
    return dx.reshape(cache.shape), dgamma, dbeta


def batch_norm_inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float = 1e-5
) -> Array:
    """Batch norm with fixed statistics ([ioffe2015]_, Algorithm 2, step 11).

    y = gamma / sqrt(var + eps) * (x - mean) + beta, one affine map per channel: the output of
    an example does not depend on its neighbours in the batch.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, *spatial)
        Any batch size, one included.
    mean, var, gamma, beta : ndarray of shape (C,)
        Statistics and parameters of each channel.
    eps : float
        Added to the variance, under the root.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or dtype, NaN or infinity, a negative eps or a negative variance.
    """
    x = _checked(x, eps, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
    mean, var, gamma, beta = _per_channel(x, mean=mean, var=var, gamma=gamma, beta=beta)
    _non_negative(var)
    _not_both_zero(var, eps)
    return gamma * ((x - mean) / np.sqrt(var + x.dtype.type(eps))) + beta


def population_stats(batches: Iterable[Array]) -> tuple[Array, Array]:
    """Population mean and variance from training batches ([ioffe2015]_, Algorithm 2, step 10).

    mean = E_B[mu_B] and var = m / (m - 1) * E_B[var_B], where each batch has the same weight:
    what PyTorch's ``momentum=None`` computes. The factor m / (m - 1) undoes the bias of the
    batch variance; variances are averaged, not standard deviations.

    Parameters
    ----------
    batches : iterable of ndarray of shape (m, C) or (m, C, *spatial)
        The inputs that the layer saw; m counts positions too, and may differ between batches.

    Returns
    -------
    mean, var : ndarray of shape (C,)

    Raises
    ------
    ValueError
        If there is no batch, if two batches differ in C, or for what :func:`batch_norm` rejects.
    """
    stats: RunningStats | None = None
    for x in batches:
        x = _checked(x, 0.0, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
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
    """

    def __init__(self, num_features: int, momentum: float | None = 0.1, dtype: Any = np.float64) -> None:
        if num_features < 1:
            raise ValueError(f"num_features: got {num_features}, at least 1 is needed")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum: got {momentum}, allowed are None and numbers from 0 to 1")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype: got {np.dtype(dtype)}, allowed are float32 and float64")
        self.momentum = momentum
        self.mean: Array = np.zeros(num_features, dtype)
        self.var: Array = np.ones(num_features, dtype)
        self.num_batches = 0

    def update(self, x: Array) -> None:
        """Take the statistics of one batch into the average.

        Parameters
        ----------
        x : ndarray of shape (N, C) or (N, C, *spatial)

        Raises
        ------
        ValueError
            For what :func:`batch_norm` rejects, or another number of channels. The average
            is then left as it was.
        """
        x = _checked(x, 0.0, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
        if x.shape[1] != len(self.mean):
            raise ValueError(f"x: got {x.shape[1]} channels (shape {x.shape}), expected {len(self.mean)}")
        axes = (0, *range(2, x.ndim))
        m = _at_least_two(x, axes, "channel")
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
        As in that batch norm.
    out_axis : {0, 1}, optional
        Axis of the output channels: 0, and 1 for PyTorch's transposed convolutions (without groups), whose weight
        has shape (C_in, C_out, *kernel). Must be given where a kernel has C_in = C_out: nothing else tells.

    Returns
    -------
    weight, bias : ndarray
        Of one layer that computes the same as the two, up to rounding.

    Raises
    ------
    ValueError
        For a wrong shape or dtype, NaN or infinity, a negative eps or a negative variance.
    """
    weight = _checked(weight, eps, min_ndim=2, layout="(C_out, C_in, *kernel)", name="weight")
    axis = _output_axis(weight.shape, out_axis)
    channels = weight.shape[axis]
    mean, var, gamma, beta = (
        _parameter(value, (channels,), weight.dtype, name)
        for name, value in dict(mean=mean, var=var, gamma=gamma, beta=beta).items()
    )
    _non_negative(var)
    _not_both_zero(var, eps)
    b = np.zeros_like(mean) if bias is None else _parameter(bias, (channels,), weight.dtype, "bias")
    scale = gamma / np.sqrt(var + weight.dtype.type(eps))
    by_output = scale.reshape(-1, *[1] * (weight.ndim - 1 - axis))
    return weight * by_output, scale * (b - mean) + beta


# --------------------------------------------------------------------------- the rest of the family


def layer_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """Layer norm: each example by its own mean and variance ([ba2016]_, equation 4).

    Parameters
    ----------
    x : ndarray of shape (*leading, *normalized)
        float32 or float64.
    gamma, beta : ndarray of shape normalized
        One scale and shift for each normalized position, as in PyTorch. Their number of axes
        says how many trailing axes of `x` are normalized together.
    eps : float
        Added to the variance, under the root.

    Returns
    -------
    y : ndarray
        Of the shape and dtype of `x`.
    cache : Cache
        For :func:`layer_norm_backward`.

    Raises
    ------
    ValueError
        As :func:`batch_norm`; also if `x` does not end in the shape of `gamma`.
    """
    x, axes, param_axes = _trailing(x, gamma, eps)
    _at_least_two(x, axes, "example")
    gamma = _parameter(gamma, x.shape[axes[0] :], x.dtype, "gamma")
    beta = _parameter(beta, gamma.shape, x.dtype, "beta")
    xhat, inv_std = standardize(x, axes, eps)
    return gamma * xhat + beta, Cache(xhat, inv_std, gamma, axes, param_axes, x.shape)


def layer_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of a loss through :func:`layer_norm`.

    Shapes and errors are those of :func:`batch_norm_backward`, with gamma's shape for
    dgamma and dbeta.
    """
    return batch_norm_backward(dy, cache)  # the cache knows which axes were normalized


def instance_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """Instance norm: each channel of each example on its own ([ulyanov2016]_, equation 4).

    Parameters
    ----------
    x : ndarray of shape (N, C, *spatial)
        With at least two positions; float32 or float64.
    gamma, beta : ndarray of shape (C,)
        Scale and shift of each channel.
    eps : float
        Added to the variance, under the root.

    Returns
    -------
    y : ndarray
        Of the shape and dtype of `x`.
    cache : Cache
        For :func:`instance_norm_backward`.

    Raises
    ------
    ValueError
        As :func:`batch_norm`, for fewer than two values per channel of an example.
    """
    x = _checked(x, eps, min_ndim=3, layout="(N, C, *spatial)")
    axes = tuple(range(2, x.ndim))
    _at_least_two(x, axes, "channel of an example")
    gamma, beta = _per_channel(x, gamma=gamma, beta=beta)
    xhat, inv_std = standardize(x, axes, eps)
    return gamma * xhat + beta, Cache(xhat, inv_std, gamma, axes, (0, *axes), x.shape)


def instance_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of a loss through :func:`instance_norm`.

    Shapes and errors are those of :func:`batch_norm_backward`.
    """
    return batch_norm_backward(dy, cache)  # the cache knows which axes were normalized


def group_norm(
    x: Array, num_groups: int, gamma: Array, beta: Array, eps: float = 1e-5
) -> tuple[Array, Cache]:
    """Group norm: each group of C / G channels of an example together ([wu2018]_, equation 7).

    One group (G = 1) normalizes a whole example; as many groups as channels (G = C) is
    instance norm.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, *spatial)
        float32 or float64.
    num_groups : int
        G, a divisor of C.
    gamma, beta : ndarray of shape (C,)
        Scale and shift of each channel.
    eps : float
        Added to the variance, under the root.

    Returns
    -------
    y : ndarray
        Of the shape and dtype of `x`.
    cache : Cache
        For :func:`group_norm_backward`.

    Raises
    ------
    ValueError
        As :func:`batch_norm`, for fewer than two values per group; also if `num_groups` does
        not divide C.
    """
    x = _checked(x, eps, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups: got {num_groups}, allowed are the divisors of {channels} channels")
    grouped = x.reshape(x.shape[0], num_groups, channels // num_groups, *x.shape[2:])
    axes = tuple(range(2, grouped.ndim))
    _at_least_two(grouped, axes, "group of an example")
    gamma, beta = _per_channel(x, gamma=gamma, beta=beta)
    xhat, inv_std = standardize(grouped, axes, eps)
    param_axes = (0, *range(2, x.ndim))
    return gamma * xhat.reshape(x.shape) + beta, Cache(xhat, inv_std, gamma, axes, param_axes, x.shape)


def group_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of a loss through :func:`group_norm`.

    Shapes and errors are those of :func:`batch_norm_backward`.
    """
    return batch_norm_backward(dy, cache)  # the cache knows which axes were normalized


def rms_norm(x: Array, gamma: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """RMS norm: layer norm without the mean ([zhang2019]_, equation 4).

    y = gamma * x / sqrt(mean(x^2) + eps).

    Parameters
    ----------
    x : ndarray of shape (*leading, *normalized)
        float32 or float64.
    gamma : ndarray of shape normalized
        One scale for each normalized position; there is no shift.
    eps : float
        Added to the mean square, under the root.

    Returns
    -------
    y : ndarray
        Of the shape and dtype of `x`.
    cache : Cache
        For :func:`rms_norm_backward`.

    Raises
    ------
    ValueError
        As :func:`layer_norm`, but one value per example is enough.
    """
    x, axes, param_axes = _trailing(x, gamma, eps)
    gamma = _parameter(gamma, x.shape[axes[0] :], x.dtype, "gamma")
    if not gamma.size:
        raise ValueError(f"gamma: got shape {gamma.shape}, at least 1 value per example is needed")
    mean_square = _mean_square(x, axes, "mean square")
    _not_both_zero(mean_square, eps)
    inv_rms = 1 / np.sqrt(mean_square + x.dtype.type(eps))
    xhat = x * inv_rms
    return gamma * xhat, Cache(xhat, inv_rms, gamma, axes, param_axes, x.shape)


def rms_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """Gradients (dx, dgamma) of a loss through :func:`rms_norm`.

    Shapes and errors are those of :func:`layer_norm_backward`; there is no beta.
    """
    dxhat, dgamma, _ = _affine_backward(dy, cache)
    xhat, inv_rms = cache.xhat, cache.inv_std
    # No mean was subtracted, so only the part of the gradient along xhat is taken out.
    return (dxhat - xhat * _mean(dxhat * xhat, cache.axes)) * inv_rms, dgamma


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


def _affine_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients (dxhat, dgamma, dbeta) through y = gamma * xhat + beta; dxhat in the shape of xhat."""
    dy = np.asarray(dy)
    if dy.shape != cache.shape:
        raise ValueError(f"dy: got shape {dy.shape}, expected that of the output, {cache.shape}")
    if dy.dtype != cache.xhat.dtype:
        raise ValueError(f"dy: got dtype {dy.dtype}, expected that of the output, {cache.xhat.dtype}")
    dxhat = (dy * cache.gamma).reshape(cache.xhat.shape)
    dgamma = _sum(dy * cache.xhat.reshape(cache.shape), cache.param_axes)
    return dxhat, dgamma, _sum(dy, cache.param_axes)


def _checked(x: Array, eps: float, *, min_ndim: int, layout: str, name: str = "x") -> Array:
    """Return `x` as an array, or say what is wrong with it (or with eps)."""
    x = np.asarray(x)
    if x.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name}: got dtype {x.dtype}, allowed are float32 and float64")
    if x.ndim < min_ndim:
        raise ValueError(f"{name}: got shape {x.shape}, expected {layout}")
    if not np.isfinite(x).all():
        bad = np.count_nonzero(~np.isfinite(x))
        raise ValueError(f"{name}: got NaN or infinity in {bad} of {x.size} values, all must be finite")
    if not 0 <= eps < np.inf:
        raise ValueError(f"eps: got {eps}, expected a finite number, 0 or larger")
    return x


def _at_least_two(x: Array, axes: tuple[int, ...], per: str) -> int:
    """Return the number of values m behind one statistic, or say that it is too small."""
    m = int(np.prod([x.shape[axis] for axis in axes]))
    if m < 2:
        raise ValueError(
            f"x: got {m} value{'s' * (m != 1)} per {per} (shape {x.shape}), at least 2 are needed: "
            "one value is its own mean, so nothing of it would be left"
        )
    return m


def _parameter(value: Array, shape: tuple[int, ...], dtype: Any, name: str) -> Array:
    """Return `value` in the dtype of the input, or say what is wrong with it."""
    value = np.asarray(value)
    if value.shape != shape:
        raise ValueError(f"{name}: got shape {value.shape}, expected {shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: got NaN or infinity, all values must be finite")
    return value.astype(dtype, copy=False)


def _per_channel(x: Array, **parameters: Array) -> list[Array]:
    """Shape each of `parameters`, one value a channel, so that it broadcasts against `x`."""
    channels = x.shape[1]
    return [
        _parameter(value, (channels,), x.dtype, name).reshape(1, channels, *[1] * (x.ndim - 2))
        for name, value in parameters.items()
    ]


def _trailing(x: Array, gamma: Array, eps: float) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    """Return `x`, the trailing axes that `gamma` spans, and the axes before them."""
    ndim = np.ndim(gamma)
    if ndim == 0:
        raise ValueError("gamma: got a single number, expected an array of the normalized shape")
    x = _checked(x, eps, min_ndim=ndim, layout="(*leading, *normalized) with gamma of shape normalized")
    first = x.ndim - ndim
    return x, tuple(range(first, x.ndim)), tuple(range(first))


def _non_negative(var: Array) -> None:
    if (var < 0).any():
        raise ValueError(f"var: got {var.min():.3g}, a variance is 0 or larger")


def _not_both_zero(var: Array, eps: float) -> None:
    if eps == 0 and not var.all():
        zeros = np.count_nonzero(var == 0)
        raise ValueError(f"eps: got 0 where {zeros} of {var.size} variances are 0 too; allowed is eps > 0")


def _output_axis(shape: tuple[int, ...], out_axis: int | None) -> int:
    """Which axis of a weight has the output channels; asked for where it cannot be seen."""
    if out_axis not in (None, 0, 1) or (out_axis is None and len(shape) > 2 and shape[0] == shape[1]):
        raise ValueError(
            f"out_axis: got {out_axis} for a weight of shape {shape}, expected 0 for a convolution, 1 for a "
            "transposed one"
        )
    return out_axis or 0
