"""Checked exercises of the chapter on convolutions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bnbook import layers, models
from bnbook.exercises._exercise import Exercise, Inputs

_WIDTHS = (8, 0, 8, 8, 0, 16, 16, 16, 16, 16)  # of the chapter's VGG-8


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


def _settings() -> list[Inputs]:
    taps = 3 / (1 + 2**0.5)
    cases = ((10, 1.0), (10, taps), (3, 2.0))
    return [{"in_shape": (1, 14, 14), "classes": classes, "scale": scale} for classes, scale in cases]


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


EXERCISES = {
    "values_a_channel": Exercise(
        title="The smallest m",
        asks="values_a_channel(model, shape, N)",
        inputs=_networks,
        uses={"torch": torch, "layers": layers},
        observe=lambda value, inputs: np.asarray(list(value)),
        returns=("the list",),
        hints=(
            "Pass N images of zeros through the network part by part, in evaluation mode.",
            "In front of each norm, x[:, 0] holds the values of one channel.",
        ),
        solution="""
def values_a_channel(model, shape, N):
    found, x = [], torch.zeros(N, *shape)
    with torch.no_grad():
        for part in model.eval():
            if isinstance(part, layers.BatchNorm):
                found.append(x[:, 0].numel())
            x = part(x)
    return found
""",
        slips="""
examples forgotten: The values of all N images share a channel's statistics: m = N times the positions.
    x[:, 0] => x[0, 0]
positions forgotten: Every position of the map is a value: m = N times the positions.
    x[:, 0].numel() => len(x)
channels counted: Each channel has its own mean: count the values of one channel.
    x[:, 0] => x
side for the area: A map has height times width positions.
    x[:, 0].numel() => x[:, 0, :, 0].numel()
number of channels: m counts values, not channels.
    x[:, 0].numel() => x.shape[1]
all parts counted: One number for each norm, not for each part of the network.
    = lambda model, shape, N: [N * shape[1] * shape[2]] * len(list(model.children()))
input map for all layers: The poolings make the maps smaller: pass an input through, part by part.
    x[:, 0].numel() => N * shape[1] * shape[2]
smallest m alone: Return m of every norm, in a list.
    return found => return [min(found)]
m minus 1: m is the number of values, not of degrees of freedom.
    numel() => numel() - 1
""",
    ),
    "shifts_and_strides": None,
    "doubled_pixels": None,
    "floor_of": Exercise(
        title="The floor for K classes",
        asks="floor_of(K)",
        inputs=lambda: [{"K": K} for K in (2, 10, 100)],
        returns=("the floor",),
        hints=(
            "With mean 0 and variance 1 over K classes, the right score is sqrt(K - 1) at most, and the "
            "others are then equal.",
            "The loss needs the distance of the right score from the others, K / sqrt(K - 1), and their "
            "number.",
        ),
        solution="""
def floor_of(K):
    return np.log1p((K - 1) * np.exp(-K / np.sqrt(K - 1)))
""",
        slips="""
K wrong classes: One class is right, K - 1 are wrong.
    (K - 1) * => K *
height of the right score alone: What counts is its distance from the others, which lie below 0.
    -K / np.sqrt(K - 1) => -np.sqrt(K - 1)
others left at zero: The scores of a unit have mean 0: where the right one is high, the others are below 0.
    -K / np.sqrt(K - 1) => -np.sqrt(K)
sign of the exponent: A larger distance makes the loss smaller: the exponent is negative.
    exp(-K => exp(K
one wrong class: There are K - 1 wrong classes.
    (K - 1) * =>
probability instead of loss: The loss is minus the logarithm of this.
    return => return np.exp(-1) **
logarithm to the base 10: Cross-entropy has the natural logarithm.
    return => return 1 / np.log(10) *
chance level: This is the loss of a guess; the best scores do better.
    = np.log
""",
    ),
    "counted": Exercise(
        title="Count the taps",
        asks="counted(in_shape, classes, scale=scale)",
        inputs=_settings,
        uses={"torch": torch, "nn": nn, "models": models, "WIDTHS": _WIDTHS},
        observe=_sizes,
        returns=("lengths of the weights over He's", "biases"),
        rtol=0.15,
        atol=1e-6,
        keywords=("scale",),
        seconds=20,
        slow=True,
        hints=(
            '`models.vgg(..., widths=WIDTHS, init="he")` is the plain network with He\'s start.',
            "Which of its convolutions work on 3 x 3 maps? The map shrinks at each 0 in WIDTHS.",
            "Multiply their weights in place, under `torch.no_grad()`.",
        ),
        solution="""
def counted(in_shape, classes, *, scale):
    model = models.vgg(in_shape, classes, widths=WIDTHS, init="he")
    with torch.no_grad():
        for conv in [part for part in model if isinstance(part, nn.Conv2d)][3:]:
            conv.weight *= scale
    return model
""",
        slips="""
all convolutions scaled: Only those on 3 x 3 maps: the first three work on larger ones.
    [3:] => [0:]
convolutions on 7 x 7 maps scaled, too: Leave the maps of 14 x 14 and 7 x 7 positions, with a factor near 1.
    [3:] => [1:]
first convolution on 3 x 3 maps left out: The map is 3 x 3 behind the second pooling already.
    [3:] => [4:]
output layer scaled, too: The last layer is no convolution: it misses no taps.
    nn.Conv2d => nn.Conv2d | nn.Linear
nothing scaled: Multiply the weights in place, under `torch.no_grad()`.
    *= scale => *= 1
divided instead of multiplied: Taps are missing, so the weights have to grow.
    *= scale => /= scale
Glorot's start: The default of models.vgg is Glorot's start; ask for He's.
    init="he" => init="glorot"
biases changed: Scale the weights; the biases stay at 0.
    *= scale => *= scale; conv.bias += scale - 1
""",
    ),
}
