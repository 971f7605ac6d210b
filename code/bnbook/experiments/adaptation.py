"""What a trained network gains by the statistics of shifted test images, and when it loses by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnbook import adaptation, data, doctor, shifts, training
from bnbook._checks import check_choice
from bnbook.experiments import by_name
from bnbook.experiments._vision import seeded

__all__ = ["BATCHES", "FAMILIES", "SCALES", "accuracy", "gain", "images_of", "of_classes", "run", "trained"]

FAMILIES: dict[str, Callable[[data.Data, float], Any]] = {
    "haze": lambda part, s: shifts.affine(part.x_test, 1 - 0.7 * s, 0.35 * s),
    "noise": lambda part, s: shifts.noise(part.x_test, s, np.random.default_rng(0)),
}
"""Test images by kind and strength, 1 for the chapter's "dark, hazy" or for noise of standard deviation 1."""

BATCHES = {
    "4": (4, 10),
    "16": (16, 10),
    "64": (64, 10),
    "64 of 5": (64, 5),
    "64 of 3": (64, 3),
    "64 of 1": (64, 1),
}
"""Images in a test batch, and the classes they come from."""

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "gain",
            "images": images,
            "family": family,
            "strength": strengths,
            "batch": (*BATCHES,),
            "side": ("batch", "training"),
            "seed": (100, 101, 102),  # the chapter's verdicts use others
        }
        for images, family, strengths in (
            ("digits", "haze", (0.0, 0.1, 0.2, 0.4, 1.0)),
            ("fashion", "haze", (0.0, 0.1, 0.2, 0.4, 1.0)),
            ("digits", "noise", (0.0, 0.1, 0.2, 0.3, 0.5)),
        )
    ]
}
"""Grids by the name of the scale."""


def images_of(name: str = "digits") -> data.Data:
    """4,000 training images (1, 28, 28) and 1,000 test images, shuffled: in the file classes alternate."""
    check_choice(("digits", "fashion"), name=name)
    whole = data.mnist5k() if name == "digits" else data.fashion()
    order = np.random.default_rng(0).permutation(1000)
    return data.Data(
        whole.x_train[:4000].reshape(-1, 1, 28, 28),
        whole.y_train[:4000],
        whole.x_test[:1000].reshape(-1, 1, 28, 28)[order],
        whole.y_test[:1000][order],
    )


def trained(images: data.Data, seed: int, steps: int = 250) -> nn.Sequential:
    """Three strided convolutions with batch norm and ReLU, in evaluation mode, with recomputed statistics."""
    with seeded(seed, "cpu"):
        parts: list[nn.Module] = []
        for C_in, C_out in ((1, 12), (12, 24), (24, 48)):
            conv = nn.Conv2d(C_in, C_out, 3, stride=2, padding=1, bias=False)
            parts += [conv, nn.BatchNorm2d(C_out), nn.ReLU()]
        model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings: dict[str, Any] = {"batch_size": 32, "lr": 0.1, "momentum": 0.9, "evaluate_every": steps}
    training.fit(model, images, steps=steps, seed=seed, schedule=lambda t: 1 - t / steps, **settings)
    doctor.recompute(model, list(torch.split(torch.from_numpy(images.x_train), 1000)))
    return model.eval()


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of right classes, in percent."""
    return 100 * float((scores.argmax(-1) == labels).double().mean())


def of_classes(y: Tensor, n: int, classes: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Indices of n different images of these classes."""
    among = np.flatnonzero(np.isin(y.numpy(), classes))
    return torch.from_numpy(rng.choice(among, n, replace=False))


@cache
def _network(images: str, seed: int) -> nn.Sequential:
    return trained(images_of(images), seed)


def gain(
    images: str,
    family: str,
    strength: Sequence[float],
    batch: Sequence[str],
    side: Sequence[str],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Test accuracy (%) with the statistics of each test batch, and with those of the training."""
    part, rows = images_of(images), []
    labels = torch.from_numpy(part.y_test)
    for s in strength:
        x = torch.from_numpy(FAMILIES[family](part, s))
        for name in batch:
            n, kinds = BATCHES[name]
            for k in seed:
                rng = np.random.default_rng(k)
                drawn = [
                    of_classes(labels, n, rng.permutation(10)[:kinds].tolist(), rng)
                    for _ in range(max(8, 512 // n))
                ]
                for one in side:
                    prior = 0.0 if one == "batch" else math.inf
                    scores = adaptation.predict(_network(images, k), [x[index] for index in drawn], prior)
                    found = accuracy(scores, labels[torch.cat(drawn)])
                    rows.append({"strength": s, "batch": name, "side": one, "seed": k, "accuracy": found})
    return rows


run = by_name(gain)
