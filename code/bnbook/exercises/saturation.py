"""Checked exercises of the chapter on saturation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bnbook import data, models, probes
from bnbook.exercises._exercise import Exercise, Inputs, numbers


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


EXERCISES = {
    "disguised": Exercise(
        title="A sigmoid in disguise",
        asks="disguised(tanh_net)",
        inputs=_networks,
        uses={"torch": torch, "nn": nn},
        observe=_outputs,
        returns=("the output for four inputs",),
        rtol=1e-5,  # a network in float32 is right as well
        hints=(
            "Put h = 2s - 1 with s = sigma(2u) into u = W h + b, and sort the terms.",
            "Weights are doubled for the range of what they read, and again for the 2u that they feed.",
            "The -1 becomes minus the row sums of W in the bias. The first and the last layer differ.",
        ),
        solution="""
def disguised(tanh_net):
    linears = [part for part in tanh_net if isinstance(part, nn.Linear)]
    parts = []
    for k, old in enumerate(linears):
        first, last = k == 0, k == len(linears) - 1
        new = nn.Linear(old.in_features, old.out_features, dtype=old.weight.dtype)
        with torch.no_grad():
            new.weight.copy_(old.weight * (1 if first else 2) * (1 if last else 2))
            row_sums = 0 if first else old.weight.sum(1)
            new.bias.copy_((old.bias - row_sums) * (1 if last else 2))
        parts += [new] if last else [new, nn.Sigmoid()]
    return nn.Sequential(*parts)
""",
        slips="""
biases not corrected: A sigmoid has the mean one half, tanh has 0, so the row sums have to be taken out.
    old.bias - row_sums => old.bias
row sums added: tanh is 2 sigma - 1, so the row sums are subtracted.
    - row_sums => + row_sums
half of the row sums: tanh is 2 sigma - 1; the 1 is multiplied by the weights W, not by W / 2.
    - row_sums => - row_sums / 2
mean of the weights for their sum: Every input contributes: sum the weights of a unit.
    weight.sum(1) => weight.mean(1)
argument not doubled: tanh z = 2 sigma(2z) - 1; the sigmoid reads 2z.
    * (1 if last else 2) =>
range not doubled: tanh z = 2 sigma(2z) - 1; the next weights have to make up for the 2 in front.
    * (1 if first else 2) =>
last layer doubled twice: No sigmoid stands behind the last layer: nothing has to be doubled for its argument.
    (1 if last else 2) => 2
first layer times four: The first layer reads the input itself, not a sigmoid: its weights are 2W.
    (1 if first else 2) => 2
activation replaced alone: The weights have to change, too.
    * (1 if first else 2) * (1 if last else 2) =>
    (old.bias - row_sums) * (1 if last else 2) => old.bias
""",
    ),
    "factors": Exercise(
        title="Wide, narrow, wide",
        asks="three factors",
        returns=("the factor with 2 / n_in", "that with 2 / n_out", "that with the mean"),
        rtol=0,
        atol=0.002,
        hints=(
            "Each layer multiplies the square of the length by n_in / 2 times the variance of its weights.",
            "From layer 20 to layer 1 these are 19 layers: ten with n_in = 64, nine with n_in = 256.",
        ),
        solution="""
squares = np.array([1, 64 / 256, (64 / 160) ** 10 * (256 / 160) ** 9])
factors = np.sqrt(squares)
""",
        slips="""
squares of the factors: These are for the square of the length: take the root.
    np.sqrt(squares) => squares
first two exchanged: A layer multiplies the square by n_in / 2 times the variance.
    1, 64 / 256 => 64 / 256, 1
inverted: From the output down to layer 1, not the other way.
    np.sqrt(squares) => 1 / np.sqrt(squares)
ten pairs of layers: Between layer 20 and layer 1 there are 19 layers: ten narrow ones and nine wide ones.
    = [1, 1, 0.8**10]
mean taken for neutral: The mean of two widths is above their geometric mean.
    = [1, 0.5, 1]
""",
    ),
    "leaky_gain": Exercise(
        title="A leak",
        asks="leaky_gain(a)",
        inputs=lambda: [{"a": a} for a in (0.0, 1.0, 0.5, 0.01)],
        returns=("the gain",),
        hints=(
            "Half of the second moment comes from each side; the negative side enters with a squared.",
            "A layer multiplies the second moment by (1 + a^2) / 2 times the variance of its weights.",
        ),
        solution="""
def leaky_gain(a):
    return np.sqrt(2 / (1 + a**2))
""",
        slips="""
variance instead of standard deviation: The gain multiplies a standard deviation: take the root.
    np.sqrt(2 / (1 + a**2)) => 2 / (1 + a**2)
slope not squared: A second moment is kept: the slope enters squared.
    a**2 => a
gain of the ReLU: The negative half contributes as well.
    1 + a**2 => 1
both halves counted fully: Only half of the inputs are negative, and half are positive.
    2 / ( => 1 / (
gain that is kept to be inverted: This is what a layer loses: the gain is one over it.
    2 / (1 + a**2) => (1 + a**2) / 2
negative half subtracted: Squares add up, also those of the negative half.
    1 + a => 1 - a
mean instead of second moment: The second moment is kept, not the mean.
    np.sqrt(2 / (1 + a**2)) => 2 / (1 + a)
""",
    ),
    "dead_shares": Exercise(
        title="A little bias against death",
        asks="dead_shares(bias, seed)",
        inputs=lambda: [{"bias": b, "seed": s} for b, s in ((0.0, 0), (0.1, 1), (1.0, 2), (1.0, 5))],
        uses={"torch": torch, "nn": nn, "data": data, "models": models, "probes": probes},
        returns=("the share",),
        rtol=0,
        atol=0.004,  # one of 160 units is 0.00625
        seconds=20,
        slow=True,
        hints=(
            "Draw the network after `torch.manual_seed(seed)`, then fill the biases of all hidden layers.",
            "`probes.layer_inputs(model, x_train, nn.ReLU)` gives what each ReLU reads, `probes.dead_share` "
            "the share of its dead units.",
        ),
        solution="""
def dead_shares(bias, seed):
    torch.manual_seed(seed)
    model = models.mlp((64,), 10, depth=5, width=32)
    for part in model[:-1]:
        if isinstance(part, nn.Linear):
            nn.init.constant_(part.bias, bias)
    x_train = torch.from_numpy(data.digits().x_train)
    shares = [probes.dead_share(u) for u in probes.layer_inputs(model, x_train, nn.ReLU)]
    return np.mean(shares)
""",
        slips="""
share of living units: This is 1 minus what is asked.
    np.mean(shares) => 1 - np.mean(shares)
bias of the first layer alone: All hidden layers get the bias.
    model[:-1] => model[:1]
bias left at 0: Fill the biases before you look.
    part.bias, bias => part.bias, 0
share of zeros: A unit is dead if it passes nothing on for *any* image, not just for one.
    probes.dead_share(u) => (u <= 0).double().mean().item()
seed ignored: Draw the weights from the seed.
    manual_seed(seed) => manual_seed(0)
percent: Return a share from 0 to 1.
    np.mean(shares) => 100 * np.mean(shares)
Glorot's start: He's weights were asked for.
    width=32 => width=32, init="glorot"
number of dead units: Divide by the number of units.
    np.mean(shares) => 32 * np.sum(shares)
""",
    ),
}
