"""Is it internal covariate shift? The experiments of [santurkar2018]_, sections 2.1 and 2.2.

:func:`noisy_batch_norm` trains a network with and without batch norm, and with noise that moves what its
layers read; :func:`definition_2_1` measures how much a layer's gradient changes when the layers below it
take their step. The scale ``"full"`` has the settings of the paper, on the full Fashion-MNIST in place of
CIFAR-10; ``"small"`` has a smaller network, smaller images and fewer steps.

.. [santurkar2018] S. Santurkar, D. Tsipras, A. Ilyas, A. Madry. How Does Batch Normalization Help
   Optimization? arXiv:1805.11604.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnbook import data, layers, models, probes
from bnbook.sgd import mini_batches

__all__ = ["SCALES", "definition_2_1", "members", "noisy_batch_norm", "run"]

# An inner list is an axis of the grid; a tuple is one setting.
_VGG_SMALL = {"images": "small", "widths": (8, 8, 0, 16, 16, 0, 32, 32, 32, 32), "batch_size": 32, "lr": 0.1}
_VGG_FULL = {
    "images": "full",
    "widths": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512),
    "batch_size": 128,
    "lr": 0.1,
}
_LINEAR = {"network": "deep_linear", "norm": ["none", "batch"], "lr": [1e-7, 1e-6]}
SCALES: dict[str, list[dict[str, Any]]] = {
    "small": [
        {
            "experiment": "noisy_batch_norm",
            "norm": ["none", "batch", "noisy", "noise"],
            **_VGG_SMALL,
            "steps": 120,
            "every": 10,
        },
        {
            "experiment": "definition_2_1",
            "network": "vgg",
            "norm": ["none", "batch"],
            **_VGG_SMALL,
            "steps": 60,
            "every": 10,
            "layers": (2, 4, 7),
        },
        {"experiment": "definition_2_1", **_LINEAR, "steps": 200, "every": 20, "layers": (8, 16, 22)},
    ],
    "full": [
        {
            "experiment": "noisy_batch_norm",
            "norm": ["none", "batch", "noisy", "noise"],
            **_VGG_FULL,
            "steps": 15_000,
            "every": 250,
        },
        {
            "experiment": "definition_2_1",
            "network": "vgg",
            "norm": ["none", "batch"],
            **_VGG_FULL,
            "steps": 15_000,
            "every": 250,
            "layers": (4, 9, 12),
        },
        {"experiment": "definition_2_1", **_LINEAR, "steps": 10_000, "every": 100, "layers": (8, 16, 22)},
    ],
}
"""Settings by scale: a list of grids, in which a list is an axis."""

Loss = Callable[[Tensor, Tensor], Tensor]
Row = dict[str, Any]


def members(scale: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every run of a scale: each point of its grids, with each seed.

    Parameters
    ----------
    scale : str
        A key of :data:`SCALES`.
    seeds : sequence of int

    Returns
    -------
    list of dict
        Settings of one run each, for :func:`run`.

    Raises
    ------
    ValueError
        For an unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}, allowed are {', '.join(SCALES)}")
    found = []
    for grid in SCALES[scale]:
        axes = {name: value for name, value in grid.items() if isinstance(value, list)}
        for *values, seed in itertools.product(*axes.values(), seeds):
            found.append({**grid, **dict(zip(axes, values, strict=True)), "seed": seed})
    return found


def run(member: dict[str, Any], device: str = "cpu") -> list[Row]:
    """Run one member.

    Parameters
    ----------
    member : dict
        From :func:`members`.
    device : str
        As ``torch.device`` reads it.

    Returns
    -------
    list of dict
        What its experiment returns.
    """
    settings = dict(member)
    experiment = {"noisy_batch_norm": noisy_batch_norm, "definition_2_1": definition_2_1}
    return experiment[settings.pop("experiment")](**settings, device=device)


def noisy_batch_norm(
    *,
    norm: str,
    images: str,
    widths: Sequence[int],
    batch_size: int,
    lr: float,
    steps: int,
    every: int,
    seed: int,
    device: str = "cpu",
) -> list[Row]:
    """Train a VGG whose layers read steady or moving inputs ([santurkar2018]_, section 2.1, figure 2).

    Parameters
    ----------
    norm : {"none", "batch", "noisy", "noise"}
        Plain; batch norm; batch norm with noise behind it; the noise alone, in the same place.
    images : {"small", "full"}
        Fashion-MNIST: the shipped part, averaged to 14 x 14; or the full set, 28 x 28.
    widths : sequence of int
        As :func:`bnbook.models.vgg`. Initial weights are Glorot's.
    batch_size, lr, steps : int, float, int
        Of SGD.
    every : int
        Steps between two probes.
    seed : int
        Draws weights, mini-batches and noise.
    device : str

    Returns
    -------
    list of dict
        At each probe one row a convolution: ``step`` (number of updates), ``layer`` (from 1), ``p15``, ``p50``
        and ``p85`` of what its first unit's activation reads on a fixed batch, in training mode (which
        draws the noise); ``moved``, the distance of a unit's median from that at the last probe, in
        mean 15-85 spreads of the two probes, and ``width``, the spread itself, both as the median over
        the units. Then one row every `every` steps with ``step`` and ``loss``, the mean training loss of the
        steps before it; and a last one with ``step``, ``accuracy`` on the test images in evaluation mode,
        where no noise is drawn, and ``accuracy_noisy``, on the same in training mode.

    Raises
    ------
    ValueError
        For an unknown norm or set of images, and what :func:`bnbook.models.vgg` rejects.
    """
    if norm not in ("none", "batch", "noisy", "noise"):
        raise ValueError(f"norm: got {norm!r}, allowed are none, batch, noisy, noise")
    rows: list[Row] = []
    with _seeded(seed):
        part = _images(images, device)
        model = _vgg(part, norm, widths).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        fixed = part[0][:batch_size]
        before: list[Tensor] = []
        losses: list[Tensor] = []
        for step, (x, y) in enumerate(_batches(part, batch_size, steps, seed)):
            if step % every == 0:
                before = _moved(model, fixed, step, before, rows)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == every or step == steps - 1:
                rows.append({"step": step + 1, "loss": torch.stack(losses).mean().item()})
                losses = []
        _moved(model, fixed, steps, before, rows)
        noisy = _accuracy(model, part)
        rows.append({"step": steps, "accuracy": _accuracy(model.eval(), part), "accuracy_noisy": noisy})
    return rows


def definition_2_1(
    *,
    network: str,
    norm: str,
    lr: float,
    steps: int,
    every: int,
    layers: Sequence[int],
    seed: int,
    images: str = "",
    widths: Sequence[int] = (),
    batch_size: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """Measure internal covariate shift during training ([santurkar2018]_, Definition 2.1, figure 3).

    Parameters
    ----------
    network : {"vgg", "deep_linear"}
        Either a VGG on images, or 25 linear layers of 10 x 10 that learn another linear map on 1,000 Gaussian
        examples, all in one batch, with the sum of squared errors as loss.
    norm : {"none", "batch"}
        Behind every hidden layer.
    lr, steps : float, int
        Of SGD.
    every : int
        Steps between two measurements.
    layers : sequence of int
        Which layers to measure, counted from 0 at the input.
    seed : int
        Draws weights and data.
    images, widths, batch_size
        Of the VGG, as in :func:`noisy_batch_norm`.
    device : str

    Returns
    -------
    list of dict
        For each measurement and layer: ``step``, ``layer`` (from 1), ``loss``, and ``distance``, ``relative``
        and ``cosine`` as :func:`bnbook.probes.internal_covariate_shift` gives them, with the batch and
        rate of that step. A training that diverges ends with a row of ``step`` and ``loss`` alone.

    Raises
    ------
    ValueError
        For an unknown network or norm, and what the probe rejects.
    """
    if norm not in ("none", "batch"):
        raise ValueError(f"norm: got {norm!r}, allowed are none, batch")
    if network not in ("vgg", "deep_linear"):
        raise ValueError(f"network: got {network!r}, allowed are vgg, deep_linear")
    rows: list[Row] = []
    with _seeded(seed):
        if network == "vgg":
            part = _images(images, device)
            model = _vgg(part, norm, widths).to(device)
            loss: Loss = F.cross_entropy
            batches = _batches(part, batch_size, steps, seed)
        else:
            model = models.mlp((10,), 10, depth=24, width=10, norm=norm, activation="none", init=1.0, bias=False)
            model = model.to(device)
            loss = squared_error
            x = torch.randn(1000, 10)
            y = x @ torch.randn(10, 10).T
            batches = itertools.repeat((x.to(device), y.to(device)), steps)
        _let_diverge(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for step, (x, y) in enumerate(batches):
            value = loss(model(x), y)
            if not torch.isfinite(value):
                rows.append({"step": step, "loss": float("inf")})
                break
            if step % every == 0:
                shift = probes.internal_covariate_shift(model, loss, x, y, lr, layers)
                for layer, *numbers in zip(layers, *(v.tolist() for v in shift[1:]), strict=True):
                    measured = dict(zip(shift._fields[1:], numbers, strict=True))
                    rows.append({"step": step, "layer": layer + 1, "loss": value.item(), **measured})
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
    return rows


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Sum over examples and outputs of the squared error: the loss of the deep linear network."""
    return ((output - target) ** 2).sum()


# --------------------------------------------------------------------------- small shared parts

Part = tuple[Tensor, Tensor, Tensor, Tensor]
