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

from bnbook.doctor._calls import Caller, ForwardFailed, examples, logits, mapped, tensors
from bnbook.doctor._norms import Norm, clean

_KEPT_CHANNELS = 512  # of the means of each example: enough to see scatter


@dataclass
class Stats:
    """Inputs of one norm, batch by batch: per channel, in float32.

    Attributes
    ----------
    n, m : list of int
        Examples, and values per statistic, of each batch.
    mean, var : list of Tensor, shape (channels,)
        Mean and biased variance of each batch.
    by_example : list of Tensor, shape (n, at most 512)
        Mean of each example.
    deviation : list of float
        Largest distance of a value from the mean that is subtracted from it.
    offset : list of float
        Largest ratio of mean to standard deviation.
    """

    n: list[int] = field(default_factory=list)
    m: list[int] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    var: list[Tensor] = field(default_factory=list)
    by_example: list[Tensor] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    offset: list[float] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    sample: Tensor | None = None

    def means(self) -> Tensor:
        """Shape (batches, channels)."""
        return torch.stack(self.mean)

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, weighted by the number of examples (Algorithm 2)."""
        weight = torch.tensor(self.n, dtype=torch.float32)
        weight = weight / weight.sum()
        bessel = torch.tensor([m / max(m - 1, 1) for m in self.m])
        var = torch.stack(self.var) * bessel[:, None]
        return weight @ self.means(), weight @ var


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
            seen.evaluated = _run(model, norms, caller, seen.batches, ranges=seen)
        enough = [module for module in switch if _values(seen, norms, module) > 1]
        with modes(model, enough):
            seen.switched = _run(model, norms, caller, seen.batches)
            seen.rebatched = _rebatched(model, caller, seen.batches)
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


def _run(
    model: nn.Module, norms: list[Norm], caller: Caller, batches: list[Any], ranges: Seen | None = None
) -> Pass:
    """One pass over all batches; with `ranges`, modules that make non-finite numbers are looked for."""
    done = Pass()
    by_module = {norm.module: norm for norm in norms if norm.module is not None}
    calls: dict[str, int] = {}
    inside: list[str] = []
    extremes: list[tuple[str, Tensor]] = []  # of what leaves each innermost module, in order

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    def watch(norm: Norm) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(tensors([args, kwargs]), None)
            call = calls[norm.name] = calls.get(norm.name, -1) + 1
            if x is not None and x.is_floating_point() and not x.is_meta:
                _add(done.stats.setdefault((norm.name, call), Stats()), norm, x)

        return hook

    def leave(name: str, leaf: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            inside.pop()
            if leaf and ranges is not None:
                extremes.extend(
                    (name, _range(t)) for t in tensors(output) if t.is_floating_point() and t.numel()
                )

        return hook

    with ExitStack() as hooks:
        for name, module in hookable(model):
            hooks.callback(module.register_forward_pre_hook(enter(name)).remove)
            hooks.callback(module.register_forward_hook(leave(name, not list(module.children()))).remove)
            if module in by_module:
                hooks.callback(
                    module.register_forward_pre_hook(watch(by_module[module]), with_kwargs=True).remove
                )
        for index, batch in enumerate(batches):
            calls.clear()
            inside.clear()
            extremes.clear()
            try:
                output = caller(model, batch)
            except Exception as error:
                raise ForwardFailed(index, inside[-1] if inside else "", error) from error
            result = logits(output, examples(batch))
            if result is not None:
                done.logits.append(result.detach().float().cpu())
            if ranges is not None and ranges.nonfinite is None:
                ranges.nonfinite = _first_bad(extremes, index)
                if ranges.nonfinite is not None:
                    name, evidence = ranges.nonfinite
                    ranges.nonfinite = (_blamed(model, caller, batch, name), evidence)
    return done


def _blamed(model: nn.Module, caller: Caller, batch: Any, name: str) -> str:
    """The module, or the one around it if what entered was not finite already: then its code made it."""
    entered = list[bool]()

    def look(_: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(all(not _is_bad(_range(t)) for t in tensors([args, kwargs]) if t.is_floating_point()))

    module = dict(hookable(model))[name]
    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        caller(model, batch)
    finally:
        handle.remove()
    return name if all(entered) else name.rpartition(".")[0]


def _is_bad(extreme: Tensor) -> bool:
    """NaN or +infinity; -infinity is a mask."""
    return bool(torch.isnan(extreme).any() or extreme[1] == torch.inf)


def hookable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with their names, without those that TorchScript runs by itself."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield clean(name), module


def _add(stats: Stats, norm: Norm, x: Tensor) -> None:
    """Add the input of a norm to what was seen."""
    stats.dtype = x.dtype
    if x.dtype != torch.float64:
        x = x.float()
    if norm.family != "batch":
        return _add_by_group(stats, norm, x)
    if x.ndim > 1 and x.shape[1] != norm.channels and x.shape[-1] == norm.channels:
        x = x.movedim(-1, 1)
    if x.ndim < 2 or x.shape[1] != norm.channels or x.numel() == 0:
        return None
    values = x.flatten(2) if x.ndim > 2 else x[:, :, None]
    var, mean = torch.var_mean(values, (0, 2), correction=0)
    far = torch.maximum(values.amax((0, 2)) - mean, mean - values.amin((0, 2)))
    stats.n.append(len(values))
    stats.m.append(values.shape[0] * values.shape[2])
    stats.mean.append(mean.float().cpu())
    stats.var.append(var.float().cpu())
    stats.by_example.append(values[:, :_KEPT_CHANNELS].mean(2).float().cpu())
    stats.deviation.append(float(far.max()))
    stats.offset.append(float((mean.abs() / (var + norm.eps).sqrt()).max()))
    if stats.sample is None:
        worst = (mean.abs() / (var + norm.eps).sqrt()).argmax()
        stats.sample = values[:, worst].reshape(-1)[:4096].cpu()
    return None


def _add_by_group(stats: Stats, norm: Norm, x: Tensor) -> None:
    size = norm.values(tuple(x.shape))
    if norm.family in ("layer", "rms") and x.shape[-1:].numel() != size and x.numel() % max(size, 1):
        return
    if (
        norm.family in ("layer", "rms")
        and size == x.shape[1:2].numel()
        and x.ndim == 4
        and x.shape[-1] != size
    ):
        x = x.movedim(1, -1)  # a layer norm over channels that come first
    if size < 1 or x.numel() % size:
        return
    rows = x.reshape(-1, size)
    mean = rows.mean(1, keepdim=True) if norm.family != "rms" else rows.new_zeros(1, 1)
    spread = (rows.var(1, correction=0) + norm.eps).sqrt()
    stats.n.append(len(x))
    stats.m.append(size)
    stats.deviation.append(float((rows - mean).abs().max()))
    ratio = rows.mean(1).abs() / spread
    stats.offset.append(float(ratio.max()) if norm.family != "rms" else 0.0)
    if stats.sample is None:
        stats.sample = rows[ratio.argmax()][:4096].cpu()


def _range(x: Tensor) -> Tensor:
    """Smallest and largest value; NaN if there is one."""
    return torch.stack(torch.aminmax(x.detach().float()))


def _first_bad(
    extremes: list[tuple[str, Tensor]], batch: int
) -> tuple[str, dict[str, float | int | str]] | None:
    """The first module with NaN or +infinity (-infinity is a mask), and what came before it."""
    if not extremes:
        return None
    table = torch.stack([extreme for _, extreme in extremes]).cpu()
    bad = torch.isnan(table).any(1) | (table[:, 1] == torch.inf)
    if not bad.any():
        return None
    first = int(bad.nonzero()[0])
    evidence: dict[str, float | int | str] = {"batch": batch, "output": _interval(table[first])}
    for name, extreme in list(zip([name for name, _ in extremes], table, strict=True))[
        max(first - 3, 0) : first
    ]:
        evidence[f"before, {name}"] = _interval(extreme)
    return extremes[first][0], evidence


def _interval(extreme: Tensor) -> str:
    return f"{float(extreme[0]):.3g} to {float(extreme[1]):.3g}"


def _finite(batch: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors(batch) if t.is_floating_point())
