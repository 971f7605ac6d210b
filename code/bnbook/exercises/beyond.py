"""Checked exercises of the chapter on what followed batch normalization."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnbook import layers
from bnbook.exercises._engine import Exercise, Inputs, Mistake

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# --------------------------------------------------------------------------- 1: gain


def _moment(phi: Function, k: int) -> float:
    """E[phi(z)^k] of a Gaussian z, by Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(200)
    return float(weights @ phi(points) ** k / math.sqrt(2 * math.pi))


def _variance(phi: Function) -> float:
    return _moment(phi, 2) - _moment(phi, 1) ** 2


_GAIN = Exercise(
    title="Another activation",
    asks="gain(phi)",
    inputs=lambda: [{"phi": phi} for phi in (np.positive, np.tanh, np.square)],
    returns=("the gain",),
    rtol=1e-4,
    solution=lambda phi: 1 / math.sqrt(_variance(phi)),
    mistakes=(
        Mistake(
            "second moment instead of variance",
            "That is He's gain. Scaled weights remove the mean of what they read, so the variance counts.",
            lambda phi: 1 / math.sqrt(_moment(phi, 2)),
        ),
        Mistake(
            "not inverted",
            "This is the standard deviation of phi(z); the gain makes up for it.",
            lambda phi: math.sqrt(_variance(phi)),
        ),
        Mistake(
            "root forgotten",
            "The gain multiplies weights, so it is one over a standard deviation.",
            lambda phi: 1 / _variance(phi),
        ),
        Mistake(
            "ReLU's gain",
            "phi is the argument: use it, and not ReLU.",
            lambda phi: math.sqrt(2 / (1 - 1 / math.pi)),
        ),
    ),
)

# --------------------------------------------------------------------------- 2 and 3: numbers

_FACTOR = Exercise(
    title="Three layers in a branch",
    asks="Fixup's factor s for m = 3 and L = 81",
    solution=1 / 3,
    rtol=0.005,
    returns=("s",),
    mistakes=(
        Mistake("rule for two layers", "With m = 3 the exponent is not -1/2.", 81**-0.5),
        Mistake("exponent -1/m", "2m - 2 factors carry s, not m.", 81 ** (-1 / 3)),
        Mistake("exponent -1/(2m)", "The last layer starts at zero and carries no s.", 81 ** (-1 / 6)),
        Mistake("inverted", "The factor makes weights smaller.", 3.0),
    ),
)

_STEPS = Exercise(
    title="Clipping and zeros",
    asks="the number of steps until the row has the length 0.1",
    solution=190,
    atol=2.5,
    rtol=0,
    returns=("the number",),
    mistakes=(
        Mistake("start at ε", "From zero to ε the row grows by ηλε a step; those steps come first.", 156),
        Mistake("up to ε alone", "From ε on the row grows by the factor 1 + ηλ in each step.", 33),
        Mistake("linear all the way", "Beyond ε the allowed length is in proportion to the row's.", 3333),
    ),
)

# --------------------------------------------------------------------------- 4: others


def _outputs(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Outputs without and with the outlier."""
    token = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))
    spiked = token.clone()
    spiked[0, 0] = 100.0
    with torch.no_grad():
        return norm(token)[0], norm(spiked)[0]


def _ratio(norm: nn.Module, *, first: int = 1, power: float = 1.0) -> float:
    before, after = _outputs(norm)
    return float((after[first:].std() / before[first:].std()).item() ** power)


def _of_lengths(norm: nn.Module) -> float:
    before, after = _outputs(norm)
    return float((after[1:].norm() / before[1:].norm()).item())


def _layers() -> list[Inputs]:
    return [{"norm": norm} for norm in (layers.DyT(24), layers.LayerNorm(24), layers.RMSNorm(24))]


_OTHERS = Exercise(
    title="Silenced neighbours",
    asks="others(norm)",
    inputs=_layers,
    returns=("the ratio",),
    rtol=1e-4,
    solution=_ratio,
    mistakes=(
        Mistake(
            "outlier counted",
            "The question is about the other 23 elements: leave element 0 out.",
            lambda norm: _ratio(norm, first=0),
        ),
        Mistake(
            "inverted", "Outputs with the outlier over outputs without.", lambda norm: _ratio(norm, power=-1)
        ),
        Mistake(
            "variance instead of standard deviation",
            "Take the root of the variances.",
            lambda norm: _ratio(norm, power=2),
        ),
        Mistake(
            "length instead of standard deviation",
            "Subtract the mean of the others: layer norm shifts them all.",
            _of_lengths,
        ),
    ),
)

EXERCISES = {1: _GAIN, 2: _FACTOR, 3: _STEPS, 4: _OTHERS}
