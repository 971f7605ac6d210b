"""Checks of arguments: each raises a ``ValueError`` that names the argument, what came and what is allowed.

A check returns nothing and changes nothing, so that a function without its checks is the same function:
:func:`bnbook.show.show_source` leaves them out. Values travel under their names: ``check_positive(lr=lr)``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

# --------------------------------------------------------------------------- single values


def check_choice(allowed: Collection[Any], /, **values: Any) -> None:
    """One of the allowed values."""
    for name, value in values.items():
        if value not in list(allowed):  # a list in a dict would be a TypeError
            raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(map(str, allowed))}")


def check_whole(low: float, high: float = math.inf, /, **values: Any) -> None:
    """Whole numbers from `low` to `high`."""
    upwards = f", {low} or more" if low > -math.inf else ""
    allowed = f"a whole number from {low} to {high}" if high < math.inf else f"a whole number{upwards}"
    _check_numbers(allowed, lambda value: low <= operator.index(value) <= high, values)


def check_finite(**values: Any) -> None:
    """Numbers but NaN and infinity."""
    _check_numbers("a finite number", math.isfinite, values)


def check_not_negative(**values: Any) -> None:
    """Finite numbers, 0 or larger."""
    _check_numbers("a finite number, 0 or larger", lambda value: 0 <= value < math.inf, values)


def check_positive(**values: Any) -> None:
    """Finite numbers above 0."""
    _check_numbers("a finite number above 0", lambda value: 0 < value < math.inf, values)


def _check_numbers(allowed: str, test: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        try:
            good = not isinstance(value, str) and bool(test(value))
        except (TypeError, ValueError):
            good = False
        if not good:
            shown = value if isinstance(value, int | float | np.number) else repr(value)
            raise ValueError(f"{name}: got {shown}, expected {allowed}")


# --------------------------------------------------------------------------- arrays


def check_floats(**arrays: Any) -> None:
    """Arrays of finite numbers in float32 or float64."""
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray | np.generic):
            raise ValueError(f"{name}: got {type(value).__name__}, expected a NumPy array")
        if value.dtype not in (np.float32, np.float64):
            raise ValueError(f"{name}: got dtype {value.dtype}, allowed are float32 and float64")
        if not np.isfinite(value).all():
            bad = np.count_nonzero(~np.isfinite(value))
            raise ValueError(
                f"{name}: got NaN or infinity in {bad} of {value.size} values, all must be finite"
            )


def check_shape(shape: tuple[int, ...], /, **arrays: Any) -> None:
    """Arrays (or lists) of finite numbers, of this shape."""
    for name, value in arrays.items():
        if np.shape(value) != shape:
            raise ValueError(f"{name}: got shape {np.shape(value)}, expected {shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: got NaN or infinity, all values must be finite")


def check_alike(**arrays: Any) -> None:
    """Arrays as in :func:`check_floats`, all of the shape of the first."""
    check_floats(**arrays)
    (first, like), *others = arrays.items()
    for name, value in others:
        if value.shape != like.shape:
            raise ValueError(f"{name}: got shape {value.shape}, expected that of {first}, {like.shape}")


def check_batch(x: Any, eps: float = 0.0, *, spatial: bool = False, **parameters: Any) -> None:
    """A batch (N, C) or (N, C, *spatial), only the latter if `spatial`, and parameters of shape (C,)."""
    check_floats(x=x)
    if x.ndim < 2 + spatial:
        layout = "(N, C, *spatial)" if spatial else "(N, C) or (N, C, *spatial)"
        raise ValueError(f"x: got shape {x.shape}, expected {layout}")
    check_not_negative(eps=eps)
    check_shape((x.shape[1],), **parameters)


def check_trailing(x: Any, eps: float, **parameters: Any) -> None:
    """An input that ends in the shape of the first of the parameters, which all share it."""
    check_floats(x=x)
    name, first = next(iter(parameters.items()))
    ndim = np.ndim(first)
    if ndim == 0:
        raise ValueError(f"{name}: got a single number, expected an array of the normalized shape")
    if x.ndim < ndim:
        raise ValueError(
            f"x: got shape {x.shape}, expected (*leading, *normalized) with {name} of normalized"
        )
    check_not_negative(eps=eps)
    check_shape(x.shape[x.ndim - ndim :], **parameters)


def check_examples(x: Any) -> None:
    """A matrix of finite floats, a row for each example."""
    check_floats(x=x)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"x: got shape {x.shape}, expected (examples, columns) with at least one of each")


def check_images(x: Any) -> None:
    """Images (N, D), (N, H, W) or (N, C, H, W)."""
    check_floats(x=x)
    if not 2 <= x.ndim <= 4 or 0 in x.shape[1:]:
        raise ValueError(f"x: got shape {x.shape}, expected (N, D), (N, H, W) or (N, C, H, W)")


def check_several(x: Any, axes: Iterable[int], per: str) -> None:
    """At least two values behind each mean over `axes` that is subtracted from them (also of a tensor)."""
    check_count(math.prod(x.shape[axis] for axis in axes), x, per)


def check_count(m: int, x: Any, per: str, *, name: str = "x", unit: str = "value") -> None:
    """At least two values behind each mean: one is its own mean."""
    if m < 2:
        raise ValueError(
            f"{name}: got {m} {unit}{'s' * (m != 1)} per {per} (shape {tuple(x.shape)}), at least 2 are "
            f"needed: one {unit} is its own mean, so nothing of it would be left"
        )


def check_variance(var: Any, eps: float) -> None:
    """Variances of 0 or more, which together with eps divide."""
    if (var < 0).any():
        raise ValueError(f"var: got {var.min():.3g}, a variance is 0 or larger")
    if eps == 0 and not var.all():
        zeros = np.count_nonzero(var == 0)
        raise ValueError(f"eps: got 0 where {zeros} of {var.size} variances are 0 too; allowed is eps > 0")


def check_out_axis(out_axis: Any, weight: Any) -> None:
    """An axis of output channels; it has to be named where a kernel does not show it."""
    unclear = weight.ndim > 2 and weight.shape[0] == weight.shape[1]
    if out_axis not in ((0, 1) if unclear else (None, 0, 1)):
        raise ValueError(
            f"out_axis: got {out_axis} for a weight of shape {weight.shape}, expected 0 for a convolution, "
            "1 for a transposed one"
        )
