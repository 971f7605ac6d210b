"""What few values for each mean and variance cost, and what helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnbook import data, doctor, layers, models, training
from bnbook.experiments import by_name, inference
from bnbook.experiments.saturation import images_of

__all__ = [
    "NETWORKS",
    "RATES",
    "SCALES",
    "SIZES",
    "cnn",
    "equal_images",
    "errors",
    "fine_tune",
    "heads",
    "mlps",
    "run",
    "small_clothes",
    "trained",
    "tune",
    "turned",
]

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
NETWORKS: dict[str, dict[str, Any]] = {
    "A": {"last": 2},
    "B": {"last": 1},
    "B, mean": {"last": 1, "mean": True},
}
"""The networks of :func:`heads`: the stride of the last convolution, and whether positions are averaged."""
SIZES = {"32": (32, 32, 32, 32), "last 2": (32, 32, 32, 2), "2": (2, 2, 2, 2)}
"""How many images share the statistics of each norm."""

_OTHERS = (100, 101, 102)  # seeds: the chapter's verdicts use others
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "equal_images",
            "images": images,
            "cut": cut,
            "side": ["batch", "group"],
            "m": [2, 4, 8, 32],
            "rate": RATES,
            "seen": (1600, 3200, 6400),
            "seed": _OTHERS,
        }
        for images, cut in (("digits", "statistics"), ("digits", "both"), ("fashion", "both"))
    ]
    + [
        {"map": "heads", "side": [*SIZES], "steps": (75, 150, 300), "seed": _OTHERS, **chosen}
        for chosen in (
            {"network": "A", "rate": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)},
            {"network": ["B", "B, mean"], "rate": (0.03, 0.1, 0.3, 1.0, 3.0)},
        )
    ]
    + [
        {
            "map": "fine_tune",
            "side": ["frozen", "batch", "recomputed, frozen"],
            "N": 2,
            "rate": (0.001, 0.003, 0.01, 0.03, 0.1),
            "seen": (480, 1440),
            "seed": _OTHERS,
        }
    ]
}
"""Grids by the name of the scale."""


# --------------------------------------------------------------------------- dense layers


@torch.no_grad()
def _with_all(model: nn.Module, x: Tensor) -> None:
    """Give each norm the statistics of all training inputs, from the bottom to the top."""
    for part in model.children():
        if isinstance(part, layers.BatchNorm):
            part.load_state_dict({"running_mean": x.mean(0), "running_var": x.var(0)}, strict=False)
        x = part(x)


def mlps(
    images: data.Data,
    norm: Any,
    *,
    N: int,
    seen: Sequence[int],
    rate: Any,
    seeds: Sequence[int],
) -> training.Runs:
    """Train networks of two layers of 32 units on so many images, whatever the batch size N.

    The series ``"error"`` has the test error in percent with running statistics, ``"precise"`` with those
    of all training images; where the norm has none they agree.
    """
    x_train, x_test = torch.from_numpy(images.x_train), torch.from_numpy(images.x_test)
    y_test = torch.from_numpy(images.y_test)

    def errors_of(model: nn.Module, step: int) -> dict[str, float]:
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        running = inference.error(model, x_test, y_test)
        _with_all(model, x_train)
        precise = inference.error(model, x_test, y_test)
        model.load_state_dict(kept)
        return {"error": running, "precise": precise}

    return training.sweep(
        models.mlp,
        images,
        steps=max(seen) // N,
        seeds=seeds,
        batch_size=N,
        evaluate_every=math.gcd(*seen) // N,
        record=errors_of,
        norm=norm,
        depth=2,
        width=32,
        lr=rate,
    )


def equal_images(
    images: str,
    cut: str,
    side: str,
    m: int,
    rate: Sequence[float],
    seen: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Test errors of :func:`mlps` after equally many images; NaN after a divergence.

    With `cut` ``"statistics"`` the gradient comes from 32 images and is cut into ghosts of m, with ``"both"``
    it comes from m images as well.
    """
    N = m if cut == "both" else 32
    norm = ("group", 2) if side == "group" else ("ghost", m)
    runs = mlps(images_of(images), norm, N=N, seen=seen, rate=[*rate], seeds=seed)
    found = []
    for i, r in enumerate(rate):
        for j, s in enumerate(seed):
            for count in seen:
                (k,) = np.flatnonzero(runs.steps == count // N)
                both = {name: float(runs.series[name][i, j, k]) for name in ("error", "precise")}
                found.append({"rate": r, "seen": count, "seed": s, **both})
    return found


# --------------------------------------------------------------------------- convolutions


def small_clothes() -> data.Data:
    """Photographs of clothes, averaged to 14 x 14 pixels, with mean 0 and width 1; 1,000 are for testing."""
    images = inference.images_of("fashion")
    return data.Data(*(part.contiguous().numpy() for part in images[:4]))


def cnn(
    in_shape: Sequence[int], classes: int, *, sizes: Sequence[int], last: int, mean: bool = False
) -> nn.Sequential:
    """Four 3 x 3 convolutions, three with stride 2 and one with stride `last`, and a linear layer.

    `sizes` says for each norm how many images share statistics. The linear layer reads all positions, or
    their mean.
    """
    parts: list[nn.Module] = []
    C_in = in_shape[0]
    for C, stride, size in zip((8, 16, 16, 16), (2, 2, 2, last), sizes, strict=True):
        conv = nn.Conv2d(C_in, C, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        parts += [conv, layers.GhostBatchNorm(C, size), nn.ReLU()]
        C_in = C
    side = 1 if last == 2 else 2
    head: list[nn.Module] = [nn.AvgPool2d(side)] if mean else []
    return nn.Sequential(*parts, *head, nn.Flatten(), nn.Linear(16 if mean else 16 * side**2, classes))


def errors(sizes: Any, *, steps: Sequence[int], rate: Any, seeds: Sequence[int], **settings: Any) -> Any:
    """Test errors in percent of :func:`cnn`, after some steps with batches of 32: the last axis."""
    runs = training.sweep(
        cnn,
        small_clothes(),
        steps=max(steps),
        seeds=seeds,
        batch_size=32,
        evaluate_every=math.gcd(*steps),
        sizes=sizes,
        lr=rate,
        **settings,
    )
    at = [int(np.flatnonzero(runs.steps == step)[0]) for step in steps]
    return 100 * (1 - runs.series["test_accuracy"][..., at])


def heads(
    network: str, side: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test errors of :func:`cnn` by who reads its maps and by :data:`SIZES`; NaN after a divergence."""
    found = errors(SIZES[side], steps=steps, rate=[*rate], seeds=seed, **NETWORKS[network])
    return [
        {"rate": rate[i], "seed": seed[j], "steps": steps[k], "error": float(value)}
        for (i, j, k), value in np.ndenumerate(found)
    ]


# ----------------------------------------------------------------- a trained network, and two images


def turned(images: inference.Images) -> inference.Images:
    """Other photographs of clothes: lying on their side, and with less contrast."""

    def seen(x: Tensor) -> Tensor:
        pixels = x.transpose(-1, -2) * images.width + images.centre
        return ((0.3 * pixels + 0.35 - images.centre) / images.width).to(memory_format=torch.channels_last)

    return images._replace(x_train=seen(images.x_train), x_test=seen(images.x_test))


def trained(images: inference.Images, seed: int, steps: int = 250) -> dict[str, Tensor]:
    """Weights and running statistics of the network of :mod:`~bnbook.experiments.inference`."""
    drawn = inference.batches(images, seed, steps)
    done = inference.train(inference.network(seed), images, drawn, rate=0.1, saved=(steps,))
    return inference.with_statistics(done.weights[steps], inference.average(done.tape, 0.1)[-1]).state_dict()


def tune(
    state: dict[str, Tensor],
    images: inference.Images,
    side: str,
    *,
    N: int,
    seen: Sequence[int],
    rate: float,
    seed: int,
) -> list[float]:
    """Adapt a trained network to other images with batches of N: test errors in percent after so many images.

    ``"frozen"`` keeps the statistics of the old images, ``"recomputed, frozen"`` takes those of 960 new ones
    first, and ``"batch"`` normalizes with each batch and takes those of 960 new images at the end.
    """
    net = inference.with_statistics(state)
    few = images.x_train[torch.cat(inference.batches(images, 3000 + seed, 30))]
    if side == "recomputed, frozen":
        doctor.recompute(net, list(torch.split(few, 32)))
    if side != "batch":
        doctor.freeze(net, affine=False)
    steps = [count // N for count in seen]
    drawn = inference.batches(images, 4000 + seed, max(steps), N)
    after = inference.train(net, images, drawn, rate=rate, saved=steps).weights
    nets = [
        inference.recomputed(after[k], few) if side == "batch" else inference.with_statistics(after[k])
        for k in steps
    ]
    return [inference.error(one, images.x_test, images.y_test) for one in nets]


def fine_tune(
    side: str, N: int, rate: Sequence[float], seen: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test errors of :func:`tune` for :func:`trained` networks that are shown :func:`turned` clothes."""
    upright = inference.images_of("fashion")
    lying, found = turned(upright), []
    for s in seed:
        state = trained(upright, s)
        for r in rate:
            errors_then = tune(state, lying, side, N=N, seen=seen, rate=r, seed=s)
            found += [
                {"rate": r, "seen": count, "seed": s, "error": error}
                for count, error in zip(seen, errors_then, strict=True)
            ]
    return found


run = by_name(equal_images, heads, fine_tune)
