"""Two models that should agree: the first norm at which they part, and the field that explains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnbook._untouched import untouched
from bnbook.doctor._batches import STALE_MEAN, staleness
from bnbook.doctor._calls import Caller, Pick, device_of, examples, hookable, logits, tensors
from bnbook.doctor._examine import _taken
from bnbook.doctor._norms import Norm, norms, unwrap
from bnbook.doctor._observe import modes, record, take
from bnbook.doctor._report import Finding, Report, arranged
from bnbook.doctor._rules import Case, see

EQUAL = 1e-3  # of a standard deviation: other kernels and TF32 stay below
_STATISTICS = ("the running mean", "the running variance", "mean and variance together")
LEFT_BEHIND = 0.5  # staleness of one model, where the other's is below a third of it


@dataclass
class _Run:
    """Inputs and outputs of every innermost module, for the first batch, and the outputs of the model."""

    order: list[str] = field(default_factory=list)
    entered: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)


def compare(
    a: nn.Module,
    b: nn.Module,
    batches: Any,
    *,
    inputs: Pick = None,
    labels: Pick = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    max_batches: int = 20,
) -> Report:
    """Say where two models part, both in evaluation mode: ported, exported, averaged, before and after.

    Parameters
    ----------
    a, b : nn.Module
        `a` is the one that is right. Norms are matched by name.
    batches : iterable
        As for :func:`examine`.

    Returns
    -------
    Report
        ``left-behind-buffers`` if one model's statistics are not those of its weights, ``first-difference``
        with the field that explains it.
    """
    a, b = unwrap(a), unwrap(b)
    caller = Caller(inputs, labels, forward)
    found: list[list[Norm]] = [norms(a), norms(b)]
    given = _taken(batches, max_batches, a, Case(a, found[0]))
    runs, stale = list[_Run](), list[dict[str, float]]()
    for model, own in zip((a, b), found, strict=True):
        there = take(given, max_batches, device_of(model))
        with untouched(model):
            with modes(model, []):
                runs.append(_record(model, caller, there))
            stale.append(_staleness(model, own, caller, there))
    distance = max(
        (_apart(x, y) for x, y in zip(runs[0].outputs, runs[1].outputs, strict=False)), default=0.0
    )
    trained_apart = _trained_apart(a, b)
    behind = list(_left_behind(found, stale, trained_apart))
    report = [*behind, *_settings(found)]
    if distance > EQUAL:  # a folded network differs inside and agrees
        report += _first_difference(found, runs, trained_apart)
    if not trained_apart:  # statistics that moved are one cause, and it has been named
        named = {finding.module for finding in behind}
        report = [
            f
            for f in report
            if not (f.kind == "first-difference" and f.module in named and f.evidence["field"] in _STATISTICS)
        ]
    missing = [
        (norm.name, "is in the first model only")
        for norm in found[0]
        if norm.name not in {n.name for n in found[1]}
    ]
    missing += [
        (norm.name, "is in the second model only")
        for norm in found[1]
        if norm.name not in {n.name for n in found[0]}
    ]
    return Report(
        arranged(report),
        [],
        missing,
        f"outputs of the two differ by up to {distance:.2g} standard deviations"
        if math.isfinite(distance)
        else "outputs of the two have different shapes, or one of them is not finite",
    )


def _record(model: nn.Module, caller: Caller, batches: list[Any]) -> _Run:
    run = _Run()

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x, y = next(tensors([args, kwargs]), None), next(tensors(output), None)
            if x is not None and y is not None and name not in run.left:
                run.order.append(name)
                run.entered[name], run.left[name] = entered.pop(name).cpu(), y.detach().float().cpu().clone()

        return hook

    entered: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(tensors([args, kwargs]), None)
            if x is not None and name not in run.left:
                entered[name] = x.detach().float().clone()

        return hook

    with ExitStack() as hooks:
        for name, module in hookable(model):
            if not list(module.children()) or isinstance(module, nn.modules.batchnorm._BatchNorm):
                hooks.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(keep(name), with_kwargs=True).remove)
        for batch in batches:
            output = logits(caller(model, batch), examples(batch))
            if output is not None:
                run.outputs.append(output.float().cpu())
    return run


def _staleness(model: nn.Module, own: list[Norm], caller: Caller, batches: list[Any]) -> dict[str, float]:
    """How far each norm's statistics are from those that the batches give it."""
    tracked = [norm for norm in own if norm.family == "batch" and not norm.frozen and norm.mean is not None]
    if sum(map(examples, batches)) < 8 or len(batches) < 2:
        return {}
    try:
        with modes(model, [norm.module for norm in tracked if norm.module is not None]):
            stats = record(model, tracked, caller, batches)
    except RuntimeError:
        return {}  # one value per channel: nothing can be recomputed from these batches
    scores = {norm.name: staleness(norm, stats[norm.name, 0]) for norm in tracked if (norm.name, 0) in stats}
    return {name: max(score.mean, score.sigma) for name, score in scores.items() if score is not None}


def _trained_apart(a: nn.Module, b: nn.Module) -> bool:
    """Whether most weights differ: averaged or trained on, which is no mistake in a conversion."""
    theirs = dict(unwrap(b).named_parameters())
    pairs = [(p, theirs[name]) for name, p in a.named_parameters() if p.ndim > 1 and name in theirs]
    return sum(p.shape == q.shape and not torch.equal(p.cpu(), q.cpu()) for p, q in pairs) > len(pairs) / 2


def _left_behind(
    found: list[list[Norm]], stale: list[dict[str, float]], trained_apart: bool
) -> Iterator[Finding]:
    """One side's statistics are far from what its weights give, the other's are not."""
    others = {norm.name: norm for norm in found[1]}
    sides = {
        norm.name: (stale[0][norm.name], stale[1][norm.name])
        for norm in found[0]
        if norm.name in others and norm.name in stale[0] and norm.name in stale[1]
    }
    apart = {name: side for name, side in sides.items() if min(side) < max(side) / 3}
    if not apart or max(max(side) for side in apart.values()) <= LEFT_BEHIND:
        return
    # Where one norm was left behind, the others are told by the thresholds of stale-statistics.
    worst = max(apart.values(), key=max)
    worse = worst.index(max(worst))
    for norm in found[0]:
        side = apart.get(norm.name)
        if side is None or side[worse] <= max(STALE_MEAN, side[1 - worse]):
            continue
        yield Finding(
            "left-behind-buffers",
            "error",
            norm.name,
            {
                f"off by, in sigma, {'first' if worse == 0 else 'second'} model": side[worse],
                "the other": side[1 - worse],
            },
            "The weights were averaged or copied and the running statistics did not follow."
            if trained_apart
            else "The weights agree and the running statistics do not: these were moved (a part in training "
            "mode that was frozen by its gradient alone, dummy passes) or not copied.",
            "copy or average the buffers as well, or doctor.recompute(copy, batches)"
            if trained_apart
            else "copy the other's buffers, and doctor.freeze(part) before it is trained again",
            see("left-behind-buffers"),
        )


def _settings(found: list[list[Norm]]) -> Iterator[Finding]:
    """Modes and momenta that differ: evaluation in the same mode would not show them."""
    others = {norm.name: norm for norm in found[1]}
    for norm in found[0]:
        other = others.get(norm.name)
        if other is None or norm.family != "batch":
            continue
        if norm.training != other.training:
            evidence: dict[str, float | int | str] = {
                "first": _mode(norm),
                "second": _mode(other),
                "field": "the mode",
            }
            says = "As they stand, one normalizes with the batch and the other with running statistics."
            yield Finding(
                "first-difference", "error", norm.name, evidence, says, "b.eval()", see("first-difference")
            )
        if norm.momentum != other.momentum:
            evidence = {"first": str(norm.momentum), "second": str(other.momentum), "field": "momentum"}
            says = "The momenta differ; that shows only when they are trained further."
            yield Finding(
                "first-difference", "note", norm.name, evidence, says, "copy it", see("first-difference")
            )


def _mode(norm: Norm) -> str:
    return "training" if norm.training else "evaluation"


def _first_difference(found: list[list[Norm]], runs: list[_Run], trained_apart: bool) -> Iterator[Finding]:
    """The first module that makes different outputs of equal inputs."""
    a, b = runs
    own = [{norm.name: norm for norm in side} for side in found]
    for name in a.order:
        if name not in b.left or _apart(a.left[name], b.left[name]) < EQUAL:
            continue
        if _apart(a.entered[name], b.entered[name]) > EQUAL:
            continue  # it was handed the difference
        norms_here = (own[0].get(name), own[1].get(name))
        evidence: dict[str, float | int | str] = {"outputs apart / sigma": _apart(a.left[name], b.left[name])}
        severity = "error"
        if trained_apart and (norms_here[0] is None or norms_here[1] is None):
            severity = "note"
            says = "Most weights differ (averaged, fine-tuned, quantized), here first, and it is no norm."
            remedy = "none if that was meant; doctor.recompute(b, batches) if its statistics stayed behind"
        elif norms_here[0] is None or norms_here[1] is None:
            says, remedy = (
                "The weights or the code of this module differ; it is no norm.",
                "compare its weights",
            )
        else:
            cause, rest = _explain(norms_here[0], norms_here[1], a.entered[name], a.left[name], b.left[name])
            evidence |= {"field": cause, "left when it is exchanged": rest}
            says = f"With equal inputs this norm returns something else, and {cause} explains it."
            remedy = (
                "copy the first model's buffers if b's weights are its own; doctor.recompute(b, batches) if "
                "they were trained; doctor.freeze(part) if they were to stand still"
                if cause in _STATISTICS
                else f"convert {cause}"
            )
        yield Finding("first-difference", severity, name, evidence, says, remedy, see("first-difference"))
        return


def _explain(a: Norm, b: Norm, x: Tensor, y_a: Tensor, y_b: Tensor) -> tuple[str, float]:
    """Which field of the first norm, exchanged for the second's, gives the second's output."""
    mean, var, gamma, beta = (
        _filled(a, tensor, value) for tensor, value in ((a.mean, 0), (a.var, 1), (a.gamma, 1), (a.beta, 0))
    )
    mean_b, var_b, gamma_b, beta_b = (
        _filled(b, tensor, value) for tensor, value in ((b.mean, 0), (b.var, 1), (b.gamma, 1), (b.beta, 0))
    )
    if a.family != "batch" or x.ndim < 2 or x.shape[1] != len(var):
        return f"{a.family} or {b.family} norm's own numbers", 1.0
    axes = (0, *range(2, x.ndim))
    batch_var, batch_mean = torch.var_mean(x, axes, correction=0)
    one, m = torch.ones_like(gamma), x.numel() // x.shape[1]
    candidates: dict[str, tuple[Tensor, Tensor, Tensor, Tensor, float]] = {
        "the mode (it normalizes with the batch)": (batch_mean, batch_var, gamma, beta, a.eps),
        f"epsilon ({a.eps:g}, {b.eps:g})": (mean, var, gamma, beta, b.eps),
        "the running mean": (mean_b, var, gamma, beta, a.eps),
        "the running variance": (mean, var_b, gamma, beta, a.eps),
        "the scale": (mean, var, gamma_b, beta, a.eps),
        "the scale, which is ignored": (mean, var, one, beta, a.eps),
        "the shift": (mean, var, gamma, beta_b, a.eps),
        "the shift, which is ignored": (mean, var, gamma, torch.zeros_like(beta), a.eps),
        "the variance, read as a standard deviation": (mean, var.square(), gamma, beta, a.eps),
        f"a biased variance (m = {m})": (mean, var * (m - 1) / m, gamma, beta, a.eps),
        "mean and variance together": (mean_b, var_b, gamma, beta, a.eps),
        "scale and shift together": (mean, var, gamma_b, beta_b, a.eps),
        "all numbers together": (mean_b, var_b, gamma_b, beta_b, b.eps),
    }
    before = _apart(y_a, y_b)
    first_rest: tuple[str, float] = ("none of the fields alone", 1.0)
    for name, numbers in candidates.items():
        rest = _apart(_normalized(x, *numbers), y_b) / max(before, 1e-12)
        if rest < 0.05:
            return name, rest
        if rest < first_rest[1] / 2:
            first_rest = (f"{name}, in part", rest)
    return first_rest


def _normalized(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = gamma * (var + eps).rsqrt()
    return x * scale.reshape(shape) + (beta - mean * scale).reshape(shape)


def _filled(norm: Norm, tensor: Tensor | None, value: float) -> Tensor:
    return torch.full((norm.channels,), value) if tensor is None else tensor.detach().float().cpu()


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest difference in standard deviations of the first; infinite for other shapes or NaN in one."""
    if a.shape != b.shape:
        return float("inf")
    difference = float((a - b).abs().max()) if a.numel() else 0.0
    if difference != difference:
        return 0.0 if bool((torch.isnan(a) == torch.isnan(b)).all()) else float("inf")
    return difference / max(float(a.std(correction=0)), 1e-12) if difference else 0.0
