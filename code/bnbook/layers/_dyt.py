"""A squashing function in the place of a norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnbook._checks import check_positive
from bnbook.layers._checks import check_channels, check_normalized_shape, check_trailing
from bnbook.layers._normalize import in_float32


class DyT(nn.Module):
    """Dynamic tanh: gamma * tanh(alpha x) + beta, in the place of a norm ([zhu2025]_).

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
    device, dtype
        Of the parameters, as in PyTorch.

    Examples
    --------
    >>> with torch.no_grad():
    ...     DyT(2)(torch.tensor([[0.0, 1e9]]))
    tensor([[0., 1.]])
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        alpha0: float = 0.5,
        channels_last: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_normalized_shape(normalized_shape)
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        check_positive(alpha0=alpha0)
        if not channels_last and len(shape) > 1:
            raise ValueError(
                f"normalized_shape: got {normalized_shape}, expected one number with channels_last=False"
            )
        self.normalized_shape, self.alpha0, self.channels_last = shape, alpha0, channels_last
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha to its first value, gamma to 1 and beta to 0."""
        nn.init.constant_(self.alpha, self.alpha0)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Squash `x`, then scale and shift each channel."""
        if self.channels_last:
            check_trailing(x, self.normalized_shape)
            shape: tuple[int, ...] = self.normalized_shape
        else:
            check_channels(x, self.normalized_shape[0])
            shape = 1, x.shape[1], *[1] * (x.ndim - 2)
        return self.weight.view(shape) * torch.tanh(self.alpha * x) + self.bias.view(shape)

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return f"{self.normalized_shape}, alpha0={self.alpha0}, channels_last={self.channels_last}"
