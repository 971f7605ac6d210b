"""Rules that need the shape of a batch: one pass on the meta device shows all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from bnbook.doctor._norms import Norm
from bnbook.doctor._rules import Case, Sign, rule
from bnbook.doctor._trace import _TURNS, Call, Trace

# Batch norm at batch 2 on maps did no harm where it was measured (98.7 % on digits), and squeeze-excite
# layers see one value an example in 15 of 97 published networks: so only the count per statistic matters.
FEW, SOME = 4, 8
# A healthy network of three layers at batch 16 keeps 0.91, ten layers that see 64 values keep 0.92: a note.
# Ten that see 16 keep 0.72, ten that see 4 keep 0.24.
BESSEL, BESSEL_BAD = 0.95, 0.8


def _called(case: Case, *families: str) -> Iterator[tuple[Norm, Call, int]]:
    """Norms of these families that ran, with the call and the number of values a statistic."""
    by_name = {norm.name: norm for norm in case.of(*families)}
    for call in case.trace.calls if case.trace else ():
        if (norm := by_name.get(call.norm)) is not None:
            yield norm, call, norm.values(call.shape)


@rule("few-values", "shapes")
def few_values(case: Case) -> Iterator[Sign]:
    """A batch norm in training sees hardly any value for each mean."""
    for norm, call, m in _called(case, "batch"):
        if m > SOME or norm.frozen or not norm.training or _many_ranks(norm):
            continue
        yield Sign(
            "error" if m <= 1 else "warning" if m <= FEW else "note",
            norm.name,
            {"values per statistic": m, "shape": str(tuple(call.shape))},
            "With one value there is no variance, and PyTorch refuses; with two, all that is left of a value "
            "is which of the two was larger."
            if m <= FEW
            else "Means of so few values are noisy.",
            "a larger batch, doctor.replace(model), or no norm on pooled features",
        )


@rule("constant-output", "shapes")
def constant_output(case: Case) -> Iterator[Sign]:
    """A norm whose group holds one value returns its bias, whatever comes in."""
    for norm, call, m in _called(case, "instance", "group", "layer", "batch"):
        own = not (norm.family == "batch" and (norm.mean is not None or norm.training))
        if norm.family == "instance" and norm.mean is not None and not norm.training:
            own = False
        if m <= 1 and own:
            yield Sign(
                "error",
                norm.name,
                {"values per group": m, "shape": str(tuple(call.shape))},
                "The group has one value, which minus its mean is 0: the layer returns its bias, no error is "
                "raised and nothing before it learns.",
                "fewer groups, or no norm here",
            )


@rule("wrong-axis", "shapes")
def wrong_axis(case: Case) -> Iterator[Sign]:
    """The axis that a norm keeps is not the axis of the features."""
    for norm, call, _ in _called(case, "batch", "instance", "layer"):
        features = _features_last(case.trace, call) if case.trace else None
        if features is None or len(call.shape) != 3:
            continue
        maker, width = features
        positions = norm.family == "layer" and norm.values(call.shape) > width
        if positions or norm.family != "layer":
            yield Sign(
                "error" if norm.family != "layer" else "warning",
                norm.name,
                {"shape": str(tuple(call.shape)), "features": f"last axis, {width} of {maker}"},
                "The layer before puts features last. "
                + (
                    "normalized_shape covers the positions too, so each token depends on all others."
                    if positions
                    else "A one-dimensional norm keeps the middle axis, so it has one mean for each position."
                ),
                "nn.LayerNorm(features)" if positions else "norm(x.transpose(1, 2)).transpose(1, 2)",
            )


def _features_last(trace: Trace, call: Call) -> tuple[str, int] | None:
    """The layer that put features on the last axis of this input, unless the axes were turned since."""
    inside = ""
    for _, op in trace.upstream(call.source):
        layer = trace.modules.get(op.module)
        if inside and op.module != inside:
            # Mixers turn the axes, mix positions with a Linear, and turn them back: then positions are last.
            return None if op.name in _TURNS else (inside, call.shape[-1])
        if isinstance(layer, nn.Linear | nn.RNNBase | nn.MultiheadAttention):
            inside = op.module
        elif op.name in _TURNS or op.shape != call.shape:
            return None
    return (inside, call.shape[-1]) if inside else None


@rule("norm-at-output", "shapes")
def norm_at_output(case: Case) -> Iterator[Sign]:
    """Nothing but views between a batch norm and the output, whose mean over a batch it fixes."""
    labels = case.seen.labels if case.seen else []
    floats = bool(labels) and all(label.is_floating_point() for label in labels)
    regression = case.expect.get("task") == "regression" or floats
    kept = {norm.name for norm in case.of("batch") if not norm.frozen}
    for name in case.trace.at_output if case.trace else ():
        if name in kept:
            yield Sign(
                "warning" if regression else "note",
                name,
                {"layers after it": 0, "task": "regression" if regression else "unknown"},
                "In training the output has the same mean and spread for every batch, whatever its level"
                + ("." if regression else " (right for SimSiam and Barlow twins, wrong for a regression)."),
                "a Linear layer after it, or no norm",
            )


@rule("bessel-gap", "shapes")
def bessel_gap(case: Case) -> Iterator[Sign]:
    """Training divides by the biased deviation, evaluation by the unbiased one: the factors multiply."""
    kept = {n.name: m for n, _, m in _called(case, "batch") if n.training and n.mean is not None and m > 1}
    if case.trace is None or not kept:
        return
    product = case.trace.shrinkage({name: math.sqrt((m - 1) / m) for name, m in kept.items()})
    if product < BESSEL:
        worst = min(kept, key=lambda name: kept[name])
        yield Sign(
            "warning" if product < BESSEL_BAD else "note",
            worst,
            {"evaluation over training": product, "norms": len(kept), "fewest values": kept[worst]},
            "The stored variance is unbiased, m / (m - 1) larger than the one that normalizes in "
            "training, so activations shrink in evaluation by this factor along the depth.",
            "larger batches, or running variances multiplied by (m - 1) / m",
        )


@rule("ragged-batch", "shapes")
def ragged_batch(case: Case) -> Iterator[Sign]:
    """The last batch of an epoch leaves a batch norm one value, or two to four."""
    if case.ragged is None or case.trace is None:
        return
    length, size = case.ragged
    rest = length % size
    for norm, call, m in _called(case, "batch"):
        left = m * rest // max(call.shape[0], 1)
        if rest and left <= FEW and m > FEW and norm.moves:
            yield Sign(
                "error" if left <= 1 else "warning",
                norm.name,
                {"examples": length, "batch size": size, "last batch": rest, "values per statistic": left},
                "The epoch ends with a batch that is too small for this layer"
                + (": PyTorch raises 'Expected more than 1 value per channel'." if left <= 1 else "."),
                "DataLoader(..., drop_last=True)",
            )


@rule("redundant-bias", "shapes")
def redundant_bias(case: Case) -> Iterator[Sign]:
    """A bias right before a batch or instance norm is subtracted again."""
    # 17 of 97 published networks have it, one of them before 181 norms: one note a model, no more.
    found = []
    for norm, call, _ in _called(case, "batch", "instance"):
        feeder = case.trace.feeder(call) if case.trace else None
        layer = feeder[1] if feeder else None
        if (
            isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
            and layer.bias is not None
            and not norm.frozen
        ):
            found.append((norm.name, layer.bias.numel()))
    if found:
        yield Sign(
            "note",
            found[0][0],
            {"layers": len(found), "parameters": sum(size for _, size in found)},
            "The mean takes the bias before the norm out again; it costs memory and changes nothing.",
            "bias=False in the layer before",
        )


def _many_ranks(norm: Norm) -> bool:
    """Whether the batch is that of several processes."""
    distributed = torch.distributed
    synced = isinstance(norm.module, nn.SyncBatchNorm)
    return (
        synced
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
