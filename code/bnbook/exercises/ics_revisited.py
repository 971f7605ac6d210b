"""Checked exercises of the second chapter on internal covariate shift."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnbook import data, layers, models
from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers


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


def _respelled(factors: Any) -> Any:
    """Multiply parameters of a network; `factors` maps a to those of (index, name of the parameter)."""

    def respelled(net: Any, a: float) -> Any:
        for (k, name), factor in factors(a).items():
            getattr(net[k], name).data *= factor
        return net

    return respelled


RESPELLED = Exercise(
    title="Two spellings of one network",
    asks="respelled(net, a)",
    inputs=_networks,
    solution=_respelled(lambda a: {(4, "weight"): a, (4, "bias"): a, (6, "weight"): 1 / a}),
    observe=_parameters,
    returns=(
        "weights of the third layer",
        "bias of the third layer",
        "weights of the fourth layer",
        "bias of the fourth layer",
        "the other layers",
    ),
    may_change=("net",),
    mistakes=(
        Mistake(
            "bias not multiplied",
            "The whole input of the ReLU has to be multiplied, the bias included.",
            _respelled(lambda a: {(4, "weight"): a, (6, "weight"): 1 / a}),
        ),
        Mistake(
            "fourth layer not divided",
            "The fourth layer has to undo the factor.",
            _respelled(lambda a: {(4, "weight"): a, (4, "bias"): a}),
        ),
        Mistake(
            "bias of the fourth layer divided",
            "The factor arrives with the inputs of the fourth layer, not with its bias.",
            _respelled(
                lambda a: {(4, "weight"): a, (4, "bias"): a, (6, "weight"): 1 / a, (6, "bias"): 1 / a}
            ),
        ),
        Mistake(
            "multiplied and divided exchanged",
            "The third layer is multiplied, the fourth divided.",
            _respelled(lambda a: {(4, "weight"): 1 / a, (4, "bias"): 1 / a, (6, "weight"): a}),
        ),
        Mistake(
            "second and third layer",
            "Every second part is a ReLU: the third layer is net[4], the fourth net[6].",
            _respelled(lambda a: {(2, "weight"): a, (2, "bias"): a, (4, "weight"): 1 / a}),
        ),
        Mistake(
            "both multiplied",
            "The fourth layer has to undo the factor: divide.",
            _respelled(lambda a: {(4, "weight"): a, (4, "bias"): a, (6, "weight"): a}),
        ),
        Mistake("nothing changed", "Change the parameters in place, through `.data`.", lambda net, a: net),
    ),
)

# --------------------------------------------------------------------------- 3: angle


class _Pinned(nn.Module):
    """Batch normalization whose statistics are constants in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x.detach(), 0, correction=0)
        return (x - mean) / torch.sqrt(var + 1e-5)


def _gradients(
    activation: str,
    init: Any,
    depth: int,
    seed: int,
    norm: str = "batch",
    pinned: bool = False,
    last: bool = False,
) -> list[Tensor]:
    """Gradients of the hidden weights of a fresh network on 64 digits, layer by layer."""
    torch.manual_seed(seed)
    net = models.mlp((64,), 10, depth=depth, width=48, norm=norm, activation=activation, init=init)
    parts = [_Pinned() if pinned and isinstance(part, layers.BatchNorm) else part for part in net]
    digits = data.digits()
    x, y = torch.from_numpy(digits.x_train[:64]), torch.from_numpy(digits.y_train[:64])
    linears = [part for part in parts if isinstance(part, nn.Linear)]
    loss = F.cross_entropy(nn.Sequential(*parts)(x), y)
    weights = [part.weight for part in (linears if last else linears[:-1])]
    return [gradient.ravel() for gradient in torch.autograd.grad(loss, weights)]


def _cosine(one: list[Tensor], other: list[Tensor]) -> float:
    return F.cosine_similarity(torch.cat(one), torch.cat(other), dim=0).item()


def _angle(activation: str, init: Any, depth: int, seed: int, **settings: Any) -> float:
    given = activation, init, depth, seed
    return _cosine(
        _gradients(*given, **settings), _gradients(*given, **{**settings, "norm": "batch"}, pinned=True)
    )


def _mean_of_cosines(activation: str, init: Any, depth: int, seed: int) -> float:
    given = activation, init, depth, seed
    pairs = list(zip(_gradients(*given), _gradients(*given, pinned=True), strict=True))
    return sum(_cosine([one], [other]) for one, other in pairs) / len(pairs)


def _other_weights(activation: str, init: Any, depth: int, seed: int) -> float:
    return _cosine(
        _gradients(activation, init, depth, seed), _gradients(activation, init, depth, seed + 1, pinned=True)
    )


CANDIDATE = Exercise(
    title="A candidate that fails",
    asks="angle(activation, init, depth, seed)",
    inputs=lambda: [
        {"activation": activation, "init": init, "depth": depth, "seed": seed}
        for activation, init, depth, seed in (
            ("relu", "he", 2, 0),
            ("relu", "he", 6, 1),
            ("sigmoid", 3.0, 4, 2),
        )
    ],
    solution=_angle,
    returns=("the cosine",),
    rtol=0,
    atol=1e-3,
    seconds=20,
    mistakes=(
        Mistake(
            "last layer counted",
            "Compare the hidden weights; the last layer has no norm behind it.",
            lambda *given: _angle(*given, last=True),
        ),
        Mistake(
            "mean of the layers' cosines",
            "Join the gradients of all hidden weights to one long vector first.",
            _mean_of_cosines,
        ),
        Mistake(
            "other weights",
            "Both networks start from the same weights: set the seed before each.",
            _other_weights,
        ),
        Mistake(
            "plain network",
            "Compare with batch normalization, not with the network without a norm.",
            lambda *given: _angle(*given, norm="none"),
        ),
        Mistake(
            "angle instead of its cosine", "Return the cosine.", lambda *given: math.acos(_angle(*given))
        ),
        Mistake("one minus the cosine", "Return the cosine itself.", lambda *given: 1 - _angle(*given)),
        Mistake("same network twice", "One of the two is pinned.", lambda *given: 1.0),
    ),
)

EXERCISES = {
    1: RESPELLED,
    3: CANDIDATE,
    4: Exercise(
        title="One step on a bowl",
        asks="changes(lr, curvature)",
        inputs=lambda: [{"lr": lr, "curvature": c} for lr, c in ((0.25, 1.0), (0.1, 2.0), (1.0, 4.0))],
        solution=lambda lr, curvature: (lr * curvature, 2 * lr * curvature),
        returns=("the relative shift of layer 2", "the relative change of the whole gradient"),
        mistakes=(
            Mistake(
                "both layers moved for the shift",
                "The shift of layer 2 compares its gradient before and after the step of layer 1 alone.",
                lambda lr, curvature: (2 * lr * curvature, 2 * lr * curvature),
            ),
            Mistake(
                "one layer moved for the whole change",
                "The whole step moves both layers.",
                lambda lr, curvature: (lr * curvature, lr * curvature),
            ),
            Mistake(
                "exchanged",
                "The shift of layer 2 comes first.",
                lambda lr, curvature: (2 * lr * curvature, lr * curvature),
            ),
            Mistake(
                "what is left of the gradient",
                "This is the factor of the gradient; its change is 1 minus that.",
                lambda lr, curvature: (1 - lr * curvature, 1 - 2 * lr * curvature),
            ),
            Mistake(
                "not relative",
                "Divide by the length of the gradient: the curvature stays once.",
                lambda lr, curvature: (lr * curvature**2, 2 * lr * curvature**2),
            ),
            Mistake(
                "curvature forgotten",
                "The gradient's change grows with the curvature.",
                lambda lr, curvature: (lr, 2 * lr),
            ),
        ),
    ),
}
