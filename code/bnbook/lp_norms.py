"""Batch norm whose scale is another norm of the deviations than the standard deviation.

Santurkar et al. centre the activations and divide by the average of their l_p norm ([santurkar2018]_,
section 3.3). The gradient is left to autograd, except for p = 2.

.. [santurkar2018] S. Santurkar, D. Tsipras, A. Ilyas, A. Madry. How Does Batch Normalization Help
   Optimization? arXiv:1805.11604.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnbook.layers import BatchNorm

__all__ = ["LpBatchNorm", "lp_scale"]


def lp_scale(centred: Tensor, p: float) -> Tensor:
    """Size of the deviations of each channel: (mean |d|^p)^(1/p), or the largest |d| for p = infinity.

    Parameters
    ----------
    centred : Tensor of shape (N, C, S)
        Deviations d from the mean of their channel.
    p : {1, 2, math.inf}

    Returns
    -------
    Tensor of shape (C,)
        For p = 1 the mean absolute deviation, for p = 2 the (biased) standard deviation. Never smaller for
        a larger p.

    Raises
    ------
    ValueError
        For another p.
    """
    _check_p(p)
    if p == 1:
        return centred.abs().mean((0, 2))
    if p == 2:
        return centred.square().mean((0, 2)).sqrt()
    return centred.abs().amax((0, 2))


class LpBatchNorm(BatchNorm):
    """Batch norm with s_p in place of the standard deviation: gamma (x - mean) / sqrt(s_p^2 + eps) + beta.

    s_p is :func:`lp_scale` of the batch ([santurkar2018]_, section 3.3). Here it is that of the *centred*
    values; the paper takes it "before shifting the mean". So p = 2 is :class:`bnbook.layers.BatchNorm`
    itself, and for every p the output ignores a shift and a stretch of the inputs. There is no factor that
    would give Gaussian inputs the same width for each p: the output of p = infinity lies in -1 to 1.

    The running statistics are those of batch norm in name and update, with s_p^2 in the place of the biased
    variance: ``running_var`` takes in s_p^2 m / (m - 1), as deviations from the batch's own mean are too
    small by that factor, whatever p. The largest deviation grows with the batch; for p = infinity evaluation
    therefore fits the batch size of training. Works under ``torch.func.vmap``, as batch norm.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    p : {1, 2, math.inf}
    eps, momentum, affine, track_running_stats
        As in :class:`bnbook.layers.BatchNorm`; eps is added to s_p^2.

    Raises
    ------
    ValueError
        For another p, and as :class:`bnbook.layers.BatchNorm`.
    """

    def __init__(
        self,
        num_features: int,
        p: float,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.p = _check_p(p)

    def _by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.p == 2 or (m := x.shape[0] * math.prod(x.shape[2:])) < 2:  # too few values: it says so
            return super()._by_batch(x, gamma, beta)
        flat = x.reshape(*x.shape[:2], -1)
        first = flat.mean((0, 2))
        centred = flat - first[:, None]
        rest = centred.mean((0, 2))  # what a rounded mean of large values leaves
        centred = centred - rest[:, None]
        square = lp_scale(centred, self.p).square()
        scale = gamma * torch.rsqrt(square + self.eps)
        y = torch.addcmul(beta[:, None], centred, scale[:, None])
        return y.view(x.shape), (first + rest).detach(), square.detach() * (m / (m - 1))

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows between the brackets."""
        return f"{super().extra_repr()}, p={self.p}"


def _check_p(p: float) -> float:
    if p not in (1, 2, math.inf):
        raise ValueError(f"p: got {p!r}, allowed are 1, 2 and math.inf")
    return p
