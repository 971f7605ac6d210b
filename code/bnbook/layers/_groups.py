"""Norms whose statistics belong to one example. Arguments are PyTorch's, with ``device`` and ``dtype``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from bnbook._checks import check_count, check_not_negative, check_whole
from bnbook.layers._checks import (
    check_channels,
    check_momentum,
    check_normalized_shape,
    check_spread,
    check_trailing,
)
from bnbook.layers._normalize import in_float32, normalize


class GroupNorm(nn.GroupNorm):
    """Group norm for (N, C) and (N, C, *spatial), as ``nn.GroupNorm`` ([wu2018]_, equation 7).

    A group for each channel is instance norm:

    >>> x = torch.randn(2, 6, 4, 4)
    >>> torch.testing.assert_close(GroupNorm(6, 6)(x), InstanceNorm(6)(x))
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, **settings: Any
    ) -> None:
        check_whole(1, num_channels=num_channels)
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups: got {num_groups}, allowed are the divisors of {num_channels} channels"
            )
        check_not_negative(eps=eps)
        super().__init__(num_groups, num_channels, eps, affine, **settings)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C) or (N, C, *spatial)."""
        check_channels(x, self.num_channels)
        check_count(math.prod(x.shape[1:]) // self.num_groups, x, "group of an example")
        return _normalize_groups(x, self.weight, self.bias, self.eps, self.num_groups)


class InstanceNorm(_InstanceNorm):
    """Instance norm for (N, C, *spatial), as ``nn.InstanceNorm1d``, ``2d`` and ``3d`` ([ulyanov2016]_).

    Arguments and defaults are PyTorch's: without `affine` there is neither scale nor shift. There are no
    running statistics: `momentum` has no effect, and ``track_running_stats=True`` is refused.

    >>> y = InstanceNorm(3)(torch.randn(2, 3, 8, 8))
    >>> torch.testing.assert_close(y.mean((2, 3)), torch.zeros(2, 3))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        **settings: Any,
    ) -> None:
        check_whole(1, num_features=num_features)
        check_not_negative(eps=eps)
        check_momentum(momentum)
        if track_running_stats:
            raise ValueError(
                "track_running_stats: got True, allowed is False: evaluation normalizes as training does"
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **settings)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C, *spatial)."""
        check_channels(x, self.num_features, spatial=True)
        check_count(math.prod(x.shape[2:]), x, "channel of an example")
        return _normalize_groups(x, self.weight, self.bias, self.eps, self.num_features)


class _OverTrailingAxes(nn.Module):
    """The arguments that layer norm and RMS norm share."""

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        **settings: Any,
    ) -> None:
        check_normalized_shape(normalized_shape)
        check_not_negative(eps=eps)
        super().__init__(normalized_shape, eps, elementwise_affine, **settings)


class LayerNorm(_OverTrailingAxes, nn.LayerNorm):
    """Layer norm over the trailing axes, as ``nn.LayerNorm`` ([ba2016]_, equation 4).

    One group over all channels is layer norm, but for the shapes of scale and shift:

    >>> x = torch.randn(2, 6, 5)
    >>> torch.testing.assert_close(LayerNorm((6, 5))(x), GroupNorm(1, 6)(x))
    """

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (*leading, *normalized_shape)."""
        check_trailing(x, self.normalized_shape)
        m = math.prod(self.normalized_shape)
        check_count(m, x, "example")
        weight, bias = (None if p is None else p.flatten() for p in (self.weight, self.bias))
        return _normalize_groups(x.reshape(-1, m, 1), weight, bias, self.eps, 1).view(x.shape)


class RMSNorm(_OverTrailingAxes, nn.RMSNorm):
    """RMS norm over the trailing axes, as ``nn.RMSNorm`` ([zhang2019]_, equation 4).

    Its gradient is left to autograd: there is no mean, so nothing cancels. The default of eps differs from
    PyTorch's, which is the dtype's machine epsilon.

    >>> RMSNorm(2, eps=0)(torch.tensor([[1.0, 7.0]]))
    tensor([[0.2000, 1.4000]], grad_fn=<MulBackward0>)
    """

    eps: float

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (*leading, *normalized_shape)."""
        check_trailing(x, self.normalized_shape)
        axes = tuple(range(-len(self.normalized_shape), 0))
        square = x.square().mean(axes, keepdim=True)
        check_spread(square, self.eps)
        # A division, not a product with rsqrt: the gradient of rsqrt has a cube, which underflows at 1e15.
        y = x / torch.sqrt(square + self.eps)
        return y if self.weight is None else self.weight * y


def _normalize_groups(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, num_groups: int
) -> Tensor:
    """Normalize groups of channels of (N, C, *spatial), then scale and shift each channel if it is wanted."""
    gamma = x.new_ones(x.shape[1]) if weight is None else weight
    beta = x.new_zeros(x.shape[1]) if bias is None else bias
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return normalize(flat, gamma, beta, eps, num_groups)[0].view(x.shape)
