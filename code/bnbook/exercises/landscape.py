"""Checked exercises of the chapter on the loss landscape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnbook import layers, models
from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

# --------------------------------------------------------------------------- 1: on paper

_H, _START = np.diag([1.0, 10.0]), np.array([10.0, 1.0])
_G = _H @ _START
_EFFECTIVE = float(np.linalg.norm(_H @ _G) / np.linalg.norm(_G))


def _loss(constant: float) -> float:
    """The loss after a step of 1 / constant."""
    there = _START - _G / constant
    return float(there @ _H @ there) / 2


_DROPS = [55 - _loss(10), 55 - _loss(_EFFECTIVE)]

BOWL = Exercise(
    title="A bowl by hand",
    asks="four numbers",
    solution=[10, _EFFECTIVE, *_DROPS],
    rtol=0.005,
    returns=("beta_J", "beta_eff", "the drop at 1 / beta_J", "the drop at 1 / beta_eff"),
    mistakes=(
        Mistake(
            "promise of the lemma",
            "The lemma promises this much at least; compute the loss itself before and after the step.",
            [10, _EFFECTIVE, 10, 100 / _EFFECTIVE],
        ),
        Mistake(
            "curvature along the gradient",
            "beta_eff is the *length* of the gradient's change over that of the step, not its part along it.",
            [10, 5.5, 55 - _loss(10), 55 - _loss(5.5)],
        ),
        Mistake(
            "factor 1/2 forgotten",
            "The loss has a factor 1/2.",
            [10, _EFFECTIVE, 2 * _DROPS[0], 2 * _DROPS[1]],
        ),
        Mistake(
            "loss instead of its drop",
            "This is the loss after the step; it was 55 before.",
            [10, _EFFECTIVE, _loss(10), _loss(_EFFECTIVE)],
        ),
        Mistake(
            "smallest curvature",
            "beta_J bounds the curvature in every direction: the largest eigenvalue.",
            [1, _EFFECTIVE, 55 - _loss(1), _DROPS[1]],
        ),
    ),
)

# --------------------------------------------------------------------------- 2: squared_length


def _units() -> list[Inputs]:
    cases = []
    for k, (m, gamma, eps) in enumerate([(3, 1.0, 0.5), (4, -2.0, 0.1), (6, 0.5, 2.0)]):
        dy, x = numbers(400 + k, 2, m)
        x_hat = (x - x.mean()) / np.sqrt(x.var() + eps)
        given = {"dy": dy, "x_hat": x_hat, "sigma": float(x.std())}
        cases.append({**given, "gamma": gamma, "eps": eps})
    return cases


def _squared_length(
    dy: NDArray[Any],
    x_hat: NDArray[Any],
    sigma: float,
    gamma: float,
    eps: float,
    *,
    along: Any = None,
    ones: float = 1.0,
    scale: Any = None,
) -> float:
    """The formula, with another factor of the part along x_hat, or another scale."""
    m, rho = len(dy), sigma**2 / (sigma**2 + eps)
    factor = 2 - rho if along is None else along(rho)
    left = dy @ dy - ones * dy.sum() ** 2 / m - factor * (x_hat @ dy) ** 2 / m
    return float((scale(gamma, sigma, eps) if scale else gamma**2 / (sigma**2 + eps)) * left)


def _length(**settings: Any) -> Any:
    return lambda *given: _squared_length(*given, **settings)


WITH_EPSILON = Exercise(
    title="With ε",
    asks="squared_length(dy, x_hat, sigma, gamma, eps)",
    inputs=_units,
    solution=_squared_length,
    returns=("the squared length of dx",),
    mistakes=(
        Mistake(
            "part along x_hat as without eps",
            "With eps x_hat is shorter, and not all of the component along it is taken out: 2 - rho, not 1.",
            _length(along=lambda rho: 1.0),
        ),
        Mistake(
            "rho for 2 - rho", "The factor is 1 at eps = 0 and grows to 2.", _length(along=lambda rho: rho)
        ),
        Mistake(
            "bound of the theorem",
            "This is theorem 4.1, which holds with equality only at eps = 0.",
            _length(along=lambda rho: 1.0, scale=lambda gamma, sigma, eps: gamma**2 / sigma**2),
        ),
        Mistake(
            "eps missing in the scale",
            "The scale is gamma squared over sigma squared plus eps.",
            _length(scale=lambda gamma, sigma, eps: gamma**2 / sigma**2),
        ),
        Mistake(
            "eps squared in the scale",
            "sigma is a standard deviation: square it before eps is added.",
            _length(scale=lambda gamma, sigma, eps: gamma**2 / (sigma + eps) ** 2),
        ),
        Mistake(
            "gamma not squared",
            "A squared length contains gamma squared.",
            _length(scale=lambda gamma, sigma, eps: gamma / (sigma**2 + eps)),
        ),
        Mistake(
            "length instead of its square",
            "Return the squared length.",
            lambda *given: np.sqrt(_squared_length(*given)),
        ),
        Mistake("part along 1 forgotten", "The mean of dy is taken out, too.", _length(ones=0.0)),
        Mistake(
            "lost 1/m",
            "Both squares are divided by m.",
            lambda dy, x_hat, sigma, gamma, eps: (
                gamma**2
                / (sigma**2 + eps)
                * (dy @ dy - dy.sum() ** 2 - (2 - sigma**2 / (sigma**2 + eps)) * (x_hat @ dy) ** 2)
            ),
        ),
    ),
)

# --------------------------------------------------------------------------- 4: build


def _build(
    in_shape: Sequence[int],
    classes: int,
    gamma: float,
    *,
    p: float = math.inf,
    depth: int = 10,
    width: int = 48,
    which: Any = None,
    beta: bool = False,
    freeze: bool = False,
) -> nn.Module:
    """The network of the exercise, or one with something else."""
    model = models.mlp(in_shape, classes, depth=depth, width=width, norm=("lp", p))
    norms: list[Any] = [part for part in model if isinstance(part, layers.BatchNorm)]
    for part in norms if which is None else norms[which]:
        nn.init.constant_(part.bias if beta else part.weight, gamma)
        part.weight.requires_grad_(not freeze)
    return model


def _describe(model: nn.Module, inputs: Inputs) -> tuple[NDArray[Any], ...]:
    """Sizes of the layers, p, gamma and beta of each norm, and whether gamma learns."""
    norms: list[Any] = [part for part in model.modules() if isinstance(part, layers.BatchNorm)]
    sizes = [tuple(part.weight.shape) for part in model.modules() if isinstance(part, nn.Linear)]
    p = [part.p if isinstance(part, layers.LpBatchNorm) else 2.0 for part in norms]
    return (
        np.array(sizes),
        1 / np.array(p),  # infinity becomes 0, a number that can be compared
        np.array([part.weight.detach().mean() for part in norms]),
        np.array([part.bias.detach().mean() for part in norms]),
        np.array([part.weight.requires_grad for part in norms]),
    )


def _built(**settings: Any) -> Any:
    return lambda in_shape, classes, gamma: _build(in_shape, classes, gamma, **settings)


GIVE_BACK = Exercise(
    title="Give the factor back",
    asks="build(in_shape, classes, gamma)",
    inputs=lambda: [
        {"in_shape": (4,), "classes": 2, "gamma": 2.0},
        {"in_shape": (64,), "classes": 10, "gamma": 2.4},
    ],
    solution=_build,
    observe=_describe,
    returns=("shapes of the weights", "1 / p of the norms", "gamma", "beta", "whether gamma learns"),
    keywords=("gamma",),
    seconds=20,
    rtol=1e-6,
    mistakes=(
        Mistake("gamma left at 1", "Fill the weight of each norm with gamma.", _built(which=slice(0, 0))),
        Mistake("first norm alone", "All norms start at gamma.", _built(which=slice(0, 1))),
        Mistake(
            "beta for gamma", "The attribute `weight` of a norm is gamma; `bias` is beta.", _built(beta=True)
        ),
        Mistake("p = 2", 'Ask for the largest deviation: norm=("lp", math.inf).', _built(p=2)),
        Mistake("p = 1", 'Ask for the largest deviation: norm=("lp", math.inf).', _built(p=1)),
        Mistake("gamma does not learn", "gamma only *starts* at this value.", _built(freeze=True)),
        Mistake(
            "three layers", "Ten layers of 48 units; the default of models.mlp is three.", _built(depth=3)
        ),
        Mistake("default width", "Ten layers of 48 units; the default width is 100.", _built(width=100)),
        Mistake(
            "gamma squared",
            "gamma itself, once.",
            lambda in_shape, classes, gamma: _build(in_shape, classes, gamma**2),
        ),
    ),
)

EXERCISES = {1: BOWL, 2: WITH_EPSILON, 4: GIVE_BACK}
