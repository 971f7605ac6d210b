"""One thing at a time that batch normalization does, each alone, in the place of the whole layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnbook import models, training
from bnbook._checks import check_choice
from bnbook.experiments import by_name
from bnbook.experiments._parts import error_rows, with_pytorchs_norms
from bnbook.experiments.saturation import images_of

__all__ = ["PROBLEMS", "RATES", "SCALES", "SIDES", "alone", "network", "race", "run"]

SIDES = ("plain", "batch norm", "first batch", "length apart", "γ and β", "two weights")
"""What :func:`network` builds."""

PROBLEMS: dict[str, dict[str, Any]] = {
    "5 sigmoid layers, digits": {"images": "digits", "activation": "sigmoid", "depth": 5},
    "10 ReLU layers, digits": {"images": "digits", "activation": "relu", "depth": 10},
    "5 sigmoid layers, fashion": {"images": "fashion", "activation": "sigmoid", "depth": 5},
    "10 ReLU layers, fashion": {"images": "fashion", "activation": "relu", "depth": 10},
}
"""Data and networks of 48 units by name."""

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "alone",
            "side": [side],
            "problem": [*PROBLEMS],
            "rate": RATES if side in SIDES[:4] else (*RATES, 30.0),
            "steps": (100, 300, 1000) if side in SIDES[:4] else (100, 300),
            "seed": (100, 101, 102),  # the page's verdicts use others
        }
        for side in SIDES
    ]
}
"""Grids by the name of the scale."""


class DirectedLinear(nn.Linear):
    """A linear layer whose rows have their length apart: w = g v/||v|| ([salimans2016]_, equation 2)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.length = nn.Parameter(self.weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in) to (N, out)."""
        return F.linear(x, self.length[:, None] * F.normalize(self.weight), self.bias)


class SparselyTrainedLinear(nn.Linear):
    """A linear layer without bias in which two random weights of each unit learn, and nothing else."""

    index: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.register_buffer("index", torch.rand(out_features, in_features).topk(2).indices)
        self.learning = nn.Parameter(torch.zeros(out_features, 2))  # added to the two

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in) to (N, out)."""
        return F.linear(x, self.weight.scatter_add(1, self.index, self.learning))


def network(
    in_shape: Sequence[int], classes: int, *, side: str, activation: str, depth: int, first: Tensor
) -> nn.Sequential:
    """A multilayer perceptron of 48 units from He's weights, with one of the ``SIDES``.

    Parameters
    ----------
    side : str
        ``"plain"`` and ``"batch norm"`` are :func:`bnbook.models.mlp`. ``"first batch"`` is plain, but its
        first weights and biases give each unit mean 0 and variance 1 over the images `first`.
        ``"length apart"`` starts there too, and learns each unit's length and direction apart. In
        ``"γ and β"`` these learn alone, and all weights keep their first values; in ``"two weights"`` two
        random weights of each unit learn, behind them a batch norm without γ and β.
    first : Tensor of shape (N, ...)
        Images for the first weights.
    """
    check_choice(SIDES, side=side)
    norm = "none" if side in ("plain", "first batch", "length apart") else "batch"
    model = models.mlp(in_shape, classes, depth=depth, width=48, activation=activation, norm=norm)
    model = with_pytorchs_norms(model)
    if side in ("first batch", "length apart"):
        _normalize_once(model, first, apart=side == "length apart")
    if side in ("γ and β", "two weights"):
        model.requires_grad_(False)
        for i, part in enumerate(list(model)[:-1]):
            if side == "γ and β":
                part.requires_grad_(hasattr(part, "running_mean"))
            elif isinstance(part, nn.Linear):
                sparse = SparselyTrainedLinear(part.in_features, part.out_features)
                sparse.weight = part.weight
                model[i] = sparse
    return model


@torch.no_grad()
def _normalize_once(model: nn.Sequential, x: Tensor, apart: bool) -> None:
    """Give each hidden unit mean 0 and variance 1 over `x` ([salimans2016]_, section 3)."""
    for i, part in enumerate(list(model)[:-1]):
        if isinstance(part, nn.Linear):
            std, mean = torch.std_mean(F.linear(x, part.weight), 0, correction=0)
            part.weight /= std[:, None]
            part.bias.copy_(-mean / std)
            if apart:
                directed = DirectedLinear(part.in_features, part.out_features)
                directed.load_state_dict(
                    {"weight": part.weight, "bias": part.bias, "length": part.weight.norm(dim=1)}
                )
                model[i] = part = directed
        x = part(x)


def race(
    side: str,
    *,
    images: str,
    activation: str,
    depth: int,
    rate: float | list[float],
    steps: int,
    seeds: Iterable[int],
    evaluate_every: int | None = None,
) -> training.Runs:
    """Train :func:`network` with each seed, and at each rate of a list; mini-batches of 64."""
    chosen = images_of(images)
    return training.sweep(
        network,
        chosen,
        steps=steps,
        seeds=seeds,
        evaluate_every=evaluate_every or steps,
        side=side,
        activation=activation,
        depth=depth,
        first=torch.from_numpy(chosen.x_train[:256]),
        lr=rate,
    )


def alone(
    side: str, problem: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test error (%) of :func:`network` on one of the ``PROBLEMS``, at all rates; NaN if diverged."""
    runs = race(
        side,
        **PROBLEMS[problem],
        rate=[*rate],
        steps=max(steps),
        seeds=seed,
        evaluate_every=math.gcd(*steps),
    )
    return error_rows(runs, steps)


run = by_name(alone)
