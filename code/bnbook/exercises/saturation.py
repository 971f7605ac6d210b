"""Checked exercises of the chapter on saturation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnbook import data, models, probes
from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

# --------------------------------------------------------------------------- 1: disguised


def _networks() -> list[Inputs]:
    cases = []
    for k, (width, depth) in enumerate([(2, 1), (2, 2), (3, 3)]):
        net = models.mlp((2,), 2, depth=depth, width=width, activation="tanh", init=1.0).double()
        for i, parameter in enumerate(net.parameters()):
            values = numbers(240 + 10 * k + i, *parameter.shape)
            parameter.data = torch.from_numpy(values)
        cases.append({"tanh_net": net})
    return cases


def _outputs(net: Any, inputs: Inputs) -> Tensor:
    """Outputs of the new network on four inputs; a network that kept its tanh is refused."""
    if not isinstance(net, nn.Module):
        raise TypeError("expected a network")
    if any(isinstance(part, nn.Tanh) for part in net.modules()):
        raise TypeError("it still has a tanh")
    x = torch.from_numpy(numbers(300, 4, 2))
    with torch.no_grad():
        y: Tensor = net.double()(x)
    return y


def _disguised(
    tanh_net: nn.Sequential,
    inner: float = 2,
    outer: float = 2,
    shift: Any = None,
    last_outer: float = 1,
) -> nn.Sequential:
    """Replace tanh by sigmoids: `outer` makes up for 2u, `inner` for the range, `shift` for the mean."""
    linears = [part for part in tanh_net if isinstance(part, nn.Linear)]
    parts: list[nn.Module] = []
    for k, old in enumerate(linears):
        first, last = k == 0, k == len(linears) - 1
        new = nn.Linear(old.in_features, old.out_features, dtype=old.weight.dtype)
        before, after = (1 if first else inner), (last_outer if last else outer)
        row_sums = 0 if first else (shift(old.weight) if shift else old.weight.sum(1))
        with torch.no_grad():
            new.weight.copy_(old.weight * before * after)
            new.bias.copy_((old.bias - row_sums) * after)
        parts += [new] if last else [new, nn.Sigmoid()]
    return nn.Sequential(*parts)


def _all_times_four(tanh_net: nn.Sequential) -> nn.Sequential:
    net = _disguised(tanh_net)
    first = next(part for part in net if isinstance(part, nn.Linear))
    first.weight = nn.Parameter(2 * first.weight)
    return net


DISGUISE = Exercise(
    title="A sigmoid in disguise",
    asks="disguised(tanh_net)",
    inputs=_networks,
    solution=_disguised,
    observe=_outputs,
    returns=("the output for four inputs",),
    rtol=1e-5,  # a network in float32 is right as well
    mistakes=(
        Mistake(
            "biases not corrected",
            "A sigmoid has the mean one half, tanh has 0: the row sums of the weights have to be taken out.",
            lambda net: _disguised(net, shift=lambda W: 0 * W.sum(1)),
        ),
        Mistake(
            "row sums added",
            "tanh is 2 sigma - 1: the row sums are subtracted.",
            lambda net: _disguised(net, shift=lambda W: -W.sum(1)),
        ),
        Mistake(
            "half of the row sums",
            "tanh is 2 sigma - 1: the 1 is multiplied by the weights W, not by W / 2.",
            lambda net: _disguised(net, shift=lambda W: W.sum(1) / 2),
        ),
        Mistake(
            "mean of the weights for their sum",
            "Every input contributes: sum the weights of a unit.",
            lambda net: _disguised(net, shift=lambda W: W.mean(1)),
        ),
        Mistake(
            "argument not doubled",
            "tanh z = 2 sigma(2z) - 1: the sigmoid reads 2z.",
            lambda net: _disguised(net, outer=1),
        ),
        Mistake(
            "range not doubled",
            "tanh z = 2 sigma(2z) - 1: the next weights have to make up for the 2 in front.",
            lambda net: _disguised(net, inner=1),
        ),
        Mistake(
            "last layer doubled twice",
            "No sigmoid stands behind the last layer: nothing has to be doubled there for its argument.",
            lambda net: _disguised(net, last_outer=2),
        ),
        Mistake(
            "first layer times four",
            "The first layer reads the input itself, not a sigmoid: its weights are 2W.",
            _all_times_four,
        ),
        Mistake(
            "activation replaced alone",
            "The weights have to change, too.",
            lambda net: _disguised(net, inner=1, outer=1, shift=lambda W: 0 * W.sum(1)),
        ),
    ),
)

# --------------------------------------------------------------------------- 3: leaky_gain

LEAK = Exercise(
    title="A leak",
    asks="leaky_gain(a)",
    inputs=lambda: [{"a": a} for a in (0.0, 1.0, 0.5, 0.01)],
    solution=lambda a: np.sqrt(2 / (1 + a**2)),
    returns=("the gain",),
    mistakes=(
        Mistake(
            "variance instead of standard deviation",
            "The gain multiplies a standard deviation: take the root.",
            lambda a: 2 / (1 + a**2),
        ),
        Mistake(
            "slope not squared",
            "A second moment is kept: the slope enters squared.",
            lambda a: np.sqrt(2 / (1 + a)),
        ),
        Mistake("gain of the ReLU", "The negative half contributes as well.", lambda a: np.sqrt(2)),
        Mistake(
            "both halves counted fully",
            "Only half of the inputs are negative, and half are positive.",
            lambda a: np.sqrt(1 / (1 + a**2)),
        ),
        Mistake(
            "gain that is kept to be inverted",
            "This is what a layer loses: the gain is one over it.",
            lambda a: np.sqrt((1 + a**2) / 2),
        ),
        Mistake(
            "negative half subtracted",
            "Squares add up, also those of the negative half.",
            lambda a: np.sqrt(2 / (1 - a**2)),
        ),
        Mistake(
            "mean instead of second moment", "The second moment is kept, not the mean.", lambda a: 2 / (1 + a)
        ),
    ),
)

# --------------------------------------------------------------------------- 4: dead_shares


def _dead(bias: float, seed: int, *, which: Any = None, count: Any = None, settings: Any = None) -> float:
    """The share of dead units on the digits, with other layers' biases filled, or another count."""
    torch.manual_seed(seed)
    model = models.mlp((64,), 10, **{"depth": 5, "width": 32, **(settings or {})})
    linears = [part for part in list(model)[:-1] if isinstance(part, nn.Linear)]
    for linear in linears if which is None else linears[which]:
        nn.init.constant_(linear.bias, bias)
    x = torch.from_numpy(data.digits().x_train)
    shares = [(count or probes.dead_share)(u) for u in probes.layer_inputs(model, x, nn.ReLU)]
    return float(np.mean(shares))


def _died(**settings: Any) -> Any:
    return lambda bias, seed: _dead(bias, seed, **settings)


DEATH = Exercise(
    title="A little bias against death",
    asks="dead_shares(bias, seed)",
    inputs=lambda: [{"bias": b, "seed": s} for b, s in ((0.0, 0), (0.1, 1), (1.0, 2), (1.0, 5))],
    solution=_dead,
    returns=("the share",),
    rtol=0,
    atol=0.004,  # one of 160 units is 0.00625
    seconds=20,
    mistakes=(
        Mistake(
            "share of living units",
            "This is 1 minus what is asked.",
            _died(count=lambda u: 1 - probes.dead_share(u)),
        ),
        Mistake("bias of the first layer alone", "All hidden layers get the bias.", _died(which=slice(0, 1))),
        Mistake("bias left at 0", "Fill the biases before you look.", lambda bias, seed: _dead(0.0, seed)),
        Mistake(
            "share of zeros",
            "A unit is dead if it passes nothing on for *any* image, not just for one.",
            _died(count=lambda u: (u <= 0).double().mean().item()),
        ),
        Mistake("seed ignored", "Draw the weights from the seed.", lambda bias, seed: _dead(bias, 0)),
        Mistake("percent", "Return a share from 0 to 1.", lambda bias, seed: 100 * _dead(bias, seed)),
        Mistake(
            "Glorot's start",
            "He's weights were asked for.",
            _died(settings={"init": "glorot"}),
        ),
        Mistake(
            "number of dead units",
            "Divide by the number of units.",
            lambda bias, seed: 160 * _dead(bias, seed),
        ),
    ),
)

# --------------------------------------------------------------------------- 2: on paper

_MEAN = np.sqrt(0.4**10 * 1.6**9)

EXERCISES = {
    1: DISGUISE,
    2: Exercise(
        title="Wide, narrow, wide",
        asks="three factors",
        solution=[1, 0.5, _MEAN],
        rtol=0,
        atol=0.002,
        returns=("the factor with 2 / n_in", "that with 2 / n_out", "that with the mean"),
        mistakes=(
            Mistake(
                "squares of the factors",
                "These are for the square of the length: take the root.",
                [1, 0.25, _MEAN**2],
            ),
            Mistake(
                "first two exchanged",
                "A layer multiplies the square by n_in / 2 times the variance.",
                [0.5, 1, _MEAN],
            ),
            Mistake("inverted", "From the output down to layer 1, not the other way.", [1, 2, 1 / _MEAN]),
            Mistake(
                "ten pairs of layers",
                "Between layer 20 and layer 1 there are 19 layers: ten narrow ones and nine wide ones.",
                [1, 1, 0.8**10],
            ),
            Mistake(
                "mean taken for neutral", "The mean of two widths is above their geometric mean.", [1, 0.5, 1]
            ),
        ),
    ),
    3: LEAK,
    4: DEATH,
}
