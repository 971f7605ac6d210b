"""Which module makes the first NaN or infinity out of finite numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bnbook.doctor._calls import Caller, hookable, tensors

Evidence = dict[str, float | int | str]


def first_bad(model: nn.Module, caller: Caller, batch: Any, index: int) -> tuple[str, Evidence] | None:
    """Run a batch again, and name the module and the ranges of what came before it."""
    ranges: list[
        tuple[str, Tensor, bool]
    ] = []  # of each innermost module: output, and whether its input was bad
    entered: list[bool] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(is_bad([args, kwargs]))

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            was_bad = entered.pop()
            ranges.extend((name, _range(t), was_bad) for t in tensors(output) if _counts(t))

        return hook

    with ExitStack() as hooks:
        for name, module in hookable(model):
            if not list(module.children()):
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after(name)).remove)
        caller(model, batch)
    bad = (k for k, (_, extreme, was_bad) in enumerate(ranges) if was_bad or _bad_range(extreme))
    first = next(bad, None)
    if first is None:
        return ("", {"batch": index})
    name, extreme, was_bad = ranges[first]
    evidence: Evidence = {"batch": index, "output": _interval(extreme)}
    evidence |= {
        f"before, {other}": _interval(extreme) for other, extreme, _ in ranges[max(first - 3, 0) : first]
    }
    return (
        name.rpartition(".")[0] if was_bad else name
    ), evidence  # its input was bad: code around it made it


def is_bad(structure: Any) -> bool:
    """Whether there is NaN or +infinity; -infinity is a mask."""
    return any(_bad_range(_range(tensor)) for tensor in tensors(structure) if _counts(tensor))


def _counts(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _range(x: Tensor) -> Tensor:
    """Smallest and largest value; NaN if there is one."""
    return torch.stack(torch.aminmax(x.detach().float()))


def _bad_range(extreme: Tensor) -> bool:
    return bool(torch.isnan(extreme).any() or extreme[1] == torch.inf)


def _interval(extreme: Tensor) -> str:
    return f"{float(extreme[0]):.3g} to {float(extreme[1]):.3g}"
