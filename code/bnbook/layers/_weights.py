"""Layers that compute with standardized filters.

Normalizing is one function of an index set, and nothing says that the set has to lie in the activations.
Here it is a filter: all weights of one output channel. The layer's parameter stays the raw weight W, the
optimizer moves it, and the layer computes with

    W_hat = (W - mean) / sqrt(var + eps),    mean and biased variance of each filter.

The gradient flows through the mean and the variance.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnbook._checks import check_not_negative, check_positive
from bnbook.layers._checks import check_filters
from bnbook.layers._normalize import normalize, widened

EPS = 1e-10
"""Default of eps for weights. Next to the variance of a filter, 2 / fan_in after He's initialization, the
1e-5 of the activation norms is not small: at 4608 inputs it takes one per cent off the filter."""

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""One over the standard deviation of max(0, z) for a standard Gaussian z: 1.7129."""


def standardized(weight: Tensor, eps: float = EPS) -> Tensor:
    """Standardize each filter: subtract its mean, divide by sqrt(its biased variance + eps).

    This is :func:`normalize` with a filter in the place of an example: [qiao2019]_, section 3. A filter of
    equal weights becomes zero.

    >>> standardized(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    tensor([[-1.0000,  1.0000],
            [ 0.0000,  0.0000]])
    """
    check_filters(weight)
    check_not_negative(eps=eps)
    rows = widened(weight.reshape(weight.shape[0], 1, -1))
    unit = normalize(rows, rows.new_ones(1), rows.new_zeros(1), eps, num_groups=1)[0]
    return unit.to(weight.dtype).view(weight.shape)


def scaled_standardized(weight: Tensor, gain: float | Tensor = 1.0, eps: float = EPS) -> Tensor:
    """Standardize each filter and scale it by gain / sqrt(fan_in): [brock2021]_, equation 1.

    With inputs of variance 1 / gain^2 that are not correlated and share one mean, the outputs have mean 0 and
    variance 1.

    The gain, one number or one for each filter, is the length of a filter afterwards (for eps = 0).

    >>> lengths = scaled_standardized(torch.randn(2, 50), gain=3.0).norm(dim=1)
    >>> torch.testing.assert_close(lengths, torch.tensor([3.0, 3.0]))
    """
    scale = gain / math.sqrt(math.prod(weight.shape[1:]))
    if isinstance(scale, Tensor):
        scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return standardized(weight, eps) * scale


def clip_adaptively(weight: Tensor, clipping: float, eps: float = 1e-3) -> Tensor:
    """Return `weight`; on its way back, limit the gradient of each unit relative to its weights.

    Adaptive gradient clipping ([brock2021]_, equation 3): where the gradient G of a unit with weights w is
    longer than clipping * max(|w|, eps), it is shortened to that length. A step of SGD then moves
    no unit by more than the rate times `clipping` times its own length. As a part of the network, not of the
    optimizer, it works with any of them, and under ``torch.func.vmap``. The weight has to be used only once.

    A weight (C_out, *rest) has a row for each unit; eps lets weights of zero move.

    >>> w = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> (10 * clip_adaptively(w, 0.1)).sum().backward()
    >>> w.grad.norm()
    tensor(0.5000)
    """
    check_positive(clipping=clipping, eps=eps)
    if weight.ndim < 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (C_out, *rest)")
    out: Tensor = _Clip.apply(weight, clipping, eps)  # type: ignore[no-untyped-call]
    return out


class _Clip(torch.autograd.Function):
    """The identity, with another gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, clipping: float, eps: float) -> Tensor:
        return weight.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, ctx.clipping, ctx.eps = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return clipped_gradient(gradient, weight, ctx.clipping, ctx.eps), None, None


def clipped_gradient(gradient: Tensor, weight: Tensor, clipping: float, eps: float = 1e-3) -> Tensor:
    """Shorten each row of a gradient to at most `clipping` times the length of its weights.

    >>> clipped_gradient(torch.tensor([[30.0, 40.0]]), torch.tensor([[3.0, 4.0]]), 0.1)
    tensor([[0.3000, 0.4000]])
    """
    allowed = clipping * _row_lengths(weight).clamp(min=eps)
    # A gradient of zero is allowed: dividing by at least a tiny number keeps 0 / 0 away.
    return gradient * (allowed / _row_lengths(gradient).clamp(min=1e-30)).clamp(max=1)


def _row_lengths(values: Tensor) -> Tensor:
    """Length of each row of (C_out, *rest), in a shape that broadcasts against it."""
    return values.square().sum(tuple(range(1, values.ndim)), keepdim=True).sqrt()


class _Standardizing(nn.Module):
    """What the two layers of weight standardization share."""

    weight: Tensor
    bias: Any  # a tensor or None; torch declares it differently in its two layers

    def __init__(self, *args: Any, eps: float = EPS, **settings: Any) -> None:
        super().__init__(*args, **settings)
        check_filters(self.weight)
        check_not_negative(eps=eps)
        self.eps = eps

    def filters(self) -> Tensor:
        """The weight that the layer computes with."""
        return standardized(self.weight, self.eps)

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return f"{super().extra_repr()}, eps={self.eps}"


class WSLinear(_Standardizing, nn.Linear):
    """Linear layer with standardized rows; otherwise ``nn.Linear``, whose ``state_dict`` it loads.

    A norm of the activations is meant to follow: the outputs are about sqrt(fan_in) times as large as those
    of a layer with He's weights.

    >>> layer, x = WSLinear(5, 4, eps=1e-10), torch.randn(2, 5)
    >>> torch.testing.assert_close(layer(x), x @ standardized(layer.weight).T + layer.bias)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `x` by the weight of ``filters``."""
        return F.linear(x, self.filters(), self.bias)


class WSConv2d(_Standardizing, nn.Conv2d):
    """Convolution with standardized filters; otherwise ``nn.Conv2d``, whose ``state_dict`` it loads.

    As for :class:`WSLinear`, a norm of the activations is meant to follow.

    >>> WSConv2d(3, 4, kernel_size=3, padding=1)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` with the filters of ``filters``."""
        y: Tensor = self._conv_forward(x, self.filters(), self.bias)
        return y


class ScaledWSLinear(WSLinear):
    """Linear layer with scaled standardized rows, and a gain to learn for each of them.

    Arguments are those of ``nn.Linear``, eps, the first value of the gains, and `clipping`, with which the
    gradient of the weight goes through :func:`clip_adaptively`.

    Rectified Gaussians come out with variance 1:

    >>> x = torch.relu(torch.randn(5000, 400))
    >>> 0.9 < ScaledWSLinear(400, 50)(x).var() < 1.1
    tensor(True)
    """

    def __init__(
        self, *args: Any, gain: float = RELU_GAIN, clipping: float | None = None, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.gain = nn.Parameter(self.weight.new_full((len(self.weight),), gain))
        self.clipping = clipping

    def reset_parameters(self) -> None:
        """Draw filters with an expected squared length of 1, and set biases to 0."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def filters(self) -> Tensor:
        """The scaled standardized weight, clipped on its way back."""
        weight = self.weight if self.clipping is None else clip_adaptively(self.weight, self.clipping)
        return scaled_standardized(weight, self.gain, self.eps)

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return f"{super().extra_repr()}, clipping={self.clipping}"
