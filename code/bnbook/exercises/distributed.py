"""Checked exercises of the chapter on distributed training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

Array = NDArray[Any]

# --------------------------------------------------------------------------- 3: half_synced


def _units() -> list[Inputs]:
    cases = []
    for k, (m, K) in enumerate([(4, 2), (6, 1), (9, 3)]):
        dy, x = numbers(310 + k, 2, m)
        x_hat, std = (x - x.mean()) / x.std(), float(x.std())
        cases.append({"dy": dy, "x_hat": x_hat, "std": std, "K": K})
    return cases


def _half(
    dy: Array, x_hat: Array, std: float, K: int, one: Any = None, two: Any = None, width: Any = None
) -> Array:
    """The gradient of each part, with another rule for its two corrections or its divisor."""
    parts = []
    for d, z in zip(np.array_split(dy, K), np.array_split(x_hat, K), strict=True):
        along_one = one(d, dy) if one else d.mean()
        along_x_hat = two(d, z) if two else (d * z).mean()
        parts.append((d - along_one - z * along_x_hat) / (width(z) if width else std))
    return np.concatenate(parts)


def _halved(**settings: Any) -> Any:
    return lambda dy, x_hat, std, K: _half(dy, x_hat, std, K, **settings)


def _local(dy: Array, x_hat: Array, std: float, K: int) -> Array:
    """Nothing synchronized: each part also normalizes by itself."""
    parts = []
    for d, z in zip(np.split(dy, K), np.split(x_hat, K), strict=True):
        own = (z - z.mean()) / z.std()
        parts.append((d - d.mean() - own * (d * own).mean()) / (std * z.std()))
    return np.concatenate(parts)


HALF = Exercise(
    title="Half a synchronization",
    asks="half_synced(dy, x_hat, std, K)",
    inputs=_units,
    solution=_half,
    returns=("dx",),
    mistakes=(
        Mistake(
            "fully synchronized",
            "This is the right gradient; the exercise wants that of somebody who forgot to synchronize it.",
            lambda dy, x_hat, std, K: _half(dy, x_hat, std, 1),
        ),
        Mistake(
            "nothing synchronized",
            "The forward pass was synchronized: x_hat and std are given, and stay as they are.",
            _local,
        ),
        Mistake(
            "lost 1/m",
            "Each device divides its sums by its own number of examples.",
            _halved(one=lambda d, dy: d.sum(), two=lambda d, z: (d * z).sum()),
        ),
        Mistake(
            "divided by the number of all examples",
            "Each device divides its own sums by its *own* number of examples.",
            lambda dy, x_hat, std, K: _half(
                dy,
                x_hat,
                std,
                K,
                one=lambda d, _: d.sum() / len(dy),
                two=lambda d, z: (d * z).sum() / len(dy),
            ),
        ),
        Mistake(
            "mean over all, projection over the part",
            "Both means are those of the part.",
            _halved(one=lambda d, dy: dy.mean()),
        ),
        Mistake(
            "width of the part",
            "The forward pass was synchronized: divide by the given standard deviation.",
            lambda dy, x_hat, std, K: _half(dy, x_hat, std, K, width=lambda z: std * z.std()),
        ),
        Mistake(
            "not divided by the standard deviation",
            "dx has a factor 1 / std.",
            _halved(width=lambda z: 1.0),
        ),
        Mistake(
            "statistics taken as constants",
            "Both corrections belong to the gradient, with the means of the part.",
            _halved(one=lambda d, dy: 0.0, two=lambda d, z: 0.0),
        ),
        Mistake(
            "interleaved parts",
            "Device 0 has the first m / K examples, not every K-th.",
            lambda dy, x_hat, std, K: (
                _half(dy.reshape(-1, K).T.ravel(), x_hat.reshape(-1, K).T.ravel(), std, K)
                .reshape(K, -1)
                .T.ravel()
            ),
        ),
    ),
)

# --------------------------------------------------------------------------- 2: weights


EXERCISES = {
    1: Exercise(
        title="Merge by hand",
        asks="mean and variance of all five values",
        solution=[4.4, 9.44],
        rtol=0.002,
        returns=("the mean of all five", "the variance of all five"),
        mistakes=(
            Mistake(
                "variances averaged",
                "The distance between the two means contributes as well.",
                [4.4, 5 / 6],
            ),
            Mistake(
                "variances averaged by count",
                "The distance between the two means contributes as well.",
                [4.4, 0.8],
            ),
            Mistake("mean of means", "Device 0 has three values, device 1 two.", [5, 59 / 6]),
            Mistake("unbiased variance", "Divide the sum of the squares by 5, not by 4.", [4.4, 11.8]),
            Mistake("sum of the squares", "Divide by the number of values.", [4.4, 47.2]),
            Mistake(
                "squares within the devices forgotten", "Add the squares that each device sent.", [4.4, 8.64]
            ),
            Mistake(
                "standard deviation instead of variance", "The variance is its square.", [4.4, 9.44**0.5]
            ),
        ),
    ),
    2: Exercise(
        title="A mean of means",
        asks="weights(sizes)",
        inputs=lambda: [{"sizes": [1, 2]}, {"sizes": [3, 13]}, {"sizes": [2, 2, 6]}],
        solution=lambda sizes: [len(sizes) * size / sum(sizes) for size in sizes],
        returns=("the weights",),
        mistakes=(
            Mistake(
                "number of devices forgotten",
                "The averaging divides by the number of devices: make up for it.",
                lambda sizes: [size / sum(sizes) for size in sizes],
            ),
            Mistake(
                "inverse weights",
                "An example of the *large* part counts too little: its loss gets the larger weight.",
                lambda sizes: [sum(sizes) / (len(sizes) * size) for size in sizes],
            ),
            Mistake(
                "no weights",
                "Parts of different size need different weights.",
                lambda sizes: [1.0] * len(sizes),
            ),
            Mistake(
                "sum instead of mean",
                "This gives the gradient of a sum over the examples; divide by their number.",
                lambda sizes: [float(len(sizes) * size) for size in sizes],
            ),
            Mistake(
                "sizes",
                "This is K times too small and N times too large: both means have to be undone.",
                lambda sizes: [float(size) for size in sizes],
            ),
            Mistake(
                "root of the sizes",
                "A mean is linear in its parts: no root.",
                lambda sizes: [(len(sizes) * size / sum(sizes)) ** 0.5 for size in sizes],
            ),
        ),
    ),
    3: HALF,
}
