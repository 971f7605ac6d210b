"""One pass of an example on the meta device: shapes at each norm, and who feeds whom.

The pass records every primitive operation with the module in which it ran. The model's own numbers are
replaced by meta tensors for it, so nothing is computed and nothing can be changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnbook.doctor._calls import Caller, mapped, tensors
from bnbook.doctor._norms import Norm, clean

_TURNS = {"permute", "transpose", "movedim", "t"}
_VIEWS = _TURNS | {
    *("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "slice", "select"),
    *("clone", "contiguous", "detach", "alias", "split", "split_with_sizes", "unbind", "_to_copy", "copy_"),
}
_SUMS = {"add", "add_"}
_ACTIVATIONS = {
    *(
        "relu",
        "leaky_relu",
        "prelu",
        "elu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "tanh",
        "softplus",
        "hardtanh",
    ),
    *("hardswish", "hardsigmoid", "clamp", "clamp_min", "_softmax", "_log_softmax"),
}


@dataclass(frozen=True)
class Op:
    """A primitive operation: its name, the modules it ran in (outermost first), and what it read."""

    name: str
    stack: tuple[str, ...]
    reads: tuple[int, ...]  # ids of tensors
    sources: tuple[int, ...]  # indices of the operations that made them, -1 for none
    shape: tuple[int, ...]

    @property
    def module(self) -> str:
        return self.stack[-1] if self.stack else ""


@dataclass(frozen=True)
class Call:
    """One call of a norm: shape of its input, which operation made it, and which made the output."""

    norm: str
    shape: tuple[int, ...]
    source: int
    read: int
    result: int


@dataclass
class Trace:
    """What one pass showed."""

    modules: dict[str, nn.Module]
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: list[tuple[int, int]] = field(default_factory=list)  # (operation, id of the tensor)
    how: str = "meta"

    def feeder(self, call: Call) -> tuple[str, nn.Module] | None:
        """The layer whose output enters a norm as it is."""
        if call.source < 0:
            return None
        name = self.ops[call.source].module
        module = self.modules.get(name)
        return (name, module) if module is not None and name and not list(module.children()) else None

    def read_elsewhere(self, call: Call) -> bool:
        """Whether something other than the norm reads what enters it."""
        for op in self.ops:
            if call.read in op.reads and call.norm not in op.stack:
                return True
        return any(read == call.read for _, read in self.outputs)

    def upstream(self, index: int) -> Iterator[tuple[int, Op]]:
        """Operations with their index from this one back, always along the first tensor that was read."""
        while index >= 0:
            yield index, self.ops[index]
            index = self.ops[index].sources[0] if self.ops[index].sources else -1

    @property
    def branch_ends(self) -> set[str]:
        """Norms whose output goes into a sum: ends of residual branches, which may begin at 0."""
        results = {call.result: call.norm for call in self.calls}
        ends = set()
        for op in self.ops:
            for source in op.sources if op.name in _SUMS and len(op.sources) > 1 else ():
                for index, before in self.upstream(source):
                    if index in results:
                        ends.add(results[index])
                    if index in results or before.name not in _VIEWS:
                        break
        return ends

    @property
    def at_input(self) -> set[str]:
        """Norms with no layer that has weights between the input and them."""
        weighted = {name for name, module in self.modules.items() if list(module.parameters(recurse=False))}
        return {
            call.norm
            for call in self.calls
            if not any(op.module in weighted for _, op in self.upstream(call.source))
        }

    @property
    def at_output(self) -> list[str]:
        """Norms with nothing but views between them and an output."""
        found = []
        results = {call.result: call.norm for call in self.calls}
        for made, _ in self.outputs:
            for index, op in self.upstream(made):
                plain = op.module == results.get(index) and op.name.rstrip("_") not in _ACTIVATIONS
                if index in results and plain:
                    found.append(results[index])
                if index in results or op.name not in _VIEWS:
                    break
        return list(dict.fromkeys(found))

    def shrinkage(self, factor: dict[str, float]) -> float:
        """Product of the factors along the path on which it is smallest (factors at most 1)."""
        entering = {call.result: factor.get(call.norm, 1.0) for call in self.calls}
        log = [0.0] * (len(self.ops) + 1)  # the last entry is index -1: no operation
        for index, op in enumerate(self.ops):
            below = min((log[source] for source in op.sources), default=0.0)
            log[index] = below + math.log(entering.get(index, 1.0))
        return math.exp(min(log))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, stack: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack, self.ops = stack, list[Op]()
        self.made: dict[int, int] = {}  # id of a tensor -> operation that wrote it last
        self.alive: list[Tensor] = []  # an id stays unique only while its tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        reads = tuple(id(tensor) for tensor in tensors(args))
        self.alive += tensors(args)
        sources = tuple(self.made.get(read, -1) for read in reads)
        shapes = [tuple(tensor.shape) for tensor in tensors(result)]
        name = func._schema.name.rpartition("::")[2]
        self.ops.append(Op(name, tuple(self.stack), reads, sources, shapes[0] if shapes else ()))
        for tensor in tensors(result):
            self.made[id(tensor)] = len(self.ops) - 1
            self.alive.append(tensor)
        return result


def trace(model: nn.Module, norms: list[Norm], caller: Caller, batch: Any) -> Trace:
    """Run a batch, of which only the shape matters, in evaluation mode; meta if the model permits it.

    Raises
    ------
    Exception
        Whatever the forward pass raises where even two real examples fail.
    """
    try:
        return _run(model, norms, caller, mapped(batch, _to_meta), "meta")
    except Exception:  # a number that decides, a tensor outside the state: compute with two examples
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        return _run(
            model,
            norms,
            caller,
            mapped(batch, lambda t: _real(t[:2] if t.ndim else t, device)),
            "two examples",
        )


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _real(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.to(device)


def _run(model: nn.Module, norms: list[Norm], caller: Caller, batch: Any, how: str) -> Trace:
    stack: list[str] = []
    recorder = _Recorder(stack)
    names = {clean(name): module for name, module in model.named_modules()}
    found = Trace(names, how=how)
    own = {id(norm.module): norm.name for norm in norms}
    modes = {module: module.training for module in model.modules()}

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            stack.pop()
            x, y = next(tensors([args, kwargs]), None), next(tensors(output), None)
            if name in own.values() and x is not None and y is not None:
                made = recorder.made
                found.calls.append(
                    Call(name, tuple(x.shape), made.get(id(x), -1), id(x), made.get(id(y), -1))
                )

        return hook

    with ExitStack() as hooks:
        for name, module in names.items():
            hooks.callback(module.register_forward_pre_hook(enter(name)).remove)
            hooks.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
        for module, mode in modes.items():
            hooks.callback(setattr, module, "training", mode)
            module.training = False
        hooks.enter_context(torch.no_grad())
        if how == "meta":
            hooks.enter_context(_on_meta(model))
        hooks.enter_context(recorder)
        output = caller(model, batch)
    found.ops = recorder.ops
    found.outputs = [(recorder.made.get(id(t), -1), id(t)) for t in tensors(output)]
    return found


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    """The model's parameters and buffers are meta tensors inside; factory functions make meta tensors."""
    tables: list[dict[str, Any]] = [
        t for module in model.modules() for t in (module._parameters, module._buffers)
    ]
    before = [dict(table) for table in tables]
    meta = {id(t): _to_meta(t.detach()) for table in before for t in table.values() if t is not None}
    try:
        for table in tables:
            table.update({name: meta[id(t)] for name, t in table.items() if t is not None})
        with torch.device("meta"):
            yield
    finally:
        for table, old in zip(tables, before, strict=True):
            table.update(old)
