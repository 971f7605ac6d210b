"""Parts that several experiments build their networks and tables from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from bnbook import layers, training

__all__ = ["Branch", "error_rows", "with_pytorchs_norms"]


class Branch(nn.Sequential):
    """Add what the parts compute to their input.

    >>> import torch
    >>> Branch(nn.ReLU())(torch.tensor([1.0, -1.0]))
    tensor([ 2., -1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x to x + parts(x)."""
        h = x
        for part in self:
            h = part(h)
        return x + h


def with_pytorchs_norms(model: nn.Sequential) -> nn.Sequential:
    """Put ``nn.BatchNorm1d`` in the place of our fresh batch norms of vectors.

    The numbers are the same. In layers of some fifty units a step of ours takes five times as long, most of
    it calls of Python.

    >>> from bnbook import models
    >>> with_pytorchs_norms(models.mlp((4,), 2, depth=1, width=3, norm="batch"))[1]
    BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    parts = [nn.BatchNorm1d(p.num_features) if isinstance(p, layers.BatchNorm) else p for p in model]
    return nn.Sequential(*parts)


def error_rows(runs: training.Runs, steps: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each point of a sweep and each of the `steps`, with the test error in percent."""
    found = []
    for place in np.ndindex(runs.diverged.shape):
        axes = zip(runs.axes.items(), place, strict=True)
        settings = {"rate" if name == "lr" else name: values[i] for (name, values), i in axes}
        for k in steps:
            accuracy = runs.series["test_accuracy"][place][np.flatnonzero(runs.steps == k)[0]]
            found.append({**settings, "steps": k, "error": float(100 * (1 - accuracy))})
    return found
