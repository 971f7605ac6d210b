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
from bookbuild.results import BOOK
from bookbuild.sphinx_ext import title_of

WIDTH = 32  # units in each hidden layer, as in the maps of the chapters on saturation and training

# The knobs of a network: what the page writes beside each, its values, and their names where they have some.
KNOBS: dict[str, dict[str, Any]] = {
    "norm": {
        "label": "normalization",
        "values": ["none", "batch", "layer", "group", "rms"],
        "names": ["none", "batch norm", "layer norm", "group norm, 4 groups", "RMS norm"],
    },
    "placement": {
        "label": "its place",
        "values": ["before", "after"],
        "names": ["before the activation", "after the activation"],
    },
    "activation": {
        "label": "activation",
        "values": ["sigmoid", "tanh", "relu"],
        "names": ["sigmoid", "tanh", "ReLU"],
    },
    "depth": {"label": "hidden layers", "values": [*range(1, 9)]},
    "gain": {
        "label": "gain of the first weights",
        "values": [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 4, 5, 7, 10],
    },
    "rate": {
        "label": "learning rate",
        "values": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10],
    },
    "batch": {"label": "batch size", "values": [2**k for k in range(1, 9)]},
    "momentum": {
        "label": "momentum of running statistics",
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
STORIES = (
    Story(
        "sigmoid",
        "Sigmoids that do not start",
        "Four layers of sigmoids with small first weights: A never leaves 10 %, which is guessing. With batch norm, and "
        "everything else the same, B learns.",
        "saturation",
        SIGMOID,
        SIGMOID._replace(norm="batch"),
        300,
    ),
    Story(
        "rate",
        "A rate that kills",
        "At this learning rate the units of A die. B learns.",
        "training",
        Settings(rate=1),
        Settings(rate=1, norm="batch"),
        300,
    ),
    Story(
        "weights",
        "Good first weights",
        "The sigmoids again: A has no norm but larger first weights, and learns as well. B has batch norm.",
        "saturation",
        SIGMOID._replace(gain=5),
        SIGMOID._replace(norm="batch"),
        300,
    ),
    Story(
        "two",
        "A batch of two",
        "Both see two images at a time. Batch norm suffers.",
        "small_batches",
        Settings(norm="batch", batch=2, rate=0.02),
        Settings(norm="layer", batch=2, rate=0.02),
        1000,
    ),
    Story(
        "lag",
        "Statistics that lag",
        "The two networks train alike.",
        "inference",
        Settings(norm="batch", momentum=0.003),
        Settings(norm="batch", momentum=0.1),
        200,
    ),
    Story(
        "depth",
        "Gradients that grow with depth",
        "Look at the gradients before the first step.",
        "scale_invariance",
        Settings(depth=8),
        Settings(depth=8, norm="batch"),
        200,
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
    history = training.fit(model, digits, steps=steps, seed=seed, lr=lr, batch_size=batch_size)
    norms = [layer for layer in model if isinstance(layer, layers.BatchNorm)]
    running = [[layer.running_mean.tolist(), layer.running_var.tolist()] for layer in norms]

    model.train()  # from here on only the running statistics change, which nothing below reads
    order = sgd.endless(len(digits.x_train), batch_size, seed)
    coming = next(itertools.islice(order, steps, None))
    x, y = torch.from_numpy(digits.x_train[coming]), torch.from_numpy(digits.y_train[coming])
    gradients = probes.gradient_norms(model, F.cross_entropy, x, y).weight.tolist()
    activation = models.ACTIVATIONS[settings.activation]
    inputs = probes.layer_inputs(model, x, activation)
    shares = [share_of(values, settings.activation) for values in inputs]

    chunks = zip(
        torch.from_numpy(digits.x_test).split(batch_size),
        torch.from_numpy(digits.y_test).split(batch_size),
        strict=True,
    )
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in chunks)
    accuracy = {"running": float(history.series["test_accuracy"][-1]), "batch": right / len(digits.y_test)}
    return Reference(history.loss.tolist(), accuracy, running, gradients, shares)


def share_of(values: Tensor, activation: str) -> float:
    """The share of saturated values, or for ReLU of dead units."""
    if activation == "relu":
        return probes.dead_share(values)
    return probes.saturated_share(values, activation)


def packed_digits() -> dict[str, Any]:
    """The images, for the page: pixels from 0 to 16 and labels, compressed, in Base64; training images first."""
    digits = data.digits()
    pixels = np.concatenate([digits.x_train, digits.x_test]) * 16
    labels = np.concatenate([digits.y_train, digits.y_test])
    raw = np.concatenate([pixels.ravel(), labels]).astype(np.uint8).tobytes()
    return {"packed": base64.b64encode(zlib.compress(raw, 9)).decode(), "train": len(digits.x_train)}
