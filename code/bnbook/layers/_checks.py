"""What the layers refuse, besides what :mod:`bnbook._checks` does. Each check raises or returns nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from bnbook._checks import check_count

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_may_diverge = ContextVar("may_diverge", default=False)


@contextmanager
def let_values_diverge() -> Iterator[None]:
    """Inside, layers pass NaN and infinity on, also into running statistics, instead of raising.

    For a training that ends when its loss is no longer finite and wants to record that; and for CUDA graphs,
    in which no value can be read.

    >>> from bnbook.layers import BatchNorm
    >>> with let_values_diverge():
    ...     BatchNorm(1, affine=False)(torch.tensor([[1.0], [math.nan]]))
    tensor([[nan],
            [nan]])
    """
    token = _may_diverge.set(True)
    try:
        yield
    finally:
        _may_diverge.reset(token)


def _values_count() -> bool:
    """Whether values are checked; a compiled or exported graph must not depend on them."""
    return not (torch.compiler.is_compiling() or _may_diverge.get())


def _is_known_false(condition: Tensor) -> bool:
    """Whether `condition` can be read and does not hold."""
    try:
        return not bool(condition)
    except (RuntimeError, NotImplementedError):  # under vmap and on the meta device there is nothing to read
        return False


def check_statistics(*statistics: Tensor) -> None:
    """Finite numbers: one NaN in one batch would break a layer in evaluation for ever."""
    if _values_count() and _is_known_false(torch.cat(statistics).isfinite().all()):
        raise ValueError(
            "x: got NaN, infinity or values too large to square; they would stay in the running "
            "statistics for ever, which were left as they were"
        )


def check_spread(var: Tensor, eps: float) -> None:
    """Variances that together with eps divide: a constant channel needs an eps."""
    if eps == 0 and _values_count() and _is_known_false(var.all()):
        zeros = int((var == 0).sum())
        raise ValueError(f"eps: got 0 where {zeros} of {var.numel()} variances are 0 too; allowed is eps > 0")


def check_momentum(momentum: float | None) -> None:
    """Weights of the new value; None weighs all batches alike; True was meant for `affine`."""
    if momentum is not None and (isinstance(momentum, bool) or not 0 <= momentum <= 1):
        raise ValueError(f"momentum: got {momentum}, allowed are None and numbers from 0 to 1")


def check_normalized_shape(normalized_shape: int | tuple[int, ...]) -> None:
    """One or more axes that are not empty."""
    lengths = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    if not lengths or min(lengths) < 1:
        raise ValueError(f"normalized_shape: got {normalized_shape}, expected one or more positive lengths")


def check_dtype(x: Tensor) -> None:
    """Floating-point numbers."""
    if x.dtype not in DTYPES:
        raise ValueError(f"x: got dtype {x.dtype}, allowed are {', '.join(map(str, DTYPES))}")


def check_channels(x: Tensor, channels: int | None = None, *, spatial: bool = False) -> None:
    """An input (N, C) or (N, C, *spatial), only the latter if `spatial`."""
    check_dtype(x)
    if x.ndim < 2 + spatial or channels not in (None, x.shape[1]):
        layout = "(N, C, *spatial)" if spatial else "(N, C) or (N, C, *spatial)"
        wanted = "" if channels is None else f" with C = {channels}"
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected {layout}{wanted}")


def check_trailing(x: Tensor, normalized_shape: tuple[int, ...]) -> None:
    """An input that ends in `normalized_shape`."""
    check_dtype(x)
    if tuple(x.shape[-len(normalized_shape) :]) != normalized_shape:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected one that ends in {normalized_shape}")


def check_filters(weight: Tensor) -> None:
    """A weight (C_out, C_in, *kernel) with at least two entries in each filter."""
    if weight.ndim < 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (C_out, C_in, *kernel)")
    check_count(math.prod(weight.shape[1:]), weight, "filter", name="weight", unit="weight")
