"""Rules that need batches. Their thresholds are for networks that are healthy: see the calibration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bnbook.doctor._norms import Norm
from bnbook.doctor._rules import Case, Sign, rule
from bnbook.doctor._stats import Stats

# Median over channels of |running mean - mean| / sigma, and of |log(running sigma / sigma)|. Healthy networks
# of the benchmark: up to 0.094 and 0.051; stopped at a constant rate, up to 0.15 and 0.064.
STALE_MEAN, STALE_SIGMA = 0.19, 0.12
# A whole standard deviation, or a variance off by a factor of e: no healthy network comes near.
BROKEN_MEAN, BROKEN_SIGMA = 1.0, 0.5
# Squared gap between the modes over the squared change by other neighbours: healthy 0.5 to 2.2.
GAP_RATIO, GAP_SIZE = 4.0, 0.1
# Scatter of batch means over that of shuffled examples: healthy up to 1.34, sorted data 2.0 and more.
UNLIKE = 1.6
POPULATIONS, POPULATION_DISTANCE = 2.5, 0.5
# Variance over the variance of batch means: the fewest in a healthy network were 7.
FEW_EFFECTIVE = 4
# The variance before a norm with dropout over that without: 1 in a healthy network, 1.25 for p = 0.2.
DROPOUT_VARIANCE = 1.2
# Siamese branches differ by their sampling alone: by less than 0.1 at 160 examples.
SHARED_MEAN, SHARED_SIGMA = 0.5, 0.35
# Digits that are left: float32 has 7 of them, bfloat16 has 2. Healthy: up to 12; CREPE 1.4.
OFFSETS = {torch.float32: 1e3, torch.float64: 1e8, torch.float16: 128.0, torch.bfloat16: 16.0}
SQUARES = 255.0  # 255 ** 2 is the last square below float16's 65,504
IGNORED = 255  # the label of pixels that do not count, as are negative ones
_PERMUTATIONS = 99


class Staleness(NamedTuple):
    """How far running statistics are from those of the batches: medians over channels."""

    mean: float
    sigma: float
    scatter: float  # what `mean` would be from the scatter of batches alone
    scatter_sigma: float
    ratio: float  # running over recomputed variance


def staleness(norm: Norm, stats: Stats) -> Staleness | None:
    """Running statistics against those that the batches give."""
    if norm.mean is None or norm.var is None or len(stats.mean) < 2 or min(stats.m) < 2:
        return None
    mean, var = stats.pooled()
    running_mean, running_var = norm.mean.detach().float().cpu(), norm.var.detach().float().cpu()
    if not (
        torch.isfinite(running_mean).all() and torch.isfinite(running_var).all() and (running_var >= 0).all()
    ):
        return None
    sigma = (var + norm.eps).sqrt()
    alpha = 0.1 if norm.momentum is None else norm.momentum
    share = math.sqrt(1 / len(stats.mean) + alpha / (2 - alpha))  # of one batch's scatter in the difference
    noise = stats.means().std(0) / sigma * share
    noise_sigma = (torch.stack(stats.var) + norm.eps).log().std(0) / 2 * share
    ratio = (running_var + norm.eps) / (var + norm.eps)
    return Staleness(
        float(((running_mean - mean).abs() / sigma).median()),
        float((ratio.log() / 2).abs().median()),
        float(noise.median()),
        float(noise_sigma.median()),
        float(ratio.median()),
    )


def _stale(case: Case) -> Iterator[tuple[Norm, Staleness]]:
    """Norms whose running statistics are beyond the thresholds and beyond scatter."""
    for norm in case.of("batch"):
        stats = case.seen.trained.stats.get((norm.name, 0)) if case.seen else None
        found = staleness(norm, stats) if stats is not None and not norm.frozen else None
        if found is None or (norm.initial and not _trained(norm)):
            continue  # a fresh layer's statistics are 0 and 1, and that is no fault
        most = 0.67 * case.z  # the median of |N(0, 1)| is 0.67
        apart = found.mean > max(STALE_MEAN, most * found.scatter)
        if apart or found.sigma > max(STALE_SIGMA, most * found.scatter_sigma):
            yield norm, found


def _trained(norm: Norm) -> bool:
    return norm.beta is None or bool((norm.beta != 0).any())


@rule("stale-statistics", "batches")
def stale_statistics(case: Case) -> Iterator[Sign]:
    """Running statistics are not those of the batches, beyond what batches scatter."""
    for norm, found in _stale(case):
        if norm.initial:
            continue  # untouched-statistics says it
        bad = found.mean > BROKEN_MEAN or found.sigma > BROKEN_SIGMA
        yield Sign(
            "note" if norm.held else "error" if bad else "warning",
            norm.name,
            {
                "|running mean - mean| / sigma": found.mean,
                "from scatter": found.scatter,
                "running over recomputed variance": found.ratio,
            },
            "Frozen on purpose, and these batches have other statistics."
            if norm.held
            else "Evaluation normalizes with statistics that these batches do not have. Either the weights "
            "moved since (averaged, pruned, quantized, few steps, tiny momentum, dummy passes), or these are "
            "other data than in training.",
            "if the part has to fit these data: thaw it, then doctor.recompute"
            if norm.held
            else "doctor.recompute(model, training_batches)",
        )


@rule("shifted-inputs", "batches")
def shifted_inputs(case: Case) -> Iterator[Sign]:
    """The mismatch begins at the first norm and fades behind it: it comes with the data."""
    stale = dict((norm.name, found) for norm, found in _stale(case) if not norm.initial)
    order = [norm.name for norm in case.of("batch") if norm.mean is not None and not norm.frozen]
    if len(order) > 2 and order[0] in stale:
        score = [max(s.mean, s.sigma) if (s := stale.get(name)) else 0.0 for name in order]
        others = statistics.median(score[1:])
        if score[0] > 2 * others:
            yield Sign(
                "note",
                order[0],
                {"at the first norm": score[0], "at the others": others},
                "The first norm differs most and those behind it less: the inputs are shifted, or dummy data "
                "went into the averages.",
                "compare the preprocessing of these batches with that of training",
            )


@rule("train-eval-gap", "batches")
def train_eval_gap(case: Case) -> Iterator[Sign]:
    """Outputs with the norms in evaluation against the norms in training mode, all else in evaluation."""
    seen = case.seen
    if seen is None or not seen.evaluated.logits or len(seen.switched.logits) != len(seen.evaluated.logits):
        return
    if all(norm.initial and not _trained(norm) for norm in case.of("batch") if norm.mean is not None):
        return  # a fresh network's statistics have had no batch to follow
    evaluated, switched = torch.cat(seen.evaluated.logits), torch.cat(seen.switched.logits)
    if evaluated.shape != switched.shape or not (
        torch.isfinite(evaluated).all() and torch.isfinite(switched).all()
    ):
        return
    spread = float(switched.std())
    gap = float((evaluated - switched).square().mean().sqrt()) / max(spread, 1e-12)
    compared, worse = _worse(evaluated, switched, seen.labels, case.z)
    ratio = _gap_over_noise(case)
    if worse is not None:
        yield Sign(
            "error",
            "",
            worse | {"gap of the outputs / sigma": gap},
            "The network is better with the statistics of the batch than with its running ones.",
            "see stale-statistics here; doctor.recompute(model, training_batches)",
        )
    elif ratio is not None and ratio > GAP_RATIO and gap > GAP_SIZE:
        yield Sign(
            "note" if compared else "warning",
            "",
            {"gap of the outputs / sigma": gap, "times that of other neighbours": math.sqrt(ratio)},
            "Evaluation differs from training by more than the choice of neighbours explains"
            + (
                ", but not for the worse."
                if compared
                else "; the labels do not fit these outputs, so that nothing says whether it is worse."
                if seen.labels
                else "; labels would say whether it is worse."
            ),
            "see stale-statistics here; doctor.recompute(model, training_batches)",
        )


def _gap_over_noise(case: Case) -> float | None:
    """Squared gap over the squared change when half of the neighbours change; 1 in a healthy network."""
    seen = case.seen
    pairs = (
        []
        if seen is None
        else [
            (e, s, r)
            for e, s, r in zip(seen.evaluated.logits, seen.switched.logits, seen.rebatched, strict=False)
            if r is not None and r.shape == s.shape
        ]
    )
    if not pairs:
        return None
    gap = sum(float((e - s).square().sum()) for e, s, _ in pairs)
    noise = sum(float((s - r).square().sum()) for _, s, r in pairs)
    return gap / max(noise, 1e-12)


def _worse(
    evaluated: Tensor, switched: Tensor, labels: list[Tensor], z: float
) -> tuple[bool, dict[str, float | int | str] | None]:
    """Whether labels and outputs can be compared; accuracy, or squared error, if evaluation is worse.

    By a paired test at `z` over examples: the pixels of one picture count as one.
    """
    if not labels:
        return False, None
    y = torch.cat([label.cpu() for label in labels])
    if not y.is_floating_point() and y.shape == (*evaluated.shape[:1], *evaluated.shape[2:]):
        counts = (y >= 0) & (y != IGNORED)
        if evaluated.ndim < 2 or not counts.any() or int(y[counts].max()) >= evaluated.shape[1]:
            return False, None
        of_example = counts.reshape(len(y), -1)
        right, batch = (
            ((out.argmax(1) == y) & counts).reshape(len(y), -1).sum(1) / of_example.sum(1).clamp(min=1)
            for out in (evaluated, switched)
        )
        lost = batch - right
        spread = max(float(lost.square().sum().sqrt()), 1.0)
        if float(lost.sum()) > z * spread and float(lost.mean()) > 0.02:
            return True, {
                "accuracy in evaluation": float(right.mean()),
                "with the batch": float(batch.mean()),
            }
        return True, None
    if y.is_floating_point() and y.numel() == evaluated.numel():
        error = (evaluated.reshape(y.shape) - y).square() - (switched.reshape(y.shape) - y).square()
        error, base = error.flatten(), float((switched.reshape(y.shape) - y).square().mean())
        if float(error.mean()) > max(z * float(error.std()) / math.sqrt(len(error)), 0.1 * base):
            return True, {"squared error in evaluation": base + float(error.mean()), "with the batch": base}
        return True, None
    return False, None


@rule("neighbour-dependence", "batches")
def neighbour_dependence(case: Case) -> Iterator[Sign]:
    """An example's output depends on the others in its batch."""
    alone, among = (case.seen.alone, case.seen.among) if case.seen else (None, None)
    intent = bool(case.expect.get("per_example"))
    for mode, found in (("evaluation", alone), ("training", among)):
        if found is None or not found.real or (mode == "training" and alone and alone.real):
            continue
        by_design = any(norm.name == found.module and norm.mean is None for norm in case.of("batch"))
        severity = "error" if intent else "note" if mode == "training" or by_design else "warning"
        yield Sign(
            severity,
            found.module,
            {"change / sigma": found.change, "of a repeat": found.repeat, "mode": mode},
            "The same examples among other neighbours give other outputs, and this module is the first that "
            "makes the difference." + (" In training mode a batch norm does." if mode == "training" else ""),
            "model.eval() before you predict"
            if mode == "training"
            else "a mean over each example, not over the batch",
        )


class Scatter(NamedTuple):
    """Scatter of batch means against that of shuffled batches."""

    ratio: float
    z: float


def scatter(by_example: list[Tensor]) -> Scatter:
    """Standard deviation of batch means over that after shuffling examples among the batches."""
    sizes = torch.tensor([len(part) for part in by_example])
    x = torch.cat(by_example)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    generator = torch.Generator().manual_seed(0)
    orders = [owner, *(owner[torch.randperm(len(x), generator=generator)] for _ in range(_PERMUTATIONS))]
    member = F.one_hot(torch.stack(orders), len(sizes)).float().transpose(1, 2)  # (orders, batches, examples)
    between = ((member @ x).square().sum(2) / sizes).sum(1)
    own, mean, std = float(between[0]), float(between[1:].mean()), float(between[1:].std())
    return Scatter(math.sqrt(own / max(mean, 1e-12)), (own - mean) / max(std, 1e-12))


class Clusters(NamedTuple):
    """Two groups of batches."""

    distance: float  # in standard deviations of a value, rms over channels
    share: float  # of the batches in the smaller one
    within: float  # scatter ratio inside the two


def clusters(stats: Stats) -> Clusters | None:
    """Split the batches in two along their first principal direction; None if a part has fewer than two."""
    means = stats.means()
    sigma = (stats.pooled()[1] + 1e-12).sqrt()
    z = (means - means.mean(0)) / sigma
    along = z @ torch.linalg.svd(z, full_matrices=False)[2][0]
    order = along.argsort()
    sizes = range(2, len(order) - 1)
    if not sizes:
        return None

    def inside(k: int) -> float:
        low, high = along[order[:k]], along[order[k:]]
        return float((low - low.mean()).square().sum() + (high - high.mean()).square().sum())

    k = min(sizes, key=inside)
    parts = [order[:k].tolist(), order[k:].tolist()]
    within = max(scatter([stats.by_example[i] for i in part]).ratio for part in parts)
    gap = z[parts[0]].mean(0) - z[parts[1]].mean(0)
    return Clusters(float(gap.square().mean().sqrt()), min(k, len(order) - k) / len(order), within)


def _scatters(case: Case) -> list[tuple[Norm, Stats, Scatter]]:
    """Batch norms with the scatter of their batches, first calls, in evaluation."""
    if case.seen is None or len(case.seen.sizes) < 3 or min(case.seen.sizes) < 2:
        return []
    found: list[tuple[Norm, Stats, Scatter]] = []
    for norm in case.of("batch"):
        stats = case.seen.evaluated.stats.get((norm.name, 0))
        if stats is not None and stats.by_example and all(torch.isfinite(m).all() for m in stats.by_example):
            found.append((norm, stats, scatter(stats.by_example)))
    return found


@rule("two-populations", "batches")
def two_populations(case: Case) -> Iterator[Sign]:
    """The batches fall into two groups, each of them homogeneous: one average serves neither."""
    found = _two(case)
    if found is not None:
        norm, groups, ratio = found
        yield Sign(
            "warning",
            norm.name,
            {
                "distance / sigma": groups.distance,
                "smaller share": groups.share,
                "scatter, times shuffled": ratio,
            },
            "Batches come from two populations (domains, real and fake, labelled and unlabelled). Training "
            "normalizes each by itself, evaluation both by one average.",
            "mix both in every batch, or one norm for each",
        )


def _two(case: Case) -> tuple[Norm, Clusters, float] | None:
    candidates = [(n, st, sc) for n, st, sc in _scatters(case) if sc.ratio > POPULATIONS and sc.z > case.z]
    if not candidates:
        return None
    norm, stats, found = max(candidates, key=lambda c: c[2].ratio)
    groups = clusters(stats)
    if groups is None or groups.within > UNLIKE or groups.distance < POPULATION_DISTANCE:
        return None
    return norm, groups, found.ratio


@rule("unlike-batches", "batches")
def unlike_batches(case: Case) -> Iterator[Sign]:
    """Batch means scatter more than those of shuffled examples: the data are ordered."""
    # Against shuffled examples, never against sigma / sqrt(m): neighbouring pixels are correlated, and the
    # stem of a healthy network on shuffled photographs scatters 34 times that.
    candidates = [(n, sc) for n, _, sc in _scatters(case) if sc.ratio > UNLIKE and sc.z > case.z + 2]
    if candidates and _two(case) is None:
        norm, found = max(candidates, key=lambda c: c[1].ratio)
        yield Sign(
            "warning" if any(n.moves for n, _ in candidates) else "note",
            norm.name,
            {"scatter, times shuffled": found.ratio, "z": found.z, "norms": len(candidates)},
            "Each batch has means of its own, as when data are sorted. In training mode that ruins the "
            "statistics; in evaluation it does not matter.",
            "DataLoader(..., shuffle=True); two kinds of data (real and fake): mix them in every batch",
        )


@rule("few-effective-values", "batches")
def few_effective_values(case: Case) -> Iterator[Sign]:
    """Many values share a mean, but they are so alike that it is worth a few."""
    for norm in case.of("batch"):
        stats = case.seen.evaluated.stats.get((norm.name, 0)) if case.seen else None
        if stats is None or len(stats.mean) < 5 or not norm.moves:
            continue
        effective = float(stats.pooled()[1].sum() / stats.means().var(0).sum().clamp_min(1e-12))
        if effective <= FEW_EFFECTIVE and min(stats.m) > 2 * FEW_EFFECTIVE:
            yield Sign(
                "note",
                norm.name,
                {"effective": effective, "counted": min(stats.m), "batches": len(stats.mean)},
                "The batch means scatter as if only so many independent values went into them.",
                "larger or better mixed batches; doctor.freeze or doctor.replace when fine-tuning",
            )


@rule("dropout-before-norm", "batches")
def dropout_before_norm(case: Case) -> Iterator[Sign]:
    """Dropout adds variance in training that the norm expects, and does not find, in evaluation."""
    if case.seen is None or not case.seen.dropout:
        return
    for norm in case.of("batch"):
        key = (norm.name, 0)
        if norm.mean is None or key not in case.seen.trained.stats or key not in case.seen.switched.stats:
            continue
        ratio = (case.seen.trained.stats[key].pooled()[1] + norm.eps) / (
            case.seen.switched.stats[key].pooled()[1] + norm.eps
        )
        if float(ratio.median()) > DROPOUT_VARIANCE:
            yield Sign(
                "warning",
                norm.name,
                {"variance with dropout over without": float(ratio.median())},
                "Dropout before this norm makes its running variance too large for evaluation.",
                "dropout after the last norm; or doctor.recompute, which leaves dropout off",
            )


@rule("shared-norm", "batches")
def shared_norm(case: Case) -> Iterator[Sign]:
    """One norm with running statistics is called for inputs of different distributions."""
    for norm in case.of("batch"):
        stats = case.seen.evaluated.stats if case.seen else {}
        calls = [stats[key] for key in stats if key[0] == norm.name and stats[key].mean]
        if len(calls) < 2 or norm.mean is None:
            continue
        (mean, var), others = calls[0].pooled(), [call.pooled() for call in calls[1:]]
        far = max(float(((m - mean).abs() / (var + norm.eps).sqrt()).median()) for m, _ in others)
        wide = max(float((((v + norm.eps) / (var + norm.eps)).log() / 2).abs().median()) for _, v in others)
        if far > SHARED_MEAN or wide > SHARED_SIGMA:
            yield Sign(
                "warning",
                norm.name,
                {"calls": len(calls), "means apart / sigma": far, "sigmas apart": math.exp(wide)},
                "The layer is called several times a pass, with inputs of different mean or spread, and has "
                "one running average for all of them.",
                "a norm of its own for each call",
            )


@rule("large-offset", "batches")
def large_offset(case: Case) -> Iterator[Sign]:
    """A mean so far from 0 that its type cannot hold what varies around it."""
    for norm in case.norms:
        stats = case.seen.evaluated.stats.get((norm.name, 0)) if case.seen else None
        if stats is None or not stats.offset or norm.family == "rms":
            continue
        if max(stats.offset) > OFFSETS.get(stats.dtype, 1e3):
            yield Sign(
                "warning",
                norm.name,
                {
                    "mean / sigma": max(stats.offset),
                    "error of the kernel / sigma": _kernel_error(stats, norm.eps),
                },
                "Most digits hold the mean, few are left for what varies around it; kernels that compute "
                "E[x^2] - E[x]^2 return noise or NaN.",
                "subtract a constant from the inputs first",
            )


def _kernel_error(stats: Stats, eps: float) -> float:
    """Largest error of this build's batch norm on the worst channel, against float64."""
    x = stats.sample
    if x is None or len(x) < 2:
        return math.nan
    exact = x.double()
    exact = (exact - exact.mean()) / (exact.var(correction=0) + eps).sqrt()
    found = F.batch_norm(x.to(stats.dtype)[:, None].float(), None, None, training=True, eps=eps)
    return float((found[:, 0].double() - exact).abs().max())


@rule("fp16-squares", "batches")
def fp16_squares(case: Case) -> Iterator[Sign]:
    """Deviations whose squares float16 cannot hold."""
    for norm in case.of("layer", "group", "instance", "rms"):
        stats = case.seen.evaluated.stats.get((norm.name, 0)) if case.seen else None
        if stats is not None and stats.deviation and max(stats.deviation) > SQUARES:
            yield Sign(
                "warning" if torch.float16 in (norm.dtype, stats.dtype) else "note",
                norm.name,
                {"largest |x - mean|": max(stats.deviation), "float16 squares up to": SQUARES},
                "A kernel or an export that squares in float16 gets infinity here (PyTorch's own does not).",
                "keep this norm in float32 when you export",
            )


@rule("nonfinite-activation", "batches")
def nonfinite_activation(case: Case) -> Iterator[Sign]:
    """The first module that makes NaN or infinity of finite numbers."""
    seen = case.seen
    if seen is None:
        return
    if seen.bad_inputs:
        yield Sign(
            "error",
            "",
            {"batches": len(seen.bad_inputs), "first": seen.bad_inputs[0]},
            "The data themselves hold NaN or infinity; these batches were left out.",
            "torch.isfinite(x).all() in the loader",
        )
    known = (
        any(norm.name == seen.nonfinite[0] and not _sound(norm) for norm in case.norms)
        if seen.nonfinite
        else True
    )
    if seen.nonfinite and not known:
        name, evidence = seen.nonfinite
        yield Sign(
            "error",
            name,
            evidence,
            "This module is the first whose output is not finite although its input is; the ranges before it "
            "say whether it overflowed.",
            "compute it in float32, or bound its input",
        )


def _sound(norm: Norm) -> bool:
    numbers = [t for t in (norm.mean, norm.var, norm.gamma, norm.beta) if t is not None]
    return all(bool(torch.isfinite(t).all()) for t in numbers) and (
        norm.var is None or bool((norm.var >= 0).all())
    )


@rule("padding-dependence", "batches")
def padding_dependence(case: Case) -> Iterator[Sign]:
    """More padding gives other outputs for the same example."""
    found = case.seen.padded if case.seen else None
    if found is not None and found[0] > 0.01:
        yield Sign(
            "error",
            found[1],
            {"change / sigma": found[0]},
            "Padded positions enter statistics or sums, so an example's output depends on the longest one in "
            "its batch. Group norm does this in evaluation, too.",
            "statistics over valid positions only, or a layer norm for each position",
        )


@rule("forward-fails", "batches")
def forward_fails(case: Case) -> Iterator[Sign]:
    """The model raises."""
    failed = case.seen.failed if case.seen else None
    if failed is not None:
        yield Sign(
            "error",
            failed.module,
            {"batch": failed.batch, "error": f"{type(failed.error).__name__}: {failed.error}"[:200]},
            "The forward pass raised in this module, so nothing could be measured.",
            "mend it, or say how a batch is passed: inputs=, labels=, forward=",
        )
