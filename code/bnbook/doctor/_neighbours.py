"""Whether an output depends on the neighbours in the batch or on padding, and which module makes it so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bnbook.doctor._calls import Caller, examples, hookable, logits, mapped, tensors
from bnbook.doctor._observe import Dependence, modes

_WATCHED = 4  # examples whose activations are kept
# Rows that meet other neighbours at the same shape come out bit-identical on the CPU and within 1e-6 on a
# GPU; the smallest real dependence seen (a batch of 64, one layer) was 0.02.
TOLERANCE = 1e-3

Step = tuple[str, Tensor, Tensor]  # an innermost module, what entered and what left it


def dependence(model: nn.Module, caller: Caller, batch: Any, training: list[nn.Module]) -> Dependence | None:
    """Compare the first half of a batch among its own neighbours and among copies of itself.

    None where the batch has fewer than two examples. A forward that fails raises.
    """
    n = examples(batch)
    half = n // 2
    if half < 1:
        return None
    index = torch.arange(n) % half
    other = mapped(batch, lambda t: t[index.to(t.device)] if t.ndim and len(t) == n else t)
    outputs = [_output(model, caller, given, training) for given in (batch, batch, other)]
    first, repeated, among_others = (y[:half].float() for y in outputs)
    change, repeat = _distance(first, among_others), _distance(first, repeated)
    found = Dependence(change, repeat, "", TOLERANCE + 10 * repeat)
    if not found.real:
        return found
    runs: list[list[Step]] = [[], []]
    for given, seen in zip((batch, other), runs, strict=True):
        with _watching(model, n, half, seen):
            _output(model, caller, given, training)
    return found._replace(module=_first(runs[0], runs[1], found.tolerance))


def _output(model: nn.Module, caller: Caller, batch: Any, training: list[nn.Module]) -> Tensor:
    """Output with these modules in training mode, always with the same random numbers."""
    with modes(model, training), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = logits(caller(model, batch), examples(batch))
    if result is None:
        raise ValueError("no output has a row for each example")
    return result


def padded(
    model: nn.Module, caller: Caller, batch: Any, padding: int | Callable[[Any], Any]
) -> tuple[float, str]:
    """Change of the outputs when each example gets more padding, and the first module that changes.

    `padding` is the axis along which a quarter of its length is added in zeros, or a function that pads a
    batch.
    """
    n = examples(batch)
    longer = padding(batch) if callable(padding) else mapped(batch, lambda t: _longer(t, padding, n))
    runs: list[list[Step]] = []
    outputs: list[Tensor | None] = []
    for given in (batch, longer):
        seen: list[Step] = []
        with modes(model, []), _watching(model, n, n, seen):
            outputs.append(logits(caller(model, given), n))
        runs.append(seen)
    if outputs[0] is None or outputs[1] is None:
        return 0.0, ""
    return _distance(outputs[0].float(), outputs[1].float()), _first(runs[0], runs[1], 0.01)


def _longer(tensor: Tensor, axis: int, n: int) -> Tensor:
    if tensor.ndim <= axis or len(tensor) != n:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = max(shape[axis] // 4, 1)
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _first(own: list[Step], other: list[Step], tolerance: float) -> str:
    """The first module that makes a difference; the module around it if its input differs already."""
    for (name, x, y), (_, x_other, y_other) in zip(own, other, strict=False):
        if _distance(y, y_other) > tolerance:
            return name if _distance(x, x_other) <= tolerance else name.rpartition(".")[0]
    return ""


def _watching(model: nn.Module, n: int, half: int, seen: list[Step]) -> ExitStack:
    """Hooks that keep input and output of the first examples at each innermost module."""
    hooks, rows = ExitStack(), min(half, _WATCHED)
    entered: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            x = next((t for t in tensors([args, kwargs]) if t.ndim and len(t) % n == 0), None)
            if x is not None:
                entered[name] = x[: rows * len(x) // n].detach().clone().float()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            y = next((t for t in tensors(output) if t.ndim and len(t) % n == 0), None)
            if y is not None and name in entered:
                seen.append((name, entered.pop(name), y[: rows * len(y) // n].detach().clone().float()))

        return hook

    for name, module in hookable(model):
        if not list(module.children()):
            hooks.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after(name)).remove)
    return hooks


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference in standard deviations, over what two shapes share; 0 between NaN and NaN."""
    if a.ndim != b.ndim or a.numel() == 0 or b.numel() == 0:
        return 0.0
    common = tuple(slice(min(own, other)) for own, other in zip(a.shape, b.shape, strict=True))
    a, b = a[common], b[common]
    spread = float(a.std(correction=0)) if torch.isfinite(a).all() else 1.0
    return float(torch.nan_to_num((a - b).abs(), nan=0.0, posinf=0.0).max()) / max(
        spread, 1e-6 * float(a.abs().max()), 1e-30
    )
