"""The examination: three depths, one report."""

from __future__ import annotations

import copy as copying
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnbook._untouched import untouched
from bnbook.doctor import _batches, _shapes, _weights  # noqa: F401  # they enter their rules
from bnbook.doctor._calls import Caller, Pick, device_of, examples, mapped
from bnbook.doctor._neighbours import dependence, padded
from bnbook.doctor._norms import Norm, clean, family, lazy, norms, norms_of_state, unwrap
from bnbook.doctor._observe import Seen, observe, take
from bnbook.doctor._report import Finding, Report, arranged
from bnbook.doctor._rules import RULES, Case
from bnbook.doctor._trace import trace

WATCHED = 8  # examples that are shown to a network among other neighbours
_INTENTS = ("frozen", "per_example", "padding", "task", "ranks")


def examine(
    model: nn.Module | Mapping[str, Tensor],
    batches: Any = None,
    *,
    example: Any = None,
    inputs: Pick = None,
    labels: Pick = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    expect: Mapping[str, Any] | None = None,
    max_batches: int = 20,
    level: float = 1.0,
    ignore: Sequence[str] = (),
    baseline: str | os.PathLike[str] | None = None,
    copy: bool = False,
) -> Report:
    """Say what is wrong with the normalization in a model.

    Without batches it looks at weights and buffers; with an `example`, also at shapes, on the meta device;
    with batches, also at what passes through. The model comes back as it was.

    Parameters
    ----------
    model : nn.Module or mapping of str to Tensor
        A model, also compiled, data-parallel or partly scripted, or a state dict.
    batches : iterable, optional
        A loader as it is, a list of batches, or one batch as a tensor, a dict or a tuple ``(x, y)``. At
        most `max_batches` are read.
    example : tuple of int, Tensor, or nested structure of these, optional
        Shape of a batch, such as ``(8, 3, 64, 64)``.
    inputs, labels : int, str, list of these, or callable, optional
        Which part of a batch goes into the model, and which is the label.
    forward : callable, optional
        ``forward(model, batch)``, in place of ``model(inputs)``.
    expect : mapping, optional
        What is meant: ``frozen=`` names or patterns of modules that stand still, ``per_example=True`` no
        example depends on another, ``padding=`` an axis or a function that pads a batch further,
        ``task="regression"``, ``ranks="equal"`` buffers agree over processes (all must call this).
    max_batches : int
    level : float
        False alarms that a statistical rule may give per 1,000 healthy layers.
    ignore : sequence of str
        Patterns ``kind:module``, or kinds.
    baseline : path, optional
        A file that :meth:`Report.to_json` wrote: what it holds is not reported again.
    copy : bool
        Examine a deep copy: for models whose forward changes objects of its own.

    Returns
    -------
    Report

    Examples
    --------
    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(3, momentum=0.99)
    >>> examine(torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), norm)).findings[0].kind
    'momentum-convention'
    """
    expect = dict(expect or {})
    if unknown := set(expect) - set(_INTENTS):
        raise ValueError(f"expect: got {', '.join(sorted(unknown))}, allowed are {', '.join(_INTENTS)}")
    if max_batches < 1 or not 0 < level < 500:
        raise ValueError(f"max_batches, level: got {max_batches}, {level}, expected at least 1, and 0 to 500")
    if not isinstance(model, nn.Module):
        return _examine_state(model, ignore, baseline)
    model = unwrap(model)
    if waiting := next(lazy(model), None):
        raise ValueError(f"model: {waiting} has no shape yet; run the model once, then examine it")
    if copy:
        model = copying.deepcopy(model)
    found = norms(model)
    case = Case(model, found, expect, level, not_examined=list(_unknown(model)))
    with untouched(model):
        given = None if batches is None else _taken(batches, max_batches, model, case)
        _look_at_shapes(case, Caller(inputs, labels, forward), example, given)
        if given is None:
            case.not_examined.append(("what passes through the norms", "no batches were given"))
        else:
            _look_at_batches(case, Caller(inputs, labels, forward), given)
        findings = list(_findings(case))
    return _report(case, findings, ignore, baseline)


def _findings(case: Case) -> Iterator[Finding]:
    done = {"weights", *(["shapes"] if case.trace else []), *(["batches"] if case.seen else [])}
    for rule in RULES:
        if rule.needs in done:
            yield from rule.findings(case)


def _look_at_shapes(case: Case, caller: Caller, example: Any, batches: list[Any] | None) -> None:
    """One pass for shapes and connections, or the reason why there is none."""
    assert case.model is not None
    if example is None and not batches:
        case.not_examined.append(("shapes", "no example and no batches were given"))
        return
    if any(isinstance(module, torch.jit.ScriptModule) for module in case.model.modules()):
        case.not_examined.append(("shapes and activations inside scripted modules", "hooks do not see them"))
    if example is not None:
        batch, caller = _example(example, case.model), Caller(forward=caller.forward)
    else:
        batch = batches[0] if batches else None
    try:
        case.trace = trace(case.model, case.norms, caller, batch)
    except Exception as error:
        case.not_examined.append(
            ("shapes", f"the pass of an example failed: {type(error).__name__}: {error}"[:300])
        )
        return
    ran = {call.norm for call in case.trace.calls}
    idle = [norm.name for norm in case.norms if norm.name not in ran]
    if idle and not any(isinstance(module, torch.jit.ScriptModule) for module in case.model.modules()):
        more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
        case.not_examined.append((f"{idle[0]}{more}", "did not run in evaluation (an auxiliary head?)"))


def _look_at_batches(case: Case, caller: Caller, batches: list[Any]) -> None:
    """The passes over the batches."""
    assert case.model is not None
    model = case.model
    case.seen = seen = observe(model, case.norms, caller, batches)
    if not seen.batches or seen.failed:
        return
    if not seen.labels:
        case.not_examined.append(("whether evaluation is worse", "no labels were found in the batches"))
    if not seen.evaluated.logits:
        case.not_examined.append(("outputs", "none has a row for each example"))
    if len(seen.sizes) < 3:
        case.not_examined.append(
            ("ordered or mixed batches", f"{len(seen.sizes)} batches, at least 3 are needed")
        )
    if "padding" not in case.expect:
        case.not_examined.append(("padding", "expect={'padding': axis} was not given"))
    widest, n = max(seen.batches, key=examples), max(seen.sizes)
    few = mapped(widest, lambda t: t[:WATCHED] if t.ndim and len(t) == n else t)
    training = [module for module in model.modules() if module.training]
    try:
        seen.alone = dependence(model, caller, few, [])
        if training:
            seen.among = dependence(model, caller, few, training)
        if "padding" in case.expect:
            seen.padded = padded(model, caller, seen.batches[0], case.expect["padding"])
    except Exception as error:
        case.not_examined.append(("neighbours", f"a pass failed: {type(error).__name__}: {error}"[:300]))


def _taken(batches: Any, most: int, model: nn.Module, case: Case) -> list[Any]:
    """The batches, on the model's device, and what a loader says about its last one."""
    if isinstance(batches, Tensor | Mapping) or (
        isinstance(batches, tuple) and batches and isinstance(batches[0], Tensor)
    ):
        _check_is_one(batches)
        batches = [batches]
    if isinstance(batches, torch.utils.data.Dataset):
        raise ValueError("batches: got a Dataset, expected batches: DataLoader(dataset, batch_size=...)")
    case.ragged = _ragged(batches)
    given = take(batches, most, device_of(model))
    if not given:
        raise ValueError(
            "batches: got an empty iterable, at least one batch is needed (was a generator used up?)"
        )
    if isinstance(batches, Iterator):
        case.not_examined.append(("the rest of the batches", f"an iterator: {len(given)} were taken from it"))
    return given


def _check_is_one(batch: Any) -> None:
    """Refuse what ``torch.split`` returns: taken for one batch, all its parts but the first would be lost."""
    if isinstance(batch, tuple) and len(batch) > 1 and all(isinstance(part, Tensor) for part in batch):
        kinds = {(part.ndim, part.dtype, part.shape[1:]) for part in batch}
        if len(kinds) == 1 and batch[0].ndim > 1:
            raise ValueError(
                f"batches: got a tuple of {len(batch)} tensors alike: write list(batches) if each is a batch "
                "or [batches] if they are one"
            )


def _ragged(batches: Any) -> tuple[int, int] | None:
    """Number of examples and batch size, if the last batch is kept although it is smaller."""
    if isinstance(batches, list):
        sizes = [examples(batch) for batch in batches]
        return (
            (sum(sizes), sizes[0]) if sizes and len(set(sizes[:-1])) == 1 and sizes[-1] < sizes[0] else None
        )
    size, data = getattr(batches, "batch_size", None), getattr(batches, "dataset", None)
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError:
        return None
    return (
        (length, size)
        if isinstance(size, int) and size > 1 and not getattr(batches, "drop_last", False)
        else None
    )


def _example(example: Any, model: nn.Module) -> Any:
    """A batch on the meta device from a shape, a tensor, or a structure of these."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(floats, torch.float32)

    def made(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: made(value) for key, value in part.items()}
        if isinstance(part, list | tuple) and all(isinstance(size, int) for size in part):
            return torch.empty(tuple(part), dtype=dtype, device="meta")
        return tuple(made(inner) for inner in part) if isinstance(part, list | tuple) else part

    try:
        batch = mapped(made(example), lambda t: t.to("meta"))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"example: got {example!r}, expected the shape of a batch, or a tensor") from error
    if not isinstance(batch, Tensor | Mapping | tuple):
        raise ValueError(f"example: got {example!r}, expected the shape of a batch, or a tensor")
    return (batch,) if isinstance(batch, tuple) else batch


def _unknown(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Modules that are called a norm and are none that the rules know."""
    for name, module in model.named_modules():
        called = "norm" in type(module).__name__.lower() and not list(module.children())
        if called and family(module) is None and name:
            yield clean(name), f"{type(module).__name__} is called a norm, but no rule knows it"


def _examine_state(
    state: Any, ignore: Sequence[str] = (), baseline: str | os.PathLike[str] | None = None
) -> Report:
    """Look at a state dict: what the names that end in running_var belong to."""
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(
            f"model: got {type(state).__name__}, expected an nn.Module or a mapping of names to tensors"
        )
    case = Case(None, norms_of_state(state))
    case.not_examined += [
        ("modes, momentum, shapes, activations", "a state dict does not hold them"),
        ("layer, group and instance norms", "a state dict does not tell them from other weights"),
    ]
    bare = [name for name in state if name.endswith(".weight") and state[name].ndim == 1]
    if bare and not case.norms:
        why = (
            "if they are batch norms, this file lacks their running statistics: was it saved without buffers?"
        )
        case.not_examined.append((f"{len(bare)} layers whose weight has one dimension", why))
    findings = list(_findings(case))
    bad = {name: int((~torch.isfinite(t)).sum()) for name, t in state.items() if t.is_floating_point()}
    own = {name for norm in case.norms for name in (f"{norm.name}.weight", f"{norm.name}.bias")}
    for name, count in bad.items():
        if count and name not in own and not name.endswith(("running_mean", "running_var")):
            findings.append(
                Finding(
                    "nonfinite-parameter",
                    "error",
                    name.rpartition(".")[0],
                    {"not finite": count, "of": state[name].numel()},
                    "Weights are NaN or infinite: training diverged before this was saved.",
                    "load an earlier checkpoint; lower the rate, or clip the gradient",
                    "field_guide.html#nonfinite-parameter",
                )
            )
    return _report(case, findings, ignore, baseline)


def _report(
    case: Case, findings: Iterable[Finding], ignore: Sequence[str], baseline: str | os.PathLike[str] | None
) -> Report:
    depth = (
        "weights"
        + (", shapes" if case.trace else "")
        + (f", {_batches_said(case.seen)}" if case.seen else "")
    )
    kinds: dict[str, int] = {}
    for norm in case.norms:
        kinds[norm.family] = kinds.get(norm.family, 0) + 1
    said = ", ".join(f"{count} {kind} norm{'s' * (count > 1)}" for kind, count in kinds.items())
    if not case.norms:
        said = "no normalization layer"
        case.not_examined.append(("normalization", "the model has no norm that is known here"))
    return Report(
        arranged(findings, ignore, baseline),
        [_row(norm, case) for norm in case.norms],
        case.not_examined,
        f"{said}; looked at {depth}",
    )


def _batches_said(seen: Seen) -> str:
    count = len(seen.sizes)
    error = f", whose scatter is known to ±{100 / (2 * max(count - 1, 1)) ** 0.5:.0f} %" if count > 1 else ""
    return f"{count} batches of {max(seen.sizes, default=0)}{error}"


def _row(norm: Norm, case: Case) -> dict[str, Any]:
    """One norm in the table."""
    row: dict[str, Any] = {"norm": norm.name, "family": norm.family, "channels": norm.channels}
    row["mode"] = (
        "file" if norm.training is None else "frozen" if norm.frozen else "train" if norm.training else "eval"
    )
    call = next((c for c in case.trace.calls if c.norm == norm.name), None) if case.trace else None
    row["values"] = norm.values(call.shape) if call else ""
    if norm.var is not None:
        gain = norm.gain
        row["smallest var"], row["largest var"] = float(norm.var.min()), float(norm.var.max())
        row["largest gain"] = float(gain.max()) if gain is not None else ""
    stats = case.seen.trained.stats.get((norm.name, 0)) if case.seen else None
    stale = _batches.staleness(norm, stats) if stats is not None and stats.mean else None
    row["mean off / sigma"] = stale.mean if stale else ""
    row["var ratio"] = stale.ratio if stale else ""
    return row
