"""Leave a model as it was: numbers, modes, hooks, gradients, plain attributes and random state."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set, deque)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put everything back at the end of the ``with`` block, also when it raises.

    Tensors are compared before they are written, so that one which did not change keeps its version, and
    a graph that waits for its backward pass stays valid. What a forward changes *inside* an object of its
    own (an array, a queue with a class of its own) cannot be put back: examine a copy of such a model.
    """
    tensors = {id(t): (t, _copy(t), t.requires_grad) for t in _tensors(model)}
    leaves = [parameter for parameter in model.parameters() if parameter.is_leaf]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in leaves]
    modes = [(module, module.training) for module in model.modules()]
    attributes = [
        (vars(module), _shallow(vars(module)))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with _random_state(model):
            yield
    finally:
        for own, before in attributes:
            _put_back(own, before)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for tensor, copy, requires_grad in tensors.values():
                if tensor.shape != copy.shape or tensor.dtype != copy.dtype:
                    tensor.data = copy
                elif not torch.equal(tensor, copy):
                    tensor.copy_(copy)
                if tensor.is_leaf:
                    tensor.requires_grad_(requires_grad)
            for parameter, gradient, number in gradients:
                if gradient is not None and number is not None and not torch.equal(gradient, number):
                    gradient.copy_(number)
                parameter.grad = gradient


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _shallow(own: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute as (object, what it holds), for the containers that torch and people use."""
    return {
        name: (value, value.copy() if isinstance(value, _CONTAINERS) else None)
        for name, value in own.items()
        if name != "training"
    }


def _put_back(own: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in own.keys() - before.keys() - {"training"}:
        del own[name]
    for name, (value, content) in before.items():
        own[name] = value
        if content is not None and not _same(value, content):
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(content)


def _same(now: Any, before: Any) -> bool:
    """Whether two containers hold the same objects (tensors have no truth value to compare by)."""
    if isinstance(now, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in now)
    if isinstance(now, set):
        return bool(now == before)
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


@contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    """torch's, Python's and NumPy's random state, and that of generators which modules hold."""
    generators = [
        value
        for module in model.modules()
        for value in getattr(module, "__dict__", {}).values()
        if isinstance(value, torch.Generator)
    ]
    states = [generator.get_state() for generator in generators]
    numpy = sys.modules.get("numpy")
    numpys = numpy.random.get_state() if numpy else None
    pythons = random.getstate()
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=[index for index in devices if index is not None]):
        try:
            yield
        finally:
            random.setstate(pythons)
            if numpy:
                numpy.random.set_state(numpys)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
