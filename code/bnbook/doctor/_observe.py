"""The passes over the batches: what goes through each norm, kept as a few numbers a channel.

First pass, in evaluation: what the deployed model does. Second, the batch norms (and dropout) in training
mode: what their statistics should be. Third, if there is dropout: the norms alone in training mode.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnbook.doctor._calls import Caller, ForwardFailed, examples, hookable, logits, mapped, tensors
from bnbook.doctor._nonfinite import first_bad, is_bad
from bnbook.doctor._norms import Norm
from bnbook.doctor._stats import Stats, add

TRADED = 4  # batches that trade examples: enough to see how much neighbours matter


class Dependence(NamedTuple):
    """Largest change of an output with other neighbours, and of a repeat, in standard deviations."""

    change: float
    repeat: float
    module: str
    tolerance: float

    @property
    def real(self) -> bool:
        """Whether it is more than rounding."""
        return self.change > self.tolerance


Key = tuple[str, int]  # a norm, and which of its calls in a forward pass


@dataclass
class Pass:
    """What one pass over the batches gave."""

    stats: dict[Key, Stats] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)
    bad: int | None = None  # the first batch with NaN or infinity at a norm or in the output


@dataclass
class Seen:
    """All passes, and what was noticed on the way."""

    norms: dict[str, Norm]
    evaluated: Pass = field(default_factory=Pass)
    trained: Pass = field(default_factory=Pass)
    switched: Pass = field(default_factory=Pass)
    labels: list[Tensor] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    nonfinite: tuple[str, dict[str, float | int | str]] | None = None
    bad_inputs: list[int] = field(default_factory=list)
    failed: ForwardFailed | None = None
    dropout: bool = False
    rebatched: list[Tensor | None] = field(default_factory=list)
    alone: Dependence | None = None
    among: Dependence | None = None
    padded: tuple[float, str] | None = None


def take(batches: Iterable[Any], most: int, device: torch.device) -> list[Any]:
    """At most this many batches, on the model's device."""
    try:
        iterator = iter(batches)
    except TypeError:
        raise ValueError(f"batches: got {type(batches).__name__}, expected an iterable of batches") from None
    return [mapped(batch, lambda t: t.to(device)) for batch in itertools.islice(iterator, most)]


def observe(model: nn.Module, norms: list[Norm], caller: Caller, batches: list[Any]) -> Seen:
    """Run the passes. The caller sees to it that the model comes back as it was."""
    seen = Seen({norm.name: norm for norm in norms})
    seen.bad_inputs = [i for i, batch in enumerate(batches) if not _finite(batch)]
    seen.batches = [batch for i, batch in enumerate(batches) if i not in seen.bad_inputs]
    seen.sizes = [examples(batch) for batch in seen.batches]
    labels = [caller.labels_of(batch) for batch in seen.batches]
    seen.labels = [label for label in labels if label is not None] if None not in labels else []
    if not seen.batches:
        return seen
    switch = [
        norm.module
        for norm in norms
        if norm.family == "batch" and not norm.frozen and norm.module is not None
    ]
    drops = [module for module in model.modules() if _drops(module)]
    seen.dropout = bool(drops)
    try:
        with modes(model, []):
            seen.evaluated = _run(model, norms, caller, seen.batches)
            if seen.evaluated.bad is not None:
                seen.nonfinite = first_bad(
                    model, caller, seen.batches[seen.evaluated.bad], seen.evaluated.bad
                )
        enough = [module for module in switch if _values(seen, norms, module) > 1]
        with modes(model, enough):
            seen.switched = _run(model, norms, caller, seen.batches)
            seen.rebatched = _rebatched(model, caller, seen.batches[:TRADED])
        seen.trained = seen.switched
        if drops:
            with modes(model, [*enough, *drops]):
                seen.trained = _run(model, norms, caller, seen.batches)
    except ForwardFailed as error:
        seen.failed = error
    return seen


def record(model: nn.Module, norms: list[Norm], caller: Caller, batches: list[Any]) -> dict[Key, Stats]:
    """What enters each norm, in the modes in which the modules are."""
    return _run(model, norms, caller, batches).stats


def _values(seen: Seen, norms: list[Norm], module: nn.Module) -> int:
    name = next(norm.name for norm in norms if norm.module is module)
    stats = seen.evaluated.stats.get((name, 0))
    return min(stats.m) if stats else 0


def _rebatched(model: nn.Module, caller: Caller, batches: list[Any]) -> list[Tensor | None]:
    """Outputs for the same batches when each has traded the second half of its examples with a neighbour."""
    found: list[Tensor | None] = [None] * len(batches)
    for i in range(0, len(batches) - 1, 2):
        n = examples(batches[i])
        if n < 2 or examples(batches[i + 1]) != n:
            continue
        pair = [_traded(batches[i], batches[i + 1], n), _traded(batches[i + 1], batches[i], n)]
        outputs = [logits(caller(model, batch), n) for batch in pair]
        for k, (own, other) in enumerate((outputs, outputs[::-1])):
            if own is not None and other is not None:
                found[i + k] = torch.cat([own[: n // 2], other[n // 2 :]]).float().cpu()
    return found


def _traded(batch: Any, other: Any, n: int) -> Any:
    """The first half of one batch with the second half of another."""
    theirs = tensors(other)

    def half(own: Tensor) -> Tensor:
        their = next(theirs, own)
        fits = own.ndim > 0 and len(own) == n and own.shape == their.shape
        return torch.cat([own[: n // 2], their[n // 2 :]]) if fits else own

    return mapped(batch, half)


def _drops(module: nn.Module) -> bool:
    """Dropout and stochastic depth, also those that are no subclass of torch's."""
    named = any(word in type(module).__name__.lower() for word in ("dropout", "droppath", "stochasticdepth"))
    rate = getattr(module, "p", getattr(module, "drop_prob", 0.0))
    return named and not list(module.children()) and isinstance(rate, float) and rate > 0


@contextmanager
def modes(model: nn.Module, training: Iterable[nn.Module]) -> Iterator[None]:
    """Only these modules are in training mode, and buffers are copies: the model's own are not written."""
    before = [(module, module.training) for module in model.modules()]
    tables: list[dict[str, Any]] = [
        module._buffers for module, _ in before if not isinstance(module, torch.jit.ScriptModule)
    ]
    own = [dict(table) for table in tables]
    copies = {id(t): t.clone() for table in own for t in table.values() if t is not None}
    try:
        for table in tables:
            table.update({name: copies[id(t)] for name, t in table.items() if t is not None})
        for module, _ in before:
            module.training = False
        for module in training:
            module.training = True
        with torch.no_grad():
            yield
    finally:
        for module, mode in before:
            module.training = mode
        for table, old in zip(tables, own, strict=True):
            table.update(old)


def _run(model: nn.Module, norms: list[Norm], caller: Caller, batches: list[Any]) -> Pass:
    """One pass over all batches."""
    done = Pass()
    by_module = {norm.module: norm for norm in norms if norm.module is not None}
    calls: dict[str, int] = {}
    inside: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    def leave(*_: Any) -> None:
        inside.pop()

    def watch(norm: Norm) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(tensors([args, kwargs]), None)
            call = calls[norm.name] = calls.get(norm.name, -1) + 1
            if x is not None and x.is_floating_point() and not x.is_meta:
                add(done.stats.setdefault((norm.name, call), Stats()), norm, x)

        return hook

    with ExitStack() as hooks:
        for name, module in hookable(model):
            hooks.callback(module.register_forward_pre_hook(enter(name)).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
            if module in by_module:
                hooks.callback(
                    module.register_forward_pre_hook(watch(by_module[module]), with_kwargs=True).remove
                )
        for index, batch in enumerate(batches):
            calls.clear()
            inside.clear()
            try:
                output = caller(model, batch)
            except Exception as error:
                raise ForwardFailed(index, inside[-1] if inside else "", error) from error
            result = logits(output, examples(batch))
            if result is not None:
                done.logits.append(result.detach().float().cpu())
            if done.bad is None and (is_bad(output) or any(stats.bad for stats in done.stats.values())):
                done.bad = index
    return done


def _finite(batch: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors(batch) if t.is_floating_point())
