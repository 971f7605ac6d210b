"""What is measured inside a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from bnbook.layers import BatchNorm

__all__ = ["per_example_gradients"]


def per_example_gradients(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """Gradient of the loss of each example by itself.

    The model is left as it was: parameters, their ``grad``, buffers, mode and the random state. (Where
    the model draws at random, as dropout does, each example has its own draw.)

    Parameters
    ----------
    model : nn.Module
        In the mode in which the gradients are wanted.
    loss : function
        From the output of shape (1, ...) and the target of shape (1, ...) to a single number, such as
        ``torch.nn.functional.cross_entropy``.
    x : Tensor of shape (examples, ...)
    y : Tensor of shape (examples, ...)

    Returns
    -------
    Tensor of shape (examples, parameters)
        Row i is the gradient of example i. The columns are the parameters that require a gradient,
        flattened, in the order of ``model.parameters()``.

    Raises
    ------
    ValueError
        If there is no example, if `x` and `y` differ in their number, if no parameter requires a
        gradient, or if a layer normalizes with statistics of the batch: the loss of an example then
        depends on its neighbours too, and there is no gradient of an example by itself.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"x, y: got {len(x)} and {len(y)} examples, expected the same number, at least one")
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm | BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"model: layer {name!r} normalizes with the statistics of the batch, so an example's loss "
                "depends on the others; allowed is a layer in evaluation mode with running statistics"
            )
    theta = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    if not theta:
        raise ValueError("model: got no parameter that requires a gradient, at least one is needed")
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}

    def loss_of_one(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, (theta, buffers), (x[None],)), y[None])

    with torch.random.fork_rng(devices=[]):
        gradients = vmap(grad(loss_of_one), (None, 0, 0), randomness="different")(theta, x, y)
    return torch.cat([gradients[name].reshape(len(x), -1) for name in theta], dim=1).detach()
