"""Batch norm over several processes of a ``torch.distributed`` group.

In training a :class:`SyncBatchNorm` sends one message forward, of 2 C + 1 numbers for C channels, and one
backward, of 2 C numbers. :mod:`bnbook.experiments.distributed` starts processes that train with it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from bnbook.layers import BatchNorm, BatchRenorm, GhostBatchNorm, LpBatchNorm, NoisyBatchNorm, moments

Group = dist.ProcessGroup | None
PLAIN = BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
RELATIVES = GhostBatchNorm, BatchRenorm, NoisyBatchNorm, LpBatchNorm


def merge_moments(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge the means and the sums of squared deviations of several parts ([chan1983]_, section 2).

    Only means are subtracted from each other, never squares: no digits are lost at a large offset.

    Parameters
    ----------
    count : Tensor of shape (K,)
        Number of values of each part. A part may be empty, but not all of them.
    mean, m2 : Tensor of shape (K, C)
        Mean of each part, and the sum of its squared deviations from it. For an empty part anything finite.

    Returns
    -------
    n : Tensor of shape ()
        Number of values of all parts.
    first, rest : Tensor of shape (C,)
        The mean of all values is first + rest: a number and a small correction, as the sum would round.
    m2 : Tensor of shape (C,)
        Sum of all squared deviations from that mean.

    Examples
    --------
    The values 1, 3 and 8 in two parts:

    >>> merge_moments(torch.tensor([2.0, 1.0]), torch.tensor([[2.0], [8.0]]), torch.tensor([[2.0], [0.0]]))
    (tensor(3.), tensor([2.]), tensor([2.]), tensor([26.]))
    """
    n = count.sum()
    first = mean[count.argmax()]
    away = mean - first  # small, whatever the offset is
    rest = (count[:, None] * away).sum(0) / n
    return n, first, rest, (m2 + count[:, None] * (away - rest).square()).sum(0)


@torch.no_grad()
def sync_moments(x: Tensor, group: Group = None) -> tuple[Tensor, Tensor, Tensor, int]:
    """Mean and biased variance of each channel, over the batches of all processes: one message.

    Each process sends its count, its means and its sums of squared deviations, in double precision, and
    merges what it receives. All do the same arithmetic in the same order: the result is the same to the bit.

    `x` is this process's part of the batch, (N, C, S); N may differ between processes, and may be 0.

    Returns
    -------
    first, rest : Tensor of shape (C,)
        Mean, as two numbers, in the dtype of `x`; see :func:`merge_moments`.
    var : Tensor of shape (C,)
        Biased variance; NaN if there is no value at all.
    n : int
        Values per channel of all processes.
    """
    N, C, S = x.shape
    message = torch.zeros(2 * C + 1, dtype=torch.float64, device=x.device)
    if N * S:  # an empty part sends zeros: it has to send something, or the others would wait
        first, rest, var, _ = (moment.double() for moment in moments(x))
        message[0] = N * S
        message[1 : C + 1] = first + rest
        message[C + 1 :] = N * S * var
    messages = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    dist.all_gather(messages, message, group)
    count, mean, m2 = torch.split(torch.stack(messages), [1, C, C], 1)
    n, first, rest, m2 = merge_moments(count[:, 0], mean, m2)
    rounded = first.to(x.dtype)
    rest = (first - rounded + rest).to(x.dtype)  # float32 may not hold the mean: keep what it cuts off
    return rounded, rest, (m2 / n).to(x.dtype), int(n)


def sync_normalize(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, group: Group = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Normalize (N, C, S) over the batches of all processes, then scale and shift each channel.

    Each process has to call this as often as the others, and to call backward as often.

    Returns
    -------
    y : Tensor of shape (N, C, S)
        The gradient of `x` is that of the sum of the losses of **all** processes; the gradients of `gamma`
        and `beta` are this process's part of it, as those of all other parameters are.
    mean, var : Tensor of shape (C,)
        Of all processes; var is biased. No gradient flows through these two.
    n : int
        Values per channel of all processes.
    """
    first, rest, var, n = sync_moments(x, group)
    inv_std = torch.rsqrt(var + eps)
    y: Tensor = _SyncNormalize.apply(x, gamma, beta, first, rest, inv_std, n, group)  # type: ignore[no-untyped-call]
    return y, first + rest, var, n


def sync_normalize_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor,
    first: Tensor,
    rest: Tensor,
    inv_std: Tensor,
    n: int,
    group: Group = None,
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of :func:`sync_normalize` with respect to x, gamma and beta: one message.

    As :func:`bnbook.layers.normalize_backward`, but that the two sums in dx run over all processes. Where
    no dx is needed, as in a first layer, nothing is sent.
    """
    xhat = (x - first[:, None] - rest[:, None]) * inv_std[:, None]
    dbeta, dgamma = dy.sum((0, 2)), (dy * xhat).sum((0, 2))
    if not needs_dx:
        return None, dgamma, dbeta
    sums = torch.cat([dbeta, dgamma])
    dist.all_reduce(sums, group=group)  # over all processes
    along_one, along_xhat = torch.split(sums / n, len(gamma))
    scale = (gamma * inv_std)[:, None]
    dx = scale * (dy - along_one[:, None] - xhat * along_xhat[:, None])
    return dx, dgamma, dbeta


class _SyncNormalize(torch.autograd.Function):
    """y = gamma * (x - mean) * inv_std + beta, where all processes made mean and inv_std."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        first: Tensor,
        rest: Tensor,
        inv_std: Tensor,
        n: int,
        group: Group,
    ) -> Tensor:
        ctx.save_for_backward(x, gamma, first, rest, inv_std)
        ctx.n, ctx.group = n, group
        scale = gamma * inv_std
        shift = beta - rest * scale
        return (x - first[:, None]).mul_(scale[:, None]).add_(shift[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needs_dx = ctx.needs_input_grad[0]
        x, gamma, first, rest, inv_std = ctx.saved_tensors
        gradients = sync_normalize_backward(dy, x, gamma, first, rest, inv_std, ctx.n, ctx.group, needs_dx)
        return *gradients, *[None] * 5


class SyncBatchNorm(BatchNorm):
    """Batch norm with the statistics of the batches of all processes, as ``nn.SyncBatchNorm``.

    In training each channel is normalized with the mean and the biased variance over all processes of the
    group, whose batches may differ in size. All processes keep the same running statistics. With a single
    process, or without ``torch.distributed.init_process_group``, this is :class:`bnbook.layers.BatchNorm`; so
    it is in evaluation. Runs on CPU and GPU; ``nn.SyncBatchNorm`` needs a GPU to train.

    The gradient is that of the **sum** of the losses of all processes. It cannot be differentiated twice. Too
    few values, NaN and infinity are errors on all processes at once, as they judge the merged statistics; a
    wrong shape or dtype only where it occurs.

    Statistics are shared in `process_group`; None is all processes, here and in the functions.

    >>> x = torch.randn(8, 3)
    >>> torch.testing.assert_close(SyncBatchNorm(3)(x), BatchNorm(3)(x))
    """

    def __init__(
        self, num_features: int, *batch_norm: Any, process_group: Group = None, **settings: Any
    ) -> None:
        super().__init__(num_features, *batch_norm, **settings)
        self.process_group = process_group

    def by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize with statistics of all processes; return also the mean and unbiased variance to keep."""
        if not self.training or not dist.is_initialized() or dist.get_world_size(self.process_group) == 1:
            return super().by_batch(x, gamma, beta)
        rows = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        y, mean, var, n = sync_normalize(rows, gamma, beta, self.eps, self.process_group)
        if n < 2:
            raise ValueError(
                f"x: got {n} values per channel from all processes together, at least 2 are needed"
            )
        return y.view(x.shape), mean, var * (n / (n - 1))


def convert(module: nn.Module, process_group: Group = None) -> nn.Module:
    """Replace the batch norms of a network by :class:`SyncBatchNorm`.

    As ``nn.SyncBatchNorm.convert_sync_batchnorm``. The new layers share parameters and running statistics
    with those in whose place they come; a layer that is used in several places stays one layer. Other norms
    stay as they are, and so do the relatives of batch norm in :mod:`bnbook.layers`, such as ghosts.

    Another subclass of batch norm is a ``ValueError``, before anything is changed: what it does besides would
    be lost. The module is changed in place and returned, unless it is itself a batch norm.

    >>> convert(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1]
    SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    found = {part: name for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    for part, name in found.items():
        if type(part) not in (*PLAIN, *RELATIVES, SyncBatchNorm):
            raise ValueError(
                f"module: got a {type(part).__name__} as layer {name!r}, which may do more than batch norm; "
                f"allowed are {', '.join(kind.__name__ for kind in PLAIN)}"
            )
    new: dict[nn.Module, nn.Module] = {
        part: _synchronized(part, process_group) for part in found if type(part) not in RELATIVES
    }
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in new:
                setattr(parent, name, new[child])
    return new.get(module, module)


def _synchronized(layer: _BatchNorm, process_group: Group) -> SyncBatchNorm:
    """A layer that shares parameters and running statistics with `layer`."""
    settings = layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    new = SyncBatchNorm(*settings, process_group=process_group)
    new.weight, new.bias = layer.weight, layer.bias
    new.running_mean, new.running_var = layer.running_mean, layer.running_var
    new.num_batches_tracked = layer.num_batches_tracked
    return new.train(layer.training)
