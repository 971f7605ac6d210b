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
from torch import Tensor, nn

from bnbook import data, layers, models, probes, sgd, training

WIDTH = 32  # units in each hidden layer, as in the maps of the chapters on saturation and training


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
