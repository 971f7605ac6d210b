"""Checked exercises of the chapter on the loss landscape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnbook import layers, models
from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _units() -> list[Inputs]:
    cases = []
    for k, (m, gamma, eps) in enumerate([(3, 1.5, 0.5), (4, -2.0, 0.1), (6, 0.5, 2.0)]):
        dy, x = numbers(400 + k, 2, m)
        x_hat = (x - x.mean()) / np.sqrt(x.var() + eps)
        given = {"dy": dy, "x_hat": x_hat, "sigma": float(x.std())}
        cases.append({**given, "gamma": gamma, "eps": eps})
    return cases


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


def _builds() -> list[Inputs]:
    cases = ((4,), 2, 2.0), ((64,), 10, 2.4)
    return [dict(zip(("in_shape", "classes", "gamma"), case, strict=True)) for case in cases]


EXERCISES = {
    "squared_length": Exercise(
        title="With ε",
        asks="squared_length(dy, x_hat, sigma, gamma, eps)",
        inputs=_units,
        returns=("the squared length of dx",),
        hints=(
            "Translate the formula term by term; m is the length of dy.",
            "sigma is a standard deviation, rho = sigma^2 / (sigma^2 + eps).",
        ),
        solution="""
def squared_length(dy, x_hat, sigma, gamma, eps):
    rho = sigma**2 / (sigma**2 + eps)
    scale = gamma**2 / (sigma**2 + eps)
    return scale * (dy @ dy - dy.sum() ** 2 / len(dy) - (2 - rho) * (x_hat @ dy) ** 2 / len(dy))
""",
        slips="""
part along x_hat as without eps: With eps x_hat is shorter, and not all of the component along it is taken
    out, so the factor is 2 - rho, not 1.
    (2 - rho) * =>
rho for 2 - rho: The factor is 1 at eps = 0 and grows to 2.
    2 - rho => rho
bound of the theorem: This is theorem 4.1, which holds with equality only at eps = 0.
    (2 - rho) * =>
    gamma**2 / (sigma**2 + eps) => gamma**2 / sigma**2
eps missing in the scale: The scale is gamma squared over sigma squared plus eps.
    gamma**2 / (sigma**2 + eps) => gamma**2 / sigma**2
eps squared in the scale: sigma is a standard deviation: square it before eps is added.
    gamma**2 / (sigma**2 + eps) => gamma**2 / (sigma + eps) ** 2
gamma not squared: A squared length contains gamma squared.
    gamma**2 => gamma
length instead of its square: Return the squared length.
    = lambda *given: np.sqrt(right(*given))
part along 1 forgotten: The mean of dy is taken out, too.
    - dy.sum() ** 2 / len(dy) =>
lost 1/m: Both squares are divided by m.
    / len(dy) =>
""",
    ),
    "build": Exercise(
        title="Give the factor back",
        asks="build(in_shape, classes, gamma=gamma)",
        inputs=_builds,
        uses={"math": math, "nn": nn, "layers": layers, "models": models},
        observe=_describe,
        returns=("shapes of the weights", "1 / p of the norms", "gamma", "beta", "whether gamma learns"),
        keywords=("gamma",),
        seconds=20,
        slow=True,
        rtol=1e-6,
        hints=(
            "`models.mlp` takes depth, width and norm.",
            "A part that is a `layers.BatchNorm` has its gamma in `weight`; `nn.init.constant_` fills it.",
        ),
        solution="""
def build(in_shape, classes, gamma):
    model = models.mlp(in_shape, classes, depth=10, width=48, norm=("lp", math.inf))
    for part in model:
        if isinstance(part, layers.BatchNorm):
            nn.init.constant_(part.weight, gamma)
    return model
""",
        slips="""
gamma left at 1: Fill the weight of each norm with gamma.
    part.weight, gamma => part.weight, 1.0
first norm alone: All norms start at gamma.
    in model: => in model[:2]:
beta for gamma: The attribute `weight` of a norm is gamma; `bias` is beta.
    part.weight => part.bias
p = 2: Ask for the largest deviation, norm=("lp", math.inf).
    math.inf => 2
p = 1: Ask for the largest deviation, norm=("lp", math.inf).
    math.inf => 1
gamma does not learn: gamma only *starts* at this value.
    (part.weight, gamma) => (part.weight, gamma).requires_grad_(False)
three layers: Ten layers of 48 units; the default of models.mlp is three.
    depth=10 => depth=3
default width: Ten layers of 48 units; the default width is 100.
    width=48 => width=100
gamma squared: gamma itself, once.
    weight, gamma => weight, gamma**2
""",
    ),
}
