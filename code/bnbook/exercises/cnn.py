"""Checked exercises of the chapter on convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnbook import layers, models
from bnbook.exercises._engine import Exercise, Inputs, Mistake

_WIDTHS = (8, 0, 8, 8, 0, 16, 16, 16, 16, 16)  # of the chapter's VGG-8
_TAPS = 3 / (1 + 2**0.5)

# --------------------------------------------------------------------------- 1: values_a_channel


def _networks() -> list[Inputs]:
    small = models.vgg((1, 4, 4), 2, widths=(2, 0, 3), norm="batch")
    colour = models.vgg((3, 8, 6), 5, widths=(2, 4, 0, 3), norm="batch")
    deep = models.vgg((1, 28, 28), 10, widths=_WIDTHS, norm="batch")
    return [
        {"model": small, "shape": (1, 4, 4), "N": 2},
        {"model": colour, "shape": (3, 8, 6), "N": 3},
        {"model": deep, "shape": (1, 28, 28), "N": 1},
        {"model": deep, "shape": (1, 14, 14), "N": 4},
    ]


def _values(model: nn.Module, shape: tuple[int, int, int], N: int, count: Any = None) -> list[Any]:
    """What `count` reads off the input of each norm, by default its values a channel."""
    found, x = [], torch.zeros(N, *shape)
    with torch.no_grad():
        for part in model.eval().children():
            if isinstance(part, layers.BatchNorm):
                found.append(count(x) if count else x[:, 0].numel())
            x = part(x)
    return found


def _counted_by(count: Any) -> Any:
    return lambda model, shape, N: _values(model, shape, N, count)


SMALLEST_M = Exercise(
    title="The smallest m",
    asks="values_a_channel(model, shape, N)",
    inputs=_networks,
    solution=_values,
    observe=lambda value, inputs: np.asarray(list(value)),
    returns=("the list",),
    mistakes=(
        Mistake(
            "examples forgotten",
            "The values of all N images share a channel's statistics: m = N times the positions.",
            _counted_by(lambda x: x[0, 0].numel()),
        ),
        Mistake(
            "positions forgotten",
            "Every position of the map is a value: m = N times the positions.",
            _counted_by(lambda x: len(x)),
        ),
        Mistake(
            "channels counted",
            "Each channel has its own mean: count the values of one channel.",
            _counted_by(lambda x: x.numel()),
        ),
        Mistake(
            "side for the area",
            "A map has height times width positions.",
            _counted_by(lambda x: len(x) * x.shape[2]),
        ),
        Mistake(
            "number of channels",
            "m counts values, not channels.",
            _counted_by(lambda x: x.shape[1]),
        ),
        Mistake(
            "all parts counted",
            "One number for each norm, not for each part of the network.",
            lambda model, shape, N: [N * shape[1] * shape[2]] * len(list(model.children())),
        ),
        Mistake(
            "input map for all layers",
            "The poolings make the maps smaller: pass an input through the network part by part.",
            lambda model, shape, N: [N * shape[1] * shape[2] for _ in _values(model, shape, N)],
        ),
        Mistake(
            "smallest m alone",
            "Return m of every norm, in a list.",
            lambda model, shape, N: [min(_values(model, shape, N))],
        ),
        Mistake(
            "m minus 1",
            "m is the number of values, not of degrees of freedom.",
            _counted_by(lambda x: x[:, 0].numel() - 1),
        ),
    ),
)

# --------------------------------------------------------------------------- 4: floor_of


def _floor(K: float, top: Any = None, classes: Any = None) -> float:
    """The floor, with another distance of the scores, or another number of wrong classes."""
    distance = top(K) if top else K / np.sqrt(K - 1)
    return float(np.log1p((classes(K) if classes else K - 1) * np.exp(-distance)))


FLOOR = Exercise(
    title="The floor for K classes",
    asks="floor_of(K)",
    inputs=lambda: [{"K": K} for K in (2, 10, 100)],
    solution=_floor,
    returns=("the floor",),
    mistakes=(
        Mistake(
            "K wrong classes",
            "One class is right, K - 1 are wrong.",
            lambda K: _floor(K, classes=lambda K: K),
        ),
        Mistake(
            "height of the right score alone",
            "What counts is the distance between the right score and the others, which lie below 0.",
            lambda K: _floor(K, top=lambda K: np.sqrt(K - 1)),
        ),
        Mistake(
            "others left at zero",
            "The scores of a unit have mean 0: where the right one is high, the others are below 0.",
            lambda K: _floor(K, top=lambda K: np.sqrt(K)),
        ),
        Mistake(
            "sign of the exponent",
            "A larger distance makes the loss smaller: the exponent is negative.",
            lambda K: _floor(K, top=lambda K: -K / np.sqrt(K - 1)),
        ),
        Mistake(
            "one wrong class",
            "There are K - 1 wrong classes.",
            lambda K: _floor(K, classes=lambda K: 1) if K > 2 else _floor(K),
        ),
        Mistake(
            "probability instead of loss",
            "The loss is minus the logarithm of this.",
            lambda K: np.exp(-_floor(K)),
        ),
        Mistake(
            "logarithm to the base 10",
            "Cross-entropy has the natural logarithm.",
            lambda K: _floor(K) / np.log(10),
        ),
        Mistake(
            "chance level", "This is the loss of a guess; the best scores do better.", lambda K: np.log(K)
        ),
    ),
)

# --------------------------------------------------------------------------- 5: counted


def _settings() -> list[Inputs]:
    return [
        {"in_shape": (1, 14, 14), "classes": 10, "scale": 1.0},
        {"in_shape": (1, 14, 14), "classes": 10, "scale": _TAPS},
        {"in_shape": (1, 14, 14), "classes": 3, "scale": 2.0},
    ]


def _counted(
    in_shape: tuple[int, int, int],
    classes: int,
    scale: float,
    *,
    which: Any = None,
    init: str = "he",
    biases: bool = False,
) -> nn.Module:
    """The plain VGG-8 with some of its convolutions rescaled, by default those on 3 x 3 maps."""
    model = models.vgg(in_shape, classes, widths=_WIDTHS, init=init)
    convolutions = [part for part in model if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for conv in convolutions[3:] if which is None else which(convolutions, model):
            conv.weight *= scale
            if biases and conv.bias is not None:
                conv.bias += scale - 1
    return model


def _sizes(model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Length of each weight over that of He's start, and its bias: no draw of the weights enters."""
    lengths, biases = [], []
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            weight = part.weight.detach()
            he = (2 / weight[0].numel()) ** 0.5 * weight.numel() ** 0.5
            lengths.append((weight.norm() / he).item())
            biases.append(0.0 if part.bias is None else part.bias.detach().abs().max().item())
    return torch.tensor(lengths), torch.tensor(biases)


TAPS = Exercise(
    title="Count the taps",
    asks="counted(in_shape, classes, scale=scale)",
    inputs=_settings,
    solution=_counted,
    observe=_sizes,
    returns=("lengths of the weights over He's", "biases"),
    rtol=0.15,
    atol=1e-6,
    keywords=("scale",),
    seconds=20,
    mistakes=(
        Mistake(
            "all convolutions scaled",
            "Only those on 3 x 3 maps: the first three work on larger ones.",
            lambda in_shape, classes, scale: _counted(
                in_shape, classes, scale, which=lambda convs, model: convs
            ),
        ),
        Mistake(
            "convolutions on 7 x 7 maps scaled, too",
            "Leave the maps of 14 x 14 and 7 x 7 positions: their factor is near 1.",
            lambda in_shape, classes, scale: _counted(
                in_shape, classes, scale, which=lambda convs, model: convs[1:]
            ),
        ),
        Mistake(
            "first convolution on 3 x 3 maps left out",
            "The map is 3 x 3 behind the second pooling already.",
            lambda in_shape, classes, scale: _counted(
                in_shape, classes, scale, which=lambda convs, model: convs[4:]
            ),
        ),
        Mistake(
            "output layer scaled, too",
            "The last layer is no convolution: it misses no taps.",
            lambda in_shape, classes, scale: _counted(
                in_shape, classes, scale, which=lambda convs, model: [*convs[3:], model[-1]]
            ),
        ),
        Mistake(
            "nothing scaled",
            "Multiply the weights in place, under `torch.no_grad()`.",
            lambda in_shape, classes, scale: _counted(in_shape, classes, 1.0),
        ),
        Mistake(
            "divided instead of multiplied",
            "Taps are missing, so the weights have to grow.",
            lambda in_shape, classes, scale: _counted(in_shape, classes, 1 / scale),
        ),
        Mistake(
            "Glorot's start",
            "The default of models.vgg is Glorot's start; ask for He's.",
            lambda in_shape, classes, scale: _counted(in_shape, classes, scale, init="glorot"),
        ),
        Mistake(
            "biases changed",
            "Scale the weights; the biases stay at 0.",
            lambda in_shape, classes, scale: _counted(in_shape, classes, scale, biases=True),
        ),
    ),
)

EXERCISES = {1: SMALLEST_M, 4: FLOOR, 5: TAPS}
