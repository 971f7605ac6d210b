"""How smooth the loss is along the gradient, during training ([santurkar2018]_, section 3.1, figure 4).

The scale ``"small"`` has the fully connected networks of the chapter on digits, at the two rates between
which the answer changes; ``"full"`` has the VGG of the paper, on the full Fashion-MNIST in place of CIFAR-10,
with batch norm's relatives on the l1 and l-infinity norm beside it; ``"medium"`` has a small VGG instead, and
the maps of the chapter: its networks over rates, depths and steps (:func:`regimes`), and the sharpness on the
way of the whole gradient over rates (:func:`edge`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from bnbook import data, layers, models, probes, training
from bnbook._checks import check_choice
from bnbook.experiments import by_name, points
from bnbook.experiments._vision import batches_of, images_of, seeded
from bnbook.experiments.saturation import images_of as flat_images

__all__ = [
    "MULTIPLES",
    "NORMS",
    "SCALES",
    "Unit",
    "along_gradient",
    "edge",
    "measure",
    "regimes",
    "run",
    "table",
    "unit",
]

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
    "small": [_MLP | {"lr": [0.1, 0.01], "steps": 150, "every": 25}],
    "medium": [
        _VGG
        | {
            "batch_size": 32,
            "steps": 2001,
            "every": 50,
            "images": "small",
            "widths": (8, 8, 0, 16, 16, 0, 32, 32, 32, 32),
        },
        *(
            {
                "map": "regimes",
                "images": images,
                "depth": depth,
                "rate": (0.01, 0.03, 0.1, 0.3),
                "steps": (25, 50, 100, 200),
                "side": ("none", "batch"),
                "seed": (100, 101, 102),  # the chapter's verdicts use others
            }
            for images, depth in (("digits", 6), ("digits", 12), ("fashion", 6))
        ),
        {
            "map": "edge",
            "side": ["none", "batch"],
            "rate": (0.03, 0.1, 0.3),
            "steps": (0, 10, 30, 100, 300, 1000),
            "seed": (100, 101, 102),
        },
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
Loss = Callable[[Tensor], Tensor]


def run(member: dict[str, Any], device: str = "cpu") -> list[Row]:
    """Run one of :func:`bnbook.experiments.members`."""
    if "map" in member:
        return _map(member)
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
    depth: int = 6,
    images: str = "",
    widths: Sequence[int] = (),
    device: str = "cpu",
) -> list[Row]:
    """Train with SGD, and look along the gradient every so many steps.

    Parameters
    ----------
    network : {"mlp", "vgg"}
        :func:`bnbook.models.mlp` of 64 ReLU units a layer, He initialization, always on the CPU; or
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
    depth : int
        Of the MLP.
    images : str
        For the MLP as in :func:`bnbook.experiments.saturation.images_of`, by default the digits; for the VGG
        ``"small"`` (the default) or ``"full"``.
    widths : sequence of int
        Of the VGG, as in :func:`bnbook.models.vgg`.
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
        chosen = flat_images(images or "digits")
        runs = training.sweep(
            models.mlp,
            chosen,
            steps=steps,
            seeds=seeds,
            batch_size=batch_size,
            evaluate_every=every,
            record=_Look(chosen, lr, batch_size),
            norm=NORMS[norm],
            depth=depth,
            width=64,
            lr=lr,
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
        for row in _vgg(NORMS[norm], widths, images or "small", lr, steps, every, batch_size, seed, device)
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


def regimes(
    images: str,
    depth: int,
    rate: Sequence[float],
    steps: Sequence[int],
    side: Sequence[str],
    seed: Sequence[int],
) -> list[Row]:
    """What :func:`measure` sees of the MLP on batches of 64, at some steps, with each norm and rate."""
    return [
        {"side": norm, "rate": lr, "steps": row.pop("step"), **row}
        for norm in side
        for lr in rate
        for row in measure(
            network="mlp",
            norm=norm,
            lr=lr,
            steps=max(steps),
            every=math.gcd(*steps),
            batch_size=64,
            seeds=seed,
            depth=depth,
            images=images,
        )
        if row["step"] in steps
    ]


class Unit(NamedTuple):
    """One normalized unit under a random loss of its m outputs, with its gradients by autograd."""

    x: Tensor
    x_hat: Tensor
    sigma: float
    gamma: float
    loss_of_x: Loss
    loss_of_y: Loss
    y: Tensor
    dx: Tensor
    dy: Tensor


def unit(seed: int, m: int = 16, eps: float = 0.0) -> Unit:
    """Draw a unit with batch norm, and a loss of its outputs that is neither convex nor quadratic.

    >>> bool(unit(0).dx.sum().abs() < 1e-12)
    True
    """
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(rng.normal(), rng.uniform(0.3, 3), size=m))
    gamma, beta = rng.normal([1.5, 0.0], 1.0)
    B, r = (torch.from_numpy(rng.normal(size=size)) for size in ((m, m), (m,)))

    def normalized(x: Tensor) -> Tensor:
        return (x - x.mean()) / torch.sqrt(x.var(correction=0) + eps)

    def loss_of_y(y: Tensor) -> Tensor:
        return F.softplus(B @ y / 2).sum() + r @ y + (y**3).sum() / 9

    def loss_of_x(x: Tensor) -> Tensor:
        return loss_of_y(gamma * normalized(x) + beta)

    y = gamma * normalized(x) + beta
    dx, dy = (jacobian(loss, at) for loss, at in ((loss_of_x, x), (loss_of_y, y)))  # type: ignore[no-untyped-call]
    sigma = float(x.std(correction=0))
    return Unit(x, normalized(x), sigma, float(gamma), loss_of_x, loss_of_y, y, dx, dy)


@layers.let_values_diverge()
def edge(side: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]) -> list[Row]:
    """Sharpness on the way of gradient descent with the whole gradient, as in [cohen2021]_.

    The network is the MLP of six layers of 64 ReLU units, the data are 256 digits, all in each step, and the
    loss is half the squared distance from a one at the right class. ``sharpness`` is the eigenvalue of its
    Hessian with the largest magnitude, within 10 %; NaN after a divergence.
    """
    digits = data.digits()
    x, y = torch.from_numpy(digits.x_train[:256]), torch.from_numpy(digits.y_train[:256])
    rows: list[Row] = []
    for lr in rate:
        for s in seed:
            with seeded(s, "cpu"):
                model = models.mlp((64,), 10, norm=NORMS[side], depth=6, width=64).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            for step in range(max(steps) + 1):
                optimizer.zero_grad()
                value = _squares(model(x), y)
                torch.autograd.backward(value)
                if step in steps:
                    row = {"rate": lr, "steps": step, "seed": s, "loss": value.item()}
                    rows.append(row | {"sharpness": _sharpness(model, x, y)})
                optimizer.step()
    return rows


def _squares(output: Tensor, y: Tensor) -> Tensor:
    return (output - F.one_hot(y, output.shape[1])).square().sum(1).mean() / 2


def _sharpness(model: nn.Module, x: Tensor, y: Tensor) -> float:
    if not bool(torch.isfinite(_squares(model(x), y))):
        return math.nan
    return probes.top_eigenvalue(model, _squares, x, y, tolerance=0.1)


_map = by_name(regimes, edge)


# --------------------------------------------------------------------------- small shared parts


class _Look:
    """What a sweep records: :func:`along_gradient` in training mode, on images that the step chooses."""

    def __init__(self, images: data.Data, lr: float, batch_size: int) -> None:
        self.lr, self.batch_size = lr, batch_size
        self.x, self.y = torch.from_numpy(images.x_train), torch.from_numpy(images.y_train)

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
