"""How smooth the loss is along the gradient, during training ([santurkar2018]_, section 3.1, figure 4).

The scale ``"small"`` has the fully connected networks of the chapter on digits, in the settings between
which the answer changes; ``"full"`` has the VGG of the paper, on the full Fashion-MNIST in place of CIFAR-10,
with batch norm's relatives on the l1 and l-infinity norm beside it; ``"medium"`` has a small VGG instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnbook import data, layers, models, probes, training
from bnbook._checks import check_choice
from bnbook.experiments import points
from bnbook.experiments._vision import batches_of, images_of, seeded

__all__ = ["MULTIPLES", "NORMS", "SCALES", "along_gradient", "measure", "run", "table"]

MULTIPLES = (0.5, 1.0, 2.0, 4.0)
"""Lengths of the probing steps, as multiples of the learning rate (the paper's range for its VGG)."""

NORMS: dict[str, models.Norm] = {
    "none": "none",
    "batch": "batch",
    "l1": ("lp", 1),
    "linf": ("lp", math.inf),
}
"""Norms by a name that JSON can hold."""

# A list is an axis of the grid.
_MLP: dict[str, Any] = {"network": "mlp", "norm": ["none", "batch"], "batch_size": 64}
_VGG: dict[str, Any] = {"network": "vgg", "norm": ["none", "batch", "l1", "linf"], "lr": [0.01, 0.1]}
SCALES: dict[str, list[dict[str, Any]]] = {
    "small": [
        _MLP | {"activation": "relu", "depth": 6, "lr": 0.1, "steps": 60, "every": 15},
        _MLP | {"activation": "relu", "depth": 6, "lr": 0.01, "steps": 200, "every": 25},
        _MLP | {"activation": "relu", "depth": 12, "lr": 0.01, "steps": 50, "every": 25},
        _MLP | {"activation": "tanh", "depth": 6, "lr": 0.01, "steps": 25, "every": 25},
    ],
    "medium": [
        _VGG
        | {
            "batch_size": 32,
            "steps": 2001,
            "every": 50,
            "images": "small",
            "widths": (8, 8, 0, 16, 16, 0, 32, 32, 32, 32),
        }
    ],
    "full": [
        _VGG
        | {
            "batch_size": 128,
            "steps": 15_000,
            "every": 100,
            "images": "full",
            "widths": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512),
        }
    ],
}
"""Grids by the name of the scale."""

Row = dict[str, Any]


def run(member: dict[str, Any], device: str = "cpu") -> list[Row]:
    """Run one of :func:`bnbook.experiments.members`."""
    settings = dict(member)
    seed = settings.pop("seed")
    return measure(**settings, seeds=[seed], device=device)


def table(grid: dict[str, Any], seeds: Sequence[int], device: str = "cpu") -> pd.DataFrame:
    """Measure every point of a grid, all seeds at once: the chapter's way to the rows of :func:`measure`."""
    rows = [point | row for point in points(grid) for row in measure(**point, seeds=seeds, device=device)]
    return pd.DataFrame(rows)


def measure(
    *,
    network: str,
    norm: str,
    lr: float,
    steps: int,
    every: int,
    batch_size: int,
    seeds: Sequence[int],
    activation: str = "relu",
    depth: int = 6,
    images: str = "small",
    widths: Sequence[int] = (),
    device: str = "cpu",
) -> list[Row]:
    """Train with SGD, and look along the gradient every so many steps.

    Parameters
    ----------
    network : {"mlp", "vgg"}
        :func:`bnbook.models.mlp` of 64 units on digits, He initialization, always on the CPU; or
        :func:`bnbook.models.vgg` on Fashion-MNIST, Glorot initialization.
    norm : str
        A key of :data:`NORMS`.
    lr, steps, batch_size : float, int, int
        Of SGD.
    every : int
        Steps between two looks. Each takes `batch_size` training images: with the MLP the same for all
        seeds and norms, with the VGG those of the step that follows.
    seeds : sequence of int
        A seed draws weights and mini-batches.
    activation, depth
        Of the MLP.
    images, widths
        Of the VGG: ``"small"`` or ``"full"``, and as in :func:`bnbook.models.vgg`.
    device : str
        For the VGG.

    Returns
    -------
    list of dict
        For each seed and look ``seed``, ``step``, and what :func:`along_gradient` returns; NaN after a
        divergence, or no further row.
    """
    check_choice(NORMS, norm=norm)
    check_choice(("mlp", "vgg"), network=network)
    if network == "mlp":
        settings: dict[str, Any] = {
            "norm": NORMS[norm],
            "activation": activation,
            "depth": depth,
            "width": 64,
            "lr": lr,
        }
        runs = training.sweep(
            models.mlp,
            data.digits(),
            steps=steps,
            seeds=seeds,
            batch_size=batch_size,
            evaluate_every=every,
            record=_Look(lr, batch_size),
            **settings,
        )
        names = [name for name in runs.series if not name.startswith("test_")]
        return [
            {"seed": seed, "step": int(step)} | {name: float(runs.series[name][i, k]) for name in names}
            for i, seed in enumerate(runs.axes["seed"])
            for k, step in enumerate(runs.steps)
        ]
    return [
        {"seed": seed} | row
        for seed in seeds
        for row in _vgg(NORMS[norm], widths, images, lr, steps, every, batch_size, seed, device)
    ]


def along_gradient(
    model: nn.Module,
    loss: probes.Loss,
    x: Tensor,
    y: Tensor,
    lr: float,
    multiples: Sequence[float] = MULTIPLES,
) -> dict[str, float]:
    """Numbers on the loss along the step of gradient descent, of which the first three are in the paper.

    ``range``, the largest minus the smallest loss on the way; ``distance``, the largest distance of a
    gradient from the first; ``beta``, the effective smoothness over the whole way; and ``loss`` and
    ``gradient``, the loss and the length of the gradient where it begins. The way goes over increasing
    `multiples` of the learning rate `lr`; the rest is as in :func:`bnbook.probes.landscape`.

    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
    >>> round(along_gradient(model, F.mse_loss, x, torch.zeros(2, 1), lr=0.01)["beta"], 3)
    10.0
    """
    way = probes.landscape(model, loss, x, y, [lr * k for k in multiples])
    return {
        "loss": way.start.item(),
        "gradient": way.gradient.item(),
        "range": (way.loss.max() - way.loss.min()).item(),
        "distance": way.distance.max().item(),
        "beta": way.beta[-1].item(),
    }


# --------------------------------------------------------------------------- small shared parts


class _Look:
    """What a sweep records: :func:`along_gradient` in training mode, on images that the step chooses."""

    def __init__(self, lr: float, batch_size: int) -> None:
        self.lr, self.batch_size = lr, batch_size
        digits = data.digits()
        self.x, self.y = torch.from_numpy(digits.x_train), torch.from_numpy(digits.y_train)

    def __call__(self, model: nn.Module, step: int) -> dict[str, Any]:
        batch = np.random.default_rng(step).choice(len(self.x), self.batch_size, replace=False)
        found = along_gradient(model.train(), F.cross_entropy, self.x[batch], self.y[batch], self.lr)
        model.eval()
        return found


@layers.let_values_diverge()  # a loss that is not finite ends the run below
def _vgg(
    norm: models.Norm,
    widths: Sequence[int],
    images: str,
    lr: float,
    steps: int,
    every: int,
    batch_size: int,
    seed: int,
    device: str,
) -> list[Row]:
    """Train one VGG, and look before every so many steps."""
    rows: list[Row] = []
    with seeded(seed, device):
        part = images_of(images, device)
        model = models.vgg(part[0].shape[1:], int(part[1].max()) + 1, widths=widths, norm=norm).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for step, (x, y) in enumerate(batches_of(part, batch_size, steps, seed)):
            if step % every == 0:
                rows.append({"step": step, **along_gradient(model, F.cross_entropy, x, y, lr)})
            value = F.cross_entropy(model(x), y)
            if not bool(torch.isfinite(value)):
                break
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
    return rows
