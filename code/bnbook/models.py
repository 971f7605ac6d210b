"""The networks that the chapters train.

Each is built from the shape of one input and the number of classes; the norm, the activation, the
initial weights and the place of the norm are parameters. A model is an ``nn.Sequential`` that reads
from top to bottom like the diagram in the text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from bnbook import layers
from bnbook._checks import check_choice

Norm = str | tuple[str, float]
Init = str | float | tuple[str, float]

#: Activations by name.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}

#: What makes each norm from the number of channels and one more number, where it needs one.
NORMS: dict[str, Callable[[int, Any], nn.Module]] = {
    "none": lambda channels, _: nn.Identity(),
    "batch": lambda channels, _: layers.BatchNorm(channels),
    # 4 groups, or as many of them as divide the channels.
    "group": lambda channels, groups: layers.GroupNorm(groups or math.gcd(4, channels), channels),
    "layer": lambda channels, _: layers.GroupNorm(1, channels),  # the whole example, one gamma a channel
    "instance": lambda channels, _: layers.InstanceNorm(channels, affine=True),
    "rms": lambda channels, _: layers.RMSNorm(channels),  # over the last axis: for vectors
    "noisy": lambda channels, _: layers.NoisyBatchNorm(channels),
    # The number is alpha's first value.
    "dyt": lambda channels, alpha0: layers.DyT(channels, alpha0 or 0.5, channels_last=False),
    "renorm": lambda channels, _: layers.BatchRenorm(channels, r_max=3, d_max=5),  # the paper's limits
    "ghost": lambda channels, size: layers.GhostBatchNorm(channels, size or 0),  # 0 is refused: name a size
    "lp": lambda channels, p: layers.LpBatchNorm(channels, p),  # None is refused: name a p
}


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Make a normalization layer for so many channels, or units, from its name.

    The name is a key of :data:`NORMS`, alone or with its number, such as ``("group", 8)`` for 8 groups,
    ``("ghost", 16)`` for ghosts of 16 examples, ``("lp", math.inf)`` for the largest deviation, or
    ``("dyt", 0.2)`` for a dynamic tanh that starts at alpha = 0.2.

    >>> make_norm(("group", 2), 8).num_groups
    2
    """
    name, number = (norm, None) if isinstance(norm, str) else norm
    check_choice(NORMS, norm=name)
    return NORMS[name](channels, number)


def mlp(
    in_shape: Sequence[int],
    classes: int,
    *,
    depth: int = 3,
    width: int = 100,
    norm: Norm = "none",
    activation: str = "relu",
    init: Init = "he",
    placement: str = "before",
    bias: bool | None = None,
) -> nn.Sequential:
    """Fully connected network: `depth` hidden layers of `width` units, then a linear layer.

    Parameters
    ----------
    in_shape : sequence of int
        Shape of one input; it is flattened.
    classes : int
        Number of outputs.
    depth, width : int
        Number of hidden layers, and of units in each.
    norm : str or (str, number)
        For :func:`make_norm`.
    activation : str
        A key of :data:`ACTIVATIONS`.
    init : str, float or (str, float)
        For :func:`initial_std`; biases start at 0.
    placement : {'before', 'after'}
        Whether the norm stands before or after the activation.
    bias : bool, optional
        Whether the hidden layers have a bias; by default as :func:`has_bias` decides.

    Examples
    --------
    >>> model = mlp((1, 28, 28), 10, depth=1, width=50, norm="batch")
    >>> [type(part).__name__ for part in model]
    ['Flatten', 'Linear', 'BatchNorm', 'ReLU', 'Linear']
    >>> model[1].bias is None, model[4].bias is None
    (True, False)
    """
    sizes = [math.prod(in_shape), *[width] * depth]
    parts: list[nn.Module] = [nn.Flatten()] if len(in_shape) > 1 else []
    for fan_in, fan_out in itertools.pairwise(sizes):
        with_bias = has_bias(norm, placement) if bias is None else bias
        parts += [nn.Linear(fan_in, fan_out, bias=with_bias), *_block(fan_out, norm, activation, placement)]
    return _initialized(nn.Sequential(*parts, nn.Linear(sizes[-1], classes)), init)


def deep_linear(
    in_shape: Sequence[int],
    classes: int,
    *,
    depth: int = 25,
    width: int = 10,
    norm: Norm = "none",
    init: Init = 1.0,
) -> nn.Sequential:
    """Deep linear network: as :func:`mlp` without activation ([santurkar2018]_, section 2.2).

    >>> [type(part).__name__ for part in deep_linear((64,), 10, depth=2)]
    ['Linear', 'Linear', 'Linear']
    """
    return mlp(in_shape, classes, depth=depth, width=width, norm=norm, activation="none", init=init)


def lenet(
    in_shape: Sequence[int],
    classes: int,
    *,
    norm: Norm = "none",
    activation: str = "sigmoid",
    init: Init = "glorot",
) -> nn.Sequential:
    """LeNet-5 with average pooling ([lecun1998gradient]_), with a norm before each activation.

    `in_shape` is (C, H, W); 28 x 28 images are padded to 32 x 32 as in the original. The rest is as in
    :func:`mlp`.

    >>> sum(weight.numel() for weight in lenet((1, 28, 28), 10).parameters())
    61706
    """
    channels, height, width = _image(in_shape)
    # Two halvings, and the second convolution takes 4 off.
    flat = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    with_bias = has_bias(norm, "before")
    model = nn.Sequential(
        nn.Conv2d(channels, 6, kernel_size=5, padding=2, bias=with_bias),
        *_block(6, norm, activation),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5, bias=with_bias),
        *_block(16, norm, activation),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(flat, 120, bias=with_bias),
        *_block(120, norm, activation),
        nn.Linear(120, 84, bias=with_bias),
        *_block(84, norm, activation),
        nn.Linear(84, classes),
    )
    return _initialized(model, init)


def vgg(
    in_shape: Sequence[int],
    classes: int,
    *,
    widths: Sequence[int] = (8, 8, 0, 16, 16, 0, 32, 32, 32, 32),
    norm: Norm = "none",
    activation: str = "relu",
    init: Init = "glorot",
) -> nn.Sequential:
    """Small VGG ([simonyan2015]_): 3 x 3 convolutions, pooling, a global mean, a linear layer.

    `in_shape` is (C, H, W), and `widths` has the channels of each convolution; a 0 halves height and width.
    The rest is as in :func:`mlp`.

    >>> vgg((1, 8, 8), 10, widths=(4, 0, 16))[-1]
    Linear(in_features=16, out_features=10, bias=True)
    """
    channels, _, _ = _image(in_shape)
    parts: list[nn.Module] = []
    for width in widths:
        if width == 0:
            parts.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=has_bias(norm, "before"))
        parts += [convolution, *_block(width, norm, activation)]
        channels = width
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    return _initialized(nn.Sequential(*parts, *head), init)


def has_bias(norm: Norm, placement: str) -> bool:
    """Only a norm right behind a layer makes its bias redundant; DyT and RMS norm subtract no mean.

    The norm would subtract the bias again ([ioffe2015]_, section 3.2).

    >>> has_bias("none", "before"), has_bias("batch", "before"), has_bias("batch", "after")
    (True, False, True)
    """
    name = norm if isinstance(norm, str) else norm[0]
    return name in ("none", "dyt", "rms") or placement == "after"


def initial_std(init: Init, weight: Tensor) -> float:
    """Standard deviation of the first weights of a linear layer or a convolution.

    ``"he"`` is sqrt(2 / fan_in) ([he2015]_), ``"glorot"`` sqrt(2 / (fan_in + fan_out)) ([glorot2010]_), a
    number g the gain in g / sqrt(fan_in), and ``("std", s)`` is s itself.

    >>> weight = nn.Linear(in_features=8, out_features=24).weight
    >>> initial_std("he", weight), initial_std("glorot", weight), initial_std(("std", 0.1), weight)
    (0.5, 0.25, 0.1)
    """
    fan_in, fan_out = weight[0].numel(), weight.numel() // weight.shape[1]
    match init:
        case "he":
            return math.sqrt(2 / fan_in)
        case "glorot":
            return math.sqrt(2 / (fan_in + fan_out))
        case int() | float() if 0 <= init < math.inf:
            return init / math.sqrt(fan_in)
        case ("std", std) if 0 <= std < math.inf:
            return std
    raise ValueError(f"init: got {init!r}, allowed are 'he', 'glorot', a gain of 0 or more, ('std', number)")


# --------------------------------------------------------------------------- small shared parts


def _block(channels: int, norm: Norm, activation: str, placement: str = "before") -> list[nn.Module]:
    """The norm and the activation of one layer, in their order; without a norm the activation alone."""
    check_choice(ACTIVATIONS, activation=activation)
    check_choice(("before", "after"), placement=placement)
    parts = [make_norm(norm, channels), ACTIVATIONS[activation]()]
    if placement == "after":
        parts.reverse()
    return [part for part in parts if not isinstance(part, nn.Identity)]


def _image(in_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(in_shape) != 3:
        raise ValueError(f"in_shape: got {tuple(in_shape)}, expected (C, H, W)")
    channels, height, width = in_shape
    return channels, height, width


def _initialized(model: nn.Sequential, init: Init) -> nn.Sequential:
    """Draw all weights of linear and convolution layers; biases become 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=initial_std(init, module.weight))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
