"""PyTorch layers on the definitions of :mod:`bnbook.norms`, with the analytic gradient.

Each layer loads the ``state_dict`` of PyTorch's own layer of the same kind, and the other way
round. What a layer does depends on ``self.training`` and on nothing else: not on whether
gradients are recorded.

All layers share one function. It sees the input as (N, C, S): examples, channels, positions. A
mean and a variance belong to a channel of all examples (batch norm) or to a group of channels of
one example: one group is layer norm, a group for each channel instance norm.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "DyT",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Noise",
    "NoisyBatchNorm",
    "RMSNorm",
    "add_noise",
    "normalize",
]


def normalize(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, num_groups: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize (N, C, S) over the batch or over groups of channels, then scale and shift each channel.

    Two-pass variance and analytic backward, as :func:`bnbook.norms.batch_norm` ([ioffe2015],
    Algorithm 1 and section 3) and :func:`bnbook.norms.group_norm` ([wu2018], equation 7). Can be
    differentiated twice, and works under ``torch.func.vmap``.

    Parameters
    ----------
    x : Tensor of shape (N, C, S)
        float32 or float64.
    gamma, beta : Tensor of shape (C,)
        Scale and shift of each channel.
    eps : float
        Added to the variance, under the root.
    num_groups : int or None
        None: one mean and variance for each channel, over N and S. G: one for each example and each of
        G groups of C / G consecutive channels.

    Returns
    -------
    y : Tensor of shape (N, C, S)
    mean, var : Tensor of shape (1, C) or (N, G)
        Of `x`; var is biased (divides by the number of values). No gradient flows through these two.
    """
    y, mean, var, *_ = _Normalize.apply(x, gamma, beta, eps, num_groups)  # type: ignore[no-untyped-call]
    return y, mean, var


class _Normalize(torch.autograd.Function):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, with the gradient written out."""

    @staticmethod
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, eps: float, num_groups: int | None
    ) -> tuple[Tensor, ...]:
        first, rest, var, centred = _moments(x, num_groups)
        inv_std = torch.rsqrt(var + eps)
        # One pass takes the rest out, scales and shifts: (centred - rest) * scale + beta.
        scale = gamma * _by_channel(inv_std, x)
        shift = beta - _by_channel(rest, x) * scale
        y = torch.addcmul(shift[:, :, None], centred, scale[:, :, None])
        return y, first + rest, var, first, rest, inv_std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, gamma, _, eps, num_groups = inputs
        _, mean, var, first, rest, inv_std = output
        ctx.mark_non_differentiable(mean, var, first, rest, inv_std)
        ctx.save_for_backward(x, gamma, first, rest, inv_std)
        ctx.eps, ctx.num_groups = eps, num_groups

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, gamma, first, rest, inv_std = ctx.saved_tensors
        centred = x - _by_channel(first, x)[:, :, None]  # again: cheaper than to keep it in memory
        if torch.is_grad_enabled():
            # A second derivative is wanted: the statistics depend on x, and the graph must know.
            first, rest, var, centred = _moments(x, ctx.num_groups)
            inv_std = torch.rsqrt(var + ctx.eps)
        rest_of_channel, inv_std_of_channel = _by_channel(rest, x), _by_channel(inv_std, x)
        # Sums over the positions of each channel of each example, then over the examples.
        dy_sum = dy.sum(-1)
        dy_xhat_sum = ((dy * centred).sum(-1) - rest_of_channel * dy_sum) * inv_std_of_channel
        dgamma, dbeta = dy_xhat_sum.sum(0), dy_sum.sum(0)
        # dx = (dxhat - mean of dxhat - xhat * mean of dxhat xhat) / std, dxhat = gamma dy, means over an
        # index set, and xhat = (centred - rest) / std.
        m = _size(x, ctx.num_groups)
        along_one = _by_channel(_pool(gamma * dy_sum, ctx.num_groups) / m, x)
        along_xhat = _by_channel(_pool(gamma * dy_xhat_sum, ctx.num_groups) / m, x) * inv_std_of_channel
        constant = (rest_of_channel * along_xhat - along_one) * inv_std_of_channel
        dx = torch.addcmul(constant[:, :, None], dy, (gamma * inv_std_of_channel)[:, :, None])
        minus = -(along_xhat * inv_std_of_channel)[:, :, None]
        # In place where nothing is recorded: a tensor less. Under vmap and grad, something always is.
        dx = torch.addcmul(dx, centred, minus) if torch.is_grad_enabled() else dx.addcmul_(centred, minus)
        return dx, dgamma, dbeta, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        num_groups: int | None,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """V stacked layers are one layer with V C channels, and V G groups."""
        V = info.batch_size
        x, gamma, beta = (
            value.expand(V, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip((x, gamma, beta), in_dims[:3], strict=True)
        )
        N, C, S = x.shape[1:]
        folded = x.transpose(0, 1).reshape(N, V * C, S), gamma.reshape(V * C), beta.reshape(V * C)
        groups = None if num_groups is None else V * num_groups
        y, *rest = _Normalize.apply(*folded, eps, groups)  # type: ignore[no-untyped-call]
        outputs = (y.view(N, V, C, S), *(value.view(len(value), V, -1) for value in rest))
        return outputs, (1,) * len(outputs)


def _size(x: Tensor, num_groups: int | None) -> int:
    """How many values of (N, C, S) share a mean and a variance."""
    N, C, S = x.shape[-3:]
    return N * S if num_groups is None else C // num_groups * S


def _pool(blocks: Tensor, num_groups: int | None) -> Tensor:
    """Sum (N, C) over each index set: (1, C) for the batch, (N, G) for groups."""
    if num_groups is None:
        return blocks.sum(-2, keepdim=True)
    return blocks.reshape(*blocks.shape[:-1], num_groups, blocks.shape[-1] // num_groups).sum(-1)


def _by_channel(statistic: Tensor, x: Tensor) -> Tensor:
    """A statistic of each index set, (1, C) or (N, G), as one that broadcasts against (N, C)."""
    return statistic.repeat_interleave(x.shape[-2] // statistic.shape[-1], -1)


def _sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares over the positions: (N, C)."""
    if torch.is_grad_enabled():  # the square root of a zero has no second derivative
        return x.square().sum(-1)
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)  # one pass: a third of the time
    return norm.square()


def _moments(x: Tensor, num_groups: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean of each index set as a rounded value and a small rest, the biased variance, and x - first.

    Subtracting first + rest in one step would round the rest away (a float32 mean near 1e6
    is a multiple of 0.06), so the two are kept apart.
    """
    m = _size(x, num_groups)
    # Along the contiguous axis first, which is twice as fast as over all at once.
    first = _pool(x.sum(-1), num_groups) / m
    centred = x - _by_channel(first, x)[:, :, None]
    rest = _pool(centred.sum(-1), num_groups) / m
    var = _pool(_sum_of_squares(centred), num_groups) / m - rest * rest
    return first, rest, var.clamp(min=0), centred


class _Affine(nn.Module):
    """A layer with a scale (`weight`, gamma) and a shift (`bias`, beta), or with neither."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape)) if affine else None
        self.bias = nn.Parameter(torch.zeros(shape)) if affine else None


class BatchNorm(_Affine):
    """Batch norm for (N, C) and (N, C, *spatial), as ``nn.BatchNorm1d``, ``2d`` and ``3d``.

    In training each channel is normalized with the mean and the biased variance of the batch,
    and the running statistics take in the mean and the unbiased variance. In evaluation the
    running statistics normalize; without any (``track_running_stats=False``) the batch does.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance, under the root.
    momentum : float or None
        Weight of the **new** value in the running statistics; None gives each batch the same weight.
    affine : bool
        Whether there are a scale (`weight`, gamma) and a shift (`bias`, beta) to learn.
    track_running_stats : bool
        Whether running statistics are kept.

    Attributes
    ----------
    check_finite : bool
        True, on the class: NaN and infinity raise before they reach the running statistics. Set it to
        False where they have to pass: under ``torch.func.vmap``, which cannot branch on a value, and
        where one network of a stack that has diverged must not stop the others.

    Raises
    ------
    ValueError
        From ``forward``: for a wrong shape or dtype, or when a statistic of a batch is wanted from
        fewer than two values per channel, or, with `check_finite`, when NaN or infinity would enter
        the running statistics (they are then left as they were).
    """

    check_finite: bool = True
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__((_positive("num_features", num_features),), affine)
        self.num_features = num_features
        self.eps = _checked_eps(eps)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum: got {momentum}, allowed are None and numbers from 0 to 1")
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C) or (N, C, *spatial)."""
        _check(x, self.num_features, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
        gamma = x.new_ones(self.num_features) if self.weight is None else self.weight
        beta = x.new_zeros(self.num_features) if self.bias is None else self.bias
        if not self.training and self.running_mean is not None and self.running_var is not None:
            shape = _channels(x)
            scale = gamma * torch.rsqrt(self.running_var + self.eps)
            centred = x - self.running_mean.view(shape)
            return torch.addcmul(beta.view(shape), centred, scale.view(shape))
        y, mean, unbiased_var = self._by_batch(x, gamma, beta)
        if self.training and self.track_running_stats:
            self._update(mean, unbiased_var)
        return y

    def _by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize with statistics of the batch; return also the mean and unbiased variance to keep."""
        m = x.shape[0] * math.prod(x.shape[2:])
        _at_least_two(m, x, "channel")
        y, mean, var = normalize(x.reshape(*x.shape[:2], -1), gamma, beta, self.eps)
        return y.view(x.shape), mean[0], var[0] * (m / (m - 1))

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        running_mean, running_var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        batches = cast(Tensor, self.num_batches_tracked)
        mean, unbiased_var = mean.to(running_mean.dtype), unbiased_var.to(running_var.dtype)
        if self.check_finite and not bool(torch.isfinite(mean).all() & torch.isfinite(unbiased_var).all()):
            raise ValueError(
                "x: got NaN, infinity or values too large to square; they would stay in the running "
                "statistics for ever, which were left as they were"
            )
        batches += 1
        # Arithmetic on tensors, and no lerp_: vmap would have to run either network by network.
        weight = batches.to(running_mean.dtype).reciprocal() if self.momentum is None else self.momentum
        running_mean.mul_(1 - weight).add_(weight * mean)
        running_var.mul_(1 - weight).add_(weight * unbiased_var)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class GhostBatchNorm(BatchNorm):
    """Batch norm over parts of the batch, its ghosts ([hoffer2017], algorithm 1).

    In training the batch is cut, in its order, into ghosts of `ghost_size` examples, and each is
    normalized with its own statistics: the noise of small batches at any batch size. The running
    statistics take in the mean over the ghosts of their means, and of their unbiased variances, in
    one step. (The paper's moving average takes a step for each ghost, in their order.) Evaluation is
    that of :class:`BatchNorm`; without running statistics the whole batch is then normalized at once.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    ghost_size : int
        Number of examples of a ghost. In training it has to divide the batch: a smaller last ghost would
        have noisier statistics than the others.
    eps, momentum, affine, track_running_stats
        As in :class:`BatchNorm`.

    Raises
    ------
    ValueError
        As :class:`BatchNorm`, with "per channel of a ghost"; also, in training, for a batch that is not
        a multiple of `ghost_size`.
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.ghost_size = _positive("ghost_size", ghost_size)

    def _by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.training:
            return super()._by_batch(x, gamma, beta)
        examples, channels, size = x.shape[0], x.shape[1], self.ghost_size
        if examples == 0 or examples % size:
            raise ValueError(
                f"x: got {examples} examples (shape {tuple(x.shape)}), allowed are multiples of "
                f"ghost_size = {size}"
            )
        m = size * math.prod(x.shape[2:])
        _at_least_two(m, x, "channel of a ghost")
        ghosts = examples // size
        # A channel of one ghost is a row of its own, so that a single call normalizes all ghosts.
        rows = x.reshape(ghosts, size, channels, -1).transpose(1, 2).reshape(1, ghosts * channels, m)
        y, mean, var = normalize(rows, gamma.repeat(ghosts), beta.repeat(ghosts), self.eps)
        y = y.view(ghosts, channels, size, -1).transpose(1, 2).reshape(x.shape)
        unbiased_var = var * (m / (m - 1))
        return y, mean.view(ghosts, channels).mean(0), unbiased_var.view(ghosts, channels).mean(0)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class BatchRenorm(BatchNorm):
    """Batch renormalization: training output close to that of evaluation ([ioffe2017], algorithm 1).

    With the batch's mean mu_B and deviation sigma_B = sqrt(var_B + eps), var_B biased, and the running
    mu and sigma = sqrt(running_var + eps) as they were before this batch:

    y = gamma (xhat r + d) + beta, xhat = (x - mu_B) / sigma_B,
    r = clip(sigma_B / sigma, 1 / r_max, r_max), d = clip((mu_B - mu) / sigma, -d_max, d_max).

    r and d are constants to the gradient, which still goes through mu_B and sigma_B. Without limits
    y = gamma (x - mu) / sigma + beta, the output in evaluation; at r_max = 1 and d_max = 0 this is
    batch norm. The running statistics are those of :class:`BatchNorm`, an average of unbiased
    variances, so that ``state_dict`` fits PyTorch's; the paper averages sigma_B itself.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    r_max : float
        Limit of r, 1 or larger; ``math.inf`` for none.
    d_max : float
        Limit of the magnitude of d, 0 or larger; ``math.inf`` for none.
        Both limits are plain attributes for a schedule to set: the paper starts at 1 and 0, until the
        running statistics have settled, and ends at 3 and 5.
    eps, momentum, affine
        As in :class:`BatchNorm`.

    Raises
    ------
    ValueError
        As :class:`BatchNorm`; also, here and in training, for an `r_max` below 1 or a `d_max` below 0.
    """

    def __init__(
        self,
        num_features: int,
        r_max: float = 1.0,
        d_max: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine)
        self.r_max = r_max
        self.d_max = d_max
        self._check_limits()

    def _check_limits(self) -> None:
        if not self.r_max >= 1:  # so that NaN, too, is refused
            raise ValueError(f"r_max: got {self.r_max}, allowed are numbers from 1 to infinity")
        if not self.d_max >= 0:
            raise ValueError(f"d_max: got {self.d_max}, allowed are numbers from 0 to infinity")

    def _by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Evaluation comes here only when there are no running statistics, and there is nothing to correct to.
        if self.running_mean is not None and self.running_var is not None:
            self._check_limits()
            with torch.no_grad():
                first, rest, var, _ = _moments(x.reshape(*x.shape[:2], math.prod(x.shape[2:])))
                first, rest, var = first[0], rest[0], var[0]
                sigma = torch.sqrt(self.running_var + self.eps)
                r = (torch.sqrt(var + self.eps) / sigma).clamp(1 / self.r_max, self.r_max)
                d = ((first - self.running_mean + rest) / sigma).clamp(-self.d_max, self.d_max)
            gamma, beta = gamma * r, beta + gamma * d
        return super()._by_batch(x, gamma, beta)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


def add_noise(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return `x` with noise whose distribution changes at every call ([santurkar2018], appendix A).

    For each channel a mean mu ~ U(-0.5, 0.5) and a scale sigma ~ U(1, 1.25) are drawn; then, for each value
    of it, m ~ U(mu - 0.1, mu + 0.1) and s ~ N(sigma, 0.1), and x becomes s x + m. Positions belong to the
    batch: each has its own m and s. The paper leaves open whether the 0.1 of N(sigma, 0.1) is a standard
    deviation or a variance; here it is the standard deviation.

    Parameters
    ----------
    x : Tensor of shape (N, C) or (N, C, *spatial)
        float32 or float64.
    generator : torch.Generator or None
        Where the random numbers come from, on the device of `x`; None is PyTorch's global one.

    Returns
    -------
    y : Tensor
        Of the shape and dtype of `x`. The gradient is s dy: the noise is a constant to it.

    Raises
    ------
    ValueError
        For a wrong shape or dtype.
    """
    _check_dtype(x)
    if x.ndim < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (N, C) or (N, C, *spatial)")

    def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        unit = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return low + (high - low) * unit

    mu = uniform(_channels(x), -0.5, 0.5)
    sigma = uniform(_channels(x), 1.0, 1.25)
    m = mu + uniform(x.shape, -0.1, 0.1)
    s = sigma + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return torch.addcmul(m, s, x)


class NoisyBatchNorm(BatchNorm):
    """Batch norm, with :func:`add_noise` after it in training ([santurkar2018], section 2.1).

    The noise comes after gamma and beta, which thus cannot take it out, and it is no part of the
    running statistics. In evaluation this is :class:`BatchNorm`.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps, momentum, affine, track_running_stats
        As in :class:`BatchNorm`.
    generator : torch.Generator or None
        Source of the noise, also an attribute; None is PyTorch's global one. A copy of the layer has
        a generator of its own, in the same state.

    Raises
    ------
    ValueError
        As :class:`BatchNorm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C) or (N, C, *spatial), and in training add noise."""
        y = super().forward(x)
        return add_noise(y, self.generator) if self.training else y


class Noise(nn.Module):
    """:func:`add_noise` alone, in training: the control for :class:`NoisyBatchNorm`.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    generator : torch.Generator or None
        As in :class:`NoisyBatchNorm`.

    Raises
    ------
    ValueError
        From ``forward``: for a wrong shape or dtype.
    """

    def __init__(self, num_features: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.num_features = _positive("num_features", num_features)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (N, C) or (N, C, *spatial), in training with noise."""
        _check(x, self.num_features, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
        return add_noise(x, self.generator) if self.training else x

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{self.num_features}"


class GroupNorm(_Affine):
    """Group norm for (N, C) and (N, C, *spatial), as ``nn.GroupNorm`` ([wu2018], equation 7).

    Parameters
    ----------
    num_groups : int
        G, a divisor of `num_channels`.
    num_channels : int
        C.
    eps : float
        Added to the variance, under the root.
    affine : bool
        Whether there are a scale and a shift for each channel to learn.

    Raises
    ------
    ValueError
        If `num_groups` does not divide `num_channels`; from ``forward`` for a wrong shape or dtype, or
        fewer than two values per group.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__((_positive("num_channels", num_channels),), affine)
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups: got {num_groups}, allowed are the divisors of {num_channels} channels"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = _checked_eps(eps)
        self.affine = affine

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C) or (N, C, *spatial)."""
        _check(x, self.num_channels, min_ndim=2, layout="(N, C) or (N, C, *spatial)")
        m = math.prod(x.shape[1:]) // self.num_groups
        _at_least_two(m, x, "group of an example")
        return _normalize_groups(x, self.weight, self.bias, self.eps, self.num_groups)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class InstanceNorm(_Affine):
    """Instance norm for (N, C, *spatial), as ``nn.InstanceNorm1d``, ``2d`` and ``3d``.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance, under the root.
    affine : bool
        Whether there are a scale and a shift to learn; off, as in PyTorch.

    Raises
    ------
    ValueError
        From ``forward``: for a wrong shape or dtype, or fewer than two values per channel of an example.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = False) -> None:
        super().__init__((_positive("num_features", num_features),), affine)
        self.num_features = num_features
        self.eps = _checked_eps(eps)
        self.affine = affine

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C, *spatial)."""
        _check(x, self.num_features, min_ndim=3, layout="(N, C, *spatial)")
        m = math.prod(x.shape[2:])
        _at_least_two(m, x, "channel of an example")
        return _normalize_groups(x, self.weight, self.bias, self.eps, self.num_features)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class LayerNorm(_Affine):
    """Layer norm over the trailing axes, as ``nn.LayerNorm`` ([ba2016], equation 4).

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Shape of the trailing axes that share a mean and a variance.
    eps : float
        Added to the variance, under the root.
    elementwise_affine : bool
        Whether there are a scale and a shift for each normalized position to learn.

    Raises
    ------
    ValueError
        From ``forward``: for a wrong shape or dtype, or fewer than two values per example.
    """

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, elementwise_affine: bool = True
    ) -> None:
        super().__init__(_shape(normalized_shape), elementwise_affine)
        self.normalized_shape = _shape(normalized_shape)
        self.eps = _checked_eps(eps)
        self.elementwise_affine = elementwise_affine

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (*leading, *normalized_shape)."""
        _check_trailing(x, self.normalized_shape)
        _at_least_two(math.prod(self.normalized_shape), x, "example")
        rows = x.reshape(-1, math.prod(self.normalized_shape), 1)
        weight, bias = (None if p is None else p.flatten() for p in (self.weight, self.bias))
        return _normalize_groups(rows, weight, bias, self.eps, 1).view(x.shape)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(nn.Module):
    """RMS norm over the trailing axes, as ``nn.RMSNorm`` ([zhang2019], equation 4).

    Its gradient is left to autograd: there is no mean, so nothing cancels.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Shape of the trailing axes that share a mean square.
    eps : float
        Added to the mean square, under the root. (PyTorch's default is the dtype's machine epsilon.)
    elementwise_affine : bool
        Whether there is a scale for each normalized position to learn.

    Raises
    ------
    ValueError
        From ``forward``: for a wrong shape or dtype.
    """

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = _checked_eps(eps)
        self.elementwise_affine = elementwise_affine
        self.weight = nn.Parameter(torch.ones(self.normalized_shape)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (*leading, *normalized_shape)."""
        _check_trailing(x, self.normalized_shape)
        axes = tuple(range(-len(self.normalized_shape), 0))
        # A division, not a product with rsqrt: the gradient of rsqrt has a cube, which underflows at 1e15.
        y = x / torch.sqrt(x.square().mean(axes, keepdim=True) + self.eps)
        return y if self.weight is None else self.weight * y

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class DyT(nn.Module):
    """Dynamic tanh: gamma * tanh(alpha x) + beta, in the place of a norm ([zhu2025]).

    It has no statistics: an element sees neither its neighbours nor its batch. As in the paper alpha is
    one number for the layer, and there is one gamma and one beta for each channel.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Number of channels, or the shape of the trailing axes.
    alpha0 : float
        First value of alpha.
    channels_last : bool
        True: gamma and beta belong to the trailing axes, (*leading, *normalized_shape), as in
        :class:`LayerNorm`. False: to axis 1 of (N, C) or (N, C, *spatial), as in :class:`BatchNorm`.

    Raises
    ------
    ValueError
        For an `alpha0` that is not positive and finite, or several axes with `channels_last` False; from
        ``forward`` for a wrong shape or dtype.
    """

    def __init__(
        self, normalized_shape: int | tuple[int, ...], alpha0: float = 0.5, channels_last: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        if not 0 < alpha0 < math.inf:
            raise ValueError(f"alpha0: got {alpha0}, expected a finite number above 0")
        if not channels_last and len(self.normalized_shape) > 1:
            raise ValueError(
                f"normalized_shape: got {normalized_shape}, expected one number with channels_last=False"
            )
        self.alpha0 = alpha0
        self.channels_last = channels_last
        self.alpha = nn.Parameter(torch.full((1,), float(alpha0)))
        self.weight = nn.Parameter(torch.ones(self.normalized_shape))
        self.bias = nn.Parameter(torch.zeros(self.normalized_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Squash `x`, then scale and shift each channel."""
        if self.channels_last:
            _check_trailing(x, self.normalized_shape)
            shape = self.normalized_shape
        else:
            _check(x, self.normalized_shape[0], min_ndim=2, layout="(N, C) or (N, C, *spatial)")
            shape = _channels(x)
        return self.weight.view(shape) * torch.tanh(self.alpha * x) + self.bias.view(shape)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{self.normalized_shape}, alpha0={self.alpha0}, channels_last={self.channels_last}"


# --------------------------------------------------------------------------- small shared parts


def _normalize_groups(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, num_groups: int
) -> Tensor:
    """Normalize groups of channels of (N, C, *spatial), then scale and shift each channel if it is wanted."""
    gamma = x.new_ones(x.shape[1]) if weight is None else weight
    beta = x.new_zeros(x.shape[1]) if bias is None else bias
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return normalize(flat, gamma, beta, eps, num_groups)[0].view(x.shape)


def _channels(x: Tensor) -> tuple[int, ...]:
    """The shape in which one value per channel broadcasts against `x`."""
    return (1, x.shape[1], *[1] * (x.ndim - 2))


def _checked_eps(eps: float) -> float:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: got {eps}, expected a finite number, 0 or larger")
    return eps


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: got {value}, at least 1 is needed")
    return value


def _shape(normalized_shape: int | tuple[int, ...]) -> tuple[int, ...]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"normalized_shape: got {normalized_shape}, expected one or more positive lengths")
    return shape


def _check_dtype(x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x: got dtype {x.dtype}, allowed are torch.float32 and torch.float64")


def _check(x: Tensor, channels: int, *, min_ndim: int, layout: str) -> None:
    _check_dtype(x)
    if x.ndim < min_ndim or x.shape[1] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected {layout} with C = {channels}")


def _check_trailing(x: Tensor, normalized_shape: tuple[int, ...]) -> None:
    _check_dtype(x)
    if tuple(x.shape[-len(normalized_shape) :]) != normalized_shape:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected one that ends in {normalized_shape}")


def _at_least_two(m: int, x: Tensor, per: str) -> None:
    if m < 2:
        raise ValueError(
            f"x: got {m} value{'s' * (m != 1)} per {per} (shape {tuple(x.shape)}), at least 2 are needed: "
            "one value is its own mean, so nothing of it would be left"
        )
