"""Batch norm."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnbook._checks import check_count, check_not_negative, check_whole
from bnbook.layers._checks import (
    check_channels,
    check_momentum,
    check_spread,
    check_statistics,
)
from bnbook.layers._normalize import in_float32, normalize


class BatchNorm(_BatchNorm):
    """Batch norm for (N, C) and (N, C, *spatial), as ``nn.BatchNorm1d``, ``2d`` and ``3d`` ([ioffe2015]_).

    In training each channel is normalized with the mean and the biased variance of the batch,
    and the running statistics take in the mean and the unbiased variance. In evaluation the
    running statistics normalize; without any (``track_running_stats=False``) the batch does.

    NaN and infinity in a batch are a ``ValueError`` in training, before they reach the running statistics. A
    compiled graph and ``torch.func.vmap`` cannot look at values: there they pass, as they do inside
    :func:`let_values_diverge`. ``nn.SyncBatchNorm.convert_sync_batchnorm`` takes every relative of batch norm
    for plain batch norm; :func:`bnbook.distributed.convert` does not.

    Arguments are PyTorch's, with ``device`` and ``dtype``. `momentum` is the weight of the **new** value in
    the running statistics; None gives each batch the same weight. The attribute `has_variance` says whether
    the running statistics hold a variance.

    >>> layer = BatchNorm(1, affine=False, momentum=0.5)
    >>> layer(torch.tensor([[2.0], [6.0]])).tolist()
    [[-0.999998..., [0.999998...]
    >>> layer.running_mean, layer.running_var
    (tensor([2.]), tensor([4.5000]))
    """

    has_variance = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        **settings: Any,
    ) -> None:
        check_whole(1, num_features=num_features)
        check_not_negative(eps=eps)
        check_momentum(momentum)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **settings)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C) or (N, C, *spatial)."""
        check_channels(x, self.num_features)
        gamma = x.new_ones(self.num_features) if self.weight is None else self.weight
        beta = x.new_zeros(self.num_features) if self.bias is None else self.bias
        if not self.training and self.running_mean is not None and self.running_var is not None:
            return normalize_by(x, self.running_mean, self.running_var, gamma, beta, self.eps)
        y, mean, unbiased_var = self.by_batch(x, gamma, beta)
        if self.training and self.track_running_stats:
            self.update(mean, unbiased_var)
        return y

    def by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize with statistics of the batch; return also the mean and unbiased variance to keep."""
        m = x.shape[0] * math.prod(x.shape[2:])
        check_count(m, x, "channel")
        y, mean, var = normalize(x.reshape(*x.shape[:2], -1), gamma, beta, self.eps)
        return y.view(x.shape), mean[0], var[0] * (m / (m - 1))

    @torch.no_grad()
    def update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Take the statistics of a batch into the running ones."""
        running = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        new = mean.to(running[0].dtype), unbiased_var.to(running[1].dtype)
        check_statistics(*new)
        transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        take = _TakeIn.apply if transformed else take_in
        batches = cast(Tensor, self.num_batches_tracked)
        take(batches, *running, *new, self.momentum)

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return str(super().extra_repr())  # type: ignore[no-untyped-call]


def take_in(
    batches: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    unbiased_var: Tensor,
    momentum: float | None,
) -> None:
    """Count a batch, and move the running statistics towards its own, in place.

    >>> batches, mean, var = torch.tensor(0), torch.zeros(1), torch.ones(1)
    >>> take_in(batches, mean, var, torch.tensor([2.0]), torch.tensor([3.0]), momentum=0.25)
    >>> batches, mean, var
    (tensor(1), tensor([0.5000]), tensor([1.5000]))
    """
    batches += 1
    # Arithmetic on tensors, and no lerp_: vmap would have to run either network by network.
    weight = batches.to(running_mean.dtype).reciprocal() if momentum is None else momentum
    running_mean.mul_(1 - weight).add_(weight * mean)
    running_var.mul_(1 - weight).add_(weight * unbiased_var)


class _TakeIn(torch.autograd.Function):
    """:func:`take_in`, also where torch.func forbids to change what a function was not given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(batches: Tensor, *statistics_and_momentum: Any) -> Tensor:
        take_in(batches, *statistics_and_momentum)
        return batches.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None


def normalize_by(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Normalize (N, C, *spatial) with given statistics of each channel: a line for each channel.

    >>> x, two, zero = torch.tensor([[5.0]]), torch.full((1,), 2.0), torch.zeros(1)
    >>> normalize_by(x, mean=two, var=two - 1, gamma=two, beta=zero, eps=0)
    tensor([[6.]])
    """
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        # One node, which other tools know and fold. It may scale before it shifts, which costs digits at a
        # large mean, as folding does.
        mean, var, gamma, beta = (value.to(x.dtype) for value in (mean, var, gamma, beta))
        return F.batch_norm(x, mean, var, gamma, beta, eps=eps)
    check_spread(var, eps)
    shape = 1, -1, *[1] * (x.ndim - 2)
    scale = gamma * torch.rsqrt(var + eps)
    return (x - mean.view(shape)) * scale.view(shape) + beta.view(shape)
