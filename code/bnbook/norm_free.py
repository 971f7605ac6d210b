"""Deep residual networks without normalization: Fixup, and the ideas of normalizer-free networks.

A residual network with batch normalization adds a branch of variance one to a stream that grows, so a deep
block is nearly the identity. The layers here reach that, each by another means, from the weights and from
constants; no statistic of a batch or of an example is taken.

* :class:`FixupBlock` starts with a last layer of zeros and shrinks the others ([zhang2019fixup]_).
* :class:`NormFreeBlock` divides the branch's input by the standard deviation that it should have, and adds
  a fixed share of its output ([brock2021signal]_); its layers are :class:`bnbook.layers.ScaledWSLinear`.
* :func:`bnbook.layers.clip_adaptively` limits the gradient of each unit relative to its weights
  ([brock2021]_).

The blocks map rows of features (N, width) to (N, width). Their activation is ReLU, and stands before each
linear layer. Everywhere `scale` is a factor of He's first weights, and `clipping` is for
:func:`bnbook.layers.clip_adaptively`; None clips nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnbook._checks import check_positive, check_whole
from bnbook.layers import ScaledWSLinear, clip_adaptively


class ClippedLinear(nn.Linear):
    """Linear layer whose weight has :func:`bnbook.layers.clip_adaptively` on its way back.

    >>> ClippedLinear(2, 3, clipping=0.1)
    ClippedLinear(in_features=2, out_features=3, bias=True, clipping=0.1)
    """

    def __init__(self, *args: Any, clipping: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clipping = clipping

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `x` by the weight."""
        weight = self.weight if self.clipping is None else clip_adaptively(self.weight, self.clipping)
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{super().extra_repr()}, clipping={self.clipping}"


def he_linear(
    fan_in: int, fan_out: int, *, scale: float = 1.0, bias: bool = True, clipping: float | None = None
) -> ClippedLinear:
    """Linear layer with He's weights times `scale`, 0 for a layer of zeros, and biases of zero.

    >>> he_linear(2, 1, scale=0).weight.tolist()
    [[0.0, 0.0]]
    """
    layer = ClippedLinear(fan_in, fan_out, bias=bias, clipping=clipping)
    nn.init.normal_(layer.weight, std=scale * math.sqrt(2 / fan_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class FixupBlock(nn.Module):
    """x + multiplier * branch(x), started so that the first step does not depend on the depth.

    The three rules of Fixup ([zhang2019fixup]_, section 3): the last of the m layers of the branch starts at
    zero; the others start at He's weights times L^(-1/(2m-2)) for L branches; there is a scalar multiplier
    (from 1), and a scalar bias (from 0) before each layer and each activation.

    Parameters
    ----------
    width : int
        Number of features.
    branches : int
        L, the number of residual branches in the whole network.
    layers : int
        m, the number of linear layers in the branch, at least 2.
    scale, clipping : float, optional
        As everywhere in this module.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2]])
    >>> FixupBlock(width=2, branches=100)(x).tolist()
    [[1.0, 2.0]]
    """

    def __init__(
        self,
        width: int,
        branches: int,
        layers: int = 2,
        scale: float = 1.0,
        clipping: float | None = None,
    ) -> None:
        super().__init__()
        check_whole(1, branches=branches)
        check_whole(2, layers=layers)  # the last one starts at zero
        small = scale * branches ** (-1 / (2 * layers - 2))
        scales = [small] * (layers - 1) + [0.0]
        self.linears = nn.ModuleList(
            he_linear(width, width, scale=s, bias=False, clipping=clipping) for s in scales
        )
        self.biases = nn.Parameter(torch.zeros(2 * layers))
        self.multiplier = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width) to (N, width)."""
        h = x
        for i, linear in enumerate(self.linears):
            h = linear(torch.relu(h + self.biases[2 * i]) + self.biases[2 * i + 1])
        return x + self.multiplier * h


class NormFreeBlock(nn.Module):
    """x + alpha * skip * branch(x / beta), with standardized weights ([brock2021signal]_).

    beta is the standard deviation that x should have here, computed and not measured: the stream starts
    at variance 1 and each block adds alpha^2, so block l = 0, 1, ... has beta = sqrt(1 + l alpha^2).
    The branch, with scaled standardized weights, keeps variance 1. `skip` is a number to learn; from 0 it
    makes the block start as the identity ([brock2021]_).

    Parameters
    ----------
    width : int
        Number of features.
    index : int
        l, the number of blocks before this one since the stream had variance 1.
    alpha : float
        Fixed share of the branch.
    clipping : float, optional
        As everywhere in this module.
    skip0 : float
        First value of `skip`.

    Examples
    --------
    >>> NormFreeBlock(width=2, index=3, alpha=1.0).beta
    tensor(2.)
    """

    def __init__(
        self,
        width: int,
        index: int,
        alpha: float = 0.2,
        clipping: float | None = None,
        skip0: float = 1.0,
    ) -> None:
        super().__init__()
        check_whole(0, index=index)
        check_positive(alpha=alpha)
        self.alpha = alpha
        self.beta: Tensor
        # A buffer: stacked blocks of different index share one skeleton.
        self.register_buffer("beta", torch.tensor(math.sqrt(1 + index * alpha**2)))
        self.branch = nn.Sequential(
            nn.ReLU(),
            ScaledWSLinear(width, width, clipping=clipping),
            nn.ReLU(),
            ScaledWSLinear(width, width, clipping=clipping),
        )
        self.skip = nn.Parameter(torch.full((1,), float(skip0)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width) to (N, width)."""
        out: Tensor = x + self.alpha * self.skip * self.branch(x / self.beta)
        return out
