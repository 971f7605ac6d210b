"""Rules that need nothing but the numbers which a model, or a file, holds.

Each threshold stands beside the healthy networks that set it; ``benchmarks/bench_doctor.py --calibrate``
prints them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, distributed, nn

from bnbook.doctor._norms import Norm
from bnbook.doctor._report import Number
from bnbook.doctor._rules import Case, Sign, rule

# Every published network with batch norm weighs the new value by 0.1 or less (97 of timm's were looked at).
# MAML and precise statistics under way use exactly 1. TensorFlow's 0.9 to 0.999 weigh the old one.
SWAPPED_MOMENTUM = 0.9
# Gains of a layer over their median. Healthy: up to 12 in trained networks of the benchmark. A channel whose
# variance died while its scale did not has 1 / sqrt(eps) = 316.
OUTLIER_GAIN = 50.0
LARGEST_HALF = 65504.0
SIXTEEN_BITS = (torch.float16, torch.bfloat16)


@rule("nonfinite-statistics", "weights")
def nonfinite_statistics(case: Case) -> Iterator[Sign]:
    """NaN, infinity or a negative variance among the running statistics, or NaN in the scale and shift."""
    for norm in case.norms:
        fields = {"running_mean": norm.mean, "running_var": norm.var, "weight": norm.gamma, "bias": norm.beta}
        evidence: dict[str, int | float] = {
            f"not finite in {name}": count
            for name, tensor in fields.items()
            if tensor is not None and (count := int((~torch.isfinite(tensor)).sum()))
        }
        if norm.var is not None and (negative := int((norm.var < 0).sum())):
            evidence |= {"smallest running_var": float(norm.var[norm.var < 0].min()), "negative": negative}
        if evidence:
            yield Sign(
                "error",
                norm.name,
                evidence | {"channels": norm.channels},
                "Evaluation divides by these statistics, so it returns NaN or huge numbers, for ever: one "
                "infinite activation enters a running average and never leaves it; averaging models with a "
                "momentum can make a variance negative.",
                "norm.reset_running_stats(), then doctor.recompute(model, batches)",
            )


@rule("nonfinite-parameter", "weights")
def nonfinite_parameter(case: Case) -> Iterator[Sign]:
    """A parameter outside the norms is not finite: nothing can be said before it is."""
    if case.model is None:
        return
    own = {id(t) for norm in case.norms for t in (norm.gamma, norm.beta)}
    for name, parameter in case.model.named_parameters():
        if id(parameter) not in own and (bad := int((~torch.isfinite(parameter)).sum())):
            yield Sign(
                "error",
                name.rpartition(".")[0],
                {"not finite": bad, "of": parameter.numel()},
                "Weights are NaN or infinite: training diverged before this was saved.",
                "load an earlier checkpoint; lower the rate, or clip the gradient",
            )


@rule("untouched-statistics", "weights")
def untouched_statistics(case: Case) -> Iterator[Sign]:
    """Running statistics are the initial 0 and 1 in every channel although the layer was trained."""
    # The counter says nothing: converted networks carry 0. A scale that was drawn at random does not say that
    # a layer was trained (DCGAN draws it around 1), but a shift begins at 0 nearly everywhere.
    for norm in case.of("batch", "instance"):
        if _untouched(norm) and not _stuck(norm) and norm.beta is not None:
            yield Sign(
                "error",
                norm.name,
                {
                    "largest |beta|": float(norm.beta.detach().abs().max()),
                    "running_mean": 0,
                    "running_var": 1,
                },
                "The layer was trained but its running statistics were never updated, so evaluation does "
                "not normalize at all.",
                "doctor.recompute(model, batches), or copy the buffers from the model that was trained",
            )


def _untouched(norm: Norm) -> bool:
    """Whether it was trained, by its shift, and its statistics are those that it was born with."""
    return norm.initial and not norm.frozen and norm.beta is not None and bool((norm.beta != 0).any())


def _stuck(norm: Norm) -> bool:
    """Whether its statistics cannot move: then half-frozen names the cause."""
    own = norm.family == "batch" and norm.module is not None and not norm.frozen and norm.mean is not None
    return own and (norm.momentum == 0 or not norm.tracks)


@rule("momentum-convention", "weights")
def momentum_convention(case: Case) -> Iterator[Sign]:
    """The momentum weighs the new value in PyTorch, the old one in TensorFlow, Keras, Flax and ONNX."""
    for norm in case.of("batch", "instance"):
        alpha = norm.momentum
        if alpha is None or norm.mean is None or alpha < SWAPPED_MOMENTUM:
            continue
        if alpha == 1:
            yield Sign(
                "note",
                norm.name,
                {"momentum": alpha},
                "Running statistics are those of the last batch alone (as in MAML, or while precise "
                "statistics are computed).",
                "norm.momentum = 0.1, unless it is meant so",
            )
        else:
            yield Sign(
                "warning",
                norm.name,
                {"momentum": alpha, "weight of the last batch": alpha},
                "The momentum looks like another framework's: here it weighs the new batch, so evaluation "
                "hangs on the last batch seen and jitters from update to update.",
                f"norm.momentum = {1 - alpha:.3g}",
            )


@rule("half-frozen", "weights")
def half_frozen(case: Case) -> Iterator[Sign]:
    """The statistics cannot move, but in training mode the batch still normalizes."""
    for norm in case.of("batch"):
        if not _stuck(norm):
            continue
        untouched = _untouched(norm)  # never updated while it trained: evaluation does not normalize at all
        yield Sign(
            "error" if untouched else "warning" if norm.training else "note",
            norm.name,
            {"momentum": -1.0 if norm.momentum is None else norm.momentum, "tracks": str(norm.tracks)},
            "Momentum 0 (or track_running_stats switched off on a built layer) stops the statistics, not "
            "the normalization by the batch: in training mode outputs still depend on the neighbours"
            + (", and evaluation normalizes with the initial 0 and 1." if untouched else "."),
            "norm.momentum = 0.1, then doctor.recompute(model, batches); doctor.freeze(model) if they are "
            "to stand still",
        )


@rule("frozen-by-gradient-only", "weights")
def frozen_by_gradient_only(case: Case) -> Iterator[Sign]:
    """No gradient reaches the layer, but its statistics still move."""
    moving = [norm for norm in case.of("batch") if norm.moves]
    if case.model is None:
        return
    for norm in moving:
        if case.expected_frozen(norm.name):
            yield Sign(
                "error",
                norm.name,
                {"training": str(norm.training), "momentum": norm.momentum or 0.1},
                "You expect this layer to stand still, but it is in training mode: the batch normalizes "
                "and every forward pass moves its statistics.",
                "doctor.freeze(part)",
            )
    frozen = [norm for norm in moving if norm.gamma is not None and not norm.trainable]
    for norm in frozen:
        if not case.expected_frozen(norm.name):
            yield by_gradient_only(norm, case.model, {"trainable": 0, "momentum": norm.momentum or 0.1})


def by_gradient_only(norm: Norm, model: nn.Module, evidence: Mapping[str, Number]) -> Sign:
    """What is said of a norm whose gradient alone was switched off."""
    # MoCo's, DINO's and mean teachers' averaged half is frozen and in training mode on purpose. Its twin, of
    # the same names and shapes, trains.
    return Sign(
        "note" if norm.name.partition(".")[0] in _twins(model) else "warning",
        norm.name,
        evidence,
        "requires_grad=False does not stop the running statistics: in training mode each forward pass "
        "moves them, and the features change although no weight does.",
        "doctor.freeze(part)",
    )


def _twins(model: nn.Module) -> set[str]:
    """Children without a trainable parameter that are the copy of one with."""

    def shapes(child: nn.Module) -> tuple[tuple[str, torch.Size], ...]:
        return tuple((name, parameter.shape) for name, parameter in child.named_parameters())

    children = {
        name: (shapes(child), any(p.requires_grad for p in child.parameters()))
        for name, child in model.named_children()
    }
    live = {shape for shape, trains in children.values() if trains}
    return {name for name, (shape, trains) in children.items() if not trains and shape in live}


@rule("mixed-mode", "weights")
def mixed_mode(case: Case) -> Iterator[Sign]:
    """Some batch norms are in training mode and others in evaluation."""
    # Detectors (norm_eval), FixRes and teachers do this on purpose: a note.
    own = [
        n
        for n in case.of("batch")
        if not n.frozen and n.module is not None and not case.expected_frozen(n.name)
    ]
    training = [norm.name for norm in own if norm.training]
    evaluating = [norm.name for norm in own if not norm.training]
    if training and evaluating:
        fewer = min(training, evaluating, key=len)
        word = "training" if fewer is training else "evaluation"
        yield Sign(
            "note",
            fewer[0],
            {"in training": len(training), "in evaluation": len(evaluating)},
            f"Batch norms stand in both modes; the fewer, named here, are in {word} mode.",
            "model.eval() or model.train(), unless it is meant so; then expect={'frozen': ...}",
        )


@rule("no-running-statistics", "weights")
def no_running_statistics(case: Case) -> Iterator[Sign]:
    """A batch norm that keeps no running statistics normalizes with the batch in evaluation, too."""
    for norm in case.of("batch"):
        if norm.mean is None and norm.module is not None:
            yield Sign(
                "note",
                norm.name,
                {"channels": norm.channels},
                "No running statistics are kept: predictions depend on the batch in evaluation as well.",
                "track_running_stats=True and doctor.recompute, unless it is meant so",
            )


@rule("half-range", "weights")
def half_range(case: Case) -> Iterator[Sign]:
    """Statistics or gains that 16 bits cannot hold."""
    for norm in case.norms:
        if norm.var is None:
            continue
        largest, kept = float(norm.var.float().max()), str(norm.var.dtype).removeprefix("torch.")
        if norm.var.dtype in SIXTEEN_BITS and norm.moves:
            yield Sign(
                "warning",
                norm.name,
                {"kept in": kept, "smallest step": torch.finfo(norm.var.dtype).eps},
                "Running averages are kept in 16 bits while they move: an update below half a step of the "
                "value is lost, and the average stops before it arrives.",
                "norm.float(), or train under autocast, which keeps them in float32",
            )
        elif largest > LARGEST_HALF and torch.isfinite(norm.var).all():
            yield Sign(
                "note",
                norm.name,
                {"largest running_var": largest, "float16 holds": LARGEST_HALF},
                "In float16 this variance is infinite, and the layer returns its bias.",
                "keep the norms in float32, or doctor.fold(model, example) before model.half()",
            )
        gain = _lost_gain(norm)
        if gain is not None and bool(gain.any()):
            yield Sign(
                "error",
                norm.name,
                {"gains lost": int(gain.sum()), "channels": norm.channels, "kept in": str(norm.dtype)},
                "Scale over standard deviation is 0 or infinite in the type in which the model computes.",
                "keep this norm in float32",
            )


def _lost_gain(norm: Norm) -> Tensor | None:
    """Channels whose gain is 0 or infinite in 16 bits and is neither in 32."""
    gain = norm.gain
    if gain is None or norm.dtype not in SIXTEEN_BITS:
        return None
    rounded = gain.to(norm.dtype)
    return torch.isfinite(gain) & (gain > 0) & ((rounded == 0) | torch.isinf(rounded))


@rule("outlier-gain", "weights")
def outlier_gain(case: Case) -> Iterator[Sign]:
    """One channel is multiplied by far more than the others of its layer."""
    # By the gain, not by the variance: weight decay kills scale and variance together, and harms nothing.
    for norm in case.of("batch"):
        gain = norm.gain
        if case.trace and norm.name in case.trace.at_input:
            continue  # columns of a table: their gains are their units
        if gain is None or norm.initial or gain.numel() < 4 or not torch.isfinite(gain).all():
            continue
        median = float(gain.median())
        ratio = float(gain.max()) / max(median, 1e-12)
        if median > 0 and ratio > OUTLIER_GAIN:
            yield Sign(
                "warning",
                norm.name,
                {"times the median": ratio, "channel": int(gain.argmax()), "median gain": median},
                "A channel with hardly any variance keeps its scale: folded and rounded to 8 bits, it "
                "takes the resolution of all others, and any change of its input is blown up.",
                "set that channel's weight to 0, or prune it",
            )


@rule("zero-scale", "weights")
def zero_scale(case: Case) -> Iterator[Sign]:
    """Every scale of a layer is 0, so what it returns is its shift."""
    ends = case.trace.branch_ends if case.trace else None
    for norm in case.norms:
        if norm.gamma is None or bool((norm.gamma != 0).any()) or norm.name in (ends or ()):
            continue
        trained = not norm.initial and norm.mean is not None and Counter(_moved(case))[True] > 1
        yield Sign(
            "warning" if trained and ends is not None else "note",
            norm.name,
            {"channels at 0": norm.channels},
            "All scales are 0: nothing passes this layer. That is right at the end of a fresh residual "
            "branch, and wrong elsewhere.",
            "nn.init.ones_(norm.weight), and look at what is trained",
        )


def _moved(case: Case) -> Iterator[bool]:
    """Of each norm, whether its shift has left 0."""
    return (norm.beta is not None and bool((norm.beta != 0).any()) for norm in case.norms)


@rule("odd-eps", "weights")
def odd_eps(case: Case) -> Iterator[Sign]:
    """No epsilon, or one that is 0 in the type of the layer."""
    # 1e-3 is TensorFlow's and healthy; 1e-12 is BERT's and healthy in float32.
    for norm in case.norms:
        rounded = float(torch.tensor(norm.eps).to(norm.dtype))
        if norm.module is not None and hasattr(norm.module, "eps") and rounded == 0:
            yield Sign(
                "warning",
                norm.name,
                {"eps": norm.eps, f"in {str(norm.dtype).removeprefix('torch.')}": rounded},
                "Nothing guards the division: a constant channel, or token, becomes NaN.",
                "norm.eps = 1e-5",
            )


# Ranks that see shares of the same shuffled data differ by 0.035 sigma, which costs nothing.
RANKS = 0.1


@rule("ranks-differ", "weights")
def ranks_differ(case: Case) -> Iterator[Sign]:
    """Processes keep different running statistics."""
    if case.expect.get("ranks") != "equal":
        return
    if not (distributed.is_available() and distributed.is_initialized()):
        case.not_examined.append(("ranks", "no process group is initialized"))
        return
    for norm in case.of("batch"):
        if norm.mean is None or norm.var is None:
            continue
        means = [torch.empty_like(norm.mean) for _ in range(distributed.get_world_size())]
        distributed.all_gather(means, norm.mean.contiguous())
        apart = (torch.stack(means).max(0).values - torch.stack(means).min(0).values) / (
            norm.var + norm.eps
        ).sqrt()
        if float(apart.max()) > RANKS:
            yield Sign(
                "warning",
                norm.name,
                {"means apart / sigma": float(apart.max()), "ranks": len(means)},
                "Each rank evaluates with statistics of its own share, and what is saved is one rank's.",
                "nn.SyncBatchNorm.convert_sync_batchnorm(model), or broadcast the buffers before evaluation",
            )
