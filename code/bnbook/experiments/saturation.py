"""Which first weights and rates train a network, and what happens to its gradient while it trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from bnbook import data, models, probes, training
from bnbook._checks import check_choice
from bnbook.experiments import by_name

__all__ = ["GAINS", "MARKS", "RATES", "SCALES", "accuracies", "band", "gradient", "images_of", "kept", "run"]

GAINS = [0.1, 0.3, 1.0, 3.0, 10.0]
RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
MARKS = {"digits": 0.9, "fashion": 0.7}
"""A network with at least this test accuracy has trained; a good setting reaches more."""

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "band",
            "activation": ["relu", "sigmoid"],
            "images": images,
            "depth": depth,
            "steps": (100, 300, 1000),
            "seed": (100, 101, 102),  # the chapter's verdicts use others
        }
        for images, depth in (("digits", 3), ("digits", 6), ("fashion", 3))
    ]
    + [
        {
            "map": "gradient",
            "images": images,
            "depth": depth,
            "rate": (0.01, 0.03, 0.1, 0.3, 1.0),
            "steps": steps,
            "seed": (100, 101, 102),
        }
        for images, depth, steps in (
            ("digits", 5, (100, 300, 1000, 3000)),
            ("fashion", 5, (100, 300, 1000, 3000)),
            ("digits", 20, (100, 300, 1000)),
        )
    ]
}
"""Grids by the name of the scale."""


def images_of(name: str) -> data.Data:
    """The digits, or 4,000 training and 1,000 test images of MNIST or Fashion, averaged over 2 x 2 pixels."""
    if name == "digits":
        return data.digits()
    sets = {"mnist": data.mnist5k, "fashion": data.fashion}
    check_choice(sets, name=name)
    whole = sets[name]()
    small = [
        x[:n].reshape(n, 14, 2, 14, 2).mean((2, 4)).reshape(n, 196)
        for x, n in ((whole.x_train, 4000), (whole.x_test, 1000))
    ]
    return data.Data(small[0], whole.y_train[:4000], small[1], whole.y_test[:1000])


def accuracies(
    activation: str,
    images: data.Data,
    *,
    norm: str = "none",
    depth: int = 3,
    steps: int = 300,
    evaluate_every: int | None = None,
    seeds: Iterable[int] = range(5),
) -> NDArray[np.float64]:
    """Test accuracy of networks of 32 units over all ``GAINS`` and ``RATES``.

    Returns
    -------
    ndarray of shape (gains, rates, seeds, evaluations)
        NaN after a divergence. The first evaluation is before the first step.

    Examples
    --------
    >>> accuracies("relu", data.digits(), steps=2, seeds=[0]).shape
    (5, 6, 1, 2)
    """
    runs = training.sweep(
        models.mlp,
        images,
        steps=steps,
        seeds=seeds,
        evaluate_every=evaluate_every or steps,
        norm=norm,
        depth=depth,
        width=32,
        activation=activation,
        init=GAINS,
        lr=RATES,
    )
    return runs.series["test_accuracy"]


def band(
    activation: str,
    images: str,
    depth: int,
    steps: Sequence[int],
    seed: Sequence[int],
    norm: str = "none",
) -> list[dict[str, Any]]:
    """Shares of the settings of :func:`accuracies` that reach the mark, and that diverged, in percent."""
    every = math.gcd(*steps)
    found = accuracies(
        activation,
        images_of(images),
        norm=norm,
        depth=depth,
        steps=max(steps),
        evaluate_every=every,
        seeds=seed,
    )
    return [
        {
            "steps": k,
            "seed": s,
            "trained": 100 * float((found[:, :, j, k // every] >= MARKS[images]).mean()),
            "diverged": 100 * float(np.isnan(found[:, :, j, k // every]).mean()),
        }
        for k in steps
        for j, s in enumerate(seed)
    ]


def kept(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Length of the loss's gradient with respect to the first hidden layer's outputs, over the last one's.

    >>> kept(models.mlp((64,), 10, depth=1), torch.ones(2, 64), torch.tensor([0, 1]))
    1.0
    """
    with torch.enable_grad():  # a sweep records without
        lengths = probes.gradient_norms(model, F.cross_entropy, x, y).input
    return (lengths[1] / lengths[-1]).item()


def gradient(
    images: str, depth: int, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Of the gradient that :func:`kept` measures, what is left in ReLU layers of 64 units from He's weights.

    NaN after a divergence.
    """
    chosen, every = images_of(images), math.gcd(*steps)
    x, y = torch.from_numpy(chosen.x_train[:256]), torch.from_numpy(chosen.y_train[:256])
    runs = training.sweep(
        models.mlp,
        chosen,
        steps=max(steps),
        seeds=seed,
        evaluate_every=every,
        depth=depth,
        width=64,
        lr=[*rate],
        record=lambda model, step: {"kept": kept(model, x, y)},
    )
    return [
        {
            "rate": r,
            "steps": k,
            "seed": s,
            "kept": float(runs.series["kept"][i, j, k // every]),
        }
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
    ]


run = by_name(band, gradient)
