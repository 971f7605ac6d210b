"""Is it internal covariate shift? The experiments of [santurkar2018]_, sections 2.1 and 2.2.

:func:`noisy_batch_norm` trains a network with and without batch norm, and with noise that moves what its
layers read; :func:`definition_2_1` measures how much a layer's gradient changes when the layers below it
take their step. The scale ``"full"`` has the settings of the paper, on the full Fashion-MNIST in place of
CIFAR-10; ``"small"`` has a smaller network, smaller images and fewer steps; ``"medium"`` is small with up to
a hundred times its steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnbook import models, probes
from bnbook._checks import check_choice
from bnbook.experiments._vision import Part, batches_of, images_of, seeded
from bnbook.layers import BatchNorm, Noise

__all__ = ["SCALES", "SMALL_WIDTHS", "InWidths", "definition_2_1", "noisy_batch_norm", "run", "vgg"]

# A list is an axis of the grid; a tuple is one setting.
_NOISY: dict[str, Any] = {
    "experiment": "noisy_batch_norm",
    "norm": ["none", "batch", "noisy", "noise"],
    "init": "glorot",
}
_DEFINITION: dict[str, Any] = {"experiment": "definition_2_1", "norm": ["none", "batch"]}
SMALL_WIDTHS = 8, 8, 0, 16, 16, 0, 32, 32, 32, 32
_VGG_SMALL = {"images": "small", "widths": SMALL_WIDTHS, "batch_size": 32, "lr": 0.1}
_VGG_FULL = {
    "images": "full",
    "widths": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512),
    "batch_size": 128,
    "lr": 0.1,
}
_VGG = {"network": "vgg", "init": ["glorot", "he"]}
_LINEAR = {"network": "deep_linear", "init": 1.0, "layers": (16, 22)}
SCALES: dict[str, list[dict[str, Any]]] = {
    "small": [
        _DEFINITION | _VGG | _VGG_SMALL | {"steps": 41, "every": 20, "layers": (4, 7)},
        _DEFINITION | _LINEAR | {"lr": 1e-7, "steps": 41, "every": 20},
        _DEFINITION | _LINEAR | {"lr": 1e-6, "norm": "batch", "steps": 41, "every": 20},
        # The plain network takes its time to the edge of stability.
        _DEFINITION | _LINEAR | {"lr": 1e-6, "norm": "none", "steps": 121, "every": 20},
    ],
    "medium": [
        _NOISY | _VGG_SMALL | {"steps": 2000, "every": 50, "layers": (2, 4, 7)},
        _DEFINITION | _VGG | _VGG_SMALL | {"steps": 2001, "every": 50, "layers": (4, 7)},
        _DEFINITION | _LINEAR | {"lr": [1e-7, 1e-6], "steps": 5001, "every": 100},
    ],
    "full": [
        _NOISY | _VGG_FULL | {"steps": 15_000, "every": 100, "layers": (4, 9, 12)},
        _DEFINITION | _VGG | _VGG_FULL | {"steps": 15_000, "every": 100, "layers": (6, 12)},
        _DEFINITION | _LINEAR | {"lr": [1e-7, 1e-6], "steps": 10_000, "every": 100},
    ],
}
"""Grids by the name of the scale."""

Loss = Callable[[Tensor, Tensor], Tensor]
Row = dict[str, Any]


def run(member: dict[str, Any], device: str = "cpu") -> list[Row]:
    """Run one of :func:`bnbook.experiments.members`."""
    settings = dict(member)
    experiments: dict[str, Callable[..., list[Row]]] = {
        "noisy_batch_norm": noisy_batch_norm,
        "definition_2_1": definition_2_1,
    }
    return experiments[settings.pop("experiment")](**settings, device=device)


def noisy_batch_norm(
    *,
    norm: str,
    init: str,
    images: str,
    widths: Sequence[int],
    batch_size: int,
    lr: float,
    steps: int,
    every: int,
    layers: Sequence[int],
    seed: int,
    device: str = "cpu",
) -> list[Row]:
    """Train a VGG whose layers read steady or moving inputs ([santurkar2018]_, section 2.1, figure 2).

    Parameters
    ----------
    norm : {"none", "batch", "noisy", "noise", "same"}
        As in :func:`vgg`.
    images : {"small", "full"}
        Fashion-MNIST: the shipped part, averaged to 14 x 14; or the full set, 28 x 28.
    init, widths
        As in :func:`bnbook.models.vgg`.
    batch_size, lr, steps : int, float, int
        Of SGD.
    every : int
        Steps between two probes, and number of steps whose training losses are averaged into one.
    layers : sequence of int
        Which convolutions to probe, counted from 0 at the input.
    seed : int
        Draws weights, mini-batches and noise.
    device : str

    Returns
    -------
    list of dict
        At each probe one row a layer: ``step`` (number of updates), ``layer`` (from 1), ``p15``,
        ``p50`` and ``p85`` of what its first unit's activation reads on a fixed batch, in training mode
        (which draws the noise); ``moved``, the distance of a unit's median from that at the last probe,
        in mean 15-85 spreads of the two probes, and ``width``, the spread itself, both as the median
        over the units. Then rows with ``step`` and ``loss``, the mean training loss of the steps before
        it. And a last row with ``step`` and, on the first 500 test images, ``accuracy`` in evaluation
        mode, where no noise is drawn, ``accuracy_batch`` without noise but with the statistics of the
        500, and ``accuracy_noisy`` in training mode.
    """
    rows: list[Row] = []
    with seeded(seed, device):
        part = images_of(images, device)
        model = vgg(part, norm, widths, init).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        fixed = part[0][:batch_size]
        before: list[Tensor] = []
        losses: list[Tensor] = []
        for step, (x, y) in enumerate(batches_of(part, batch_size, steps, seed)):
            if step % every == 0:
                before = _moved(model, fixed, layers, step, before, rows)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == every or step == steps - 1:
                rows.append({"step": step + 1, "loss": torch.stack(losses).mean().item()})
                losses = []
        _moved(model, fixed, layers, steps, before, rows)
        last = {"step": steps, "accuracy": _accuracy(model.eval(), part)}
        last["accuracy_noisy"] = _accuracy(model.train(), part)
        for layer in model:
            layer.train(not isinstance(layer, Noise | InWidths))
        rows.append({**last, "accuracy_batch": _accuracy(model, part)})
    return rows


def definition_2_1(
    *,
    network: str,
    norm: str,
    init: str | float,
    lr: float,
    steps: int,
    every: int,
    layers: Sequence[int],
    seed: int,
    images: str = "",
    widths: Sequence[int] = (),
    batch_size: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """Measure internal covariate shift during training ([santurkar2018]_, Definition 2.1, figure 3).

    Parameters
    ----------
    network : {"vgg", "deep_linear"}
        Either a VGG on images, or 25 linear layers of 10 x 10 that learn another linear map on 1,000 Gaussian
        examples, all in one batch, with the sum of squared errors as loss.
    norm : {"none", "batch"}
        Behind every hidden layer.
    init : str or float
        As in :func:`bnbook.models.vgg`.
    lr, steps : float, int
        Of SGD.
    every : int
        Steps between two measurements.
    layers : sequence of int
        Which layers to measure, counted from 0 at the input.
    seed : int
        Draws weights and data.
    images, widths, batch_size
        Of the VGG, as in :func:`noisy_batch_norm`.
    device : str

    Returns
    -------
    list of dict
        For each measurement and layer: ``step``, ``layer`` (from 1), ``loss``, and ``distance``, ``relative``
        and ``cosine`` as :func:`bnbook.probes.internal_covariate_shift` gives them, with the batch and
        rate of that step; and ``whole``, the same for all layers in place of those below: the length
        of the change of the whole gradient by the whole step, over the length of the gradient. A
        training that diverges ends with a row of ``step`` and ``loss`` alone.
    """
    check_choice(("none", "batch"), norm=norm)
    check_choice(("vgg", "deep_linear"), network=network)
    rows: list[Row] = []
    with seeded(seed, device):
        if network == "vgg":
            part = images_of(images, device)
            model = vgg(part, norm, widths, init).to(device)
            loss: Loss = F.cross_entropy
            batches = batches_of(part, batch_size, steps, seed)
        else:
            model = _deep_linear(norm, init).to(device)
            loss = squared_error
            x = torch.randn(1000, 10)
            y = x @ torch.randn(10, 10).T
            batches = itertools.repeat((x.to(device), y.to(device)), steps)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for step, (x, y) in enumerate(batches):
            value = loss(model(x), y)
            if not bool(torch.isfinite(value)):
                rows.append({"step": step, "loss": float("inf")})
                break
            if step % every == 0:
                shift = probes.internal_covariate_shift(model, loss, x, y, lr, layers)
                whole = lr * probes.landscape(model, loss, x, y, [lr]).beta.item()
                for layer, *numbers in zip(layers, *(v.tolist() for v in shift[1:]), strict=True):
                    measured = dict(zip(shift._fields[1:], numbers, strict=True))
                    measured |= {"loss": value.item(), "whole": whole}
                    rows.append({"step": step, "layer": layer + 1, **measured})
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
    return rows


class InWidths(nn.Module):
    """A layer that sees each channel standardized over the batch, and whose output gets mean and width back.

    So noise has the same size beside the signal that it meets as it has behind batch norm. Mean and width are
    constants to the gradient.

    >>> InWidths(nn.Identity())(torch.tensor([[1.0], [2.0]]))
    tensor([[1.],
            [2.]])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (N, C) or (N, C, *spatial) as the layer changes it, in the units of `x`."""
        of_batch = [0, *range(2, x.ndim)]
        var, mean = torch.var_mean(x.detach(), of_batch, correction=0, keepdim=True)
        std = torch.sqrt(var).clamp(min=1e-30)
        return torch.addcmul(mean, std, self.layer((x - mean) / std))


def vgg(part: Part, norm: str, widths: Sequence[int], init: str | float) -> nn.Sequential:
    """A VGG for these images, with noise where [santurkar2018]_ put it.

    Parameters
    ----------
    norm : {"none", "batch", "noisy", "noise", "same"}
        Plain; batch norm; batch norm with noise behind it; plain with the noise alone, in the same place;
        plain with noise of the same size in widths of the signal that it meets.
    widths, init
        As in :func:`bnbook.models.vgg`.
    """
    check_choice(("none", "batch", "noisy", "noise", "same"), norm=norm)
    classes = int(part[1].max()) + 1
    inner = "batch" if norm in ("batch", "noisy") else "none"
    return _dressed(models.vgg(part[0].shape[1:], classes, widths=widths, norm=inner, init=init), norm)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Sum over examples and outputs of the squared error: the loss of the deep linear network.

    >>> squared_error(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
    tensor(5.)
    """
    return ((output - target) ** 2).sum()


# --------------------------------------------------------------------------- small shared parts


def _deep_linear(norm: str, init: str | float) -> nn.Sequential:
    """25 linear layers of 10 x 10 without biases, but for that of the last one."""
    model = models.mlp((10,), 10, depth=24, width=10, norm=norm, activation="none", init=init, bias=False)
    return _dressed(model, norm)


def _dressed(model: nn.Sequential, norm: str) -> nn.Sequential:
    """PyTorch's own batch norm in place of ours, the same function with faster kernels; and the noise."""
    parts: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, BatchNorm):
            conv = isinstance(parts[-1], nn.Conv2d)
            parts.append((nn.BatchNorm2d if conv else nn.BatchNorm1d)(layer.num_features))
        else:
            parts.append(layer)
        last = parts[-1]
        if norm == "noisy" and isinstance(last, nn.BatchNorm2d):
            parts.append(Noise(last.num_features))
        elif norm == "noise" and isinstance(last, nn.Conv2d):
            parts.append(Noise(last.out_channels))
        elif norm == "same" and isinstance(last, nn.Conv2d):
            parts.append(InWidths(Noise(last.out_channels)))
    return nn.Sequential(*parts)


def _moved(
    model: nn.Module, x: Tensor, layers: Sequence[int], step: int, before: list[Tensor], rows: list[Row]
) -> list[Tensor]:
    """Append a row a layer on what its activation reads; return the percentiles, for the next call."""
    inputs = probes.layer_inputs(model, x, nn.ReLU)
    now = [probes.percentiles(inputs[layer]) for layer in layers]
    for k, (low, middle, high) in enumerate(now):
        spread = high - low
        row = {"step": step, "layer": layers[k] + 1, "width": spread.median().item()}
        row |= {"p15": low[0].item(), "p50": middle[0].item(), "p85": high[0].item()}
        if before:
            low, earlier, high = before[k]
            row["moved"] = ((middle - earlier).abs() / ((spread + high - low) / 2)).median().item()
        rows.append(row)
    return now


@torch.no_grad()
def _accuracy(model: nn.Module, part: Part) -> float:
    """Share of 500 test images that are classified correctly, in the mode that the model is in."""
    *_, x, y = part
    right: Tensor = model(x[:500]).argmax(1) == y[:500]
    return right.double().mean().item()
