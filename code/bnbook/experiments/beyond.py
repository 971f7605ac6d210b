"""What replaces batch norm: residual networks and small transformers, each at its best rate."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnbook import data, layers, norm_free, training
from bnbook._checks import check_choice
from bnbook.experiments import by_name
from bnbook.experiments._parts import Branch, error_rows

__all__ = [
    "CLIPPING",
    "NORMS",
    "SCALES",
    "SIDES",
    "Standardize",
    "block",
    "pairs",
    "race",
    "residual",
    "run",
    "tokens",
    "transformer",
    "without_mean",
]

CLIPPING = 0.03
"""Largest length of a unit's gradient, relative to its weights, in the clipped networks."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": layers.BatchNorm,
    "layer": layers.LayerNorm,
    "rms": layers.RMSNorm,
    "dyt": layers.DyT,
    "dyt, 2": lambda width: layers.DyT(width, alpha0=2.0),
}
"""Norms of the last axis by name."""

SIDES: dict[str, dict[str, Any]] = {
    "no blocks": {"kind": "none", "blocks": 0},
    "none": {"kind": "none"},
    "batch": {"kind": "batch"},
    "rms": {"kind": "rms"},
    "fixup": {"kind": "fixup"},
    "nf": {"kind": "nf"},
    "nf, clipped": {"kind": "nf", "clipping": CLIPPING},
}
"""Settings of :func:`residual` for the networks that run against one another."""

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SEEDS = (100, 101, 102, 103, 104)  # the chapter's verdicts use others

SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "race",
            "side": [*SIDES],
            "blocks": [2, 4],
            "images": ("raw", "standardized"),
            "rate": RATES,
            "steps": (100, 200, 400),
            "seed": SEEDS,
        },
        {
            "map": "race",
            "side": ["none", "fixup"],
            "blocks": [8],
            "images": ("raw", "standardized"),
            "rate": RATES,
            "steps": (100, 200, 400),
            "seed": SEEDS,
        },
        {
            "map": "tokens",
            "side": ["layer", "rms", "dyt", "dyt, 2", "none"],
            "scale": (1.0, 4.0),
            "rate": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
            "steps": (100, 200),
            "seed": SEEDS[:3],
        },
    ]
}
"""Grids by the name of the scale."""


# --------------------------------------------------------------------------- residual networks


def block(kind: str, index: int, blocks: int, width: int, clipping: float | None = None) -> nn.Module:
    """Block number `index` of a residual network: twice (a norm,) ReLU and a linear layer, added to x.

    `kind` is a key of :data:`NORMS`, or ``"fixup"`` or ``"nf"`` for the blocks of :mod:`bnbook.norm_free`.
    Weights are He's, or what the kind makes of them.

    >>> block("fixup", 0, 4, 2)(torch.ones(1, 2))
    tensor([[1., 1.]], grad_fn=<AddBackward0>)
    """
    check_choice([*NORMS, "fixup", "nf"], kind=kind)
    if kind == "fixup":
        return norm_free.FixupBlock(width, blocks, clipping=clipping)
    if kind == "nf":
        return norm_free.NormFreeBlock(width, index, clipping=clipping)
    parts = [(NORMS[kind](width), nn.ReLU(), norm_free.he_linear(width, width)) for _ in range(2)]
    return Branch(*(part for three in parts for part in three))


class Standardize(nn.Module):
    """(x - centre) / width, with constants; a network on raw pixels has 0 and 1.

    >>> Standardize(torch.tensor([0.5, 0.0]), 2.0)(torch.tensor([1.0, 1.0]))
    tensor([0.2500, 0.5000])
    """

    centre: Tensor
    width: Tensor

    def __init__(self, centre: Tensor, width: float) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("width", torch.tensor(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map an array to one of the same shape."""
        return (x - self.centre) / self.width


@functools.cache
def pairs() -> data.Data:
    """Two digits side by side (128 pixels in [0, 1]), and whether exactly one of them is 5 or more.

    Either digit alone says nothing about the answer.

    >>> pairs().x_train.shape
    (6000, 128)
    """
    digits, rng = data.digits(), np.random.default_rng(0)

    def draw(x: NDArray[Any], y: NDArray[Any], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        left, right = rng.integers(0, len(x), (2, count))
        both = np.concatenate([x[left], x[right]], 1).astype(np.float32)
        return both, ((y[left] >= 5) ^ (y[right] >= 5)).astype(np.int64)

    return data.Data(*draw(digits.x_train, digits.y_train, 6000), *draw(digits.x_test, digits.y_test, 600))


def residual(
    in_shape: Sequence[int],
    classes: int,
    *,
    kind: str,
    images: str = "raw",
    blocks: int = 4,
    width: int = 32,
    clipping: float | None = None,
) -> nn.Sequential:
    """Residual network for :func:`pairs`: linear layer, blocks of :func:`block`, (norm,) ReLU, linear layer.

    With `images` ``"standardized"`` it first takes the mean image from the pixels and divides by the standard
    deviation of all. With Fixup the last layer starts at zero.
    """
    check_choice(("raw", "standardized"), images=images)
    x = torch.from_numpy(pairs().x_train)
    start = Standardize(x.mean(0), x.std().item()) if images == "standardized" else Standardize(0 * x[0], 1.0)
    first = norm_free.he_linear(in_shape[0], width, clipping=clipping)
    body = [block(kind, index, blocks, width, clipping) for index in range(blocks)]
    head = nn.Linear(width, classes)
    if kind == "fixup":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    norm = NORMS.get(kind, NORMS["none"])(width)
    return nn.Sequential(start, first, *body, norm, nn.ReLU(), head)


def race(
    side: str,
    blocks: int,
    images: Sequence[str],
    rate: Sequence[float],
    steps: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Test error in percent of a residual network on :func:`pairs`, trained by SGD with batches of 64.

    A network that diverged has the error NaN.
    """
    runs = training.sweep(
        residual,
        pairs(),
        steps=max(steps),
        seeds=seed,
        evaluate_every=math.gcd(*steps),
        **{"images": [*images], "lr": [*rate], "blocks": blocks, **SIDES[side]},
    )
    return error_rows(runs, steps)


# --------------------------------------------------------------------------- transformers


class Rows(nn.Module):
    """An 8 x 8 image as 8 tokens: each row of pixels, embedded, plus a learned position."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.5 * torch.randn(8, width))
        for p in self.parameters():
            p.data *= scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 64) to (N, 8, width)."""
        out: Tensor = self.embed(x.view(-1, 8, 8)) + self.position
        return out


class Attention(nn.Module):
    """Self-attention of two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, width) to the same shape."""
        N, T, C = x.shape
        q, k, v = self.qkv(x).view(N, T, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / (C // 2) ** 0.5, -1)
        out: Tensor = self.out((weights @ v).transpose(1, 2).reshape(N, T, C))
        return out


class TokenMean(nn.Module):
    """Mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, width) to (N, width)."""
        return x.mean(1)


def transformer(
    in_shape: Sequence[int], classes: int, *, norm: str, scale: float = 1.0, width: int = 24
) -> nn.Sequential:
    """Pre-norm transformer of two blocks for 8 x 8 images; `scale` multiplies its first embedding."""
    parts: list[nn.Module] = [Rows(width, scale)]
    for _ in range(2):
        mlp = nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        parts += [Branch(NORMS[norm](width), Attention(width)), Branch(NORMS[norm](width), *mlp)]
    return nn.Sequential(*parts, NORMS[norm](width), TokenMean(), nn.Linear(width, classes))


def tokens(
    side: str, scale: Sequence[float], rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test error in percent of a small transformer on digits, batches of 32, SGD with momentum 0.9."""
    runs = training.sweep(
        transformer,
        data.digits(),
        steps=max(steps),
        seeds=seed,
        batch_size=32,
        momentum=0.9,
        evaluate_every=math.gcd(*steps),
        norm=side,
        scale=[*scale],
        lr=[*rate],
    )
    return error_rows(runs, steps)


@torch.no_grad()
def without_mean(model: nn.Sequential) -> nn.Sequential:
    """Make of a layer norm :func:`transformer` one with RMS norm and the same outputs (float64).

    Whatever is written into the stream gets mean 0 over the features, so that a layer norm has no mean to
    subtract; its β moves into the layer that reads it.
    """
    model = copy.deepcopy(model).double()
    first, *branches, _, _, head = model
    embedding = cast(Rows, first)
    readers, writers = [], [embedding.embed]
    for branch in cast(list[Branch], branches):
        attention = isinstance(branch[1], Attention)
        readers.append(cast(nn.Linear, branch[1].qkv if attention else branch[1]))
        writers.append(cast(nn.Linear, branch[1].out if attention else branch[-1]))
    for linear in writers:
        linear.weight.sub_(linear.weight.mean(0))
        linear.bias.sub_(linear.bias.mean())
    embedding.position.sub_(embedding.position.mean(1, keepdim=True))
    places = [*((cast(nn.Sequential, branch), 0) for branch in branches), (model, len(model) - 3)]
    for (holder, place), linear in zip(places, [*readers, cast(nn.Linear, head)], strict=True):
        norm = cast(layers.LayerNorm, holder[place])
        linear.bias.add_(linear.weight @ norm.bias)
        holder[place] = layers.RMSNorm(len(norm.weight)).double()
        cast(layers.RMSNorm, holder[place]).weight.copy_(norm.weight)
    return model


run = by_name(race, tokens)
