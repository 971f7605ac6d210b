"""Checked exercises of the chapter on small batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnbook import layers, models
from bnbook.exercises._exercise import Exercise, Inputs

Flags = NDArray[Any]


def _settings_with_eps() -> list[Inputs]:
    cases = ((0.5, "batch", 2, 3), (1.0, ("ghost", 2), 3, 5), (2.0, "batch", 3, 5))
    names = ("eps", "norm", "depth", "width")
    return [{"in_shape": (4,), "classes": 2, **dict(zip(names, case, strict=True))} for case in cases]


def _epsilons(model: nn.Module, inputs: Inputs) -> tuple[Flags, Flags]:
    norms = [part for part in model.modules() if isinstance(part, layers.BatchNorm)]
    widths = [part.out_features for part in model.modules() if isinstance(part, nn.Linear)]
    return np.array([norm.eps for norm in norms]), np.array(widths)


EXERCISES = {
    "values_of_six": Exercise(
        title="Count before you train",
        asks="m of the six norms, in their order",
        returns=("the list",),
        rtol=0,
        atol=0.5,
        hints=(
            "A stride of 2 halves the side: 32, 16, 8, 4, 2. All positions of both images count.",
            "Behind the global average one value an image is left.",
        ),
        solution="""
sides = [32, 16, 8, 4, 2]
values = [2 * side**2 for side in sides] + [2]
""",
        slips="""
one image: Two images at a time: both count.
    = [1024, 256, 64, 16, 4, 1]
side for the area: A map has height times width positions.
    side**2 => side
input maps of the convolutions: A norm sees the output of its convolution, which has half the side.
    side**2 => (2 * side) ** 2
positions behind the average: The global average leaves one value an image: m = 2 in the dense layer.
    + [2] => + [8]
dense layer forgotten: The norm of the dense layer is the sixth.
    + [2] =>
positions forgotten: In a convolution every position counts.
    * side**2 =>
""",
    ),
    "eps_mlp": Exercise(
        title="ε as a remedy",
        asks="eps_mlp(in_shape, classes, *, eps, **settings)",
        inputs=_settings_with_eps,
        uses={"models": models, "layers": layers},
        observe=_epsilons,
        returns=("eps of each norm", "widths of the layers"),
        keywords=("eps", "norm", "depth", "width"),
        hints=(
            "Hand **settings to models.mlp, then visit its parts.",
            "`isinstance(part, layers.BatchNorm)` finds the norms, ghosts included.",
        ),
        solution="""
def eps_mlp(in_shape, classes, *, eps, **settings):
    model = models.mlp(in_shape, classes, **settings)
    for part in model:
        if isinstance(part, layers.BatchNorm):
            part.eps = eps
    return model
""",
        slips="""
eps left as it was: Set the attribute eps of each norm.
    part.eps = eps => pass
first norm alone: Set eps of each norm.
    in model: => in model[:2]:
last norm alone: Set eps of each norm.
    in model: => in model[-3:]:
ghosts left out: A ghost norm is a subclass of layers.BatchNorm: test with `isinstance`, not with `type`.
    isinstance(part, layers.BatchNorm) => type(part) is layers.BatchNorm
eps squared: eps is added to the variance as it is.
    part.eps = eps => part.eps = eps**2
settings not passed on: Hand **settings to models.mlp: depth, width and norm are among them.
    = lambda in_shape, classes, *, eps, **settings: models.mlp(in_shape, classes)
eps fixed at 1: eps is an argument.
    part.eps = eps => part.eps = 1.0
""",
    ),
    "variance_of_s2": Exercise(
        title="The variance of two",
        asks="variance_of_s2(kurtosis, sigma)",
        inputs=lambda: [{"kurtosis": k, "sigma": s} for k, s in ((1.5, 0.8), (3.0, 1.5), (9.0, 2.0))],
        returns=("the variance",),
        hints=(
            "E[s^2] is sigma^2. For E[s^4] multiply out the fourth power of x1 - x2; let the mean be 0.",
            "The fourth moment is kurtosis sigma^4, and the mixed term is 6 x1^2 x2^2.",
        ),
        solution="""
def variance_of_s2(kurtosis, sigma):
    return (2 * kurtosis + 6) * sigma**4 / 4 - sigma**4
""",
        slips="""
square of the mean not subtracted: This is the mean of the square; subtract the square of the mean.
    - sigma**4 =>
biased variance: s^2 divides by m - 1 = 1, not by 2.
    = lambda *given: right(*given) / 4
mixed terms forgotten: The fourth power of the difference has the term 6 times both squares.
    2 * kurtosis + 6 => 2 * kurtosis
excess kurtosis: The kurtosis of a Gaussian is 3 here, not 0.
    2 * kurtosis => 2 * (kurtosis + 3)
sigma squared: The variance of a variance has the unit of sigma to the fourth power.
    sigma**4 => sigma**2
standard deviation instead of variance: The variance is its square.
    = lambda *given: np.sqrt(right(*given))
Gaussian for all: The variance depends on the kurtosis.
    2 * kurtosis => 6
""",
    ),
}
