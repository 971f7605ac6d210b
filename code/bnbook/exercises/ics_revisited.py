"""Checked exercises of the second chapter on internal covariate shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnbook import models
from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _networks() -> list[Inputs]:
    cases = []
    for k, (width, a) in enumerate([(1, 2.0), (2, 5.0), (3, 0.5)]):
        net = models.mlp((2,), 2, depth=6, width=width).double()
        for i, parameter in enumerate(net.parameters()):
            parameter.data = torch.from_numpy(numbers(330 + 20 * k + i, *parameter.shape))
        cases.append({"net": net, "a": a})
    return cases


def _parameters(net: Any, inputs: Inputs) -> tuple[Tensor, ...]:
    """Weights and biases of the third and the fourth layer, and those of all others."""
    linears = [part for part in net if isinstance(part, nn.Linear)]
    third, fourth, others = linears[2], linears[3], linears[:2] + linears[4:]
    rest = torch.cat([p.detach().ravel() for part in others for p in (part.weight, part.bias)])
    return third.weight, third.bias, fourth.weight, fourth.bias, rest


EXERCISES = {
    "changes": Exercise(
        title="One step on a bowl",
        asks="changes(lr, curvature)",
        inputs=lambda: [{"lr": lr, "curvature": c} for lr, c in ((0.25, 1.5), (0.1, 2.0), (1.5, 4.0))],
        returns=("the relative shift of layer 2", "the relative change of the whole gradient"),
        hints=(
            "With e = w1 + w2 both gradients are lambda e. What is e after the step of one layer?",
            "After the step of one layer the gradient has the factor 1 - lr curvature. And after both?",
        ),
        solution="""
def changes(lr, curvature):
    return lr * curvature, 2 * lr * curvature
""",
        slips="""
both layers moved for the shift: The shift of layer 2 compares its gradient before and after the step of
    layer 1 alone.
    return lr => return 2 * lr
one layer moved for the whole change: The whole step moves both layers.
    2 * lr => lr
what is left of the gradient: This is the factor of the gradient; its change is 1 minus that.
    return lr * curvature, 2 * lr => return 1 - lr * curvature, 1 - 2 * lr
not relative: Divide by the length of the gradient: the curvature stays once.
    lr * curvature => lr * curvature**2
curvature forgotten: The gradient's change grows with the curvature.
    lr * curvature => lr
""",
    ),
    "unnoticed_noise": None,
    "respelled": Exercise(
        title="Two spellings of one network",
        asks="respelled(net, a)",
        inputs=_networks,
        observe=_parameters,
        returns=(
            "weights of the third layer",
            "bias of the third layer",
            "weights of the fourth layer",
            "bias of the fourth layer",
            "the other layers",
        ),
        may_change=("net",),
        hints=(
            "What the ReLU reads is W h + b: both have to be multiplied.",
            "The fourth layer reads a times as much; its weights undo it, and its bias has no part in it.",
        ),
        solution="""
def respelled(net, a):
    net[4].weight.data *= a
    net[4].bias.data *= a
    net[6].weight.data /= a
    return net
""",
        slips="""
bias not multiplied: The whole input of the ReLU has to be multiplied, the bias included.
    bias.data *= a => bias.data *= 1
fourth layer not divided: The fourth layer has to undo the factor.
    /= a => /= 1
bias of the fourth layer divided: The factor arrives with the inputs of the fourth layer, not with its bias.
    /= a => /= a; net[6].bias.data /= a
multiplied and divided exchanged: The third layer is multiplied, the fourth divided.
    *= a => ?
    /= a => *= a
    ? => /= a
second and third layer: Every second part is a ReLU: the third layer is net[4], the fourth net[6].
    net[4] => net[2]
    net[6] => net[4]
both multiplied: The fourth layer has to undo the factor: divide.
    /= a => *= a
nothing changed: Change the parameters in place, through `.data`.
    = lambda net, a: net
""",
    ),
}
