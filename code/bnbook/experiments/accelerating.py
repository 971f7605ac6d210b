"""What the paper changed besides: training recipes compared on small ReLU networks.

Dropout, distorted images, schedules and an order of batches for each member are more than
:func:`bnbook.training.sweep` offers, so this module has a trainer of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bnbook import data, layers
from bnbook._checks import check_choice
from bnbook.experiments import by_name
from bnbook.experiments.saturation import images_of as small_images
from bnbook.sgd import mini_batches

__all__ = [
    "ALL",
    "CHANGES",
    "OLD",
    "SCALES",
    "STEADY",
    "Networks",
    "Recipe",
    "Trained",
    "affine",
    "alone",
    "draw_batches",
    "dropout",
    "factor",
    "images_of",
    "noise",
    "run",
    "train",
]

EPS, MOMENTUM = 1e-5, 0.1
BATCHES = "fixed", "shuffled", "sorted", "mixed", "in order"


class Recipe(NamedTuple):
    """How a network is trained.

    Attributes
    ----------
    lr : float
        Rate of the first step.
    halvings : float
        How often the rate halves, evenly, in the whole training.
    dropout : float or tuple of float
        Share of the activations that is dropped before the output layer; a tuple: behind each hidden layer.
    decay, affine_decay : float
        Weight decay of the weights, and of γ and β.
    batches : str
        ``"fixed"`` batches are cut once and only their order changes, ``"shuffled"`` ones anew in each epoch;
        ``"sorted"`` ones have one class each. With all classes equally in each batch: ``"mixed"``, or the
        same images ``"in order"``, class after class.
    distortion : float
        Largest relative change of an image's contrast; of its brightness, half as much.
    """

    lr: float = 0.2
    halvings: float = 1.0
    dropout: float | tuple[float, ...] = 0.5
    decay: float = 5e-4
    affine_decay: float = 0.0
    batches: str = "fixed"
    distortion: float = 0.6


OLD = Recipe()
"""The recipe that the changes begin with."""

STEADY = Recipe(lr=0.1, halvings=0, dropout=0, decay=0, batches="shuffled", distortion=0)
"""Nothing but stochastic gradient descent."""

CHANGES: dict[str, dict[str, Any]] = {
    "rate x 5": {"lr": 1.0},
    "no dropout": {"dropout": 0.0},
    "weight decay / 5": {"decay": 1e-4},
    "rate decays x 6": {"halvings": 6.0},
    "shuffled": {"batches": "shuffled"},
    "distortion / 3": {"distortion": 0.2},
}
"""Six of the paper's seven changes; the seventh removes a layer that the networks here do not have."""

ALL = Recipe(**{name: value for change in CHANGES.values() for name, value in change.items()})
"""The recipe with all of them."""

SEEDS = 100, 101, 102  # the chapter's verdicts use others
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "alone",
            "change": ["none", *CHANGES],
            "images": images,
            "steps": steps,
            "rate": (0.05, 0.1, 0.2, 0.4, 0.8),
            "seed": SEEDS,
        }
        for images, steps in (("mnist", 320), ("mnist", 1280), ("fashion", 320))
    ]
    + [
        {
            "map": "factor",
            "side": ["batch", "none"],
            "recipe": ["old", "new"],
            "images": images,
            "depth": depth,
            "rate": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
            "level": level,
            "seed": SEEDS,
        }
        for images, depth, level in (
            ("mnist", 5, (0.8, 0.85, 0.88)),
            ("mnist", 10, (0.8, 0.85, 0.88)),
            ("fashion", 5, (0.7, 0.74, 0.78)),
        )
    ]
    + [
        {
            "map": "noise",
            "m": [4, 8, 16, 64],
            "rate": (0.1, 0.2, 0.4, 0.8, 1.6),
            "steps": (200, 800, 3200),
            "seed": SEEDS,
        }
    ]
    + [
        {
            "map": "affine",
            "side": ["weights", "weights, γ and β"],
            "images": images,
            "rate": (0.05, 0.1, 0.2, 0.4, 0.8),
            "decay": (1e-3, 1e-2, 5e-2, 2e-1),
            "steps": steps,
            "seed": SEEDS,
        }
        for images, steps in (("mnist", (320, 1280)), ("fashion", (320,)))
    ]
    + [
        {
            "map": "dropout",
            "side": ["repaired", "left"],
            "rate": (0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
            "steps": (240, 960),
            "seed": SEEDS,
        }
    ]
}
"""Grids by the name of the scale."""


def images_of(name: str) -> data.Data:
    """4,000 training and 1,000 test images of ``"mnist"`` or ``"fashion"``, averaged to 14 x 14 pixels.

    >>> images_of("mnist").x_train.shape
    (4000, 196)
    """
    check_choice(["mnist", "fashion"], name=name)  # the digits have 64 pixels
    return small_images(name)


def draw_batches(y: NDArray[np.int64], seed: int, steps: int, N: int, how: str) -> NDArray[np.int64]:
    """Indices of the mini-batches, (steps, N); :class:`Recipe` says how they can be drawn.

    >>> y = np.repeat(np.arange(10), 4)
    >>> draw_batches(y, seed=0, steps=3, N=4, how="sorted").shape
    (3, 4)
    """
    check_choice(BATCHES, how=how)
    rng = np.random.default_rng(seed)
    batches: list[NDArray[np.int64]] = []
    by_class = np.argsort(y, kind="stable")
    order = by_class if how == "sorted" else rng.permutation(len(y))
    cut_once = order[: len(y) - len(y) % N].reshape(-1, N)
    while len(batches) < steps:  # an epoch at a time
        if how == "shuffled":
            batches += mini_batches(len(y), N, rng, drop_last=True)
        elif how in ("fixed", "sorted"):
            batches += list(rng.permutation(cut_once))
        else:
            rows = rng.permuted(by_class.reshape(10, -1), axis=1)
            epoch = rows.reshape(10, -1, N // 10).swapaxes(0, 1).reshape(-1, N)
            mixed = rng.permutation(N)
            batches += list(epoch[:, mixed] if how == "mixed" else epoch)
    return np.array(batches[:steps])


class Networks:
    """ReLU networks of 196 inputs and 10 classes side by side; activations are (networks, units, examples).

    One batched matrix product serves all networks. Their weights start as He proposed.

    Parameters
    ----------
    seeds : sequence of int
        Of the weights.
    copies : int
        Of each of these, for so many recipes.
    norm : bool
        Whether batch normalization stands before each activation; else a bias.
    m : int, optional
        How many neighbours in the batch share a mean and a variance; by default all.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        copies: int,
        *,
        depth: int = 5,
        width: int = 32,
        norm: bool = True,
        m: int | None = None,
    ) -> None:
        sizes = [196, *[width] * depth, 10]
        self.depth, self.width, self.norm, self.m = depth, width, norm, m
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights = []
        for n, units in itertools.pairwise(sizes):
            each = [torch.randn(units, n, generator=g) * (2 / n) ** 0.5 for g in draws]
            self.weights.append(torch.stack(each).repeat(copies, 1, 1).requires_grad_())
        shapes = [(copies * len(draws), units, 1) for units in sizes[1:]]
        self.beta = [torch.zeros(shape).requires_grad_() for shape in shapes]
        self.gamma = [torch.ones(shape).requires_grad_() for shape in shapes[:-1]]
        self.mean = [torch.zeros(shape) for shape in shapes[:-1]]  # running averages
        self.var = [torch.ones(shape) for shape in shapes[:-1]]

    def parameters(self) -> list[Tensor]:
        """Weights, then β with the output's biases, then γ."""
        return [*self.weights, *self.beta, *(self.gamma if self.norm else [])]

    def normalized(self, u: Tensor, k: int, training: bool) -> Tensor:
        """Batch norm in layer k; in a plain network only its bias."""
        gamma, beta = self.gamma[k], self.beta[k]
        if not self.norm:
            return u + beta
        if not training:
            return gamma * torch.rsqrt(self.var[k] + EPS) * (u - self.mean[k]) + beta
        m = self.m or u.shape[2]
        parts = u.shape[2] // m
        scale, shift = (p.flatten().repeat_interleave(parts) for p in (gamma, beta))
        y, mean, var = layers.normalize(u.reshape(1, -1, m), scale, shift, EPS)
        for running, new in ((self.mean[k], mean), (self.var[k], var * m / (m - 1))):
            running += MOMENTUM * (new.view(-1, self.width, parts).mean(2, keepdim=True) - running)
        return y.view(u.shape)

    def __call__(
        self,
        x: Tensor,
        *,
        training: bool = False,
        masks: Sequence[Tensor | None] | None = None,
        see: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Scores (networks, classes, examples).

        `masks` multiply the activations of each layer; `see(k, u, x)` is shown layer k, where u = W x.
        """
        for k, weight in enumerate(self.weights[:-1]):
            u = weight @ x
            if see:
                see(k, u, x)
            x = F.relu(self.normalized(u, k, training))
            mask = masks[k] if masks else None
            x = x if mask is None else x * mask
        return self.weights[-1] @ x + self.beta[-1]

    @torch.no_grad()
    def scores(self, x: NDArray[np.float32], **options: Any) -> Tensor:
        """Scores (networks, classes, examples) of images (examples, pixels), in evaluation mode."""
        images = torch.from_numpy(x).T
        return self(images.expand(len(self.beta[0]), *images.shape), **options)

    def recalibrate(self, x: NDArray[np.float32]) -> None:
        """Replace the running statistics by those of images in evaluation mode, layer after layer."""

        def see(k: int, u: Tensor, _: Tensor) -> None:
            self.mean[k], self.var[k] = u.mean(2, True), u.var(2, keepdim=True)

        self.scores(x, see=see)

    def test(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Accuracy (0 to 1) and loss of each network; NaN once it has diverged."""
        scores = self.scores(x)
        labels = torch.from_numpy(y).expand(len(scores), -1)
        right = (scores.argmax(1) == labels).double().mean(1)
        right[~scores.isfinite().all((1, 2))] = torch.nan
        return right, F.cross_entropy(scores, labels, reduction="none").mean(1)


@dataclass(frozen=True)
class Trained:
    """What :func:`train` returns.

    Attributes
    ----------
    steps : ndarray of int, shape (evaluations,)
        Number of updates before each evaluation.
    accuracy : ndarray of shape (recipes, seeds, evaluations)
        On the test images, 0 to 1; NaN after a divergence.
    loss : ndarray of shape (recipes, seeds, steps)
        Of each mini-batch before its update.
    networks : Networks
        As they are at the end, one seed after the other for each recipe.
    """

    steps: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    loss: NDArray[np.float64]
    networks: Networks

    def steps_to(self, level: float) -> NDArray[np.float64]:
        """Updates to a test accuracy, interpolated between evaluations; infinity if never reached.

        >>> found = Trained(np.array([0, 10, 20]), np.array([[[0.1, 0.6, 0.8]]]), np.zeros(0), None)
        >>> found.steps_to(0.7).round(6), found.steps_to(0.9)
        (array([[15.]]), array([[inf]]))
        """
        reached = self.accuracy >= level
        i = np.maximum(reached.argmax(-1), 1)
        after, before = (np.take_along_axis(self.accuracy, j[..., None], -1)[..., 0] for j in (i, i - 1))
        part = (level - before) / np.where(after > before, after - before, 1)
        between = self.steps[i - 1] + part * (self.steps[i] - self.steps[i - 1])
        return np.where(reached.any(-1), between, np.inf)


def train(
    recipes: Sequence[Recipe],
    images: data.Data,
    *,
    steps: int,
    seeds: Iterable[int],
    every: int = 20,
    N: int = 64,
    **network: Any,
) -> Trained:
    """Train a network with every recipe and every seed, by stochastic gradient descent.

    Recipes of one seed share their initial weights and what distortion and dropout draw.

    Parameters
    ----------
    every : int
        Updates between two evaluations.
    N : int
        Size of a mini-batch.
    **network
        Settings of :class:`Networks`.
    """
    seeds = list(seeds)
    networks = Networks(seeds, len(recipes), **network)
    x, y = torch.from_numpy(images.x_train), torch.from_numpy(images.y_train)

    def each(value: Callable[[Recipe], Any]) -> Tensor:
        """A number for each network, or for each layer and network."""
        numbers = torch.tensor([value(recipe) for recipe in recipes], dtype=torch.float32)
        return numbers.repeat_interleave(len(seeds), 0).movedim(0, -1)[..., None, None]

    def uniform(rows: int) -> Tensor:
        """Numbers in [0, 1) for each example: the same for all recipes of a seed."""
        draws = torch.stack([torch.rand(rows, N, generator=g) for g in chance])
        return draws.repeat(len(recipes), 1, 1)

    before_output = (0.0,) * (networks.depth - 1)
    keep = 1 - each(lambda r: r.dropout if isinstance(r.dropout, tuple) else (*before_output, r.dropout))
    distortion = each(lambda r: r.distortion)
    rates, halvings = each(lambda r: r.lr), each(lambda r: r.halvings)
    decays = [each(lambda r: r.decay)] * len(networks.weights)
    decays += [each(lambda r: r.affine_decay)] * networks.depth
    decays += [torch.zeros_like(rates)]  # the output's bias
    decays += decays[-2:-1] * networks.depth
    drawn = [draw_batches(images.y_train, s, steps, N, r.batches) for r in recipes for s in seeds]
    order = torch.from_numpy(np.stack(drawn, axis=1))
    chance = [torch.Generator().manual_seed(seed) for seed in seeds]
    tested, accuracies, losses = [], [], []
    for t in range(steps + 1):
        if t % every == 0 or t == steps:
            tested.append(t)
            accuracies.append(networks.test(images.x_test, images.y_test)[0])
        if t == steps:
            break
        batch = x[order[t]].transpose(1, 2)
        if distortion.any():
            contrast, brightness = torch.split(2 * uniform(2) - 1, 1, dim=1)
            batch.mul_(1 + distortion * contrast).add_(distortion / 2 * brightness)
        masks = [(uniform(networks.width) < k) / k if (k < 1).any() else None for k in keep]
        with layers.let_values_diverge():
            scores = networks(batch, training=True, masks=masks)
        loss = F.cross_entropy(scores, y[order[t]], reduction="none").mean(1)
        gradients = torch.autograd.grad(loss.sum(), networks.parameters())
        losses.append(loss.detach())
        rate = rates * 0.5 ** (halvings * t / steps)
        with torch.no_grad():
            for value, gradient, decay in zip(networks.parameters(), gradients, decays, strict=False):
                value -= rate * (gradient + decay * value)

    def on_grid(values: list[Tensor]) -> NDArray[np.float64]:
        grid: NDArray[np.float64] = (
            torch.stack(values, -1).view(len(recipes), len(seeds), -1).double().numpy()
        )
        return grid

    return Trained(np.array(tested), on_grid(accuracies), on_grid(losses), networks)


# --------------------------------------------------------------------------- maps


def alone(
    change: str, images: str, steps: int, rate: Sequence[float], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Test accuracy (%) of normalized networks with one change alone, for several rates of the old recipe.

    With the larger rate the networks train at five times `rate`.
    """
    check_choice(["none", *CHANGES], change=change)
    settings = {name: value for name, value in CHANGES.get(change, {}).items() if name != "lr"}
    times = 5 if change == "rate x 5" else 1
    recipes = [OLD._replace(lr=times * r, **settings) for r in rate]
    found = train(recipes, images_of(images), steps=steps, seeds=seed, every=steps)
    return _rows({"accuracy": 100 * found.accuracy[..., -1]}, rate=rate, seed=seed)


def factor(
    side: str,
    recipe: str,
    images: str,
    depth: int,
    rate: Sequence[float],
    level: Sequence[float],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Updates to several accuracies, of 640, with or without batch norm, and with one of both recipes.

    The rate halves every 320 steps in the old recipe, and six times as often in the new one. 640 where a
    level is not reached; NaN after a divergence.
    """
    check_choice(["batch", "none"], side=side)
    check_choice(["old", "new"], recipe=recipe)
    chosen, steps = OLD if recipe == "old" else ALL, 640
    recipes = [chosen._replace(lr=r, halvings=chosen.halvings * steps / 320) for r in rate]
    norm = side == "batch"
    found = train(recipes, images_of(images), steps=steps, seeds=seed, every=10, depth=depth, norm=norm)
    needed = np.stack([np.minimum(found.steps_to(aim), steps) for aim in level])
    needed[:, np.isnan(found.accuracy[..., -1])] = np.nan
    return _rows({"steps": needed}, level=level, rate=rate, seed=seed)


def noise(m: int, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]) -> list[dict[str, Any]]:
    """Test accuracy (%), generalization gap and training loss when `m` of 64 images share statistics.

    Three layers, 1,000 images of MNIST, a constant rate.
    """
    whole = images_of("mnist")
    few = whole._replace(x_train=whole.x_train[:1000], y_train=whole.y_train[:1000])
    rows = []
    for k in steps:
        found = train([STEADY._replace(lr=r) for r in rate], few, steps=k, seeds=seed, every=k, depth=3, m=m)
        (_, seen), (accuracy, new) = (
            found.networks.test(x, y) for x, y in ((few.x_train, few.y_train), (few.x_test, few.y_test))
        )
        values = {"accuracy": 100 * accuracy, "gap": new - seen, "loss": seen}
        rows += _rows({name: v.numpy() for name, v in values.items()}, steps=[k], rate=rate, seed=seed)
    return rows


def affine(
    side: str,
    images: str,
    rate: Sequence[float],
    decay: Sequence[float],
    steps: Sequence[int],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Test accuracy (%) and median γ with weight decay on the weights alone, or on γ and β as well.

    The rate halves four times.
    """
    check_choice(["weights", "weights, γ and β"], side=side)
    of_affine = 1.0 if "γ" in side else 0.0
    recipes = [
        STEADY._replace(lr=r, halvings=4.0, decay=d, affine_decay=of_affine * d) for r in rate for d in decay
    ]
    rows = []
    for k in steps:
        found = train(recipes, images_of(images), steps=k, seeds=seed, every=k)
        gammas = torch.cat([gamma.detach().abs() for gamma in found.networks.gamma], 1)
        values = {
            "accuracy": 100 * found.accuracy[..., -1],
            "gamma": gammas.flatten(1).median(1).values.numpy(),
        }
        rows += _rows(values, steps=[k], rate=rate, decay=decay, seed=seed)
    return rows


def dropout(
    side: str, rate: Sequence[float], steps: Sequence[int], seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Of the accuracy that dropout 0.5 before each norm costs, points that recalibration repairs, or leaves.

    Four layers of 48 units, a constant rate; what is left is measured against the recalibrated networks
    without dropout.
    """
    check_choice(["repaired", "left"], side=side)
    images, rows = images_of("mnist"), []
    recipes = [STEADY._replace(lr=r, dropout=(p,) * 4) for p in (0.0, 0.5) for r in rate]
    for k in steps:
        found = train(recipes, images, steps=k, seeds=seed, every=k, depth=4, width=48)
        found.networks.recalibrate(images.x_train)
        after = found.networks.test(images.x_test, images.y_test)[0].numpy().reshape(2, -1)
        before = found.accuracy[..., -1].reshape(2, -1)
        points = 100 * (after[1] - before[1] if side == "repaired" else after[0] - after[1])
        rows += _rows({"points": points}, steps=[k], rate=rate, seed=seed)
    return rows


def _rows(values: dict[str, NDArray[Any]], **axes: Sequence[Any]) -> list[dict[str, Any]]:
    """A row for each point of the axes, the last of which runs fastest, with each value there."""
    columns = {name: array.ravel().tolist() for name, array in values.items()}
    return [
        dict(zip(axes, point, strict=True)) | {name: column[i] for name, column in columns.items()}
        for i, point in enumerate(itertools.product(*axes.values()))
    ]


run = by_name(alone, factor, noise, affine, dropout)
