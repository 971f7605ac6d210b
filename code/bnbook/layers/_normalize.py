"""The function behind all layers, and its gradient.

It sees (N, C, S): examples, channels, positions. Values that share a mean and a variance form an index set:
a channel of all examples (batch norm), or a group of channels of one example. One group is layer norm, a
group for each channel instance norm.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bnbook.layers._checks import check_spread

Layer = TypeVar("Layer")


def widened(x: Tensor) -> Tensor:
    """The values in float32 if they come in half precision, or else as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_float32(forward: Callable[[Layer, Tensor], Tensor]) -> Callable[[Layer, Tensor], Tensor]:
    """Compute with inputs of half precision in float32, and return the dtype that came: so autocast works."""

    @functools.wraps(forward)
    def wide(layer: Layer, x: Tensor) -> Tensor:
        return forward(layer, widened(x)).to(x.dtype)

    return wide


def normalize(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, num_groups: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize over the batch or over groups of channels, then scale and shift each channel.

    y = gamma (x - mean) / sqrt(var + eps) + beta: [ioffe2015]_, algorithm 1, and [wu2018]_, equation 7. Has
    derivatives of every order, forward and backward, and works under ``torch.func.vmap``.

    Parameters
    ----------
    x : Tensor of shape (N, C, S)
        float32 or float64.
    gamma, beta : Tensor of shape (C,)
    eps : float
    num_groups : int or None
        None: one mean and variance for each channel, over N and S. G: one for each example and each of
        G groups of C / G consecutive channels.

    Returns
    -------
    y : Tensor of shape (N, C, S)
    mean, var : Tensor of shape (1, C) or (N, G)
        Of `x`; var is biased. No gradient flows through these two.

    Examples
    --------
    One group over all channels is layer norm:

    >>> x, one, zero = torch.randn(2, 6, 5), torch.ones(6), torch.zeros(6)
    >>> y, mean, var = normalize(x, one, zero, 1e-5, num_groups=1)
    >>> torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (6, 5)))
    """
    y, first, rest, var = _apply(x, gamma, beta, eps, num_groups)
    check_spread(var, eps)
    return y, first + rest, var


def moments(x: Tensor, num_groups: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean of each index set as a rounded value and a small rest, the biased variance, and x - first.

    Subtracting first + rest in one step would round the rest away (a float32 mean near 1e6
    is a multiple of 0.06), so the two are kept apart.

    Returns
    -------
    first, rest, var : Tensor of shape (1, C) or (N, G)
    centred : Tensor of shape (N, C, S)

    Examples
    --------
    >>> x = 1e6 + torch.tensor([[[0.0]], [[0.25]]])
    >>> first, rest, var, _ = moments(x)
    >>> first.item(), rest.item(), var.item()
    (1000000.125, 0.0, 0.015625)
    """
    m = set_size(x, num_groups)
    # Along the contiguous axis first, which is twice as fast as over all at once.
    first = pool(over_positions(x), num_groups) / m
    centred = x - by_channel(first, x)[:, :, None]
    rest = pool(over_positions(centred), num_groups) / m
    var = pool(_sum_of_squares(centred), num_groups) / m - rest * rest
    return first, rest, var.clamp(min=0), centred


def normalize_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor,
    first: Tensor,
    rest: Tensor,
    inv_std: Tensor,
    num_groups: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`normalize` with respect to x, gamma and beta ([ioffe2015]_, section 3).

    The mean of each index set comes as first + rest, as :func:`moments` returns it, with inv_std =
    1 / sqrt(var + eps).

    >>> x, one = torch.tensor([[[-1.0]], [[1.0]]]), torch.ones(1)
    >>> normalize_backward(x, x, one, one[None] * 0, one[None] * 0, one[None])
    (tensor([[[0.]],
    <BLANKLINE>
            [[0.]]]), tensor([2.]), tensor([0.]))
    """
    centred = x - by_channel(first, x)[:, :, None]  # again: cheaper than to keep it in memory
    rest, inv_std = by_channel(rest, x), by_channel(inv_std, x)
    # Sums over the positions of each channel of each example, then over the examples.
    dy_sum, dy_centred_sum = _sums_over_positions(dy, centred)
    dy_xhat_sum = (dy_centred_sum - rest * dy_sum) * inv_std
    dgamma, dbeta = dy_xhat_sum.sum(0), dy_sum.sum(0)
    # dx = (dxhat - mean of dxhat - xhat * mean of dxhat xhat) / std, dxhat = gamma dy, means over an
    # index set, and xhat = (centred - rest) / std.
    m = set_size(x, num_groups)
    along_one = by_channel(pool(gamma * dy_sum, num_groups) / m, x)
    along_xhat = by_channel(pool(gamma * dy_xhat_sum, num_groups) / m, x) * inv_std
    scale = (gamma * inv_std)[:, :, None]
    slope = -(along_xhat * inv_std)[:, :, None]
    constant = ((rest * along_xhat - along_one) * inv_std)[:, :, None]
    if torch.is_grad_enabled():
        dx = torch.addcmul(centred * slope + constant, dy, scale)
    else:  # in place, as in the forward pass
        dx = centred.mul_(slope).add_(constant).addcmul_(dy, scale)
    return dx, dgamma, dbeta


class _Normalize(torch.autograd.Function):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta for PyTorch's autograd."""

    @staticmethod
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, eps: float, num_groups: int | None
    ) -> tuple[Tensor, ...]:
        first, rest, var, centred = moments(x, num_groups)
        # One pass takes the rest out, scales and shifts: (centred - rest) * scale + beta.
        scale = gamma * by_channel(torch.rsqrt(var + eps), x)
        shift = beta - by_channel(rest, x) * scale
        scale, shift = scale[:, :, None], shift[:, :, None]
        # In place where nothing is recorded: half the time.
        y = centred * scale + shift if torch.is_grad_enabled() else centred.mul_(scale).add_(shift)
        return y, first, rest, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, gamma, _, ctx.eps, ctx.num_groups = inputs
        statistics = output[1:]
        ctx.mark_non_differentiable(*statistics)
        ctx.save_for_backward(x, gamma, *statistics)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, gamma, first, rest, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative is wanted: the statistics depend on x, and the graph must know.
            first, rest, var = moments(x, ctx.num_groups)[:3]
        inv_std = torch.rsqrt(var + ctx.eps)
        return *normalize_backward(dy, x, gamma, first, rest, inv_std, ctx.num_groups), None, None

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
        y, *rest = _apply(*folded, eps, groups)
        outputs = (y.view(N, V, C, S), *(value.view(len(value), V, -1) for value in rest))
        return outputs, (1,) * len(outputs)


# ``apply`` asks for it at each call; to find it out anew takes a tenth of the time of a small layer.
_Normalize.forward.__signature__ = inspect.signature(_Normalize.forward)  # type: ignore[attr-defined]


def _apply(*arguments: Any) -> tuple[Tensor, ...]:
    if forward_ad._current_level >= 0:
        # PyTorch has one forward derivative of an autograd.Function; of its own operations it has all.
        y, *statistics = _Normalize.forward(*arguments)
        return (y, *(value.detach() for value in statistics))
    results: tuple[Tensor, ...] = _Normalize.apply(*arguments)  # type: ignore[no-untyped-call]
    return results


def set_size(x: Tensor, num_groups: int | None = None) -> int:
    """How many values of (N, C, S) share a mean and a variance.

    >>> set_size(torch.ones(5, 6, 7)), set_size(torch.ones(5, 6, 7), num_groups=3)
    (35, 14)
    """
    N, C, S = x.shape[-3:]
    return N * S if num_groups is None else C // num_groups * S


def pool(blocks: Tensor, num_groups: int | None = None) -> Tensor:
    """Sum (N, C) over each index set: (1, C) for the batch, (N, G) for groups.

    >>> pool(torch.ones(5, 6)), pool(torch.ones(2, 6), num_groups=3)
    (tensor([[5., 5., 5., 5., 5., 5.]]), tensor([[2., 2., 2.],
            [2., 2., 2.]]))
    """
    if num_groups is None:
        return blocks.sum(-2, keepdim=True)
    return blocks.reshape(*blocks.shape[:-1], num_groups, blocks.shape[-1] // num_groups).sum(-1)


def by_channel(statistic: Tensor, x: Tensor) -> Tensor:
    """A statistic of each index set, (1, C) or (N, G), as one that broadcasts against (N, C).

    >>> by_channel(torch.tensor([[1.0, 2.0]]), torch.ones(1, 6, 7))
    tensor([[1., 1., 1., 2., 2., 2.]])
    """
    repeats = x.shape[-2] // statistic.shape[-1]
    return statistic if repeats == 1 else statistic.repeat_interleave(repeats, -1)


def over_positions(values: Tensor) -> Tensor:
    """Sum (N, C, S) over the positions: (N, C); nothing to add up in a dense layer."""
    return values.squeeze(-1) if values.shape[-1] == 1 else values.sum(-1)


def _sums_over_positions(dy: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the positions of dy and of dy * centred: (N, C) each."""
    N, C, S = dy.shape
    if torch.is_grad_enabled() or N * C == 0 or S < 64 or dy.device.type != "cpu":
        return over_positions(dy), over_positions(dy * centred)
    # These are the gradients of the shift and the scale of a layer with mean 0 and deviation 1, which PyTorch
    # computes in one pass and 40 % of the time.
    zeros, ones = dy.new_zeros(N * C), dy.new_ones(N * C)
    rows = dy.reshape(1, N * C, S), centred.reshape(1, N * C, S)
    _, dots, sums = torch.ops.aten.native_batch_norm_backward(
        *rows, None, None, None, zeros, ones, True, 0.0, [False, True, True]
    )
    return sums.view(N, C), dots.view(N, C)


def _sum_of_squares(x: Tensor) -> Tensor:
    """Sum of squares over the positions: (N, C)."""
    if torch.is_grad_enabled() or x.shape[-1] == 1:  # the square root of a zero has no second derivative
        return over_positions(x.square())
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)  # one pass: a third of the time
    return norm.square()
