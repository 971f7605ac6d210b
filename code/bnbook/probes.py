"""What is measured inside a network.

Each probe takes a model and a batch, and leaves the model as it was: parameters, their ``grad``,
buffers, mode and hooks, and the random state (of the CPU, and of generators that its layers hold). The
batch is used in the mode that the model is in: in training, batch norm normalizes with the statistics of
the batch, and its running statistics do not take it in. Where a model draws at random, as dropout does,
a probe that compares several points has the same draw at each of them.

The probes read PyTorch modules. A **unit** is a column of (examples, units), or a channel of
(examples, channels, *spatial): its values are those of all examples and positions, as batch norm counts.
A **layer** with a weight is an ``nn.Linear`` or a convolution; layers are counted in the order in which
they run.

Sources: [ioffe2015]_ for percentiles, [santurkar2018]_ internal covariate shift and landscape.

.. [ioffe2015] S. Ioffe, C. Szegedy. Batch Normalization. arXiv:1502.03167.
.. [santurkar2018] S. Santurkar, D. Tsipras, A. Ilyas, A. Madry. How Does Batch Normalization Help
   Optimization? arXiv:1805.11604.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = [
    "CovariateShift",
    "Drift",
    "GradientNorms",
    "Landscape",
    "dead_share",
    "drift",
    "gradient_norms",
    "hessian_vector_product",
    "internal_covariate_shift",
    "jacobian_singular_values",
    "landscape",
    "layer_inputs",
    "per_example_gradients",
    "percentiles",
    "saturated_share",
    "top_eigenvalue",
]

Loss = Callable[[Tensor, Tensor], Tensor]
Parameters = dict[str, Tensor]


class Drift(NamedTuple):
    """How far the distribution of a unit moves while the network learns.

    Attributes
    ----------
    wander : Tensor of shape (...)
        Standard deviation of the median over time / mean spread.
    shift : Tensor of shape (...)
        |last median - first median| / first spread.
    """

    wander: Tensor
    shift: Tensor


class GradientNorms(NamedTuple):
    """Length of the gradient at each layer with a weight, the layer next to the input first.

    Attributes
    ----------
    layers : list of str
        Names of the layers in the model.
    weight : Tensor of shape (layers,)
        With respect to the layer's weight; float64.
    input : Tensor of shape (layers,)
        With respect to what the layer reads, all examples together; the first is that of `x` where the
        model begins with a layer. float64.
    """

    layers: list[str]
    weight: Tensor
    input: Tensor


class CovariateShift(NamedTuple):
    """How the gradient of each layer changes when the layers below it take their step.

    Attributes
    ----------
    layers : list of str
        Names of the layers in the model.
    distance : Tensor of shape (layers,)
        ||G - G'||, in the unit of the gradient; float64.
    relative : Tensor of shape (layers,)
        ||G - G'|| / ||G||; NaN where G is 0.
    cosine : Tensor of shape (layers,)
        Of the angle between G and G'; NaN where one of them is 0 and has no direction.
    """

    layers: list[str]
    distance: Tensor
    relative: Tensor
    cosine: Tensor


class Landscape(NamedTuple):
    """The loss and its gradient at theta - t g, for each step length t. All float64.

    Attributes
    ----------
    loss : Tensor of shape (steps,)
    distance : Tensor of shape (steps,)
        ||g(theta - t g) - g||.
    beta : Tensor of shape (steps,)
        The largest ||g(theta - s g) - g|| / ||s g|| for all s up to t: the effective smoothness over
        the range so far. NaN where g is 0.
    """

    loss: Tensor
    distance: Tensor
    beta: Tensor


# --------------------------------------------------------------------------- activations


def layer_inputs(
    model: nn.Module, x: Tensor, kind: type[nn.Module] | tuple[type[nn.Module], ...]
) -> list[Tensor]:
    """What each submodule of one kind reads, such as the input of each ``nn.Sigmoid``.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is measured.
    x : Tensor of shape (examples, ...)
    kind : class or tuple of classes
        Submodules that are instances of it are recorded.

    Returns
    -------
    list of Tensor
        One for each time that such a submodule runs, in that order. Copies without a gradient.

    Raises
    ------
    ValueError
        If no submodule of this kind runs.
    """
    found: list[Tensor] = []
    ran: set[str] = set()

    def see(_: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        ran.add(type(layer).__name__)
        if isinstance(layer, kind):
            found.append(args[0].detach().clone())  # a copy, as an in-place activation would write into it

    with _watching(model, see), torch.no_grad():
        _output(model, {}, x)
    if not found:
        raise ValueError(f"kind: got {kind}, but what runs in the model is {sorted(ran)}")
    return found


def percentiles(values: Tensor, q: Sequence[float] = (15, 50, 85)) -> Tensor:
    """Percentiles of each unit over the batch ([ioffe2015]_, figure 1b and c).

    Parameters
    ----------
    values : Tensor of shape (examples,), (examples, units) or (examples, channels, *spatial)
    q : sequence of float
        In percent.

    Returns
    -------
    Tensor of shape (len(q),) or (len(q), units)
        In the unit of `values`; linear between neighbouring values.

    Raises
    ------
    ValueError
        If there are no values or one is NaN, or if a percentage is not in 0 to 100.
    """
    if not all(0 <= p <= 100 for p in q):
        raise ValueError(f"q: got {tuple(q)}, allowed are percentages from 0 to 100")
    shares = torch.tensor([p / 100 for p in q], dtype=values.dtype, device=values.device)
    return torch.quantile(_by_unit(values), shares, dim=0)


def drift(medians: Tensor, spreads: Tensor) -> Drift:
    """How far a distribution moves during training, measured in its own width.

    Both numbers are without a unit: 1 means a movement as wide as the distribution itself. A unit that
    stays where it was has 0. A network that does not learn can have a large drift, as a spread near 0
    divides.

    Parameters
    ----------
    medians, spreads : Tensor of shape (times, ...)
        Of each unit at each time: such as the 50th percentile, and the 85th less the 15th.

    Returns
    -------
    Drift
        `wander` and `shift`, of shape (...). The standard deviation divides by the number of times.

    Raises
    ------
    ValueError
        If the shapes differ, if there are fewer than two times, if a value is NaN or infinite, or if a
        spread that divides is not positive.
    """
    if medians.shape != spreads.shape or medians.ndim == 0 or len(medians) < 2:
        raise ValueError(
            f"medians, spreads: got shapes {tuple(medians.shape)} and {tuple(spreads.shape)}, "
            "expected the same one with at least two times"
        )
    if not bool(torch.isfinite(medians).all() & torch.isfinite(spreads).all()):
        raise ValueError("medians, spreads: got NaN or infinity, expected numbers")
    if not bool((spreads >= 0).all() & (spreads[0] > 0).all()):
        raise ValueError("spreads: expected none below 0, and the first of each unit above 0: it divides")
    wander = medians.std(0, correction=0) / spreads.mean(0)
    return Drift(wander, (medians[-1] - medians[0]).abs() / spreads[0])


def saturated_share(
    values: Tensor, activation: str = "sigmoid", low: float = 0.05, high: float = 0.95
) -> float:
    """Share of the inputs of a sigmoid or tanh at which its output is near an end of its range.

    Parameters
    ----------
    values : Tensor of any shape
        Inputs of the activation.
    activation : {"sigmoid", "tanh"}
    low, high : float
        Saturated is an output in the lowest part `low` of the range, or above the part `high` of it. For
        the sigmoid these are the outputs themselves; for tanh, from -1 to 1, they are (output + 1) / 2.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        If there are no values or one is NaN, for another activation, or unless 0 <= low <= high <= 1.
    """
    _check_values(values)
    slopes = {"sigmoid": 1, "tanh": 2}  # (tanh(v) + 1) / 2 is the sigmoid of 2 v
    if activation not in slopes:
        raise ValueError(f"activation: got {activation!r}, allowed are {list(slopes)}")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low, high: got {low} and {high}, expected 0 <= low <= high <= 1")
    part = torch.sigmoid(slopes[activation] * values)
    return ((part < low) | (part > high)).double().mean().item()


def dead_share(values: Tensor) -> float:
    """Share of ReLU units that pass nothing on: their input is at most 0 everywhere in the batch.

    No gradient reaches the weights of such a unit. In a convolution a unit is a channel.

    Parameters
    ----------
    values : Tensor of shape (examples,), (examples, units) or (examples, channels, *spatial)
        Inputs (or outputs) of the ReLU.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        If there are no values or one is NaN.
    """
    return (_by_unit(values) <= 0).all(0).double().mean().item()


# --------------------------------------------------------------------------- gradients


def per_example_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
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
    _check_batch(x, y)
    name = _batch_statistics(model)
    if name is not None:
        raise ValueError(
            f"model: layer {name!r} normalizes with the statistics of the batch, so an example's loss "
            "depends on the others; allowed is a layer in evaluation mode with running statistics"
        )
    theta = _trainable(model)
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}

    def loss_of_one(theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, (theta, buffers), (x[None],)), y[None])

    x = x.detach().clone()  # a first layer may work in place
    with _draws_put_back(model):
        gradients = vmap(grad(loss_of_one), (None, 0, 0), randomness="different")(theta, x, y)
    return torch.cat([gradients[name].reshape(len(x), -1) for name in theta], dim=1).detach()


def gradient_norms(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> GradientNorms:
    """Length of the gradient of the loss at each layer: of its weight, and of what it reads.

    The second tells whether the signal that flows back shrinks or grows from layer to layer; the first
    is that signal times the activations, and is what moves the weight.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is measured.
    loss : function
        From the output and the target to a single number.
    x, y : Tensor of shape (examples, ...)

    Returns
    -------
    GradientNorms
        Of each ``nn.Linear`` and convolution whose weight requires a gradient. A weight that several
        layers share counts once, with the layer that runs first; so does a layer that runs again.

    Raises
    ------
    ValueError
        If there is no example, if `x` and `y` differ in their number, if no such layer runs, or if the
        loss is not a single number.
    """
    _check_batch(x, y)
    theta = _trainable(model)
    layers = _layers_with_weight(model, x)
    # The gradient with respect to x is wanted, too: that of the first layer's input.
    x = x.detach().requires_grad_(x.is_floating_point())
    inputs: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if name in layers:
            inputs.setdefault(name, args[0])

    with _watching(model, see):
        value = _loss(model, loss, x, y, theta)
    wanted = [theta[weight] for weight, _ in layers.values()] + [inputs[name] for name in layers]
    norms = torch.stack([_norm(g) for g in torch.autograd.grad(value, wanted, materialize_grads=True)])
    return GradientNorms(list(layers), norms[: len(layers)], norms[len(layers) :])


def internal_covariate_shift(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, lr: float, layers: Sequence[int] | None = None
) -> CovariateShift:
    """How much the steps of the layers below change a layer's gradient ([santurkar2018]_, Definition 2.1).

    G is the gradient of the loss with respect to the layer's weight W_i. G' is the same, on the same
    batch, after one step of gradient descent of everything that runs before the layer (biases, and the
    scale and shift of normalizations, included), while W_i and all above stay. A layer with nothing
    to learn below it has no shift.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is measured.
    loss : function
        From the output and the target to a single number.
    x, y : Tensor of shape (examples, ...)
    lr : float
        Length of the step per unit of gradient.
    layers : sequence of int, optional
        Which layers with a weight to measure, counted from 0 at the input; all if left out. Each costs a
        forward and a backward pass.

    Returns
    -------
    CovariateShift

    Raises
    ------
    ValueError
        As :func:`gradient_norms`, for a rate below 0 or not finite, or a layer that is not there.
    """
    _check_batch(x, y)
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr: got {lr}, expected a finite number, at least 0")
    theta = _trainable(model)
    all_layers = list(_layers_with_weight(model, x).items())
    chosen = range(len(all_layers)) if layers is None else layers
    if not chosen or not all(0 <= i < len(all_layers) for i in chosen):
        raise ValueError(f"layers: got {list(chosen)}, allowed are one or more of 0 to {len(all_layers) - 1}")

    _, g = _loss_and_gradient(model, loss, x, y, theta)
    rows = []
    for _, (weight, below) in [all_layers[i] for i in chosen]:
        moved = theta | {name: theta[name] - lr * g[name] for name in below}
        _, after = _loss_and_gradient(model, loss, x, y, moved, [weight])
        # In float64, as the square of a small float32 gradient would be 0.
        a, b = g[weight].double(), after[weight].double()
        distance = _norm(a - b)
        rows.append(torch.stack([distance, distance / _norm(a), (a * b).sum() / (_norm(a) * _norm(b))]))
    return CovariateShift([all_layers[i][0] for i in chosen], *torch.stack(rows, dim=1))


def landscape(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, steps: Sequence[float] | Tensor
) -> Landscape:
    """The loss and its gradient along the step of gradient descent ([santurkar2018]_, section 3.1, figure 4).

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is measured.
    loss : function
        From the output and the target to a single number.
    x, y : Tensor of shape (examples, ...)
    steps : sequence of float
        Lengths t of the steps -t g: the learning rate times 1/2 to 4, say. Positive and increasing.

    Returns
    -------
    Landscape
        On a quadratic loss with Hessian H, `loss` is a parabola in t, `distance` is t ||H g||, and
        `beta` is ||H g|| / ||g||, the same at each t.

    Raises
    ------
    ValueError
        If there is no example, if `x` and `y` differ in their number, if no parameter requires a
        gradient, if the loss is not a single number, or if the steps are not positive and increasing.
    """
    _check_batch(x, y)
    t = torch.as_tensor(steps, dtype=torch.float64)
    if t.ndim != 1 or len(t) == 0 or not bool(torch.isfinite(t).all() & (t.diff() > 0).all() & (t[0] > 0)):
        raise ValueError(f"steps: got {steps}, expected one or more finite lengths, positive and increasing")
    theta = _trainable(model)
    _, start = _loss_and_gradient(model, loss, x, y, theta)
    g = _flat(start.values()).double()
    losses, distances = [], []
    for length in t.tolist():
        there = {name: theta[name] - length * start[name] for name in theta}
        value, gradient = _loss_and_gradient(model, loss, x, y, there)
        losses.append(value.double())
        distances.append(_norm(_flat(gradient.values()).double() - g))
    distance = torch.stack(distances)
    beta = torch.cummax(distance / (t.to(g.device) * _norm(g)), dim=0).values
    return Landscape(torch.stack(losses), distance, beta)


# --------------------------------------------------------------------------- Jacobian and Hessian


def jacobian_singular_values(model: nn.Module, x: Tensor) -> Tensor:
    """Singular values of the derivative of the output with respect to the input.

    They say by how much the network stretches a small change of its input, in each direction.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is measured.
    x : Tensor of shape (examples, ...)
        float32 or float64.

    Returns
    -------
    Tensor of shape (maps, min(inputs, outputs))
        In each row the largest first. As a rule each example is a map of its own: there is a row for
        each, of one example's inputs and outputs. Where batch norm takes the statistics of the batch,
        each output depends on all examples, and the whole batch is one map: a single row, with the
        inputs and outputs of all examples together. That costs a backward pass for each output of each
        example, the rule one for each output.

    Raises
    ------
    ValueError
        If there is no example, or if `x` is not floating-point.
    """
    _check_batch(x, x)
    if not x.is_floating_point():
        raise ValueError(f"x: got dtype {x.dtype}, a derivative needs floating-point numbers")
    x = x.detach().requires_grad_()
    maps = len(x) if _batch_statistics(model) is None else 1
    with torch.enable_grad():
        output = _output(model, {}, x).reshape(maps, -1)
    # Maps of their own do not see each other, so one backward pass gives output k of all of them.
    directions = torch.eye(output.shape[1], dtype=output.dtype, device=output.device)
    rows = [torch.autograd.grad(output, x, d.expand_as(output), retain_graph=True)[0] for d in directions]
    jacobians = torch.stack([row.reshape(maps, -1) for row in rows], dim=1)
    singular_values: Tensor = torch.linalg.svdvals(jacobians)
    return singular_values


def hessian_vector_product(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """H v, where H is the matrix of second derivatives of the loss, without making H.

    It is the gradient of g . v, by a second backward pass through the first.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is measured.
    loss : function
        From the output and the target to a single number.
    x, y : Tensor of shape (examples, ...)
    v : Tensor of shape (parameters,)
        In the order of ``model.parameters()``, those that require a gradient, flattened.

    Returns
    -------
    Tensor of shape (parameters,)

    Raises
    ------
    ValueError
        As :func:`landscape`, or if `v` has another shape.
    """
    _check_batch(x, y)
    theta = _trainable(model)
    size = sum(value.numel() for value in theta.values())
    if v.shape != (size,):
        raise ValueError(f"v: got shape {tuple(v.shape)}, expected ({size},), one number a parameter")
    leaves = list(theta.values())
    value = _loss(model, loss, x, y, theta)
    with torch.enable_grad():
        along_v = _flat(torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)) @ v
    if not along_v.requires_grad:  # the gradient does not depend on the parameters at all
        return torch.zeros_like(v)
    return _flat(torch.autograd.grad(along_v, leaves, materialize_grads=True))


def top_eigenvalue(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    *,
    tolerance: float = 1e-3,
    iterations: int = 1000,
    seed: int = 0,
) -> float:
    """The eigenvalue of the Hessian of the loss with the largest magnitude, by power iteration.

    Gradient descent on a quadratic is stable up to the rate 2 / eigenvalue.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is measured.
    loss : function
        From the output and the target to a single number.
    x, y : Tensor of shape (examples, ...)
    tolerance : float
        Ends when ||H v - eigenvalue v|| is at most this part of the eigenvalue, for a v of length 1. An
        eigenvalue of H is then at least as near as that.
    iterations : int
        Products with H at most.
    seed : int
        Of the first v, drawn from a normal distribution.

    Returns
    -------
    float
        With its sign: negative where the loss bends down more than it bends up.

    Raises
    ------
    ValueError
        As :func:`landscape`.
    RuntimeError
        If the tolerance is not reached, as where the Hessian has eigenvalues near both a and -a.
    """
    like = next(iter(_trainable(model).values()))
    size = sum(value.numel() for value in _trainable(model).values())
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = (v / v.norm()).to(like)
    for _ in range(iterations):
        product = hessian_vector_product(model, loss, x, y, v)
        eigenvalue = float(v @ product)
        if float(_norm(product - eigenvalue * v)) <= tolerance * abs(eigenvalue):
            return eigenvalue
        v = product / product.norm()
    raise RuntimeError(
        f"not within tolerance {tolerance} after {iterations} iterations; allow more of either, unless the "
        "Hessian has two eigenvalues of this magnitude and opposite sign"
    )


# --------------------------------------------------------------------------- small shared parts


def _trainable(model: nn.Module) -> Parameters:
    """The parameters that require a gradient, by name, as new leaves that share the numbers."""
    theta = {
        name: value.detach().requires_grad_()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    if not theta:
        raise ValueError("model: got no parameter that requires a gradient, at least one is needed")
    return theta


def _output(model: nn.Module, theta: Parameters, x: Tensor) -> Tensor:
    """Output with the parameters `theta` in place of the model's own.

    The buffers are copies, so that no running statistic moves, and so is `x`, as a first layer may work
    in place. The random state is put back, so that the next call has the same draw.
    """
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    with _draws_put_back(model):
        output: Tensor = functional_call(model, (theta, buffers), (x.clone(),))
    return output


def _loss(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, theta: Parameters) -> Tensor:
    """The loss at `theta`, with its graph."""
    with torch.enable_grad():
        value = loss(_output(model, theta, x), y)
    if value.ndim:
        raise ValueError(f"loss: got a result of shape {tuple(value.shape)}, expected a single number")
    return value


def _loss_and_gradient(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    theta: Parameters,
    names: Sequence[str] | None = None,
) -> tuple[Tensor, Parameters]:
    """The loss at `theta`, and its gradient with respect to `names`, or to all."""
    names = list(theta) if names is None else names
    theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
    value = _loss(model, loss, x, y, theta)
    gradient = torch.autograd.grad(value, [theta[name] for name in names], materialize_grads=True)
    return value.detach(), dict(zip(names, gradient, strict=True))


@contextmanager
def _draws_put_back(model: nn.Module) -> Iterator[None]:
    """Put the random state back at the end: the global one, and that of generators which layers hold."""
    generators = [
        value
        for layer in model.modules()
        for value in vars(layer).values()
        if isinstance(value, torch.Generator)
    ]
    states = [generator.get_state() for generator in generators]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


@contextmanager
def _watching(model: nn.Module, see: Callable[[str, nn.Module, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call `see` with name, module and arguments before each module runs; the hooks are gone at the end."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda layer, args: see(name, layer, args)

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers_with_weight(model: nn.Module, x: Tensor) -> dict[str, tuple[str, list[str]]]:
    """For each layer, as it runs: the name of its weight, and of all parameters that run before it."""
    ran: dict[str, nn.Module] = {}
    with _watching(model, lambda name, layer, _: ran.update({name: layer})), torch.no_grad():
        _output(model, {}, x)
    names = {value: name for name, value in model.named_parameters() if value.requires_grad}
    layers: dict[str, tuple[str, list[str]]] = {}
    below: dict[str, None] = {}  # an ordered set
    for name, layer in ran.items():
        own = dict(layer.named_parameters(recurse=False))
        weight = names.get(own["weight"]) if "weight" in own else None
        if isinstance(layer, nn.Linear | _ConvNd) and weight is not None and weight not in below:
            layers[name] = weight, list(below)
        below |= dict.fromkeys(names[value] for value in own.values() if value in names)
    if not layers:
        raise ValueError(
            "model: no nn.Linear or convolution runs whose weight requires a gradient, at least one is needed"
        )
    return layers


def _batch_statistics(model: nn.Module) -> str | None:
    """Name of a layer that normalizes with the statistics of the batch, if there is one."""
    name: str
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            return name
    return None


def _flat(tensors: Any) -> Tensor:
    return torch.cat([value.reshape(-1) for value in tensors])


def _norm(x: Tensor) -> Tensor:
    """Euclidean length, in float64: the squares of small float32 numbers would be 0."""
    length: Tensor = torch.linalg.vector_norm(x.double())
    return length


def _by_unit(values: Tensor) -> Tensor:
    """(examples,) as it is, (examples, units, *spatial) as (examples * positions, units)."""
    _check_values(values)
    return values if values.ndim < 2 else values.movedim(1, -1).flatten(0, -2)


def _check_values(values: Tensor) -> None:
    if not values.is_floating_point() or values.ndim == 0 or values.numel() == 0:
        raise ValueError(
            f"values: got shape {tuple(values.shape)} of {values.dtype}, expected floating-point numbers, "
            "at least one, in (examples, ...)"
        )
    if bool(torch.isnan(values).any()):
        raise ValueError("values: got NaN, expected numbers; did the network diverge?")


def _check_batch(x: Tensor, y: Tensor) -> None:
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"x, y: got {len(x)} and {len(y)} examples, expected the same number, at least one")
