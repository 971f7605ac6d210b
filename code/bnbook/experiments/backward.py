"""Batch norm with a right forward pass and a wrong gradient: what each classic mistake does to training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnbook import layers, models, training
from bnbook.experiments import by_name
from bnbook.experiments.saturation import images_of

__all__ = [
    *("BATCH", "MISTAKES", "SCALES", "Minus", "Mistaken", "centred"),
    *("losses", "network", "run", "scaled"),
]

BATCH = 64
MISTAKES: dict[str, tuple[float, float, float]] = {
    "none": (1, 1, 1),
    "μ constant": (0, 1, 1),
    "σ constant": (1, 0, 1),
    "both constant": (0, 0, 1),
    "1/m lost, mean term": (BATCH, 1, 1),
    "1/m lost, variance term": (1, BATCH, 1),
    "sign, mean term": (-1, 1, 1),
    "sign, variance term": (1, -1, 1),
    "x for x - μ": (1, 1, 0),
    "m - 1 for m": (1, BATCH / (BATCH - 1), 1),
}
"""Factors of :class:`Mistaken` for batches of ``BATCH`` examples."""

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SUBTLE = ("none", "μ constant", "σ constant", "both constant")
COMMON: dict[str, Any] = {"map": "losses", "rate": RATES, "seed": (100, 101, 102)}  # the page uses others

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            **COMMON,
            "images": "digits",
            "activation": phi,
            "depth": 6,
            "mistake": tuple(MISTAKES),
            "steps": (250,),
        }
        for phi in ("relu", "tanh", "sigmoid")
    ]
    + [
        {
            **COMMON,
            "images": images,
            "activation": phi,
            "depth": depth,
            "mistake": SUBTLE,
            "steps": (100, 1000),
        }
        for images, phi, depth in (
            ("digits", "relu", 6),
            ("digits", "relu", 2),
            ("fashion", "relu", 6),
            ("digits", "tanh", 6),
            ("digits", "sigmoid", 6),
        )
    ]
}
"""Grids by the name of the scale."""


def scaled(z: Tensor, k: Tensor | float) -> Tensor:
    """Keep the value of `z`, and multiply the gradient that comes back through it by `k`.

    >>> z = torch.ones(1, requires_grad=True)
    >>> scaled(z, 3.0).backward()
    >>> z.grad
    tensor([3.])
    """
    return z.detach() + k * (z - z.detach())


class Mistaken(layers.BatchNorm):
    """Batch norm of dense units, with factors before the terms of its gradient.

    Parameters
    ----------
    k : tuple of float
        Factors of the mean term and of the variance term; a third of 0 puts x in place of x - mean into the
        gradient of the variance.
    """

    k_mu: Tensor
    k_sigma: Tensor
    k_x: Tensor

    def __init__(self, num_features: int, k: Sequence[float]) -> None:
        super().__init__(num_features)
        for name, value in zip(("k_mu", "k_sigma", "k_x"), k, strict=True):
            self.register_buffer(name, torch.tensor(float(value)))

    def by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu = x.mean(0)
        var = (x - mu).square().mean(0)
        inv_std = torch.rsqrt(scaled(var, self.k_sigma) + self.eps)
        fixed = inv_std.detach()
        x_hat = (x - scaled(mu, self.k_mu)) * fixed
        x_hat = x_hat + (x - self.k_x * mu).detach() * (inv_std - fixed)  # adds 0, and the variance term
        return gamma * x_hat + beta, mu, var * len(x) / (len(x) - 1)


def network(
    in_shape: Sequence[int],
    classes: int,
    k: Sequence[float] = MISTAKES["none"],
    depth: int = 6,
    width: int = 32,
    **settings: Any,
) -> nn.Sequential:
    """``models.mlp`` with batch norm whose gradient has the factors `k`."""
    model = models.mlp(in_shape, classes, norm="batch", depth=depth, width=width, **settings)
    for i, part in enumerate(model):
        if isinstance(part, layers.BatchNorm):
            model[i] = Mistaken(part.num_features, k)
    return model


class Minus(nn.Module):
    """Subtracts a constant."""

    c: Tensor

    def __init__(self, c: float) -> None:
        super().__init__()
        self.register_buffer("c", torch.tensor(float(c)))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.c


def centred(
    in_shape: Sequence[int], classes: int, k: Sequence[float], c: float, **settings: Any
) -> nn.Sequential:
    """:func:`network` with `c` taken off each activation's output; the next norm removes what that adds."""
    parts: list[nn.Module] = []
    for part in network(in_shape, classes, k, **settings):
        after_norm = bool(parts) and isinstance(parts[-1], Mistaken)
        parts += [part, Minus(c)] if after_norm else [part]
    return nn.Sequential(*parts)


def losses(
    images: str,
    activation: str,
    depth: int,
    mistake: Sequence[str],
    rate: Sequence[float],
    steps: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Training loss, mean of the last 25 steps of each budget; NaN after a divergence."""
    runs = training.sweep(
        network,
        images_of(images),
        steps=max(steps),
        seeds=seed,
        batch_size=BATCH,
        evaluate_every=max(steps),
        activation=activation,
        depth=depth,
        k=[MISTAKES[name] for name in mistake],
        lr=[*rate],
    )
    return [
        {
            "mistake": name,
            "rate": r,
            "steps": n,
            "seed": s,
            "loss": float(runs.loss[i, j, k, n - 25 : n].mean()),
        }
        for i, name in enumerate(mistake)
        for j, r in enumerate(rate)
        for n in steps
        for k, s in enumerate(seed)
    ]


run = by_name(losses)
