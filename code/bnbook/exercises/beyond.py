"""Checked exercises of the chapter on what followed batch normalization."""

from __future__ import annotations

import numpy as np
import torch

from bnbook import layers
from bnbook.exercises._exercise import Exercise, Inputs


def _layers() -> list[Inputs]:
    return [{"norm": norm} for norm in (layers.DyT(24), layers.LayerNorm(24), layers.RMSNorm(24))]


EXERCISES = {
    "steps": Exercise(
        title="Clipping and zeros",
        asks="the number of steps until the row has the length 0.1",
        returns=("the number",),
        atol=2.5,
        rtol=0,
        hints=(
            "Below epsilon the allowed length is the same in every step; above, it grows with the row.",
            "Count both: 1 / 0.03 steps up to epsilon, then a factor 1.03 a step up to 0.1.",
        ),
        solution="""
factor = 0.03
steps = round(1 / factor + np.log(100) / np.log(1 + factor))
""",
        slips="""
start at ε: From zero to ε the row grows by ηλε a step; those steps come first.
    1 / factor + =>
up to ε alone: From ε on the row grows by the factor 1 + ηλ in each step.
    + np.log(100) / np.log(1 + factor) =>
linear all the way: Beyond ε the allowed length is in proportion to the row's.
    = 3333
""",
    ),
    "others": Exercise(
        title="Silenced neighbours",
        asks="others(norm)",
        inputs=_layers,
        uses={"torch": torch},
        returns=("the ratio",),
        rtol=1e-4,
        hints=(
            "Make the token twice, replace element 0 of one by 100, and pass both through the layer.",
            "Take the standard deviation of the elements 1 to 23 of both outputs: with over without.",
        ),
        solution="""
def others(norm):
    token = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))
    spiked = token.clone()
    spiked[0, 0] = 100.0
    with torch.no_grad():
        after, before = norm(spiked)[0, 1:], norm(token)[0, 1:]
    return (after.std() / before.std()).item()
""",
        slips="""
outlier counted: The question is about the other 23 elements: leave element 0 out.
    [0, 1:] => [0]
inverted: Outputs with the outlier over outputs without.
    after.std() / before.std() => before.std() / after.std()
variance instead of standard deviation: Take the root of the variances.
    .std() => .var()
length instead of standard deviation: Subtract the mean of the others: layer norm shifts them all.
    .std() => .norm()
""",
    ),
    "gain": Exercise(
        title="Another activation",
        asks="gain(phi)",
        inputs=lambda: [{"phi": phi} for phi in (np.positive, np.tanh, np.square)],
        returns=("the gain",),
        rtol=1e-4,
        hints=(
            "The gain makes up for the width of phi(z), where z is a standard Gaussian.",
            "Integrate phi and its square against the Gaussian density; the variance is their difference.",
        ),
        solution="""
def gain(phi):
    grid = np.linspace(-10, 10, 20001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    mean = np.trapezoid(phi(grid) * density, grid)
    square = np.trapezoid(phi(grid) ** 2 * density, grid)
    return 1 / np.sqrt(square - mean**2)
""",
        slips="""
second moment instead of variance: That is He's gain. Scaled weights remove the mean of what they read, so the
    variance counts.
    - mean**2 =>
not inverted: This is the standard deviation of phi(z); the gain makes up for it.
    1 / np.sqrt => np.sqrt
root forgotten: The gain multiplies weights, so it is one over a standard deviation.
    np.sqrt(square - mean**2) => (square - mean**2)
ReLU's gain: phi is the argument: use it, and not ReLU.
    = lambda phi: np.sqrt(2 / (1 - 1 / np.pi))
""",
    ),
}
