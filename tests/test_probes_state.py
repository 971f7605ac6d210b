"""Every probe leaves the model, the batch and the random state as they were, also when it raises."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from helpers import public
from torch import nn

from bnbook import layers, probes

f64 = torch.float64


class Jitter(nn.Module):
    """Noise from a generator of its own, in training."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype) if self.training else x


class Breaks(nn.Module):
    """Raises the last of so many times that it runs; never if that is 0."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x):
        self.runs -= 1
        if self.runs == 0:
            raise ArithmeticError("broken on purpose")
        return x


MODELS = {
    "plain": lambda: [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)],
    "our batch norm": lambda: [nn.Linear(6, 5), layers.BatchNorm(5), nn.ReLU(), nn.Linear(5, 3)],
    "torch's batch norm": lambda: [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)],
    "dropout": lambda: [nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)],
    "in place": lambda: [nn.ReLU(inplace=True), nn.Linear(6, 3)],
    "own generator": lambda: [nn.Linear(6, 5), nn.ReLU(), Jitter(), nn.BatchNorm1d(5), nn.Linear(5, 3)],
    "convolution": lambda: [
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 2, 2),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Flatten(),
        layers.BatchNorm(4),
        nn.Linear(4, 3),
    ],
}


def number_of_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


PROBES = {
    "layer_inputs": lambda model, loss, x, y: probes.layer_inputs(model, x, nn.ReLU),
    "per_example_gradients": probes.per_example_gradients,
    "gradient_norms": probes.gradient_norms,
    "internal_covariate_shift": lambda *args: probes.internal_covariate_shift(*args, lr=0.1),
    "landscape": lambda *args: probes.landscape(*args, steps=[0.1, 1]),
    "jacobian_singular_values": lambda model, loss, x, y: probes.jacobian_singular_values(model, x),
    "hessian_vector_product": lambda model, *batch: probes.hessian_vector_product(
        model, *batch, torch.ones(number_of_parameters(model), dtype=f64)
    ),
    "top_eigenvalue": lambda *args: probes.top_eigenvalue(*args, tolerance=1, iterations=10**4),
}


def prepare(name, training):
    """A model with a gradient on each parameter, a frozen one, a hook, the last norm in the other mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*MODELS[name](), Breaks()).to(f64)
    model.train(training)
    norms = [layer for layer in model if "Norm" in type(layer).__name__]
    if len(norms) > 1:
        norms[-1].train(not training)
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    model[-2].bias.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: None)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, generator=g, dtype=f64, requires_grad=name != "in place")
    return model, x, torch.randint(3, (4,), generator=g)


def everything(model, x, y):
    """All that a probe must not change, as values that compare equal to themselves."""
    state = {"random": torch.get_rng_state().tolist(), "records": torch.is_grad_enabled()}
    state |= {"x": (x.tolist(), x.requires_grad, x.grad), "y": y.tolist()}
    for name, p in model.named_parameters():
        state[name] = id(p), p.data_ptr(), p.tolist(), p.grad.tolist(), p.requires_grad, p.is_leaf
    for name, b in model.named_buffers():
        state[name] = id(b), b.tolist(), b.requires_grad
    for name, layer in model.named_modules():
        attributes = {
            k: v for k, v in vars(layer).items() if k not in ("_parameters", "_buffers", "_modules", "runs")
        }
        generator = attributes.pop("generator", None)
        draws = generator and generator.get_state().tolist()
        state[f"module {name}"] = (
            {k: dict(v) if isinstance(v, dict) else v for k, v in attributes.items()},
            draws,
        )
    return state


def numbers(found):
    """What a probe measured, as a list of tensors, without the names of the layers."""
    found = found if isinstance(found, tuple | list) else [found]
    return [torch.as_tensor(v) for v in found if not isinstance(v, list)]


def needs_single_examples(probe, model):
    """Whether the probe refuses the model, as examples are normalized together."""
    together = any(
        isinstance(m, layers.BatchNorm | nn.BatchNorm1d | nn.BatchNorm2d) and m.training for m in model
    )
    return probe == "per_example_gradients" and together


def test_every_public_probe_of_a_model_is_tested_here():
    measured = {n for n, f in public(probes).items() if "model" in inspect.signature(f).parameters}
    assert set(PROBES) == measured


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_leaves_everything_as_it_was_and_says_the_same_again(probe, name, training):
    model, x, y = prepare(name, training)
    before = everything(model, x, y)
    if needs_single_examples(probe, model):
        with pytest.raises(ValueError, match="statistics of the batch"):
            PROBES[probe](model, F.cross_entropy, x, y)
    else:
        first = PROBES[probe](model, F.cross_entropy, x, y)
        assert everything(model, x, y) == before
        with torch.no_grad():  # which changes nothing
            again = PROBES[probe](model, F.cross_entropy, x, y)
        torch.testing.assert_close(numbers(first), numbers(again), rtol=0, atol=0)
    assert everything(model, x, y) == before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("probe", PROBES)
def test_a_model_that_raises_leaves_everything_as_it_was(probe, name, training):
    model, x, y = prepare(name, training)
    before = everything(model, x, y)
    raised = 0
    for runs in (1, 2, 3, 4):  # first in the pass that finds the layers, then in those that measure
        model[-1].runs = runs
        try:
            PROBES[probe](model, F.cross_entropy, x, y)
        except (ArithmeticError, ValueError):  # ValueError: refused before it runs
            raised += 1
        assert everything(model, x, y) == before
    assert raised >= 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "probe", [p for p in PROBES if p not in ("layer_inputs", "jacobian_singular_values")]
)
def test_a_loss_that_raises_leaves_everything_as_it_was(probe, name):
    model, x, y = prepare(name, training=False)
    before = everything(model, x, y)

    def loss(output, target):
        raise ArithmeticError("broken on purpose")

    with pytest.raises((ArithmeticError, ValueError)):
        PROBES[probe](model, loss, x, y)
    assert everything(model, x, y) == before


@pytest.mark.parametrize("probe", PROBES)
def test_what_is_measured_carries_no_graph(probe):
    model, x, y = prepare("plain", training=True)
    found = PROBES[probe](model, F.cross_entropy, x, y)
    assert not any(v.requires_grad for v in numbers(found))


# --------------------------------------------------------------------------- bad input


def frozen():
    return nn.Linear(6, 3).to(f64).requires_grad_(False)


def call(probe, model=None, loss=F.cross_entropy, num_x=4, num_y=4):
    _, x, y = prepare("plain", training=True)
    model = nn.Sequential(nn.Linear(6, 3)).to(f64) if model is None else model
    return lambda: probe(model, loss, x[:num_x], y[:num_y])


def shift(**options):
    return lambda *args: probes.internal_covariate_shift(*args, **{"lr": 0.1} | options)


def along(steps):
    return lambda *args: probes.landscape(*args, steps=steps)


def product(size):
    return lambda *args: probes.hessian_vector_product(*args, torch.ones(size))


def whole_numbers(model, loss, x, y):
    return probes.jacobian_singular_values(model, y[:, None])


OF_THE_BATCH = [p for p in PROBES if p not in ("layer_inputs", "jacobian_singular_values")]
BAD = {
    **{f"{p}: no example": (call(PROBES[p], num_x=0, num_y=0), "x, y: got 0 and 0") for p in OF_THE_BATCH},
    **{
        f"{p}: another number": (call(PROBES[p], num_y=3), "x, y: got 4 and 3 examples") for p in OF_THE_BATCH
    },
    **{
        f"{p}: nothing to learn": (
            call(PROBES[p], frozen()),
            "model: got no parameter that requires a gradient",
        )
        for p in OF_THE_BATCH
        if p != "hessian_vector_product"
    },
    **{
        f"{p}: no single number": (
            call(PROBES[p], loss=lambda o, t: F.cross_entropy(o, t, reduction="none")),
            "loss: got a result of shape (4,), expected a single number",
        )
        for p in OF_THE_BATCH
        if p != "per_example_gradients"
    },
    "product: nothing to learn": (call(product(3), frozen()), "model: got no parameter that requires"),
    "no example of a map": (call(PROBES["jacobian_singular_values"], num_x=0), "x, y: got 0 and 0 examples"),
    "a map of whole numbers": (call(whole_numbers), "x: got dtype torch.int64"),
    "no layer": (
        call(probes.gradient_norms, nn.BatchNorm1d(6).to(f64)),
        "model: no nn.Linear or convolution",
    ),
    "rate": (call(shift(lr=-0.1)), "lr: got -0.1, expected a finite number, 0 or larger"),
    "infinite rate": (call(shift(lr=float("inf"))), "lr: got inf"),
    "no layers": (call(shift(layers=[])), "layers: got [], allowed are one or more of 0 to 0"),
    "layer too high": (call(shift(layers=[0, 1])), "layers: got [0, 1], allowed are one or more of 0 to 0"),
    "negative layer": (call(shift(layers=[-1])), "layers: got [-1]"),
    "no steps": (call(along([])), "steps: got [], expected"),
    "steps back": (call(along([-1, 1])), "steps: got [-1, 1], expected"),
    "no step": (call(along([0, 1])), "steps: got [0, 1]"),
    "steps out of order": (call(along([2, 1])), "steps: got [2, 1]"),
    "a table of steps": (call(along([[1, 2]])), "steps: got [[1, 2]]"),
    "infinite step": (call(along([1, float("inf")])), "steps: got [1, inf]"),
    "vector of another size": (call(product(7)), "v: got shape (7,), expected (21,)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_message_that_names_the_argument_what_came_and_what_is_allowed(name):
    probe, message = BAD[name]
    with pytest.raises(ValueError, match=r"^(x|y|x, y|model|loss|lr|layers|steps|v): ") as error:
        probe()
    assert message in str(error.value)
