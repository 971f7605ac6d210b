"""What the doctor prescribes: freeze, recompute, fold, replace."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from bnbook._untouched import untouched
from bnbook.doctor._calls import Caller, Pick, device_of, examples
from bnbook.doctor._examine import _example, _taken
from bnbook.doctor._nonfinite import is_bad
from bnbook.doctor._norms import Norm, norms, stay, unwrap
from bnbook.doctor._observe import modes, record
from bnbook.doctor._rules import Case
from bnbook.doctor._stats import Stats
from bnbook.doctor._trace import trace

LEAST_EXAMPLES = 32  # the mean of a unit is then known to 0.18 of its standard deviation
LEAST_CHANNELS = 8  # in a group: with fewer, group norm is nearly instance norm


def freeze(model: nn.Module, *, affine: bool = True) -> nn.Module:
    """Let the statistics of all batch norms stand still, also after ``model.train()``.

    Parameters
    ----------
    model : nn.Module
        Changed in place: a whole model, or the part that is frozen.
    affine : bool
        Whether scale and shift stand still as well.

    Examples
    --------
    >>> part = freeze(nn.Sequential(nn.BatchNorm1d(3)))
    >>> part.train()[0].training
    False
    """
    for norm in norms(unwrap(model)):
        if norm.family != "batch" or norm.module is None or norm.frozen:
            continue
        if norm.mean is None:
            raise ValueError(f"model: {norm.name} keeps no running statistics, so there is nothing to freeze")
        if isinstance(norm.module, torch.jit.ScriptModule):
            raise ValueError(f"model: {norm.name} is scripted; freeze the model before it is scripted")
        norm.module.eval()
        # A partial, not a method: it survives copy.deepcopy and torch.save.
        norm.module.train = functools.partial(stay, norm.module)  # type: ignore[method-assign]
        for tensor in (norm.gamma, norm.beta) if affine else ():
            if tensor is not None:
                tensor.requires_grad_(False)
    return model


def recompute(
    model: nn.Module,
    batches: Any,
    *,
    inputs: Pick = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    max_batches: int = 200,
    least_examples: int = LEAST_EXAMPLES,
) -> list[str]:
    """Compute the running statistics anew from batches ([ioffe2015], Algorithm 2).

    Only the batch norms are in training mode: dropout stays off, unlike in ``swa_utils.update_bn``. Each
    batch counts by its examples, so that a small last one does not count like a full one. What
    :func:`freeze` froze, and norms without running statistics, stay as they are.

    Parameters
    ----------
    model : nn.Module
        Its running statistics are written, all else stays.
    batches : iterable
        Training batches, as for :func:`examine`.

    Returns
    -------
    list of str
        Norms that have new statistics.
    """
    model = unwrap(model)
    chosen = [
        norm
        for norm in norms(model)
        if norm.family == "batch" and norm.mean is not None and not norm.frozen and not norm.held
    ]
    if not chosen:
        raise ValueError("model: has no batch norm with running statistics that may move")
    given = _taken(batches, max_batches, model, Case(model, chosen))
    count = sum(map(examples, given))
    if count < least_examples:
        raise ValueError(
            f"batches: got {count} examples, at least {least_examples} are needed: means of so few would be "
            f"off by {1 / math.sqrt(max(count, 1)):.2f} standard deviations"
        )
    with untouched(model), modes(model, [norm.module for norm in chosen if norm.module is not None]):
        stats = record(model, chosen, Caller(inputs=inputs, forward=forward), given)
    idle = [norm.name for norm in chosen if (norm.name, 0) not in stats]
    if idle:
        raise ValueError(f"model: {idle[0]} did not run on these batches, so its statistics are unknown")
    joined = {norm.name: _joined([stats[key] for key in stats if key[0] == norm.name]) for norm in chosen}
    _check_finite(joined, given)
    for norm in chosen:
        _write(norm, joined[norm.name], len(given))
    return [norm.name for norm in chosen]


def _check_finite(joined: dict[str, Stats], given: list[Any]) -> None:
    """Refuse statistics that are not finite before any is written, and say where they come from."""
    bad = [name for name, stats in joined.items() if not all(t.isfinite().all() for t in stats.pooled())]
    if bad:
        held = next((i for i, batch in enumerate(given) if is_bad(batch)), None)
        raise ValueError(
            f"model: what enters {bad[0]} is not finite on these batches, because of the weights "
            "(nonfinite-parameter): load an earlier checkpoint"
            if held is None
            else f"batches: batch {held} holds NaN or infinity, and so would the statistics: leave out the "
            "examples for which torch.isfinite(x).all() is false"
        )


def _joined(calls: list[Stats]) -> Stats:
    """The inputs of all calls of a norm as one."""
    joined = Stats()
    for stats in calls:
        joined.n += stats.n
        joined.m += stats.m
        joined.mean += stats.mean
        joined.var += stats.var
    return joined


def _write(norm: Norm, stats: Stats, count: int) -> None:
    if max(stats.m) < 2:
        raise ValueError(f"batches: {norm.name} saw one value per channel, which has no variance")
    mean, var = stats.pooled()
    if norm.mean is not None and norm.var is not None:
        norm.mean.copy_(mean)
        norm.var.copy_(var)
    counter = getattr(norm.module, "num_batches_tracked", None)
    if isinstance(counter, Tensor):
        counter.fill_(count)


class Folded(NamedTuple):
    """A copy of the model without the norms that were folded, and why the others stayed."""

    model: nn.Module
    folded: list[str]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [f"folded {len(self.folded)} batch norms: {', '.join(self.folded)}"]
        return "\n".join([*lines, *(f"kept {name}: {why}" for name, why in self.kept.items())])


def fold(model: nn.Module, example: Any, *, forward: Callable[[nn.Module, Any], Any] | None = None) -> Folded:
    """Put each batch norm that directly follows a linear layer or a convolution into that layer.

    Parameters
    ----------
    model : nn.Module
        Stays as it is; the result is a copy in evaluation mode.
    example : tuple of int or Tensor
        As for :func:`examine`: it shows who feeds whom.

    Returns
    -------
    Folded
    """
    model = copy.deepcopy(unwrap(model)).eval()
    found = [norm for norm in norms(model) if norm.family == "batch"]
    traced = trace(model, found, Caller(forward=forward), _example(example, model))
    calls = [call.norm for call in traced.calls]
    folded, kept = list[str](), dict[str, str]()
    for norm in found:
        call = next((call for call in traced.calls if call.norm == norm.name), None)
        feeder = traced.feeder(call) if call else None
        layer = feeder[1] if feeder else None
        if call is None:
            kept[norm.name] = "it did not run"
        elif norm.mean is None or norm.var is None:
            kept[norm.name] = "it keeps no running statistics"
        elif (
            layer is None
            or not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
            or not _plain_source(traced, call)
        ):
            source = traced.ops[call.source].name if call.source >= 0 else "the input"
            kept[norm.name] = f"no linear layer directly before it ({source})"
        elif calls.count(norm.name) > 1 or traced.read_elsewhere(call):
            kept[norm.name] = "called twice, or something else reads its input"
        elif not _only_normalizes(norm):
            kept[norm.name] = f"{type(norm.module).__name__} does more than normalize"
        else:
            _fold_into(layer, norm)
            _swap(model, norm.name, nn.Identity())
            folded.append(norm.name)
    return Folded(model, folded, kept)


def _plain_source(traced: Any, call: Any) -> bool:
    """Whether the layer before returns what it computed, without an activation of its own."""
    return traced.ops[call.source].name in (
        "convolution",
        "addmm",
        "mm",
        "view",
        "_unsafe_view",
        "add",
        "linear",
    )


@torch.no_grad()
def _only_normalizes(norm: Norm) -> bool:
    """Whether the module returns what the formula gives, tried on numbers of both signs."""
    module, var = norm.module, norm.var
    assert module is not None
    assert var is not None
    x = torch.linspace(-3, 3, 8 * norm.channels, dtype=var.dtype, device=var.device)
    x = x.reshape(norm.channels, 8).T.contiguous()
    scale, shift = _scale_and_shift(norm)
    for axes in (0, 1, 2, 3):
        shaped = x.reshape(*x.shape, *[1] * axes)
        try:
            result = module(shaped)
        except (ValueError, RuntimeError):
            continue
        return bool(torch.allclose(result.reshape(x.shape), x * scale + shift, rtol=1e-3, atol=1e-4))
    return False


def _scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    assert norm.mean is not None
    assert norm.var is not None
    gamma = torch.ones_like(norm.var) if norm.gamma is None else norm.gamma.detach()
    beta = torch.zeros_like(norm.var) if norm.beta is None else norm.beta.detach()
    scale = gamma * (norm.var + norm.eps).rsqrt()
    return scale, beta - norm.mean * scale


@torch.no_grad()
def _fold_into(layer: nn.Module, norm: Norm) -> None:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    numbers = (norm.mean, norm.var, norm.eps, norm.gamma, norm.beta)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        # torch's transpose=True scales axis 1, which holds out / groups channels: wrong for grouped ones.
        scale, shift = _scale_and_shift(norm)
        groups, per_group = layer.groups, layer.out_channels // layer.groups
        grouped = weight.reshape(groups, -1, per_group, *weight.shape[2:])
        along = scale.reshape(groups, 1, per_group, *[1] * (weight.ndim - 2))
        layer.weight = nn.Parameter((grouped * along).reshape(weight.shape), weight.requires_grad)
        layer.bias = nn.Parameter(shift if bias is None else bias * scale + shift, weight.requires_grad)
    elif isinstance(layer, nn.Linear):
        layer.weight, layer.bias = fuse_linear_bn_weights(weight, bias, *numbers)  # type: ignore[arg-type]
    else:
        layer.weight, layer.bias = fuse_conv_bn_weights(weight, bias, *numbers)  # type: ignore[arg-type]


def replace(model: nn.Module, groups: int = 32, *, example: Any = None) -> nn.Module:
    """Put group norm in the place of every batch norm; scale and shift are kept.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    groups : int
        At most this many groups; fewer where a group would have less than 8 channels.
    example : tuple of int or Tensor, optional
        With it a norm on a map so small that a group has one value is found, and refused.

    Returns
    -------
    nn.Module
        The model (a new module if the model is itself a batch norm).
    """
    if groups < 1:
        raise ValueError(f"groups: got {groups}, expected at least 1")
    inner = unwrap(model)
    found = [norm for norm in norms(inner) if norm.family == "batch" and not norm.frozen]
    if not found:
        raise ValueError("model: has no batch norm to replace")
    shapes: dict[str, tuple[int, ...]] = {}
    if example is not None:
        calls = trace(inner, found, Caller(), _example(example, inner)).calls
        shapes = {call.norm: call.shape for call in calls}
    for norm in found:  # before anything is changed
        positions = math.prod(shapes.get(norm.name, (1, 1))[2:])
        if norm.channels // _groups(norm.channels, groups) * positions < 2:
            raise ValueError(f"model: a group of {norm.name} would have one value, and return its bias")
        if not _replaceable(norm):
            raise ValueError(f"model: {norm.name}, a {type(norm.module).__name__}, does more than normalize")
    for norm in found:
        new = nn.GroupNorm(
            _groups(norm.channels, groups), norm.channels, eps=norm.eps, affine=norm.gamma is not None
        )
        new.train(bool(norm.training)).to(device_of(norm.module) if norm.module else None)
        if norm.gamma is not None and norm.beta is not None:
            new.weight, new.bias = norm.gamma, norm.beta  # type: ignore[assignment]
        if not norm.name:
            return new
        _swap(inner, norm.name, new)
    return model


def _replaceable(norm: Norm) -> bool:
    with untouched(norm.module or nn.Identity()), modes(norm.module or nn.Identity(), []):
        return norm.mean is None or _only_normalizes(norm)


def _groups(channels: int, most: int) -> int:
    """The largest divisor of the channels that leaves 8 in each group, 1 if none does."""
    fitting = (g for g in range(min(most, channels), 0, -1) if channels % g == 0)
    return next((g for g in fitting if channels // g >= LEAST_CHANNELS), 1)


def _swap(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
