"""Leave a model as it was: what the probes, the adaptation at test time and the doctor promise."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back at the end, also after an error, all that running, training or moving a model changes.

    That is the parameters and buffers (which tensors they are, their numbers, dtype and device,
    ``requires_grad`` and ``grad``), modes, hooks and submodules, the random state as in
    :func:`random_state_kept`, and every other attribute of a module: a tensor with its numbers, a list, dict,
    set or deque with its elements. Not put back is what lies deeper, such as a field of an object that a
    module keeps: work with a copy of such a model.
    """
    modules = list(model.modules())
    tensors = {id(value): value for module in modules for value in _tensors(module)}
    if any(map(is_lazy, tensors.values())):
        raise ValueError("model: has a layer that takes its shape from the first batch; run one batch before")
    with ExitStack() as at_the_end, random_state_kept(model):
        # Last in, first out: the attributes of the modules come back before the numbers in their tensors.
        for value in tensors.values():
            _put_back_later(value, at_the_end)
        for module in modules:
            _put_back_module_later(module, at_the_end)
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put the mode of each module back at the end, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Put the random state of PyTorch, NumPy and Python back at the end, also after an error.

    PyTorch's is that of the CPU, of the GPUs on which the model lies, and of generators that modules hold.
    """
    generators = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Generator)
    ]
    states = [generator.get_state() for generator in generators]
    numpy = sys.modules.get("numpy")  # a model that never saw it cannot draw from it
    numpys, pythons = numpy and numpy.random.get_state(), random.getstate()
    gpus = {value.device for module in model.modules() for value in _tensors(module) if value.is_cuda}
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(pythons)
            if numpy:
                numpy.random.set_state(numpys)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


@contextmanager
def watching(model: nn.Module, see: Callable[[str, nn.Module, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call `see` with name, module and arguments before each module runs; the hooks are gone at the end."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(see, name)))
        yield


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers and other tensors that a module itself keeps."""
    own = [value for value in vars(module).values() if isinstance(value, Tensor)]
    return [*module.parameters(recurse=False), *module.buffers(recurse=False), *own]


def _put_back_later(value: Tensor, at_the_end: ExitStack) -> None:
    """Remember the memory of a tensor and its numbers, whether it wants a gradient, and the one it has."""
    memory, numbers, wanted = value.data, value.detach().clone(), value.requires_grad
    grad = value.grad if value.is_leaf else None

    def put_back() -> None:
        # Through .data, so that autograd notices nothing: a backward that was under way can go on.
        memory.copy_(numbers)
        value.data = memory
        if value.is_leaf:
            value.requires_grad_(wanted)
            value.grad = grad

    at_the_end.callback(put_back)
    if grad is not None:
        _put_back_later(grad, at_the_end)


def _put_back_module_later(module: nn.Module, at_the_end: ExitStack) -> None:
    """Remember the class of a module, its mode, its attributes, and what stands in its own containers."""
    kind, training, attributes = module.__class__, module.training, vars(module).copy()
    containers = [(v, v.copy()) for v in attributes.values() if isinstance(v, dict | list | set | deque)]

    def put_back() -> None:
        for container, elements in containers:
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(elements)
        module.__class__ = kind  # a parametrization changes it
        for name in vars(module).keys() - attributes.keys():
            del vars(module)[name]
        vars(module).update(attributes)
        if module.training != training:  # a scripted module has its mode elsewhere
            module.training = training

    at_the_end.callback(put_back)
