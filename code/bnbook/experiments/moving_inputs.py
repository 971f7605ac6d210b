"""What a network loses when what its activations read is moved, with and without batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bnbook import data, models, probes, training
from bnbook._checks import check_choice, check_whole
from bnbook.experiments import by_name, ics
from bnbook.experiments._parts import with_pytorchs_norms
from bnbook.experiments._vision import batches_of, images_of, seeded
from bnbook.experiments.saturation import images_of as flat_images_of
from bnbook.sgd import endless

__all__ = [
    "LAGS",
    "RATES",
    "SCALES",
    "Moved",
    "Pinned",
    "losses",
    "movements",
    "network",
    "run",
    "train",
    "vgg",
    "vgg_losses",
]

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LAGS = (1, 2, 5, 10, 25)
LAST = 20
"""So many mini-batches are averaged into one training loss."""
LONGEST = 401
"""Length of the paths of movement in a map, so that a shorter run is the beginning of a longer one."""
_LOSSES: dict[str, Any] = {
    "map": "losses",
    "images": "digits",
    "activation": "relu",
    "kind": "both",
    "dose": 0.0,
    "rate": RATES,
    "steps": (50, 100, 200, 400),
    "seed": (100, 101, 102),  # the chapter's verdicts use others
}
_LAGS: dict[str, Any] = {"map": "movements", "lag": LAGS, "seed": (100, 101, 102, 103, 104)}
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "vgg_losses",
            "init": ["glorot", "he"],
            "norm": ["none", "batch", "noisy", "same"],
            "rate": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
            "steps": (50, 100),
            "seed": (100, 101),
        },
        _LAGS | {"norm": "none", "rate": 0.1, "kind": "both", "dose": [0.0, 0.25]},
        _LAGS | {"norm": "batch", "rate": 0.3, "kind": "both", "dose": [0.0, 0.125, 0.25, 0.5]},
        _LAGS | {"norm": "batch", "rate": 0.3, "kind": ["jumps", "swings"], "dose": [0.25, 0.5]},
        _LAGS | {"norm": "batch", "rate": 0.3, "kind": "swings", "dose": 1.0},
        _LOSSES | {"depth": [3, 6, 10], "norm": ["none", "batch"], "dose": [0.0, 0.25]},
        _LOSSES | {"depth": 6, "norm": "batch", "dose": 0.5},
        _LOSSES | {"depth": 6, "norm": "pinned"},
        _LOSSES | {"depth": 4, "activation": "sigmoid", "norm": ["none", "batch", "pinned"]},
        _LOSSES | {"depth": 6, "images": "fashion", "norm": ["none", "batch"]},
        _LOSSES | {"depth": 6, "images": "fashion", "norm": "batch", "dose": 0.25},
    ]
}
"""Grids by the name of the scale."""


class Moved(nn.Module):
    """In training, add to each unit a shift that changes at every update, in the unit's standard deviations.

    The paths of the units lie within `dose` standard deviations: ``"jumps"`` are drawn anew at each update,
    from U(-1, 1) times the dose; ``"swings"`` are sines with periods of 20 to 60 updates; ``"both"`` is the
    sum of the two. The shift is a constant to the gradient.
    """

    path: Tensor
    step: Tensor

    def __init__(self, units: int, dose: float, kind: str, steps: int) -> None:
        super().__init__()
        check_choice(("jumps", "swings", "both"), kind=kind)
        jumps = 2 * torch.rand(steps, units) - 1
        omega, phase = 2 * torch.pi / (20 + 40 * torch.rand(units)), 2 * torch.pi * torch.rand(units)
        swings = torch.sin(omega * torch.arange(steps)[:, None] + phase)
        path = (kind != "swings") * jumps + (kind != "jumps") * swings
        self.register_buffer("path", dose * path)
        self.register_buffer("step", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (N, units), moved and one update further."""
        if not self.training:
            return x
        shift = self.path.index_select(0, self.step)
        self.step += 1
        return x + x.detach().std(0, correction=0) * shift


class Pinned(nn.Module):
    """Batch norm in the forward pass, without γ and β; its statistics are constants in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (N, units), standardized."""
        var, mean = torch.var_mean(x.detach(), 0, correction=0)
        return (x - mean) / torch.sqrt(var + 1e-5)


def network(
    in_shape: Sequence[int],
    classes: int,
    *,
    norm: str = "none",
    dose: float = 0.0,
    kind: str = "both",
    updates: int = 0,
    depth: int = 6,
    width: int = 48,
    activation: str = "relu",
) -> nn.Sequential:
    """A network of :func:`bnbook.models.mlp` with :class:`Moved` before each activation.

    ReLUs get He's first weights, sigmoids a gain of 3. The `norm` is ``"none"``, ``"batch"`` or ``"pinned"``;
    a dose of 0 moves nothing. The first weights do not depend on the dose, nor on what is pinned.
    """
    check_choice(("none", "batch", "pinned"), norm=norm)
    inner, init = "none" if norm == "none" else "batch", "he" if activation == "relu" else 3.0
    settings: dict[str, Any] = {"depth": depth, "width": width, "activation": activation, "init": init}
    parts: list[nn.Module] = []
    for part in with_pytorchs_norms(models.mlp(in_shape, classes, norm=inner, **settings)):
        if dose and isinstance(part, nn.ReLU | nn.Sigmoid):
            parts.append(Moved(width, dose, kind, updates))
        parts.append(Pinned() if norm == "pinned" and isinstance(part, nn.BatchNorm1d) else part)
    return nn.Sequential(*parts)


class Trained(NamedTuple):
    """What :func:`train` measured: the training loss of each update, and the movement by lag and layer."""

    loss: NDArray[np.float64]
    movement: NDArray[np.float64]


def train(images: data.Data, rate: float, seed: int, steps: int = 200, **settings: Any) -> Trained:
    """Train a :func:`network` and measure how far what its activations read moves in some updates.

    Parameters
    ----------
    rate : float
        Of SGD with batches of 64.
    seed : int
        Draws weights, movement and batches.
    **settings
        Of :func:`network`.

    Returns
    -------
    Trained
        ``loss`` of shape (steps,); ``movement`` of shape (lags, layers), for the lags of ``LAGS``: over the
        second half of the training, the median over units and pairs of updates of the distance between the
        unit's medians on a fixed batch of 100 test images, in mean 15-85 spreads of the two.
    """
    check_whole(2 * max(LAGS) + 2, steps=steps)
    x, y = torch.from_numpy(images.x_train), torch.from_numpy(images.y_train)
    probe = torch.from_numpy(images.x_test[:100])
    found, loss_of = [], np.empty(steps)
    with seeded(seed, "cpu"):
        model = network(x.shape[1:], int(y.max()) + 1, updates=steps + 1, **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for step, batch in zip(range(steps), endless(len(x), 64, seed), strict=False):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss_of[step] = loss.item()
            if step >= steps // 2:
                found.append(_percentiles(model, probe))
    low, middle, high = torch.stack(found, 1).numpy()  # each (updates, layers, units)
    spread = high - low
    moved = [
        np.median(np.abs(middle[k:] - middle[:-k]) / ((spread[k:] + spread[:-k]) / 2), axis=(0, 2))
        for k in LAGS
    ]
    return Trained(loss_of, np.array(moved))


def _percentiles(model: nn.Module, x: Tensor) -> Tensor:
    """The 15th, 50th and 85th of what each activation reads in training mode, (3, layers, units).

    Looking is no update: it leaves the buffers as they are.
    """
    inputs = probes.layer_inputs(model, x, (nn.ReLU, nn.Sigmoid))
    return torch.stack([probes.percentiles(u) for u in inputs], 1)


def losses(
    images: str,
    depth: int,
    activation: str,
    norm: str,
    kind: str,
    dose: float,
    rate: Sequence[float],
    steps: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Training loss of a :func:`network`, the mean of the last 20 mini-batches; NaN after a divergence."""
    runs = training.sweep(
        network,
        flat_images_of(images),
        steps=max(steps),
        seeds=seed,
        updates=LONGEST,
        lr=[*rate],
        depth=depth,
        activation=activation,
        norm=norm,
        kind=kind,
        dose=dose,
    )
    return [
        {"rate": r, "steps": k, "seed": s, "loss": _last(runs.loss[i, j, :k])}
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
    ]


def movements(
    norm: str,
    kind: str,
    dose: float,
    rate: float,
    lag: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Movement of a :func:`network` on the digits by lag, median over its layers, and its training loss."""
    rows = []
    for s in seed:
        found = train(data.digits(), rate, s, norm=norm, kind=kind, dose=dose)
        moved = dict(zip(LAGS, np.median(found.movement, axis=1), strict=True))
        rows += [{"lag": k, "seed": s, "movement": float(moved[k]), "loss": _last(found.loss)} for k in lag]
    return rows


def vgg(init: str, norm: str, rate: float, steps: int, seed: int) -> NDArray[np.float64]:
    """Training loss at each step of the small VGG of :mod:`bnbook.experiments.ics`; NaN after a divergence.

    The `norm` is one of :func:`bnbook.experiments.ics.vgg`.
    """
    part, loss_of = images_of("small", "cpu"), np.full(steps, np.nan)
    with seeded(seed, "cpu"):
        model = ics.vgg(part, norm, ics.SMALL_WIDTHS, init)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for step, (x, y) in enumerate(batches_of(part, 32, steps, seed)):
            loss = F.cross_entropy(model(x), y)
            if not bool(torch.isfinite(loss)):
                break
            loss_of[step] = loss.item()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return loss_of


def vgg_losses(
    init: str, norm: str, rate: float, steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Training loss of :func:`vgg`, the mean of the last 20 mini-batches; NaN after a divergence."""
    return [
        {"steps": k, "seed": s, "loss": _last(loss[:k])}
        for s in seed
        for loss in [vgg(init, norm, rate, max(steps), s)]
        for k in steps
    ]


def _last(loss: NDArray[np.float64]) -> float:
    return float(loss[-LAST:].mean()) if np.isfinite(loss).all() else float("nan")


run = by_name(losses, movements, vgg_losses)
