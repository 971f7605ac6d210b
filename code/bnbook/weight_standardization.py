"""Linear and convolution layers whose filters are standardized: weight standardization ([qiao2019]).

Normalizing is one function of an index set, and nothing says that the set has to lie in the activations.
Here it is a filter: all weights of one output channel. The layer's parameter stays the raw weight W, the
optimizer moves it, and the layer computes with

    W_hat = (W - mean) / sqrt(var + eps),    mean and biased variance of each filter.

The gradient flows through the mean and the variance. A norm of the activations is meant to follow: the
outputs are about sqrt(fan_in) times as large as those of a layer with He's weights.

.. [qiao2019] S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille. Micro-Batch Training with Batch-Channel
   Normalization and Weight Standardization. arXiv:1903.10520.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bnbook import layers

__all__ = ["EPS", "WSConv2d", "WSLinear", "standardized"]

EPS = 1e-10
"""Default of eps. Next to the variance of a filter, which is 2 / fan_in after He's initialization, the 1e-5
of the activation norms is not small: at 4608 inputs it takes one per cent off the filter."""


def standardized(weight: Tensor, eps: float = EPS) -> Tensor:
    """Standardize each filter: subtract its mean, divide by sqrt(its biased variance + eps).

    This is :func:`bnbook.layers.normalize` with a filter in the place of an example: [qiao2019], section 3.

    Parameters
    ----------
    weight : Tensor of shape (C_out, C_in) or (C_out, C_in, *kernel)
        One filter for each output channel.
    eps : float
        Added to the variance, under the root, as in the other norms of this package.

    Returns
    -------
    Tensor
        Of the shape of `weight`. A filter of equal weights becomes zero, unless eps is 0: then it is NaN.

    Raises
    ------
    ValueError
        For a tensor without filters, fewer than two weights per filter, or an eps that is negative or not
        finite.
    """
    if weight.ndim < 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (C_out, C_in, *kernel)")
    _check(math.prod(weight.shape[1:]), eps)
    rows = weight.reshape(weight.shape[0], 1, -1)
    return layers.normalize(rows, weight.new_ones(1), weight.new_zeros(1), eps, num_groups=1)[0].view(
        weight.shape
    )


class WSConv2d(nn.Conv2d):
    """Convolution with standardized filters; otherwise ``nn.Conv2d``, whose ``state_dict`` it loads.

    Parameters
    ----------
    *args, **kwargs
        As for ``nn.Conv2d``.
    eps : float
        For :func:`standardized`.

    Raises
    ------
    ValueError
        For what ``nn.Conv2d`` or :func:`standardized` rejects.
    """

    def __init__(self, *args: Any, eps: float = EPS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self.weight[0].numel(), eps)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` with the standardized filters."""
        y: Tensor = self._conv_forward(x, standardized(self.weight, self.eps), self.bias)
        return y

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{super().extra_repr()}, eps={self.eps}"  # type: ignore[no-untyped-call]


class WSLinear(nn.Linear):
    """Linear layer with standardized rows; otherwise ``nn.Linear``, whose ``state_dict`` it loads.

    Parameters
    ----------
    *args, **kwargs
        As for ``nn.Linear``.
    eps : float
        For :func:`standardized`.

    Raises
    ------
    ValueError
        For what :func:`standardized` rejects.
    """

    def __init__(self, *args: Any, eps: float = EPS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self.weight[0].numel(), eps)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `x` by the standardized weight."""
        return F.linear(x, standardized(self.weight, self.eps), self.bias)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{super().extra_repr()}, eps={self.eps}"


def _check(fan_in: int, eps: float) -> None:
    if fan_in < 2:
        raise ValueError(
            f"weight: got {fan_in} weight{'s' * (fan_in != 1)} per filter, at least 2 are needed: "
            "one weight is its own mean, so nothing of it would be left"
        )
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: got {eps}, expected a finite number, 0 or larger")
