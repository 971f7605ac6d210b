"""What several test files need: random inputs and layers, and comparisons in rounding errors."""

import numpy as np
import torch
from matplotlib.colors import to_rgb
from torch import Tensor, nn


def public(module):
    """The functions and classes that a module defines and does not hide, by name."""
    defined = vars(module).items()
    return {k: v for k, v in defined if getattr(v, "__module__", "") == module.__name__ and k[0] != "_"}


def normal_array(*shape, seed=0):
    """Independent standard normal numbers, as an array in float64."""
    return np.random.default_rng(seed).standard_normal(shape)


def normal(*shape, dtype=torch.float64, seed=0):
    """As :func:`normal_array`, as a tensor."""
    return torch.from_numpy(normal_array(*shape, seed=seed)).to(dtype)


def randomize(layer, seed=1):
    """Draw all parameters around 1, so that neither a factor nor a summand is one that does nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1, 0.5, generator)
    return layer


def build(make):
    """Make a network, with its own seed and in float64, and leave the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def outputs_and_gradients(layer, x, dy):
    """Output, then the gradients of x and the parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)


def assert_close(actual, expected, ulps=16):
    """Within `ulps` rounding errors of the largest value: what a short chain of operations may lose.

    Of arrays or tensors; whole numbers have to be equal.
    """
    actual, expected = (
        value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
        for value in (actual, expected)
    )
    assert actual.shape == expected.shape
    if not actual.is_floating_point():
        assert torch.equal(actual, expected.to(actual.dtype))
    elif actual.numel():
        error = (actual.double() - expected.double()).abs().max()
        bound = ulps * torch.finfo(actual.dtype).eps * expected.double().abs().max()
        assert error <= bound, f"error {error:.3g}, allowed {bound:.3g}"


def luminance(colour):
    """Relative luminance of WCAG 2."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
