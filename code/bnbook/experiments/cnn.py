"""How far the verdicts of the chapter on convolutional networks hold, with each side at its best rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from bnbook import data, layers, models, training
from bnbook.experiments import by_name

__all__ = [
    "RATES",
    "SCALES",
    "WIDTHS",
    "images_of",
    "shift",
    "trained",
    "two_layers",
    "vgg",
]

WIDTHS = {"VGG-8": (8, 0, 8, 8, 0, 16, 16, 16, 16, 16)}
"""Channels of each convolution; a 0 is a max pooling."""

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)

CHOOSING = (100, 101, 102)  # the chapter's verdicts use other seeds

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "shift",
            "images": ["fashion", "mnist"],
            "side": ["channel", "activation"],
            "rate": RATES,
            "steps": (80, 160),
            "seed": CHOOSING,
        }
    ]
    + [
        {
            "map": "vgg",
            "images": images,
            "network": "VGG-8",
            "start": start,
            "side": ["batch", "none"],
            "rate": RATES,
            "steps": (100, 300),
            "seed": CHOOSING,
        }
        for images, start in (("fashion", ["glorot", "he"]), ("mnist", "glorot"))
    ]
}
"""Grids by the name of the scale."""


@cache
def images_of(name: str) -> data.Data:
    """Clothes (Fashion-MNIST) or digits (MNIST) of 14 x 14 pixels, 1 channel, standardized; 500 to test.

    >>> images_of("fashion").x_train.shape
    (10000, 1, 14, 14)
    """
    whole = {"fashion": data.fashion, "mnist": data.mnist5k}[name]()
    train, test = (
        F.avg_pool2d(torch.from_numpy(x).reshape(-1, 1, 28, 28), 2).numpy()
        for x in (whole.x_train, whole.x_test[:500])
    )
    mean, std = train.mean(), train.std()
    return data.Data((train - mean) / std, whole.y_train, (test - mean) / std, whole.y_test[:500])


def trained(
    build: Callable[..., nn.Module],
    images: str,
    *,
    steps: Sequence[int],
    seeds: Iterable[int],
    rates: Sequence[float] = RATES,
    record: training.Record | None = None,
    **settings: Any,
) -> dict[str, NDArray[np.float64]]:
    """What :func:`bnbook.training.sweep` finds over rates and seeds, in batches of 16, at chosen steps.

    Returns
    -------
    dict of str to ndarray of shape (rates, seeds, steps, ...)
        ``test_accuracy`` in percent, and what `record` returned; NaN after a divergence.
    """
    every = math.gcd(*steps)
    runs = training.sweep(
        build,
        images_of(images),
        steps=max(steps),
        seeds=seeds,
        batch_size=16,
        evaluate_every=every,
        record=record,
        lr=[*rates],
        **settings,
    )
    found = {name: value[:, :, [step // every for step in steps]] for name, value in runs.series.items()}
    return found | {"test_accuracy": 100 * found["test_accuracy"]}


def _rows(
    found: Mapping[str, NDArray[np.float64]],
    rate: Sequence[float],
    steps: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """A row for each point of what :func:`trained` returned."""
    return [
        {"rate": r, "steps": k, "seed": s} | {name: float(value[i, j, n]) for name, value in found.items()}
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for n, k in enumerate(steps)
    ]


def vgg(
    images: str,
    network: str,
    start: str,
    side: str,
    rate: Sequence[float],
    steps: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Test accuracy (%) of a small VGG with ``"batch"`` normalization or ``"none"``."""
    settings: dict[str, Any] = {"widths": WIDTHS[network], "init": start, "norm": side}
    found = trained(models.vgg, images, steps=steps, seeds=seed, rates=rate, **settings)
    return _rows({"accuracy": found["test_accuracy"]}, rate, steps, seed)


# --------------------------------------------------------------------------- per channel, per activation


def two_layers(in_shape: Sequence[int], classes: int, *, statistics: str, width: int = 8) -> nn.Sequential:
    """Two circular convolutions with batch norm per ``"channel"`` or per ``"activation"``, and a mean.

    >>> net = two_layers((1, 14, 14), 10, statistics="activation")
    >>> sum(part.num_features for part in net if isinstance(part, layers.BatchNorm))
    3136
    """
    channels, H, W = in_shape
    parts: list[nn.Module] = []
    for C_in in (channels, width):
        parts.append(nn.Conv2d(C_in, width, 3, padding=1, padding_mode="circular", bias=False))
        if statistics == "channel":
            parts.append(layers.BatchNorm(width))
        else:  # every position of every channel is a unit
            parts += [nn.Flatten(), layers.BatchNorm(width * H * W), nn.Unflatten(1, (width, H, W))]
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def changed(images: str, shifts: Sequence[int]) -> training.Record:
    """What a sweep can record: how many of 200 test images (%) change class when moved to the right."""
    x = torch.from_numpy(images_of(images).x_test[:200])

    def record(model: nn.Module, step: int) -> dict[str, Any]:
        classes = torch.stack([model(x.roll(s, dims=3)).argmax(1) for s in (0, *shifts)])
        return {"changed": 100 * (classes[1:] != classes[0]).double().mean(1)}

    return record


def shift(
    images: str, side: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test accuracy (%) of :func:`two_layers`, and classes that change (%) with a shift by 3 pixels."""
    found = trained(
        two_layers, images, steps=steps, seeds=seed, rates=rate, record=changed(images, [3]), statistics=side
    )
    values = {"accuracy": found["test_accuracy"], "changed": found["changed"][..., 0]}
    values["changed"] = np.where(np.isfinite(values["accuracy"]), values["changed"], np.nan)
    return _rows(values, rate, steps, seed)


run = by_name(vgg, shift)
