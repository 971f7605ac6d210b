"""Adapting a trained network to shifted inputs at test time, without a label.

Three methods, all of which leave the weights of linear layers and convolutions alone:

- statistics of the test batch in the place of the running ones ([nado2020]_; of all test images [li2017]_);
- a blend of both, in which the training statistics count as much as `prior` test examples ([schneider2020]_),
  or as much as the batch's distance from them says;
- Tent, which besides moves gamma and beta down the gradient of the entropy of the predictions ([wang2021]_).

The model is given back as it was: no function here writes to its parameters, its running statistics or its
mode.

.. [li2017] Y. Li, N. Wang, J. Shi, J. Liu, X. Hou. Revisiting Batch Normalization for Practical Domain
   Adaptation. arXiv:1603.04779.
.. [nado2020] Z. Nado et al. Evaluating Prediction-Time Batch Normalization for Robustness under Covariate
   Shift. arXiv:2006.10963.
.. [schneider2020] S. Schneider et al. Improving Robustness against Common Corruptions by Covariate Shift
   Adaptation. arXiv:2006.16971.
.. [wang2021] D. Wang et al. Tent: Fully Test-Time Adaptation by Entropy Minimization. arXiv:2006.10726.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "Tent",
    "adapted",
    "batch_norms",
    "class_means",
    "entropy",
    "predict",
    "shift_scores",
    "tent",
]

NormLayer = _BatchNorm
Prior = float | str
Floats = NDArray[np.float64]


class Tent(NamedTuple):
    """What :func:`tent` returns.

    Attributes
    ----------
    model : nn.Module
        A copy of the model with the new gamma and beta. Predict with it inside :func:`adapted`: its running
        statistics are still those of the training.
    scores : list of Tensor of shape (N, K)
        The scores of each batch, before the step that it caused.
    entropy : list of float
        Mean entropy of each batch's predictions, before the step.
    """

    model: nn.Module
    scores: list[Tensor]
    entropy: list[float]


def batch_norms(model: nn.Module) -> dict[str, NormLayer]:
    """Find the layers that normalize with statistics of the batch in training.

    Parameters
    ----------
    model : nn.Module
        With :class:`bnbook.layers.BatchNorm` or PyTorch's ``nn.BatchNorm1d``, ``2d`` or ``3d``.

    Returns
    -------
    dict of str to nn.Module
        By name, in the order of the model.

    Raises
    ------
    ValueError
        If there is none, or one whose scale is no standard deviation.
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
    """Normalize with statistics of the batch, blended with those of the training, inside a ``with`` block.

    A batch of n examples has the mean and the biased variance of a channel. The layer uses ([schneider2020]_,
    equation 1, of mean and variance alike)

        prior / (prior + n) * running statistic + n / (prior + n) * statistic of the batch.

    All modules are in evaluation mode inside: dropout is off, and the running statistics stay. Gradients flow
    through the statistics of the batch. Afterwards every module is in the mode in which it was.

    Parameters
    ----------
    model : nn.Module
    prior : float or 'auto'
        How many examples the training statistics count for: 0 for the batch alone, ``math.inf`` for the
        training alone, which is the usual inference. With ``'auto'`` each layer chooses n / (Q - 1) for
        its own score Q of the batch, as :func:`shift_scores` computes it, and the training alone if Q is
        at most 1.

    Yields
    ------
    nn.Module
        The model.

    Raises
    ------
    ValueError
        For a negative or unknown `prior`; for a model without batch normalization, or, unless `prior` is 0,
        one without running statistics; inside, for a batch with one value per channel if `prior` is 0, and
        for one example if it is ``'auto'``.
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
        return _blended(layer, args[0], prior)

    modes = {part: part.training for part in model.modules()}
    # With the training statistics alone evaluation mode is all: no hook recomputes what it does.
    hooked = [] if prior == math.inf else list(found.values())
    handles = [layer.register_forward_hook(blend) for layer in hooked]
    try:
        yield model.eval()
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes.items():
            part.training = training


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Tensor], prior: Prior = 0.0) -> Tensor:
    """Scores of all batches, each with statistics of its own, blended with those of the training.

    Parameters
    ----------
    model : nn.Module
    batches : iterable of Tensor
        Inputs; ``x.split(50)`` makes batches of 50.
    prior : float or 'auto'
        As in :func:`adapted`.

    Returns
    -------
    Tensor of shape (examples, K)

    Raises
    ------
    ValueError
        As :func:`adapted`, or if there is no batch.
    """
    with adapted(model, prior):
        scores = [model(x) for x in batches]
    if not scores:
        raise ValueError("batches: got none, at least one is needed")
    return torch.cat(scores)


def entropy(scores: Tensor) -> Tensor:
    """Entropy of the softmax of each row, in nats.

    Parameters
    ----------
    scores : Tensor of shape (..., K)

    Returns
    -------
    Tensor of shape (...,)
        From 0 (one class is certain) to log K (all are equally likely).
    """
    log_p = scores.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def tent(
    model: nn.Module,
    batches: Iterable[Tensor],
    lr: float = 0.01,
    momentum: float = 0.9,
    prior: Prior = 0.0,
) -> Tent:
    """Move gamma and beta of a copy down the gradient of the entropy, one step a batch ([wang2021]_).

    Parameters
    ----------
    model : nn.Module
        Stays as it is.
    batches : iterable of Tensor
        Inputs without labels, in the order in which they come. For several passes repeat them.
    lr, momentum : float
        As in ``torch.optim.SGD``.
    prior : float or 'auto'
        As in :func:`adapted`; the paper's method has 0.

    Returns
    -------
    Tent

    Raises
    ------
    ValueError
        As :func:`adapted`; if no layer has a gamma and a beta, or if there is no batch.
    """
    model = copy.deepcopy(model)
    moved = [p for layer in batch_norms(model).values() for p in (layer.weight, layer.bias) if p is not None]
    if not moved:
        raise ValueError("model: no batch normalization layer has a gamma and a beta, which Tent moves")
    wanted = {p: p.requires_grad for p in model.parameters()}
    optimizer = torch.optim.SGD(moved, lr=lr, momentum=momentum)
    scores, entropies = [], []
    with adapted(model, prior), torch.enable_grad():
        model.requires_grad_(False)
        for p in moved:
            p.requires_grad_(True)
        for x in batches:
            out = model(x)
            loss = entropy(out).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scores.append(out.detach())
            entropies.append(loss.item())
    if not scores:
        raise ValueError("batches: got none, at least one is needed")
    for p, flag in wanted.items():
        p.grad = None
        p.requires_grad_(flag)
    return Tent(model, scores, entropies)


def class_means(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean input of each batch normalization layer for each class, to be kept from the training.

    Parameters
    ----------
    model : nn.Module
    x : Tensor
        Training inputs.
    y : Tensor of shape (N,)
        Their labels, 0 to K - 1; each must occur.

    Returns
    -------
    dict of str to Tensor of shape (K, C)
        By layer, float64, for the `classes` of :func:`shift_scores`.

    Raises
    ------
    ValueError
        As :func:`adapted`; if there is not one label an input, or a class without an input.
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
    """How far a batch's means lie from those of the training, over how far chance would take them.

    For each batch normalization layer, with the inputs of the usual inference, n examples, mu and var the
    running statistics of a channel, and z the mean of the channel in one example:

        score = sum over channels of (mean(z) - mu)**2 / var, over the sum of variance(z) / n / var.

    Without a shift its expectation is about 1. The mean over positions of an example makes the examples, and
    not the positions, the independent draws.

    Parameters
    ----------
    model : nn.Module
    x : Tensor
        A batch of inputs, two or more.
    classes : dict of str to Tensor, optional
        From :func:`class_means`. Then the nearest mixture of the class means takes the place of mu, so that
        a change of p(y) alone does not count. Without a shift the score is below 1: the fit follows chance.

    Returns
    -------
    dict of str to float
        By layer. With Q for the score without `classes`, the blend with the smallest expected squared error
        of the means has the prior n / (Q - 1); infinity if Q is 1 or less.

    Raises
    ------
    ValueError
        For fewer than two examples; for a model without batch normalization or without running statistics.
    """
    scores = {}
    found = batch_norms(model)
    for name, z in _example_means(model, x).items():
        mean, var = _running(found[name])
        if classes is not None:
            mean = _nearest_mixture(z.mean(0), classes[name], var)
        scores[name] = float(_score(z, mean, var))
    return scores


# --------------------------------------------------------------------------- small shared parts


def _flat(x: Tensor) -> Tensor:
    """(N, C) or (N, C, *spatial) as (N, C, S)."""
    return x.reshape(*x.shape[:2], -1)


def _running(layer: NormLayer) -> tuple[Tensor, Tensor]:
    """Running mean and variance, eps included, in float64; adapted() has seen to it that there are any."""
    running_mean, running_var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
    return running_mean.double(), running_var.double() + layer.eps


@torch.no_grad()
def _example_means(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """For each batch norm layer, its input in the usual inference, averaged over positions: (N, C)."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda layer, args: found.update({name: _flat(args[0]).double().mean(2)})

    with adapted(model, math.inf):
        handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in batch_norms(model).items()]
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _score(z: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Squared distance of the batch mean of z (N, C) from `mean`, over its expectation by chance."""
    if len(z) < 2:
        raise ValueError(f"x: got {len(z)} example, at least 2 are needed to tell a shift from chance")
    chance = (z.var(0) / len(z) / var).sum()
    return ((z.mean(0) - mean).square() / var).sum() / chance


def _nearest_mixture(target: Tensor, means: Tensor, var: Tensor) -> Tensor:
    """The mixture of the rows of `means`, weights 0 or more with sum 1, that is nearest to `target`."""
    std = var.sqrt()
    rows, goal = (means / std).T.cpu().numpy(), (target / std).cpu().numpy()
    # The sum of the weights is one more equation, which counts so much that it holds.
    heavy = 1e4 * (1 + np.abs(rows).max() + np.abs(goal).max())
    weights: Floats = nnls(np.vstack([rows, np.full(len(means), heavy)]), np.append(goal, heavy))[0]
    return torch.from_numpy(weights).to(means.device) @ means


def _blended(layer: NormLayer, x: Tensor, prior: Prior) -> Tensor:
    """Normalize with the batch's statistics and the running ones, the latter worth `prior` examples."""
    flat = _flat(x)
    N, C, S = flat.shape
    if prior == 0 and N * S < 2:
        raise ValueError(
            f"x: got {N * S} value per channel (shape {tuple(x.shape)}), at least 2 are needed with prior 0: "
            "one value is its own mean, so nothing of it would be left"
        )
    # The mean in two steps, as in layers.normalize: what rounding left of the first is taken out, too.
    first = flat.mean((0, 2), keepdim=True)
    centred = flat - first
    rest = centred.mean((0, 2), keepdim=True)
    centred = centred - rest
    var = centred.square().mean((0, 2), keepdim=True)
    if prior != 0:
        weight = _weight(layer, flat, prior)
        # adapted() has seen to it that there are running statistics.
        running_mean, running_var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        centred = centred + weight * (first - running_mean.view(1, C, 1) + rest)
        var = weight * running_var.view(1, C, 1) + (1 - weight) * var
    y = centred * torch.rsqrt(var + layer.eps)
    if layer.weight is not None and layer.bias is not None:
        y = y * layer.weight.view(1, C, 1) + layer.bias.view(1, C, 1)
    return y.view(x.shape)


def _weight(layer: NormLayer, flat: Tensor, prior: Prior) -> float:
    """Weight of the training statistics next to those of the batch (N, C, S)."""
    if isinstance(prior, str):
        with torch.no_grad():
            score = float(_score(flat.double().mean(2), *_running(layer)))
        return 1 / max(score, 1.0)
    return prior / (prior + len(flat))
