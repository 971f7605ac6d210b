"""One training, many statistics: what the same weights predict with each.

Training never reads the running statistics of batch norm, it only writes them. So a network is trained once,
with a tape of the statistics of every batch; from it follows what any moving average would have stored.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnbook import data, doctor
from bnbook.experiments import by_name

__all__ = [
    "SCALES",
    "Images",
    "Run",
    "average",
    "batches",
    "changed",
    "error",
    "images_of",
    "momentum",
    "neighbours",
    "network",
    "norms_of",
    "recomputed",
    "run",
    "scores_among",
    "train",
    "with_statistics",
]

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {**axes, "images": images, "rate": rate, "seed": (100, 101, 102)}  # the chapter's verdicts use others
        for axes in (
            {
                "map": "momentum",
                "steps": (10, 30, 100, 300, 1000),
                "alpha": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
                "side": ("stored", "recomputed"),
            },
            {"map": "neighbours", "steps": (100, 300, 1000), "N": (2, 4, 8, 16, 32, 64)},
        )
        for images, rate in (("fashion", 0.1), ("fashion", 0.02), ("digits", 0.1))
    ]
}
"""Grids by the name of the scale."""


class Images(NamedTuple):
    """Images of shape (N, 1, 14, 14) with the training images' mean 0 and width 1, and their classes."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    centre: float
    width: float


class Run(NamedTuple):
    """A training: the statistics of each batch, (steps, 2, channels), and the weights after some steps."""

    tape: Tensor
    weights: dict[int, dict[str, Tensor]]


def images_of(name: str = "fashion") -> Images:
    """10,000 images of Fashion-MNIST or 4,000 digits and 1,000 for testing, averaged over 2 x 2 pixels."""
    whole = data.fashion() if name == "fashion" else data.mnist5k()
    train, test = (x.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)) for x in (whole.x_train, whole.x_test[:1000]))
    centre, width = train.mean(), train.std()
    # channels_last: an order in memory that makes these convolutions faster, no more.
    x_train, x_test = (
        torch.from_numpy((x - centre) / width).to(memory_format=torch.channels_last) for x in (train, test)
    )
    labels = torch.from_numpy(whole.y_train), torch.from_numpy(whole.y_test[:1000])
    return Images(x_train, labels[0], x_test, labels[1], float(centre), float(width))


def network(seed: int = 0) -> nn.Sequential:
    """Three strided convolutions with batch norm and ReLU, a mean over positions, a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for C_in, C_out in ((1, 16), (16, 32), (32, 32)):
            conv = nn.Conv2d(C_in, C_out, 3, stride=2, padding=1, bias=False)
            parts += [conv, nn.BatchNorm2d(C_out), nn.ReLU()]
        model = nn.Sequential(*parts, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch norms of a network, from the input to the output."""
    return [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]


def batches(images: Images, seed: int, steps: int, N: int = 32) -> list[Tensor]:
    """Indices of mini-batches of training images, drawn independently."""
    drawn = np.random.default_rng(seed).integers(len(images.x_train), size=(steps, N))
    return list(torch.from_numpy(drawn))


def _statistics(model: nn.Module) -> Tensor:
    layers = norms_of(model)
    stored = ([n.running_mean for n in layers], [n.running_var for n in layers])
    return torch.stack([torch.cat([v for v in kind if v is not None]) for kind in stored])


def train(
    model: nn.Module, images: Images, drawn: Iterable[Tensor], *, rate: float, saved: Sequence[int]
) -> Run:
    """Train with SGD, and keep the statistics of every batch and the weights after the steps `saved`."""
    for layer in norms_of(model):
        layer.momentum = 1.0  # the layer then stores the statistics of the last batch
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    tape, weights = list[Tensor](), dict[int, dict[str, Tensor]]()
    model.train()
    for step, batch in enumerate(drawn, start=1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.x_train[batch]), images.y_train[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tape.append(_statistics(model))
        if step in saved:
            weights[step] = copy.deepcopy(model.state_dict())
    return Run(torch.stack(tape), weights)


def average(tape: Tensor, alpha: float, start: Tensor | None = None) -> Tensor:
    """The moving average after each step of a tape, from mean 0 and variance 1 unless `start` is given.

    >>> average(torch.ones(2, 2, 1), 0.5)[:, 0, 0]
    tensor([0.5000, 0.7500])
    """
    value = torch.zeros_like(tape[0]) if start is None else start
    if start is None:
        value[1] = 1.0
    values = []
    for new in tape:
        value = torch.lerp(value, new, alpha)
        values.append(value)
    return torch.stack(values)


def with_statistics(state: dict[str, Tensor], stats: Tensor | None = None) -> nn.Sequential:
    """A network in evaluation mode with these weights and, if given, these statistics."""
    model = network()
    model.load_state_dict(state)
    if stats is not None:
        sizes = [layer.num_features for layer in norms_of(model)]
        for layer, mean, var in zip(norms_of(model), *(s.split(sizes) for s in stats), strict=True):
            layer.load_state_dict({"running_mean": mean, "running_var": var}, strict=False)
    for layer in norms_of(model):
        layer.momentum = 0.1
    return model.eval()


def recomputed(state: dict[str, Tensor], x: Tensor) -> nn.Sequential:
    """A network with these weights and the statistics of these images, in batches of 32."""
    model = with_statistics(state)
    doctor.recompute(model, list(torch.split(x, 32)))  # a tuple would count as one batch
    return model


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of the images that are named wrongly in evaluation mode."""
    return 100 * float((model.eval()(x).argmax(1) != y).double().mean())


@torch.no_grad()
def scores_among(model: nn.Module, x: Tensor, order: Any, N: int) -> Tensor:
    """Scores of images in training mode, in batches of N in this order."""
    model.train()
    scores = torch.empty(len(order), 10)
    for chosen in torch.split(torch.as_tensor(order), N):
        scores[chosen] = model(x[chosen])
    return scores


def changed(model: nn.Module, x: Tensor, N: int, rng: np.random.Generator) -> float:
    """Percent of the predictions that change when the images are shuffled, in training mode."""
    one, other = (scores_among(model, x, rng.permutation(len(x)), N).argmax(1) for _ in "ab")
    return 100 * float((one != other).double().mean())


def momentum(
    images: str,
    rate: float,
    steps: Sequence[int],
    alpha: Sequence[float],
    side: Sequence[str],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Test error in percent with moving averages, and with the statistics of thirty new batches of 32."""
    chosen, rows = images_of(images), []
    for s in seed:
        done = train(network(s), chosen, batches(chosen, s, steps[-1]), rate=rate, saved=steps)
        fresh = chosen.x_train[torch.cat([*batches(chosen, 3000 + s, 30)])]
        for step in steps:
            exact = error(recomputed(done.weights[step], fresh), chosen.x_test, chosen.y_test)
            for a in alpha:
                model = with_statistics(done.weights[step], average(done.tape[:step], a)[-1])
                errors = {"stored": error(model, chosen.x_test, chosen.y_test), "recomputed": exact}
                rows += [
                    {"alpha": a, "steps": step, "seed": s, "side": key, "error": errors[key]} for key in side
                ]
    return rows


def neighbours(
    images: str, rate: float, steps: Sequence[int], N: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Percent of the predictions that change with the neighbours, over batch sizes and training steps."""
    chosen, rows = images_of(images), []
    for s in seed:
        done = train(network(s), chosen, batches(chosen, s, steps[-1]), rate=rate, saved=steps)
        rows += [
            {
                "N": n,
                "steps": step,
                "seed": s,
                "side": "changed",
                "share": changed(
                    with_statistics(done.weights[step]), chosen.x_test[:512], n, np.random.default_rng(s)
                ),
            }
            for step in steps
            for n in N
        ]
    return rows


run = by_name(momentum, neighbours)
