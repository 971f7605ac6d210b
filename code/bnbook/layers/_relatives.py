"""Relatives of batch norm: over parts of the batch, renormalized, noisy, and with another scale.

Each has the running statistics and the ``state_dict`` of :class:`BatchNorm`, and takes its arguments from eps
on behind its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bnbook._checks import check_count, check_whole
from bnbook.layers._batch import BatchNorm
from bnbook.layers._checks import check_channels, check_spread
from bnbook.layers._normalize import in_float32, moments, normalize


class GhostBatchNorm(BatchNorm):
    """Batch norm over parts of the batch, its ghosts ([hoffer2017]_, algorithm 1).

    In training the batch is cut, in its order, into ghosts of `ghost_size` examples, and each is
    normalized with its own statistics: the noise of small batches at any batch size. The running
    statistics take in the mean over the ghosts of their means, and of their unbiased variances, in
    one step. (The paper's moving average takes a step for each ghost, in their order.) Evaluation is
    that of :class:`BatchNorm`; without running statistics the whole batch is then normalized at once.

    In training `ghost_size` has to divide the batch: a smaller last ghost would have noisier statistics.

    >>> x = torch.randn(8, 3, 5)
    >>> ghosts = [BatchNorm(3)(x[:4]), BatchNorm(3)(x[4:])]
    >>> torch.testing.assert_close(GhostBatchNorm(3, ghost_size=4)(x), torch.cat(ghosts))
    """

    def __init__(self, num_features: int, ghost_size: int, *batch_norm: Any, **settings: Any) -> None:
        super().__init__(num_features, *batch_norm, **settings)
        check_whole(1, ghost_size=ghost_size)
        self.ghost_size = ghost_size

    def by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize each ghost; return also the means over the ghosts of mean and unbiased variance."""
        if not self.training:
            return super().by_batch(x, gamma, beta)
        examples, channels, size = x.shape[0], x.shape[1], self.ghost_size
        if examples == 0 or examples % size:
            raise ValueError(
                f"x: got {examples} examples (shape {tuple(x.shape)}), allowed are multiples of "
                f"ghost_size = {size}"
            )
        m = size * math.prod(x.shape[2:])
        check_count(m, x, "channel of a ghost")
        ghosts = examples // size
        # A channel of one ghost is a row of its own, so that a single call normalizes all ghosts.
        rows = x.reshape(ghosts, size, channels, -1).transpose(1, 2).reshape(1, ghosts * channels, m)
        y, mean, var = normalize(rows, gamma.repeat(ghosts), beta.repeat(ghosts), self.eps)
        y = y.view(ghosts, channels, size, -1).transpose(1, 2).reshape(x.shape)
        unbiased_var = var * (m / (m - 1))
        return y, mean.view(ghosts, channels).mean(0), unbiased_var.view(ghosts, channels).mean(0)

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class BatchRenorm(BatchNorm):
    """Batch renormalization: training output close to that of evaluation ([ioffe2017]_, algorithm 1).

    With the batch's mean mu_B and deviation sigma_B = sqrt(var_B + eps), var_B biased, and the running
    mu and sigma = sqrt(running_var + eps) as they were before this batch:

    y = gamma (xhat r + d) + beta, xhat = (x - mu_B) / sigma_B,
    r = clip(sigma_B / sigma, 1 / r_max, r_max), d = clip((mu_B - mu) / sigma, -d_max, d_max).

    r and d are constants to the gradient, which still goes through mu_B and sigma_B. Without limits
    y = gamma (x - mu) / sigma + beta, the output in evaluation; at r_max = 1 and d_max = 0 this is
    batch norm. The running statistics are those of :class:`BatchNorm`, an average of unbiased
    variances, so that ``state_dict`` fits PyTorch's; the paper averages sigma_B itself.

    The limits are plain attributes for a schedule to set, ``math.inf`` for none: the paper starts at 1 and 0,
    until the running statistics have settled, and ends at 3 and 5.

    >>> layer, x = BatchRenorm(3, r_max=math.inf, d_max=math.inf, momentum=0.0), 2 + torch.randn(8, 3)
    >>> torch.testing.assert_close(layer.train()(x), layer.eval()(x))
    """

    def __init__(
        self, num_features: int, r_max: float = 1.0, d_max: float = 0.0, *batch_norm: Any, **settings: Any
    ) -> None:
        super().__init__(num_features, *batch_norm, **settings)
        self.r_max = r_max
        self.d_max = d_max
        self.check_limits()

    def check_limits(self) -> None:
        """Refuse limits that leave nothing between them."""
        if not self.r_max >= 1:  # so that NaN, too, is refused
            raise ValueError(f"r_max: got {self.r_max}, allowed are numbers from 1 to infinity")
        if not self.d_max >= 0:
            raise ValueError(f"d_max: got {self.d_max}, allowed are numbers from 0 to infinity")

    def by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize with statistics of the batch, corrected towards the running ones."""
        # Evaluation comes here only when there are no running statistics, and there is nothing to correct to.
        if self.running_mean is not None and self.running_var is not None:
            self.check_limits()
            with torch.no_grad():
                first, rest, var, _ = moments(x.reshape(*x.shape[:2], math.prod(x.shape[2:])))
                sigma = torch.sqrt(self.running_var + self.eps)
                r = (torch.sqrt(var[0] + self.eps) / sigma).clamp(1 / self.r_max, self.r_max)
                d = ((first[0] - self.running_mean + rest[0]) / sigma).clamp(-self.d_max, self.d_max)
            gamma, beta = gamma * r, beta + gamma * d
        return super().by_batch(x, gamma, beta)

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


def add_noise(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return `x` with noise whose distribution changes at every call ([santurkar2018]_, appendix A).

    For each channel a mean mu ~ U(-0.5, 0.5) and a scale sigma ~ U(1, 1.25) are drawn; then, for each value
    of it, m ~ U(mu - 0.1, mu + 0.1) and s ~ N(sigma, 0.1), and x becomes s x + m. Positions belong to the
    batch: each has its own m and s. The paper leaves open whether the 0.1 of N(sigma, 0.1) is a standard
    deviation or a variance; here it is the standard deviation. The noise is a constant to the gradient.

    A `generator` is one on the device of `x`; None is PyTorch's global one.

    >>> y = add_noise(torch.zeros(5, 3), torch.Generator().manual_seed(0))
    >>> bool((y.abs() < 0.6).all())
    True
    """
    check_channels(x)

    def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        unit = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return low + (high - low) * unit

    of_channel = 1, x.shape[1], *[1] * (x.ndim - 2)
    mu = uniform(of_channel, -0.5, 0.5)
    sigma = uniform(of_channel, 1.0, 1.25)
    m = mu + uniform(x.shape, -0.1, 0.1)
    s = sigma + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return torch.addcmul(m, s, x)


class NoisyBatchNorm(BatchNorm):
    """Batch norm, with :func:`add_noise` after it in training ([santurkar2018]_, section 2.1).

    The noise comes after gamma and beta, which thus cannot take it out, and it is no part of the
    running statistics. In evaluation this is :class:`BatchNorm`.

    The `generator` is also an attribute. A copy of the layer has one of its own, in the same state.

    >>> layer = NoisyBatchNorm(3, generator=torch.Generator().manual_seed(0))
    >>> layer(torch.randn(4, 3)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        num_features: int,
        *batch_norm: Any,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_features, *batch_norm, **settings)
        self.generator = generator

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` of shape (N, C) or (N, C, *spatial), and in training add noise."""
        y = super().forward(x)
        return add_noise(y, self.generator) if self.training else y


class Noise(nn.Module):
    """:func:`add_noise` alone, in training: the control for :class:`NoisyBatchNorm`.

    >>> bool((Noise(3)(torch.zeros(4, 3)) == 0).any()), bool((Noise(3).eval()(torch.zeros(4, 3)) == 0).all())
    (False, True)
    """

    def __init__(self, num_features: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_whole(1, num_features=num_features)
        self.num_features = num_features
        self.generator = generator

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (N, C) or (N, C, *spatial), in training with noise."""
        check_channels(x, self.num_features)
        return add_noise(x, self.generator) if self.training else x

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return f"{self.num_features}"


def lp_scale(centred: Tensor, p: float) -> Tensor:
    """Size of the deviations d of each channel: (mean |d|^p)^(1/p), or the largest |d| for p = infinity.

    For p = 1 the mean absolute deviation, for p = 2 the (biased) standard deviation. Never smaller for
    a larger p.

    The deviations have shape (N, C, S), the result has shape (C,), and p is 1, 2 or ``math.inf``.

    >>> d = torch.tensor([-3.0, -1.0, 1.0, 3.0])[:, None, None]
    >>> [lp_scale(d, p).item() for p in (1, 2, math.inf)]
    [2.0, 2.2360..., 3.0]
    """
    check_p(p)
    if p == 1:
        return centred.abs().mean((0, 2))
    if p == 2:
        return centred.square().mean((0, 2)).sqrt()
    return centred.abs().amax((0, 2))


def check_p(p: float) -> None:
    """Refuse a norm that is not written out."""
    if p not in (1, 2, math.inf):
        raise ValueError(f"p: got {p!r}, allowed are 1, 2 and math.inf")


class LpBatchNorm(BatchNorm):
    """Batch norm with s_p in place of the standard deviation: gamma (x - mean) / sqrt(s_p^2 + eps) + beta.

    s_p is :func:`lp_scale` of the batch ([santurkar2018]_, section 3.3). Here it is that of the *centred*
    values; the paper takes it "before shifting the mean". So p = 2 is :class:`BatchNorm`
    itself, and for every p the output ignores a shift and a stretch of the inputs. There is no factor that
    would give Gaussian inputs the same width for each p: the output of p = infinity lies in -1 to 1.
    The gradient is left to autograd, except for p = 2.

    The running statistics are those of batch norm in name and update, with s_p^2 in the place of the biased
    variance: ``running_var`` takes in s_p^2 m / (m - 1), as deviations from the batch's own mean are too
    small by that factor, whatever p. The largest deviation grows with the batch; for p = infinity evaluation
    therefore fits the batch size of training.

    >>> x = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    >>> LpBatchNorm(1, math.inf, eps=0.0, affine=False)(x)
    tensor([[-1.0000],
            [-0.3333],
            [ 0.3333],
            [ 1.0000]])
    """

    def __init__(self, num_features: int, p: float, *batch_norm: Any, **settings: Any) -> None:
        super().__init__(num_features, *batch_norm, **settings)
        check_p(p)
        self.p = p
        self.has_variance = p == 2

    def by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize with mean and s_p of the batch; return also the mean and the corrected s_p^2 to keep."""
        m = x.shape[0] * math.prod(x.shape[2:])
        check_count(m, x, "channel")
        if self.p == 2:
            return super().by_batch(x, gamma, beta)
        first, rest, _, centred = moments(x.reshape(*x.shape[:2], -1))
        centred = centred - rest[:, :, None]
        square = lp_scale(centred, self.p).square()
        check_spread(square, self.eps)
        scale = gamma * torch.rsqrt(square + self.eps)
        y = centred * scale[:, None] + beta[:, None]
        return y.view(x.shape), (first + rest)[0].detach(), square.detach() * (m / (m - 1))

    def extra_repr(self) -> str:
        """Its settings, for ``print(layer)``."""
        return f"{super().extra_repr()}, p={self.p}"
