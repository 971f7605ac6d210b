"""Checked exercises of the chapter on convolutions."""

from __future__ import annotations

import numpy as np
import torch

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
}
