"""Batch norm and group norm over batch sizes, with the same images and each at its best rate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnbook import data, models, training
from bnbook.experiments import by_name

__all__ = ["NORMS", "RATES", "SCALES", "error_after", "images_of", "network", "sizes"]

NORMS: dict[str, models.Norm] = {"batch": "batch", "group": ("group", 4)}
"""Both sides, by the name that the table gives them; a group has 8 of 32 channels."""

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "sizes",
            "images": ["fashion", "digits"],
            **axes,
            "seen": (960, 2880),
            "seed": (100, 101, 102),  # the chapter's verdicts use others
        }
        for axes in (
            {"N": [2, 4, 8, 32], "side": ["batch", "group"], "rate": RATES},
            {"N": 2, "side": "batch", "rate": (0.001,)},  # its best rate would be the first of the others
        )
    ]
}
"""Grids by the name of the scale."""


@cache
def images_of(name: str) -> data.Data:
    """Clothes (Fashion-MNIST) or digits (MNIST) averaged to 7 x 7 pixels, standardized; 1,000 to test.

    >>> images_of("digits").x_train.shape
    (4000, 1, 7, 7)
    """
    whole = {"fashion": data.fashion, "digits": data.mnist5k}[name]()
    train, test = (x.reshape(-1, 1, 7, 4, 7, 4).mean((3, 5)) for x in (whole.x_train, whole.x_test[:1000]))
    mean, std = train.mean(), train.std()
    return data.Data((train - mean) / std, whole.y_train, (test - mean) / std, whole.y_test[:1000])


def network(
    in_shape: Sequence[int],
    classes: int,
    *,
    norm: models.Norm,
    last: models.Norm | None = None,
    conv: type[nn.Conv2d] = nn.Conv2d,
) -> nn.Sequential:
    """Three strided convolutions to 32 channels, each with norm and ReLU, and a linear layer.

    Images of 7 x 7 pixels become 4 x 4, 2 x 2 and one position; the `last` norm may differ.

    >>> net = network((1, 7, 7), 10, norm="batch", last=("group", 4))
    >>> [part.weight.shape[0] for part in net if isinstance(part, nn.Conv2d)]
    [32, 32, 32]
    """
    parts: list[nn.Module] = []
    for C_in, kind in ((in_shape[0], norm), (32, norm), (32, last or norm)):
        convolution = conv(C_in, 32, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        parts += [convolution, models.make_norm(kind, 32), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(32, classes))


def error_after(
    images: str, N: int, side: str, *, rates: Sequence[float], seen: Sequence[int], seeds: Sequence[int]
) -> NDArray[np.float64]:
    """Test error (%) after so many images in batches of N: shape (rates, seeds, seen); NaN if diverged."""
    runs = training.sweep(
        network,
        images_of(images),
        steps=max(seen) // N,
        batch_size=N,
        evaluate_every=min(seen) // N,
        seeds=seeds,
        lr=[*rates],
        norm=NORMS[side],
    )
    at = [int(np.flatnonzero(runs.steps == images_seen // N)[0]) for images_seen in seen]
    return 100 - 100 * runs.series["test_accuracy"][:, :, at]


def sizes(
    images: str, N: int, side: str, rate: Sequence[float], seen: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test error (%) over rates, images seen and seeds, as rows."""
    error = error_after(images, N, side, rates=rate, seen=seen, seeds=seed)
    return [
        {"rate": r, "seed": s, "seen": n, "error": float(error[i, j, k])}
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k, n in enumerate(seen)
    ]


run = by_name(sizes)
