"""Checked exercises of the chapter on small batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnbook import layers, models
from bnbook.exercises._engine import Exercise, Inputs, Mistake

Flags = NDArray[Any]

# --------------------------------------------------------------------------- 2: fixed_mlp


def _settings() -> list[Inputs]:
    return [
        {"in_shape": (4,), "classes": 2, "norm": "batch", "depth": 2, "width": 3},
        {"in_shape": (4,), "classes": 2, "norm": "renorm", "depth": 3, "width": 3},
    ]


def _trainable(model: nn.Module, inputs: Inputs) -> Flags:
    return np.array([parameter.requires_grad for parameter in model.parameters()])


def _fixed(frozen: Any) -> Any:
    """A network of which the parts in `frozen` do not learn."""

    def build(in_shape: Sequence[int], classes: int, **settings: Any) -> nn.Module:
        model = models.mlp(in_shape, classes, **settings)
        parts = list(model)
        for part in frozen(parts):
            part.requires_grad_(False)
        return model

    return build


FIXED = Exercise(
    title="Random features",
    asks="fixed_mlp(in_shape, classes, **settings)",
    inputs=_settings,
    solution=_fixed(lambda parts: [*parts[:-4], parts[-4]]),
    observe=_trainable,
    returns=("requires_grad of each parameter",),
    keywords=("norm", "depth", "width"),
    mistakes=(
        Mistake("nothing fixed", "Set requires_grad to False below the last norm.", _fixed(lambda parts: [])),
        Mistake(
            "linear layer below the last norm learns",
            "No gradient passes the last norm: the linear layer before it is fixed as well.",
            _fixed(lambda parts: parts[:-4]),
        ),
        Mistake(
            "last norm fixed",
            "gamma and beta of the last norm learn.",
            _fixed(lambda parts: parts[:-1]),
        ),
        Mistake(
            "last layer fixed",
            "The last norm *and* the last layer learn.",
            _fixed(lambda parts: [*parts[:-3], parts[-1]]),
        ),
        Mistake(
            "norms below left to learn",
            "Nothing below the last norm learns, the lower norms' gamma and beta included.",
            _fixed(lambda parts: [part for part in parts[:-1] if isinstance(part, nn.Linear)]),
        ),
        Mistake("everything fixed", "The last norm and the last layer learn.", _fixed(lambda parts: parts)),
        Mistake(
            "first layer alone fixed",
            "All layers below the last norm are fixed.",
            _fixed(lambda parts: parts[:1]),
        ),
    ),
)

# --------------------------------------------------------------------------- 3: eps_mlp


def _with_eps(
    in_shape: Sequence[int], classes: int, *, eps: float, set_eps: Any, **settings: Any
) -> nn.Module:
    model = models.mlp(in_shape, classes, **settings)
    set_eps([part for part in model if isinstance(part, layers.BatchNorm)], eps)
    return model


def _eps(set_eps: Any) -> Any:
    return lambda in_shape, classes, **given: _with_eps(in_shape, classes, set_eps=set_eps, **given)


def _all(norms: list[Any], eps: float) -> None:
    for norm in norms:
        norm.eps = eps


def _epsilons(model: nn.Module, inputs: Inputs) -> tuple[Flags, Flags]:
    norms = [part for part in model.modules() if isinstance(part, layers.BatchNorm)]
    widths = [part.out_features for part in model.modules() if isinstance(part, nn.Linear)]
    return np.array([norm.eps for norm in norms]), np.array(widths)


EPSILON = Exercise(
    title="ε as a remedy",
    asks="eps_mlp(in_shape, classes, *, eps, **settings)",
    inputs=lambda: [
        {"in_shape": (4,), "classes": 2, "eps": 0.5, "norm": "batch", "depth": 2, "width": 3},
        {"in_shape": (4,), "classes": 2, "eps": 1.0, "norm": ("ghost", 2), "depth": 3, "width": 5},
        {"in_shape": (4,), "classes": 2, "eps": 2.0, "norm": "batch", "depth": 3, "width": 5},
    ],
    solution=_eps(_all),
    observe=_epsilons,
    returns=("eps of each norm", "widths of the layers"),
    keywords=("eps", "norm", "depth", "width"),
    mistakes=(
        Mistake("eps left as it was", "Set the attribute eps of each norm.", _eps(lambda norms, eps: None)),
        Mistake("first norm alone", "Set eps of each norm.", _eps(lambda norms, eps: _all(norms[:1], eps))),
        Mistake("last norm alone", "Set eps of each norm.", _eps(lambda norms, eps: _all(norms[-1:], eps))),
        Mistake(
            "ghosts left out",
            "A ghost norm is a subclass of layers.BatchNorm: test with `isinstance`, not with `type`.",
            _eps(lambda norms, eps: _all([norm for norm in norms if type(norm) is layers.BatchNorm], eps)),
        ),
        Mistake(
            "eps squared",
            "eps is added to the variance as it is.",
            _eps(lambda norms, eps: _all(norms, eps**2)),
        ),
        Mistake(
            "settings not passed on",
            "Hand **settings to models.mlp: depth, width and norm are among them.",
            lambda in_shape, classes, *, eps, **settings: models.mlp(in_shape, classes),
        ),
        Mistake(
            "eps fixed at 1",
            "eps is an argument.",
            _eps(lambda norms, eps: _all(norms, 1.0)),
        ),
    ),
)

EXERCISES = {
    1: Exercise(
        title="The variance of two",
        asks="variance_of_s2(kurtosis, sigma)",
        inputs=lambda: [{"kurtosis": k, "sigma": s} for k, s in ((1.0, 1.0), (3.0, 1.0), (9.0, 2.0))],
        solution=lambda kurtosis, sigma: (kurtosis + 1) * sigma**4 / 2,
        returns=("the variance",),
        mistakes=(
            Mistake(
                "square of the mean not subtracted",
                "This is the mean of the square; subtract the square of the mean.",
                lambda kurtosis, sigma: (kurtosis + 3) * sigma**4 / 2,
            ),
            Mistake(
                "biased variance",
                "s^2 divides by m - 1 = 1, not by 2.",
                lambda kurtosis, sigma: (kurtosis + 1) * sigma**4 / 8,
            ),
            Mistake(
                "mixed terms forgotten",
                "The fourth power of the difference has the term 6 times both squares.",
                lambda kurtosis, sigma: (kurtosis - 2) * sigma**4 / 2,
            ),
            Mistake(
                "excess kurtosis",
                "The kurtosis of a Gaussian is 3 here, not 0.",
                lambda kurtosis, sigma: (kurtosis + 4) * sigma**4 / 2,
            ),
            Mistake(
                "sigma squared",
                "The variance of a variance has the unit of sigma to the fourth power.",
                lambda kurtosis, sigma: (kurtosis + 1) * sigma**2 / 2,
            ),
            Mistake(
                "standard deviation instead of variance",
                "The variance is its square.",
                lambda kurtosis, sigma: ((kurtosis + 1) / 2) ** 0.5 * sigma**2,
            ),
            Mistake(
                "Gaussian for all",
                "The variance depends on the kurtosis.",
                lambda kurtosis, sigma: 2 * sigma**4,
            ),
        ),
    ),
    2: FIXED,
    3: EPSILON,
    4: Exercise(
        title="Count before you train",
        asks="m of the six norms, in their order",
        solution=[2048, 512, 128, 32, 8, 2],
        rtol=0,
        atol=0.5,
        returns=("the list",),
        mistakes=(
            Mistake("one image", "Two images at a time: both count.", [1024, 256, 64, 16, 4, 1]),
            Mistake("side for the area", "A map has height times width positions.", [64, 32, 16, 8, 4, 2]),
            Mistake(
                "input maps of the convolutions",
                "A norm sees the output of its convolution, which has half the side.",
                [8192, 2048, 512, 128, 32, 2],
            ),
            Mistake(
                "positions behind the average",
                "The global average leaves one value an image: m = 2 in the dense layer.",
                [2048, 512, 128, 32, 8, 8],
            ),
            Mistake(
                "dense layer forgotten", "The norm of the dense layer is the sixth.", [2048, 512, 128, 32, 8]
            ),
            Mistake("positions forgotten", "In a convolution every position counts.", [2, 2, 2, 2, 2, 2]),
        ),
    ),
}
