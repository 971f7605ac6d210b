"""What is kept of the inputs of a norm: a few numbers a channel for each batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bnbook.doctor._norms import Norm

_KEPT_CHANNELS = 512  # of the means of each example: enough to see scatter


@dataclass
class Stats:
    """Inputs of one norm, batch by batch: per channel, in float32.

    Attributes
    ----------
    n, m : list of int
        Examples, and values per statistic, of each batch.
    mean, var : list of Tensor, shape (channels,)
        Mean and biased variance of each batch.
    by_example : list of Tensor, shape (n, at most 512)
        Mean of each example.
    deviation : list of float
        Largest distance of a value from the mean that is subtracted from it (not of batch norms).
    offset : list of float
        Largest ratio of mean to standard deviation.
    """

    n: list[int] = field(default_factory=list)
    m: list[int] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    var: list[Tensor] = field(default_factory=list)
    by_example: list[Tensor] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    offset: list[float] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    sample: Tensor | None = None

    @property
    def bad(self) -> bool:
        """Whether the last batch was not finite."""
        last = self.mean[-1] if self.mean else torch.tensor(self.deviation[-1:])
        return not bool(torch.isfinite(last).all())

    def means(self) -> Tensor:
        """Shape (batches, channels)."""
        return torch.stack(self.mean)

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, weighted by the number of examples (Algorithm 2)."""
        weight = torch.tensor(self.n, dtype=torch.float32)
        weight = weight / weight.sum()
        bessel = torch.tensor([m / max(m - 1, 1) for m in self.m])
        var = torch.stack(self.var) * bessel[:, None]
        return weight @ self.means(), weight @ var


def add(stats: Stats, norm: Norm, x: Tensor) -> None:
    """Add the input of a norm to what was seen."""
    stats.dtype = x.dtype
    if x.dtype != torch.float64:
        x = x.float()
    if norm.family != "batch":
        return _add_by_group(stats, norm, x)
    if x.ndim > 1 and x.shape[1] != norm.channels and x.shape[-1] == norm.channels:
        x = x.movedim(-1, 1)
    if x.ndim < 2 or x.shape[1] != norm.channels or x.numel() == 0:
        return None
    values = x.flatten(2) if x.ndim > 2 else x[:, :, None]
    by_example = values.mean(2)
    mean, var = _moments(values, by_example)
    stats.n.append(len(values))
    stats.m.append(values.shape[0] * values.shape[2])
    stats.mean.append(mean.float().cpu())
    stats.var.append(var.float().cpu())
    stats.by_example.append(by_example[:, :_KEPT_CHANNELS].float().cpu())
    stats.offset.append(float((mean.abs() / (var + norm.eps).sqrt()).max()))
    if stats.sample is None:
        worst = (mean.abs() / (var + norm.eps).sqrt()).argmax()
        stats.sample = values[:, worst].reshape(-1)[:4096].cpu()
    return None


def _moments(values: Tensor, by_example: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of (examples, channels, positions) per channel.

    From sums of squares, in float64, which takes a seventh of the time of two passes on a CPU; where that
    would lose digits, in two passes.
    """
    mean = by_example.double().mean(0)
    square = torch.linalg.vector_norm(values, dim=2).double().square().mean(0) / values.shape[2]
    var = square - mean.square()
    if bool((square > 100 * var).any()):
        var, mean = torch.var_mean(values, (0, 2), correction=0)
    return mean.to(values.dtype), var.to(values.dtype)


def _add_by_group(stats: Stats, norm: Norm, x: Tensor) -> None:
    size = norm.values(tuple(x.shape))
    if norm.family in ("layer", "rms") and x.shape[-1:].numel() != size and x.numel() % max(size, 1):
        return
    if (
        norm.family in ("layer", "rms")
        and size == x.shape[1:2].numel()
        and x.ndim == 4
        and x.shape[-1] != size
    ):
        x = x.movedim(1, -1)  # a layer norm over channels that come first
    if size < 1 or x.numel() % size:
        return
    rows = x.reshape(-1, size)
    mean = rows.mean(1, keepdim=True) if norm.family != "rms" else rows.new_zeros(1, 1)
    spread = (rows.var(1, correction=0) + norm.eps).sqrt()
    stats.n.append(len(x))
    stats.m.append(size)
    stats.deviation.append(float((rows - mean).abs().max()))
    ratio = rows.mean(1).abs() / spread
    stats.offset.append(float(ratio.max()) if norm.family != "rms" else 0.0)
    if stats.sample is None:
        stats.sample = rows[ratio.argmax()][:4096].cpu()
