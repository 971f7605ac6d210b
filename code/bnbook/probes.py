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

Common to all: `model` is measured in the mode that it is in, on a batch `x` of shape (examples, ...); `loss`
goes from the output and the target `y` to a single number, such as ``torch.nn.functional.cross_entropy``.

Sources: [ioffe2015]_ for percentiles, [santurkar2018]_ for internal covariate shift and the landscape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from bnbook._checks import check_choice, check_not_negative
from bnbook._untouched import random_state_kept, watching

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
    start, gradient : Tensor of shape ()
        The loss at theta, and ||g||.
    """

    loss: Tensor
    distance: Tensor
    beta: Tensor
    start: Tensor
    gradient: Tensor


# --------------------------------------------------------------------------- activations


def layer_inputs(
    model: nn.Module, x: Tensor, kind: type[nn.Module] | tuple[type[nn.Module], ...]
) -> list[Tensor]:
    """What each submodule of one kind reads: a copy for each time that one runs, in that order.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU())
    >>> [tuple(values.shape) for values in layer_inputs(model, torch.zeros(5, 3), nn.ReLU)]
    [(5, 4), (5, 2)]
    """
    found: list[Tensor] = []
    ran: set[str] = set()

    def see(_: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        ran.add(type(layer).__name__)
        if isinstance(layer, kind):
            found.append(args[0].detach().clone())  # a copy, as an in-place activation would write into it

    with watching(model, see), torch.no_grad():
        _output(model, {}, x)
    if not found:
        raise ValueError(f"kind: got {kind}, but what runs in the model is {sorted(ran)}")
    return found


def percentiles(values: Tensor, q: Sequence[float] = (15, 50, 85)) -> Tensor:
    """Percentiles of each unit over the batch ([ioffe2015]_, figure 1b and c): (len(q), units).

    A batch of single numbers, (examples,), is one unit. Linear between neighbouring values.

    >>> percentiles(torch.tensor([0.0, 10.0, 20.0, 30.0]), [0, 50])
    tensor([ 0., 15.])
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

    Examples
    --------
    >>> drift(torch.tensor([0.0, 2.0, 4.0]), torch.tensor([2.0, 2.0, 2.0])).shift
    tensor(2.)
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
    low, high : float
        Saturated is an output in the lowest part `low` of the range, or above the part `high` of it. For
        the sigmoid these are the outputs themselves; for tanh, from -1 to 1, they are (output + 1) / 2.

    Examples
    --------
    >>> saturated_share(torch.tensor([-4.0, 0.0, 1.0, 4.0]))
    0.5
    """
    _check_values(values)
    slopes = {"sigmoid": 1, "tanh": 2}  # (tanh(v) + 1) / 2 is the sigmoid of 2 v
    check_choice(slopes, activation=activation)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low, high: got {low} and {high}, expected 0 <= low <= high <= 1")
    part = torch.sigmoid(slopes[activation] * values)
    return ((part < low) | (part > high)).double().mean().item()


def dead_share(values: Tensor) -> float:
    """Share of ReLU units that pass nothing on: their input is at most 0 everywhere in the batch.

    No gradient reaches the weights of such a unit. In a convolution a unit is a channel.

    >>> dead_share(torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))
    0.5
    """
    return (_by_unit(values) <= 0).all(0).double().mean().item()


# --------------------------------------------------------------------------- gradients


def per_example_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the loss of each example by itself: (examples, parameters).

    The columns are the parameters that require a gradient, flattened, in the order of
    ``model.parameters()``. Where the model draws at random, as dropout does, each example has its own draw.
    A model whose examples depend on each other is refused: there is no gradient of an example by itself.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> per_example_gradients(model, lambda output, y: output.sum(), x, torch.zeros(2))
    tensor([[1., 2.],
            [3., 4.]])
    """
    _check_batch(x, y)
    why = _dependence(model, x)
    if why:
        raise ValueError(
            f"model: {why}, so an example's loss depends on the others; allowed is a model in evaluation "
            "mode, model.eval(), with running statistics where it normalizes over the batch"
        )
    theta = _trainable(model)
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}

    def loss_of_one(theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, (theta, buffers), (x[None],)), y[None])

    x = x.detach().clone()  # a first layer may work in place
    with random_state_kept(model):
        gradients = vmap(grad(loss_of_one), (None, 0, 0), randomness="different")(theta, x, y)
    return torch.cat([gradients[name].reshape(len(x), -1) for name in theta], dim=1).detach()


def gradient_norms(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> GradientNorms:
    """Length of the gradient of the loss at each layer: of its weight, and of what it reads.

    The second tells whether the signal that flows back shrinks or grows from layer to layer; the first
    is that signal times the activations, and is what moves the weight. Measured is each layer whose weight
    requires a gradient; a weight that several layers share counts once, with the layer that runs first,
    and so does a layer that runs again.

    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> weights = [nn.init.constant_(layer.weight, 3.0) for layer in model]
    >>> gradient_norms(model, lambda output, y: output.sum(), torch.ones(1, 2), torch.zeros(1)).input
    tensor([12.7279,  3.0000], dtype=torch.float64)
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

    with watching(model, see):
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
    lr : float
        Length of the step per unit of gradient.
    layers : sequence of int, optional
        Which layers with a weight to measure, counted from 0 at the input; all if left out. Each costs a
        forward and a backward pass.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> x, y = torch.ones(3, 2), torch.zeros(3, 1)
    >>> internal_covariate_shift(model, nn.functional.mse_loss, x, y, lr=0.1, layers=[0]).distance
    tensor([0.], dtype=torch.float64)
    """
    _check_batch(x, y)
    check_not_negative(lr=lr)
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

    On a quadratic loss with Hessian H, `loss` is a parabola in t, `distance` is t ||H g||, and `beta` is
    ||H g|| / ||g||, the same at each t.

    Parameters
    ----------
    steps : sequence of float
        Lengths t of the steps -t g: the learning rate times 1/2 to 4, say. Positive and increasing.

    Examples
    --------
    The mean of (theta x)**2 over x = 1 and 3 has the second derivative 10 everywhere:

    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
    >>> landscape(model, nn.functional.mse_loss, x, torch.zeros(2, 1), [0.1, 0.2]).beta.round(decimals=3)
    tensor([10., 10.], dtype=torch.float64)
    """
    _check_batch(x, y)
    t = torch.as_tensor(steps, dtype=torch.float64)
    if t.ndim != 1 or len(t) == 0 or not bool(torch.isfinite(t).all() & (t.diff() > 0).all() & (t[0] > 0)):
        raise ValueError(f"steps: got {steps}, expected one or more finite lengths, positive and increasing")
    theta = _trainable(model)
    at_theta, downhill = _loss_and_gradient(model, loss, x, y, theta)
    g = _flat(downhill.values()).double()
    losses, distances = [], []
    for length in t.tolist():
        there = {name: theta[name] - length * downhill[name] for name in theta}
        value, gradient = _loss_and_gradient(model, loss, x, y, there)
        losses.append(value.double())
        distances.append(_norm(_flat(gradient.values()).double() - g))
    distance = torch.stack(distances)
    beta = torch.cummax(distance / (t.to(g.device) * _norm(g)), dim=0).values
    return Landscape(torch.stack(losses), distance, beta, at_theta.double(), _norm(g))


# --------------------------------------------------------------------------- Jacobian and Hessian


def jacobian_singular_values(model: nn.Module, x: Tensor) -> Tensor:
    """Singular values of the derivative of the output with respect to the input, the largest first.

    They say by how much the network stretches a small change of its input, in each direction. As a rule
    each example is a map of its own: (examples, min(inputs, outputs)). Where examples depend on each other,
    as under batch norm in training, the whole batch is one map, a single row with the inputs and
    outputs of all examples together; ``model.eval()`` before makes them independent. That costs a backward
    pass for each output of each example, the rule one for each output.

    >>> jacobian_singular_values(nn.Flatten(), torch.zeros(2, 3))
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    _check_batch(x, x)
    if not x.is_floating_point():
        raise ValueError(f"x: got dtype {x.dtype}, a derivative needs floating-point numbers")
    x = x.detach().requires_grad_()
    maps = 1 if _dependence(model, x) else len(x)
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

    It is the gradient of g . v, by a second backward pass through the first. Parameters are in the order of
    ``model.parameters()``, those that require a gradient, flattened.

    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
    >>> hessian_vector_product(model, nn.functional.mse_loss, x, torch.zeros(2, 1), torch.tensor([2.0]))
    tensor([20.])
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

    Gradient descent on a quadratic is stable up to the rate 2 / eigenvalue. It is negative where the loss
    bends down more than it bends up.

    Parameters
    ----------
    tolerance : float
        Ends when ||H v - eigenvalue v|| is at most this part of the eigenvalue, for a v of length 1. An
        eigenvalue of H is then at least as near as that. Where it is not reached, as where the Hessian has
        eigenvalues near both a and -a, there is a ``RuntimeError``.
    iterations : int
        Products with H at most.
    seed : int
        Of the first v, drawn from a normal distribution.

    Examples
    --------
    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
    >>> round(top_eigenvalue(model, nn.functional.mse_loss, x, torch.zeros(2, 1)), 4)
    10.0
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
    with random_state_kept(model):
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


def _layers_with_weight(model: nn.Module, x: Tensor) -> dict[str, tuple[str, list[str]]]:
    """For each layer, as it runs: the name of its weight, and of all parameters that run before it."""
    ran: dict[str, nn.Module] = {}
    with watching(model, lambda name, layer, _: ran.update({name: layer})), torch.no_grad():
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


def _dependence(model: nn.Module, x: Tensor) -> str:
    """Why the output of an example depends on other examples; empty if it does not."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            return f"layer {name!r} normalizes with the statistics of the batch"
    half = len(x) // 2
    with torch.no_grad():
        output = _output(model, {}, x)
        if output.shape[:1] != x.shape[:1]:
            return "its output has no row for each example"
        for kept, others in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
            changed = x.clone()
            changed[others] = x[kept][:1] if half else changed[others]
            difference = (_output(model, {}, changed)[kept] - output[kept]).abs()
            # Both have the same draws. Rounding stays far below the root of eps, a dependence far above.
            if bool((difference > torch.finfo(output.dtype).eps ** 0.5 * output.abs().max()).any()):
                return "the output of an example changes when others do"
    return ""


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
