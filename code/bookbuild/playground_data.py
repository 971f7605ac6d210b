"""What the playground begins with, and what the package computes with the same settings.

The numbers on the page (images, knobs, stories) come from here. The scripts in ``book/_static/playground``
train in the page what :func:`train` trains here; browser tests compare the two.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnbook import data, layers, models, plots, probes, sgd, training
from bookbuild.results import BOOK, title_of

WIDTH = 32  # units in each hidden layer, as in the maps of the chapters on saturation and training

# The knobs of a network: what the page writes beside each, its values, and their names where they have some.
KNOBS: dict[str, dict[str, Any]] = {
    "norm": {
        "label": "normalization",
        "values": ["none", "batch", "layer", "group", "rms"],
        "names": ["none", "batch norm", "layer norm", "group norm", "RMS norm"],
    },
    "placement": {
        "label": "order",
        "values": ["before", "after"],
        "names": ["norm first", "norm last"],
    },
    "activation": {
        "label": "activation",
        "values": ["sigmoid", "tanh", "relu"],
        "names": ["sigmoid", "tanh", "ReLU"],
    },
    "depth": {"label": "hidden layers", "values": [*range(1, 9)]},
    "gain": {
        "label": "gain of weights",
        "values": [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 4, 5, 7, 10],
    },
    "rate": {
        "label": "learning rate",
        "values": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10],
    },
    "batch": {"label": "batch size", "values": [2**k for k in range(1, 9)]},
    "momentum": {
        "label": "momentum",
        "values": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
    },
}


class Settings(NamedTuple):
    """What a reader sets of one network."""

    norm: str = "none"
    placement: str = "before"
    activation: str = "relu"
    depth: int = 4
    gain: float = 1.4
    rate: float = 0.1
    batch: int = 64
    momentum: float = 0.1  # the weight of the new value in the running statistics


def network(
    in_shape: tuple[int, ...], classes: int, *, running_momentum: float = 0.1, **settings: Any
) -> nn.Sequential:
    """The network of the playground, for :func:`bnbook.training.sweep`."""
    model = models.mlp(in_shape, classes, width=WIDTH, **settings)
    for layer in model:
        if isinstance(layer, layers.BatchNorm):
            layer.momentum = running_momentum
    return model


def swept(settings: Settings) -> dict[str, Any]:
    """The settings as :func:`bnbook.training.sweep` takes them, with :func:`network`."""
    names = {"gain": "init", "rate": "lr", "batch": "batch_size", "momentum": "running_momentum"}
    return {names.get(name, name): value for name, value in settings._asdict().items()}


class Story(NamedTuple):
    """Settings of both networks, and what to watch: two sentences that hold on ten seeds."""

    name: str
    title: str
    watch: str
    chapter: str
    a: Settings
    b: Settings
    steps: int  # where it ends
    test: str = "running"  # the statistics that the test begins with


SIGMOID = Settings(activation="sigmoid", gain=1, rate=1)
TWO = Settings(norm="batch", batch=2, rate=0.02)
LAG = Settings(norm="batch", momentum=0.001)
STORIES = (
    Story(
        "sigmoid",
        "Stuck sigmoids",
        "Four layers of sigmoids start from small weights: A is guessing, and its loss stays at "
        "2.3, since almost no gradient reaches its first layer. B differs in one knob, batch norm, "
        "and learns.",
        "saturation",
        SIGMOID,
        SIGMOID._replace(norm="batch"),
        300,
    ),
    Story(
        "rate",
        "A deadly rate",
        "A learning rate of 1 is too much for A: on some seeds its loss is soon no longer a number, on "
        "most others its units die. With batch norm, B learns at the same rate.",
        "training",
        Settings(rate=1),
        Settings(rate=1, norm="batch"),
        300,
    ),
    Story(
        "weights",
        "Good first weights",
        "The stuck sigmoids again, but A starts from weights that are five times as large, and "
        "learns without a norm. B has batch norm and small weights: either cure is enough.",
        "saturation",
        SIGMOID._replace(gain=5),
        SIGMOID._replace(norm="batch"),
        300,
    ),
    Story(
        "two",
        "A batch of two",
        "At step 0 batch norm makes +1 and −1 of any two values, which leaves only their order, and "
        "A hardly learns. Group norm looks at one image at a time, and B learns.",
        "small_batches",
        TWO,
        TWO._replace(norm="group"),
        1000,
    ),
    Story(
        "lag",
        "Lagging statistics",
        "The two losses are the same, but A takes only 0.1 % of each batch into its running "
        "statistics, and makes at least twice as many errors in the test. Let the test use the "
        "statistics of the test batch, and A is as good as B.",
        "inference",
        LAG,
        LAG._replace(momentum=0.1),
        100,
    ),
    Story(
        "depth",
        "Growing gradients",
        "At step 0 the gradients grow from layer 8 down to layer 1: in B, with batch norm, to more than "
        "three times their length, in A less or not at all. Growth alone does no harm: "
        "press Play, and B learns faster than A.",
        "scale_invariance",
        Settings(depth=8),
        Settings(depth=8, norm="batch"),
        100,
    ),
)


def start(small: bool = False) -> dict[str, Any]:
    """What the page embeds: images, knobs, stories; JSON."""
    stories = [
        {**story._asdict(), "a": story.a._asdict(), "b": story.b._asdict(), "chapterTitle": title}
        for story, title in zip(STORIES, titles(), strict=True)
    ]
    return {"images": packed_digits(), "width": WIDTH, "knobs": KNOBS, "stories": stories, "small": small}


def titles() -> list[str]:
    """The titles of the chapters that the stories lead to."""
    return [title_of(BOOK / f"{story.chapter}.md") for story in STORIES]


def draw() -> Figure:
    """The first story, as a picture: what stays where nothing can be trained."""
    story = STORIES[0]
    fig, axes = plots.figure(2, height=4.4, sharex=True)
    for settings in (story.a, story.b):
        wanted = swept(settings)
        batch_size = wanted.pop("batch_size")
        runs = training.sweep(
            network,
            data.digits(),
            steps=story.steps,
            seeds=1,
            batch_size=batch_size,
            evaluate_every=10,
            **wanted,
        )
        plots.line(axes[0], np.arange(story.steps), runs.loss[0], settings.norm)
        plots.line(axes[1], runs.steps, runs.series["test_accuracy"][0], settings.norm)
    axes[0].set(ylabel="training loss", yscale="log")
    axes[1].set(xlabel="step", ylabel="test accuracy", ylim=(0, 1.02))
    return fig


class Reference(NamedTuple):
    """What the package computes with some settings: see :func:`train`."""

    losses: list[float]
    accuracy: dict[str, float]
    running: list[list[list[float]]]
    gradients: list[float]
    shares: list[float]


def train(settings: Settings, seed: int, steps: int) -> Reference:
    """Train a network with :func:`bnbook.training.fit`, and look into it.

    Parameters
    ----------
    settings : Settings
    seed : int
        Of the weights and the mini-batches.
    steps : int
        Number of updates.

    Returns
    -------
    Reference
        ``losses`` of the mini-batches; ``accuracy`` on the test images, with ``running`` statistics and with
        those of each ``batch`` of them; ``running``, the mean and variance in each batch norm. On the
        mini-batch of the next step: ``gradients``, the lengths of the weights' in all layers; ``shares``,
        the saturated or dead share of each hidden layer.
    """
    digits, wanted = data.digits(), swept(settings)
    lr, batch_size = wanted.pop("lr"), wanted.pop("batch_size")
    torch.manual_seed(seed)
    model = network((64,), 10, **wanted)
    losses: list[float] = []
    if steps:
        history = training.fit(model, digits, steps=steps, seed=seed, lr=lr, batch_size=batch_size)
        losses = history.loss.tolist()
    norms = [layer for layer in model if isinstance(layer, layers.BatchNorm)]
    running = [[getattr(layer, name).tolist() for name in ("running_mean", "running_var")] for layer in norms]
    accuracy = {"running": test_accuracy(model.eval(), digits, len(digits.x_test))}

    model.train()  # from here on only the running statistics change, which nothing reads any more
    accuracy["batch"] = test_accuracy(model, digits, batch_size)
    order = sgd.endless(len(digits.x_train), batch_size, seed)
    coming = next(itertools.islice(order, steps, None))
    x, y = torch.from_numpy(digits.x_train[coming]), torch.from_numpy(digits.y_train[coming])
    gradients = probes.gradient_norms(model, F.cross_entropy, x, y).weight.tolist()
    inputs = probes.layer_inputs(model, x, type(models.ACTIVATIONS[settings.activation]()))
    shares = [share_of(values, settings.activation) for values in inputs]
    return Reference(losses, accuracy, running, gradients, shares)


@torch.no_grad()
def test_accuracy(model: nn.Module, digits: data.Data, at_once: int) -> float:
    """Share of the test images that get their digit, so many at once, in the mode in which the model is."""
    x, y = torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test)
    right = torch.cat([model(part).argmax(1) for part in x.split(at_once)]) == y
    return right.double().mean().item()


def share_of(values: Tensor, activation: str) -> float:
    """The share of saturated values, or for ReLU of dead units."""
    if activation == "relu":
        return probes.dead_share(values)
    return probes.saturated_share(values, activation)


def packed_digits() -> dict[str, Any]:
    """The images for the page: pixels from 0 to 16, then labels, compressed; training images first."""
    digits = data.digits()
    pixels = np.concatenate([digits.x_train, digits.x_test]) * 16
    labels = np.concatenate([digits.y_train, digits.y_test])
    raw = np.concatenate([pixels.ravel(), labels]).astype(np.uint8).tobytes()
    return {"packed": base64.b64encode(zlib.compress(raw, 9)).decode(), "train": len(digits.x_train)}
