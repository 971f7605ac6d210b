"""Adapting a trained network to shifted inputs at test time, without a label.

Two methods, both of which leave the weights alone:

- statistics of the test batch in the place of the running ones ([nado2020]_; of all test images [li2017]_);
- a blend of both, in which the training statistics count as much as `prior` test examples ([schneider2020]_),
  or as much as the batch's distance from them says.

The model is given back as it was: no function here writes to its parameters, its running statistics or its
mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnbook._checks import check_several
from bnbook._extra import book_extra
from bnbook._untouched import modes_kept, watching

NormLayer = _BatchNorm
Prior = float | str


def batch_norms(model: nn.Module) -> dict[str, NormLayer]:
    """Find the layers that normalize with statistics of the batch in training, ours and PyTorch's, by name.

    >>> list(batch_norms(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm(4))))
    ['1']
    """
    found = {name: part for name, part in model.named_modules() if isinstance(part, NormLayer)}
    if not found:
        raise ValueError("model: has no batch normalization layer, at least one is needed to adapt")
    for name, part in found.items():
        if not getattr(part, "has_variance", True):
            raise ValueError(f"model: layer {name} is {part}, which has no variance to adapt")
    return found


@contextmanager
def adapted(model: nn.Module, prior: Prior = 0.0) -> Iterator[nn.Module]:
    """Normalize with :func:`blended` statistics of batch and training, inside a ``with`` block.

    All modules are in evaluation mode inside: dropout is off, and the running statistics stay. Gradients flow
    through the statistics of the batch. Afterwards every module is in the mode in which it was.

    Parameters
    ----------
    prior : float or 'auto'
        How many examples the training statistics count for: 0 for the batch alone, ``math.inf`` for the
        training alone, which is the usual inference. With ``'auto'`` each layer chooses n / (Q - 1) for
        its own score Q of the batch, as :func:`shift_scores` computes it, and the training alone if Q is
        at most 1.

    Examples
    --------
    >>> model = nn.BatchNorm1d(1).eval()
    >>> with adapted(model):
    ...     model(torch.tensor([[9.0], [11.0]])).round(decimals=3)
    tensor([[-1.],
            [ 1.]], grad_fn=<RoundBackward1>)
    """
    if (prior != "auto") if isinstance(prior, str) else not prior >= 0:  # so that NaN, too, is refused
        raise ValueError(f"prior: got {prior!r}, allowed are numbers from 0 to infinity, and 'auto'")
    found = batch_norms(model)
    for name, layer in found.items():
        if prior and layer.running_mean is None:
            raise ValueError(
                f"model: layer {name} keeps no running statistics, which prior {prior} needs; it has to be 0"
            )

    def blend(layer: NormLayer, args: tuple[Any, ...], _: Tensor) -> Tensor:
        return blended(layer, args[0], prior)

    with modes_kept(model), ExitStack() as hooks:
        # With the training statistics alone evaluation mode is all: no hook recomputes what it does.
        for layer in found.values() if prior != math.inf else ():
            hooks.enter_context(layer.register_forward_hook(blend))
        yield model.eval()


def blended(layer: NormLayer, x: Tensor, prior: Prior) -> Tensor:
    """Normalize with the batch's statistics and the running ones, the latter worth `prior` examples.

    A batch of n examples has the mean and the biased variance of a channel. The layer uses ([schneider2020]_,
    equation 1, of mean and variance alike)

        prior / (prior + n) * running statistic + n / (prior + n) * statistic of the batch.

    >>> blended(nn.BatchNorm1d(1, affine=False), torch.tensor([[4.0], [8.0]]), prior=2).round(decimals=3)
    tensor([[0.6320],
            [3.1620]])
    """
    if prior == 0:
        check_several(x, (0, *range(2, x.ndim)), "channel")
    z = x.double().reshape(*x.shape[:2], -1)  # in float64 a mean far from zero costs no digits
    mean, var = z.mean((0, 2)), z.var((0, 2), correction=0)
    if prior != 0:
        weight = training_weight(layer, z, prior)
        running_mean, running_var = _running(layer)
        mean = weight * running_mean + (1 - weight) * mean
        var = weight * running_var + (1 - weight) * var
    y = (z - mean[:, None]) * torch.rsqrt(var + layer.eps)[:, None]
    if layer.weight is not None and layer.bias is not None:
        y = y * layer.weight[:, None] + layer.bias[:, None]
    return y.view(x.shape).to(x.dtype)


def training_weight(layer: NormLayer, z: Tensor, prior: Prior) -> float:
    """Weight of the training statistics next to those of the batch (n, channels, positions).

    >>> training_weight(nn.BatchNorm1d(1), torch.zeros(6, 1, 1), prior=2)
    0.25
    """
    if isinstance(prior, str):
        mean, var = _running(layer)
        score = float(shift_score(z.detach().mean(2), mean, var + layer.eps))
        return 1 / max(score, 1.0)
    return prior / (prior + len(z))


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Tensor], prior: Prior = 0.0) -> Tensor:
    """Scores of all batches, each with statistics of its own, blended with those of the training.

    `prior` is as in :func:`adapted`; ``x.split(50)`` makes batches of 50.

    >>> model, x = nn.BatchNorm1d(1, affine=False), torch.tensor([[0.0], [2.0], [70.0], [72.0]])
    >>> predict(model, x.split(2)).round(decimals=3).ravel()
    tensor([-1.,  1., -1.,  1.])
    """
    with adapted(model, prior):
        scores = [model(x) for x in batches]
    if not scores:
        raise ValueError("batches: got none, at least one is needed")
    return torch.cat(scores)


def entropy(scores: Tensor) -> Tensor:
    """Entropy of the softmax of each row, in nats: from 0 (one class is certain) to log K (all are equal).

    >>> entropy(torch.tensor([[0.0, 0.0], [0.0, 5.0]]))
    tensor([0.6931, 0.0402])
    """
    log_p = scores.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def class_means(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean input of each batch normalization layer for each class, to be kept from the training.

    By layer, (K, channels) in float64, for the `classes` of :func:`shift_scores`. Each of the classes 0 to
    K - 1 must occur among the labels `y`.

    >>> x, y = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1])
    >>> class_means(nn.Sequential(nn.BatchNorm1d(1)), x, y)
    {'0': tensor([[2.],
            [9.]], dtype=torch.float64)}
    """
    if y.shape != (len(x),):
        raise ValueError(f"y: got shape {tuple(y.shape)}, expected ({len(x)},), a label for each input")
    count = y.bincount()
    if not len(count) or not count.all():
        raise ValueError(f"y: got {count.tolist()} inputs of the classes, each needs at least one")
    means = {}
    for name, z in _example_means(model, x).items():
        means[name] = z.new_zeros(len(count), z.shape[1]).index_add_(0, y, z) / count[:, None]
    return means


def shift_scores(model: nn.Module, x: Tensor, classes: dict[str, Tensor] | None = None) -> dict[str, float]:
    """The :func:`shift_score` of a batch at each batch normalization layer, in the usual inference.

    Without a shift its expectation is about 1. With Q for the score without `classes`, the blend with the
    smallest expected squared error of the means has the prior n / (Q - 1); infinity if Q is 1 or less.

    Parameters
    ----------
    x : Tensor
        A batch of inputs, two or more.
    classes : dict of str to Tensor, optional
        From :func:`class_means`. Then the nearest mixture of the class means takes the place of the mean of
        the training, so that a change of p(y) alone does not count. Without a shift the score is below 1: the
        fit follows chance.

    Examples
    --------
    >>> shift_scores(nn.Sequential(nn.BatchNorm1d(1, eps=0)), torch.tensor([[1.0], [3.0]]))
    {'0': 4.0}
    """
    scores = {}
    found = batch_norms(model)
    for name, z in _example_means(model, x).items():
        mean, var = _running(found[name])
        var = var + found[name].eps
        if classes is not None:
            mean = nearest_mixture(z.mean(0), classes[name], var)
        scores[name] = float(shift_score(z, mean, var))
    return scores


def shift_score(z: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """How far a batch's means lie from `mean`, over how far chance would take them.

    With z (n, channels), the mean of each channel in each example:

        score = sum over channels of (mean(z) - mean)**2 / var, over the sum of variance(z) / n / var.

    The mean over positions of an example makes the examples, and not the positions, the independent draws.

    >>> shift_score(torch.tensor([[1.0], [3.0]]), torch.zeros(1), torch.ones(1))
    tensor(4.)
    """
    if len(z) < 2:
        raise ValueError(f"x: got {len(z)} example, at least 2 are needed to tell a shift from chance")
    chance = (z.var(0) / len(z) / var).sum()
    return ((z.mean(0) - mean).square() / var).sum() / chance


def nearest_mixture(target: Tensor, means: Tensor, var: Tensor) -> Tensor:
    """The mixture of the rows of `means`, weights 0 or more with sum 1, that is nearest to `target`.

    Distances are in standard deviations, the roots of `var`. All in float64.

    >>> rows = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> nearest_mixture(one, rows, one).round(decimals=6)
    tensor([1., 0.], dtype=torch.float64)
    """
    with book_extra():
        from scipy.optimize import nnls
    std = var.sqrt()
    rows, goal = (means / std).T.cpu().numpy(), (target / std).cpu().numpy()
    # The sum of the weights is one more equation, which counts so much that it holds.
    heavy = 1e4 * (1 + np.abs(rows).max() + np.abs(goal).max())
    weights = nnls(np.vstack([rows, np.full(len(means), heavy)]), np.append(goal, heavy))[0]
    return torch.from_numpy(weights).to(means.device) @ means


# --------------------------------------------------------------------------- small shared parts


def _running(layer: NormLayer) -> tuple[Tensor, Tensor]:
    """Running mean and variance in float64; adapted() has seen to it that there are any."""
    return cast(Tensor, layer.running_mean).double(), cast(Tensor, layer.running_var).double()


@torch.no_grad()
def _example_means(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """For each batch norm layer, its input in the usual inference, averaged over positions: (N, C)."""
    norms, found = batch_norms(model), dict[str, Tensor]()

    def see(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if name in norms:
            found[name] = args[0].double().reshape(*args[0].shape[:2], -1).mean(2)

    with adapted(model, math.inf), watching(model, see):
        model(x)
    return found
