"""How far a step turns weights whose length the network ignores, and what depth does to their gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bnbook import data, layers, models, training
from bnbook._checks import check_choice
from bnbook.experiments import by_name
from bnbook.experiments._parts import Branch
from bnbook.experiments.saturation import images_of
from bnbook.sgd import endless

__all__ = [
    "KINDS",
    "LOSSES_OF",
    "SCALES",
    "Centred",
    "Directions",
    "balance",
    "deep",
    "depths",
    "first_angles",
    "gradient_lengths",
    "invariant",
    "predicted_angle",
    "run",
    "turning",
]

KINDS = ("as it is", "balanced", "residual")
"""Networks of :func:`deep`."""
LOSSES_OF = 12
"""The training loss of :func:`depths` is the mean over so many last steps."""

_OTHERS = (100, 101, 102)  # seeds: the chapter's verdicts use others
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "balance",
            "images": ["digits", "fashion"],
            "optimizer": optimizer,
            "beta": beta,
            "product": (0.1, 0.03, 0.01, 0.003, 0.001),
            "seed": _OTHERS,
        }
        for optimizer, beta in (("SGD", [0.0, 0.9]), ("AdamW", 0.9))
    ]
    + [
        {
            "map": "depths",
            "kind": [*KINDS],
            "depth": [10, 20],
            "rate": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
            "steps": (40, 160),
            "seed": _OTHERS,
        }
    ]
}
"""Grids by the name of the scale."""


# --------------------------------------------------------------------------- networks that ignore length


class Directions(nn.Linear):
    """A linear layer that uses only the direction of each unit's weights, as weight normalization does.

    It multiplies by a fixed `gain`, where weight normalization would learn one.

    >>> layer = Directions(8, 4, gain=2.0)
    >>> layer(torch.ones(1, 8)).shape
    torch.Size([1, 4])
    """

    def __init__(self, n_in: int, n_out: int, gain: float) -> None:
        super().__init__(n_in, n_out, bias=False)
        self.gain = gain

    def forward(self, input: Tensor) -> Tensor:
        """Scores of shape (m, n_out) from inputs of shape (m, n_in)."""
        return F.linear(input, self.gain * F.normalize(self.weight, dim=1))


class Centred(nn.Module):
    """Mean-only batch normalization: subtracts the mean of the batch, in evaluation a moving average of it.

    >>> Centred(1)(torch.tensor([[1.0], [3.0]])).ravel()
    tensor([-1.,  1.])
    """

    running_mean: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the shape of `x`, (m, units)."""
        if not self.training:
            return x - self.running_mean
        mean = x.mean(0)
        with torch.no_grad():
            self.running_mean.mul_(0.9).add_(0.1 * mean)
        return x - mean


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def invariant(
    in_shape: Sequence[int],
    classes: int,
    *,
    norm: str = "batch",
    times: float = 1.0,
    depth: int = 2,
    width: int = 32,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """ReLU network all of whose parameters are weights of units whose length does not matter.

    There is no bias, γ, or β, and ε is 0; a norm stands behind the last layer too, times 4.

    Parameters
    ----------
    norm : {'batch', 'weight', 'centred'}
        Batch normalization; :class:`Directions`; or these, each followed by :class:`Centred`.
    times : float
        The first weights have the standard deviation times / sqrt(number of inputs).

    Examples
    --------
    >>> one, four = (invariant((8,), 3, times=t, width=4).eval() for t in (1.0, 4.0))
    >>> [tuple(weight.shape) for weight in one.parameters()]
    [(4, 8), (4, 4), (3, 4)]
    """
    check_choice(("batch", "weight", "centred"), norm=norm)
    sizes = [math.prod(in_shape), *[width] * depth, classes]
    parts: list[nn.Module] = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        last = k == depth
        if norm == "batch":
            parts += [
                nn.Linear(n_in, n_out, bias=False),
                layers.BatchNorm(n_out, eps=0.0, affine=False),
                _Times(4.0) if last else nn.ReLU(),
            ]
        else:
            parts += [Directions(n_in, n_out, 4.0 if last else math.sqrt(2))]
            parts += [Centred(n_out)] if norm == "centred" else []
            parts += [] if last else [nn.ReLU()]
    model = nn.Sequential(*parts).to(dtype)
    for weight in model.parameters():
        nn.init.normal_(weight, std=times / math.sqrt(weight.shape[1]))
    return model


# --------------------------------------------------------------------------- the balance with weight decay


def predicted_angle(product: float, optimizer: str = "SGD", beta: float = 0.0) -> float:
    """Angle per step in balance, root mean square, in radians.

    Parameters
    ----------
    product : float
        Learning rate times weight decay.
    optimizer : {'SGD', 'AdamW'}
    beta : float
        Momentum of SGD, β₁ of AdamW.

    Examples
    --------
    >>> round(predicted_angle(0.01), 3), round(predicted_angle(0.01, "SGD", 0.9), 3)
    (0.142, 0.103)
    >>> round(predicted_angle(0.01, "AdamW", 0.9), 3)
    0.032
    """
    check_choice(("SGD", "AdamW"), optimizer=optimizer)
    share = (1 if optimizer == "SGD" else 1 - beta) / (1 + beta)
    # Without momentum the angle is known exactly, from the right triangle.
    return math.acos(1 - product) if beta == 0 else math.sqrt(2 * product * share)


def turning(
    images: data.Data,
    *,
    seed: int,
    steps: int,
    rate: float,
    decay: float,
    optimizer: str = "SGD",
    beta: float = 0.0,
    start: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Train a batch-normalized network of 2 x 64 ReLUs with decay on its hidden weights alone.

    Parameters
    ----------
    start : float
        Gain of the first weights.

    Returns
    -------
    ndarray of shape (steps + 1,)
        Length of the weights of the second hidden layer.
    ndarray of shape (steps,)
        Angle by which each step turns the weights of its units, root mean square, in radians.

    Examples
    --------
    >>> length, angle = turning(data.digits(), seed=0, steps=3, rate=0.3, decay=0.08)
    >>> length.shape, angle.shape
    ((4,), (3,))
    """
    torch.manual_seed(seed)
    classes = int(images.y_train.max()) + 1
    model = models.mlp(images.x_train.shape[1:], classes, norm="batch", depth=2, width=64, init=start)
    hidden = [part.weight for part in model if isinstance(part, nn.Linear)][:-1]
    others = [p for p in model.parameters() if all(p is not w for w in hidden)]
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    steps_of: torch.optim.Optimizer
    if optimizer == "SGD":
        steps_of = torch.optim.SGD(groups, lr=rate, momentum=beta)
    else:
        steps_of = torch.optim.AdamW(groups, lr=rate, betas=(beta, 0.999))
    x, y = torch.from_numpy(images.x_train), torch.from_numpy(images.y_train)
    drawn = endless(len(x), 64, np.random.default_rng(seed))
    w = hidden[1]
    length, angle = [w.norm().item()], []
    for _ in range(steps):
        chosen = torch.from_numpy(next(drawn))
        steps_of.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x[chosen]), y[chosen]))
        before = F.normalize(w.detach(), dim=1)
        steps_of.step()
        half = (F.normalize(w.detach(), dim=1) - before).norm(dim=1) / 2
        length.append(w.norm().item())
        angle.append((2 * half.asin()).square().mean().sqrt().item())
    return np.array(length), np.array(angle)


def balance(
    images: str, optimizer: str, beta: float, product: Sequence[float], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Angle per step of :func:`turning` over the predicted one, in the second half of 5 / product steps."""
    chosen = images_of(images)
    rate = 0.3 * (1 - beta) if optimizer == "SGD" else 0.01
    rows = []
    for value in product:
        for s in seed:
            _, angle = turning(
                chosen,
                seed=s,
                steps=math.ceil(5 / value),
                rate=rate,
                decay=value / rate,
                optimizer=optimizer,
                beta=beta,
            )
            measured = math.sqrt(np.square(angle[len(angle) // 2 :]).mean())
            over = measured / predicted_angle(value, optimizer, beta)
            rows.append({"product": value, "seed": s, "side": "measured", "over": over})
    return rows


# --------------------------------------------------------------------------- depth


def gradient_lengths(kind: str, *, seed: int, depth: int, m: int, width: int = 256) -> NDArray[np.float64]:
    """Length of the gradient at the input and after each layer of a fresh network, for `m` Gaussian inputs.

    Parameters
    ----------
    kind : {'he', 'relu', 'residual', 'linear', 'orthogonal'}
        He's ReLU network without a norm; batch-normalized ReLU layers, alone or as residual branches; and
        batch-normalized layers without an activation, with Gaussian or orthogonal weights.

    Examples
    --------
    >>> gradient_lengths("relu", seed=0, depth=3, m=8, width=16).shape
    (4,)
    """
    check_choice(("he", "relu", "residual", "linear", "orthogonal"), kind=kind)
    g = torch.Generator().manual_seed(seed)
    path = [torch.randn(m, width, generator=g).requires_grad_()]
    for _ in range(depth):
        W = torch.randn(width, width, generator=g)
        u = path[-1] @ (torch.linalg.qr(W)[0] if kind == "orthogonal" else W / width**0.5)
        if kind == "he":
            path.append(F.relu(2**0.5 * u))
            continue
        x_hat = (u - u.mean(0)) / u.std(0, correction=0)
        h = x_hat if kind in ("linear", "orthogonal") else F.relu(x_hat)
        path.append(path[-1] + h if kind == "residual" else h)
    R = torch.randn(m, width, generator=g)
    return np.array([d.norm().item() for d in torch.autograd.grad((R * path[-1]).sum(), path)])


def deep(
    in_shape: Sequence[int], classes: int, *, kind: str, depth: int = 20, width: int = 32
) -> nn.Sequential:
    """Batch-normalized ReLU network, without γ and β, for the digits.

    Parameters
    ----------
    kind : {'as it is', 'balanced', 'residual'}
        A balanced network computes the same, and a first step turns the weights of all layers by equal
        angles: the weights of each are multiplied by the root of the angle.

    Examples
    --------
    >>> len(deep((64,), 10, kind="residual", depth=3))
    7
    """
    check_choice(KINDS, kind=kind)
    parts: list[nn.Module] = []
    for n in [math.prod(in_shape)] + [width] * (depth - 1):
        linear = nn.Linear(n, width, bias=False)
        nn.init.normal_(linear.weight, std=n**-0.5)
        block = [linear, layers.BatchNorm(width, affine=False, track_running_stats=False), nn.ReLU()]
        parts += [Branch(*block)] if kind == "residual" and n == width else block
    norm = layers.BatchNorm(width, affine=False, track_running_stats=False)
    model = nn.Sequential(*parts, norm, nn.Linear(width, classes))
    if kind == "balanced":
        weights, angle = first_angles(model)
        for w, factor in zip(weights, (angle / angle.log().mean().exp()).sqrt(), strict=True):
            w.data *= factor
    return model


def first_angles(model: nn.Module) -> tuple[list[Tensor], Tensor]:
    """Weights of the hidden layers, and by how much a first step turns each on digits, up to the rate."""
    digits = data.digits()
    x, y = torch.from_numpy(digits.x_train[:256]), torch.from_numpy(digits.y_train[:256])
    weights = [part.weight for part in model.modules() if isinstance(part, nn.Linear)][:-1]
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
    return weights, torch.stack([d.norm() / w.norm() for w, d in zip(weights, gradients, strict=True)])


def depths(
    kind: str, depth: int, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Training loss of :func:`deep` on digits in batches of 32; NaN after a divergence."""
    digits = data.digits()
    few = digits._replace(x_test=digits.x_test[:20], y_test=digits.y_test[:20])
    runs = training.sweep(
        deep,
        few,
        kind=kind,
        depth=depth,
        lr=[*rate],
        steps=max(steps),
        evaluate_every=max(steps),
        batch_size=32,
        seeds=seed,
    )
    return [
        {"rate": r, "steps": k, "seed": s, "loss": float(runs.loss[i, j, k - LOSSES_OF : k].mean())}
        for i, r in enumerate(rate)
        for j, s in enumerate(seed)
        for k in steps
    ]


run = by_name(balance, depths)
