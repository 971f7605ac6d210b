"""Models that differ in nothing but numbers, run as one: for :func:`bnbook.training.sweep`."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import textwrap
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class NotStackable(Exception):
    """Why models have to run one by one."""

    def __str__(self) -> str:
        return textwrap.shorten(super().__str__(), 100)


class Stack:
    """Models of one :func:`description`; each has a row of `theta`, with all the numbers that it learns."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.models, self.skeleton = models, models[0]
        learned, self.buffers = stack_module_state(models)
        self.frozen = {name: learned.pop(name) for name, v in list(learned.items()) if not v.requires_grad}
        if len({value.dtype for value in learned.values()}) != 1:
            raise NotStackable("all parameters are frozen, or they have several dtypes")
        self.shapes = {name: value.shape for name, value in learned.items()}
        self.theta = torch.cat([value.detach().flatten(1) for value in learned.values()], 1).requires_grad_()
        self.before = description(self.skeleton.eval())

    def parameters(self) -> dict[str, Tensor]:
        """The stacked parameters by name; those that learn are views of `theta`."""
        parts = torch.split(self.theta, [math.prod(shape[1:]) for shape in self.shapes.values()], 1)
        named = zip(self.shapes.items(), parts, strict=True)
        return self.frozen | {name: part.view(shape) for (name, shape), part in named}

    def scores(self, x: Tensor, each_its_own: bool = False) -> Tensor:
        """Scores (models, examples, classes) of the same examples, or of each model's own; buffers move."""
        try:
            run = vmap(self._run, (0, 0, 0 if each_its_own else None))
            out, self.buffers = run(self.parameters(), self.buffers, x)
        except Exception as reason:  # one that has nothing to do with vmap will come again without it
            raise NotStackable(reason) from reason
        return out

    def _run(
        self, theta: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores of one model, and its buffers afterwards, also those that its forward assigns."""
        state = theta | buffers
        out: Tensor = functional_call(self.skeleton, state, (x,))
        if any(state[name] is not value for name, value in theta.items()):
            raise NotStackable("the forward assigns a parameter")
        return out, {name: state[name] for name in buffers}

    def check_attributes(self) -> None:
        """The models share the attributes of the first, so no run may change one. In evaluation mode."""
        if description(self.skeleton) != self.before:
            raise NotStackable("an attribute changes while the model runs")

    @torch.no_grad()
    def member(self, k: int) -> nn.Module:
        """Model k with its numbers of now, in evaluation mode."""
        now = self.parameters() | self.buffers
        for name, value in [*self.models[k].named_parameters(), *self.models[k].named_buffers()]:
            value.copy_(now[name][k])
        return self.models[k].eval()


def description(model: nn.Module) -> bytes:
    """The same for two models if nothing but the numbers in parameters and buffers tells them apart."""
    pickled = io.BytesIO()
    try:
        _Description(pickled, model).dump(model)
    except Exception as reason:
        raise NotStackable(f"its attributes cannot be compared: {reason}") from reason
    return hashlib.sha256(pickled.getvalue()).digest()


class _Description(pickle.Pickler):
    """A pickle holds all that tells objects apart; this one leaves numbers out, and can do local functions.

    Twice the same object becomes a reference to the first, so that shared parameters count too.
    """

    def __init__(self, file: io.BytesIO, model: nn.Module) -> None:
        super().__init__(file)
        self.state = {id(value) for value in (*model.parameters(), *model.buffers())}

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            if type(thing) not in (Tensor, nn.Parameter) or thing._backward_hooks:
                raise NotStackable("a tensor of its own kind, or with a hook")
            numbers = None if id(thing) in self.state else thing.tolist()
            return tuple, ((str(thing.dtype), tuple(thing.shape), thing.requires_grad, numbers),)
        if isinstance(thing, FunctionType):
            closure = [cell.cell_contents for cell in thing.__closure__ or ()]
            parts = id(thing.__code__), thing.__defaults__, thing.__kwdefaults__, closure, vars(thing)
            return tuple, (parts,)
        if isinstance(thing, BuiltinFunctionType | ModuleType) or (
            isinstance(thing, type) and thing.__module__ != "builtins"
        ):
            return int, (id(thing),)
        return NotImplemented
