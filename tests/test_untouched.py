"""`untouched` puts a model back, whatever was done to it, and also when something raises."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from bnbook import layers
from bnbook._untouched import modes_kept, random_state_kept, untouched, watching


class Own(nn.Module):
    """What a module of a reader may keep besides parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.average, self.calls, self.seen, self.last_two = torch.zeros(3), 0, [], deque(maxlen=2)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        self.last_two.append(x)
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()  # another tensor
        self.average += x.mean(0).detach()  # other numbers in the same one
        self.last = x
        return x + torch.rand(x.shape, generator=self.generator) + torch.rand(x.shape)


def made():
    model = nn.Sequential(nn.Linear(3, 3), layers.BatchNorm(3), nn.BatchNorm1d(3), Own(), nn.Dropout())
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(3, 3)
    model[2].register_forward_hook(lambda *_: None)
    return model


def everything(model):
    """Identity and content of all that a model holds, as values that compare."""
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
    found = {"global": (torch.get_rng_state().tolist(), numpys, random.getstate())}
    for name, module in model.named_modules():
        found[name] = id(module), type(module)
        for key, value in vars(module).items():
            if isinstance(value, dict):
                value = (id(value), *value.items())
            elif isinstance(value, list | set | deque):
                value = (id(value), *value)
            found[name, key] = content(value)
    return found


def content(value):
    if isinstance(value, torch.Tensor):
        grad = content(value.grad) if value.is_leaf else None
        numbers = None if value.is_meta else (value.data_ptr(), value.tolist())
        return id(value), value.dtype, numbers, value.requires_grad, grad
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    return tuple(map(content, value)) if isinstance(value, tuple) else value


def train(model):
    for wanted in model.parameters():
        wanted.requires_grad_(True)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()


def break_off(model):
    train(model)
    raise ArithmeticError("broken on purpose")


CHANGES = {
    "training": train,
    "running": lambda model: model(torch.randn(4, 3)),
    "draws": lambda model: (random.random(), np.random.rand()),  # noqa: NPY002
    "evaluation mode": lambda model: model.eval(),
    "new hooks": lambda model: model[0].register_forward_pre_hook(print),
    "hooks gone": lambda model: model[2]._forward_hooks.clear(),
    "another layer": lambda model: model.append(nn.ReLU()),
    "another parameter": lambda model: setattr(model[0], "weight", nn.Parameter(torch.zeros(3, 3))),
    "no parameter": lambda model: delattr(model[0], "bias"),
    "another dtype": lambda model: model.double(),
    "another device": lambda model: model.to("meta"),
    "no gradients": lambda model: model.zero_grad(),
    "gradients of zero": lambda model: model.zero_grad(set_to_none=False),
    "parametrized": lambda model: nn.utils.parametrizations.weight_norm(model[0]),
    "an error": break_off,
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_is_as_it_was(change):
    model = made()
    before = everything(model)
    try:
        with untouched(model):
            CHANGES[change](model)
            assert everything(model) != before
    except ArithmeticError:
        assert change == "an error"
    assert everything(model) == before
    model(torch.randn(4, 3))  # and it runs


def test_a_backward_that_was_under_way_goes_on():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    loss = model.eval()(torch.randn(4, 3)).sum()
    with untouched(model):
        model(torch.randn(4, 3)).sum().backward()
    loss.backward()  # autograd refuses it if a tensor that it kept has changed
    assert model[2].bias.grad.item() == 4


@pytest.mark.filterwarnings("ignore:.*TorchScript:DeprecationWarning")
def test_a_scripted_model_is_as_it_was():
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with untouched(model):
        model(torch.randn(4, 3))
        model.eval()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_without_a_shape_yet_is_refused():
    message = "model: has a layer that takes its shape from the first batch"
    with pytest.raises(ValueError, match=message), untouched(nn.LazyLinear(3)):
        pass


def test_the_parts_put_back_their_own_share_also_after_an_error():
    model = made()
    before = everything(model)
    seen = []

    def watched():
        with watching(model, lambda name, module, args: seen.append((name, module, len(args)))):
            model.eval()
            model[:3](torch.randn(4, 3))
            torch.rand(2, generator=model[3].generator)
            raise ArithmeticError("broken on purpose")

    with pytest.raises(ArithmeticError), modes_kept(model), random_state_kept(model):
        watched()
    assert everything(model) == before
    assert seen == [(str(i), model[i], 1) for i in range(3)]
