"""Recipes that put each fault into a healthy network, and where the doctor has to find it.

A recipe takes a trained network, which it may change, and returns an `Injected`: what to examine, how, and
the modules of which one has to be named (None if the network as a whole is meant). It returns None for a
network into which it cannot be put.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from doctor_zoo import FrozenBatchNorm2d, batches, digits, fit, output
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnbook.layers import let_values_diverge

EXAMPLE = (16, 1, 16, 16)


@dataclass
class Injected:
    model: nn.Module
    modules: set[str] | None
    options: dict[str, Any] = field(default_factory=dict)


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Batch norms that move, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "running_var", None) is not None and not isinstance(module, FrozenBatchNorm2d)
    }


def ran(model: nn.Module) -> dict[str, nn.Module]:
    """Those that run in evaluation: not an auxiliary head's."""
    return {name: module for name, module in norms(model).items() if not name.startswith("aux")}


def middle(model: nn.Module) -> tuple[str, nn.Module]:
    own = list(ran(model).items())
    return own[len(own) // 2]


class Headed(nn.Module):
    """A network with a few layers behind its class scores."""

    def __init__(self, base: nn.Module, *head: nn.Module) -> None:
        super().__init__()
        self.base, self.head = base, nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(output(self.base, x))


def headed(model: nn.Module, *head: nn.Module, train: bool = False) -> nn.Module:
    whole = Headed(model, *head)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if train:
        fit(whole, 30)
    return whole.eval()


# ------------------------------------------------------------------------------------- weights


def infinite_activation(model):
    model.train()
    x = digits()[0][:8].clone()
    x[0, 0, 0, 0] = math.inf
    with torch.no_grad(), let_values_diverge():  # ours would refuse
        model(x)
    return Injected(model.eval(), set(norms(model)))


def negative_variance(model):
    for norm in norms(model).values():
        norm.running_var += 1.5 * (norm.running_var - 1)
        norm.running_var[0] = -0.5
    return Injected(model, set(norms(model)))


def diverged(model):
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.ndim > 1)
    with torch.no_grad():
        parameter[0] = math.nan
    return Injected(model, {name.rpartition(".")[0]})


def forgotten_copy(model):
    name, norm = middle(model)
    norm.reset_running_stats() if hasattr(norm, "reset_running_stats") else _reset(norm)
    return Injected(model, {name})


def _reset(norm):
    norm.running_mean.zero_(), norm.running_var.fill_(1)


def keras_momentum(model):
    for norm in norms(model).values():
        norm.momentum = 0.99
    return Injected(model, set(norms(model)))


def momentum_zero(model):
    for norm in norms(model).values():
        norm.momentum = 0.0
    return Injected(model.train(), set(norms(model)))


def tracking_off(model):
    if not all(hasattr(norm, "track_running_stats") for norm in norms(model).values()):
        return None
    for norm in norms(model).values():
        norm.track_running_stats = False
    return Injected(model.train(), set(norms(model)))


def without_gradient(model):
    return Injected(model.requires_grad_(False).train(), set(norms(model)))


def one_awake(model):
    if len(norms(model)) < 3:
        return None
    name, norm = middle(model)
    norm.train()
    return Injected(model, {name})


def without_statistics(model):
    name, norm = middle(model)
    norm.running_mean = norm.running_var = None
    norm.track_running_stats = False
    return Injected(model, {name})


def sixteen_bits(model):
    name, norm = middle(model)
    norm.running_mean, norm.running_var = norm.running_mean.bfloat16(), norm.running_var.bfloat16()
    return Injected(model.train(), {name})


def beyond_half(model):
    name, norm = middle(model)
    norm.running_var[:2] = 5e5
    return Injected(model, {name})


def dead_channel(model):
    name, norm = middle(model)
    with torch.no_grad():
        norm.running_var[0], norm.weight[0] = 0, 1
        norm.running_var[1:].clamp_min_(0.01)
    return Injected(model, {name})


def all_scales_zero(model):
    ends = {"bn2", "downsample.1", "block.7"}
    own = [name for name in ran(model) if not any(name.endswith(end) for end in ends)]
    if not own:
        return None
    with torch.no_grad():
        norms(model)[own[-1]].weight.zero_()
    return Injected(model, {own[-1]}, {"example": EXAMPLE})


def no_eps(model):
    name, norm = middle(model)
    norm.eps = 0.0
    return Injected(model, {name})


# -------------------------------------------------------------------------------------- shapes


def batch_of_two(model):
    model = headed(model, nn.Linear(10, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 10)).train()
    return Injected(model, {"head.1", *norms(model)}, {"example": (2, 1, 16, 16)})


def one_value_a_group(model):
    return Injected(
        headed(model, nn.Linear(10, 16), nn.GroupNorm(16, 16), nn.Linear(16, 10)),
        {"head.1"},
        {"example": EXAMPLE},
    )


class Tokens(nn.Module):
    """Rows as tokens through a Linear and a norm, added to the class scores."""

    def __init__(self, base, norm):
        super().__init__()
        self.base, self.embed, self.norm, self.read = base, nn.Linear(16, 16), norm, nn.Linear(16, 10)

    def forward(self, x):
        return output(self.base, x) + self.read(torch.relu(self.norm(self.embed(x.squeeze(1)))).mean(1))


def position_means(model):
    return Injected(Tokens(model, nn.BatchNorm1d(16)).eval(), {"norm"}, {"example": EXAMPLE})


def normalized_over_positions(model):
    return Injected(Tokens(model, nn.LayerNorm((16, 16))).eval(), {"norm"}, {"example": EXAMPLE})


def norm_last(model):
    model = headed(model, nn.Linear(10, 4, bias=False), nn.BatchNorm1d(4), nn.Flatten())
    return Injected(model, {"head.1"}, {"example": EXAMPLE, "expect": {"task": "regression"}})


def ten_norms(model):
    model = headed(model, *[nn.BatchNorm1d(10) for _ in range(10)], nn.Linear(10, 10)).train()
    return Injected(model, {f"head.{k}" for k in range(10)} | set(norms(model)), {"example": (4, 1, 16, 16)})


def last_batch_of_one(model):
    model = headed(model, nn.Linear(10, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 10)).train()
    x, y, _, _ = digits()
    loader = DataLoader(TensorDataset(x[:97], y[:97]), batch_size=16)
    return Injected(model, {"head.1", *norms(model)}, {"batches": loader, "max_batches": 3})


def biased(model):
    return Injected(
        headed(model, nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)), None, {"example": EXAMPLE}
    )


# ------------------------------------------------------------------------------------- batches


def larger_weights(model):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                module.weight *= 1.5
    return Injected(model, set(ran(model)), {"batches": batches()})


def summary_tool(model):
    """Five dummy passes of a summary tool, in training mode."""
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(2, 1, 16, 16))
    return Injected(model.eval(), set(ran(model)), {"batches": batches()})


def few_steps(model):
    for norm in norms(model).values():
        norm.reset_running_stats() if hasattr(norm, "reset_running_stats") else _reset(norm)
        norm.momentum = 0.01
    fit(model, 40, rate=0.001)
    return Injected(model.eval(), set(ran(model)), {"batches": batches()})


def parameters_averaged(model):
    """An averaged copy that took the parameters and left the buffers as they were twenty steps in."""
    early = copy.deepcopy(model)
    for norm in norms(early).values():
        norm.running_mean.mul_(0.2), norm.running_var.mul_(0.3).add_(0.5)
    return Injected(early.eval(), set(ran(early)), {"batches": batches()})


def pruned(model):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and module.weight.shape[0] != 10:
                w = module.weight
                w *= w.abs() > w.abs().flatten().quantile(0.6)
    return Injected(model, set(ran(model)), {"batches": batches()})


def worse_in_evaluation(model):
    for norm in ran(model).values():
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(0)).mul_(
            norm.running_var.sqrt() * 2
        )
    return Injected(model, None, {"batches": batches()})


class WholeBatch(nn.Module):
    def forward(self, x):
        return x / x.square().mean().sqrt()


def mean_over_the_batch(model):
    return Injected(headed(model, WholeBatch()), {"head.0"}, {"batches": batches(count=3)})


def forgotten_eval(model):
    return Injected(
        model.train(), set(norms(model)), {"batches": batches(count=3), "expect": {"per_example": True}}
    )


def sorted_data(model):
    x, y, _, _ = digits()
    order = y.argsort(stable=True)
    order = order[:: len(order) // 160][:160]
    return Injected(model.train(), None, {"batches": [(x[i], y[i]) for i in order.split(16)]})


def two_domains(model):
    given = batches(count=10)
    mixed = [(1 - x / 2 if k % 2 else x, y) for k, (x, y) in enumerate(given)]
    return Injected(model, None, {"batches": mixed})


def alike(model):
    """Sixteen frames of one scene, with its own exposure, in each batch."""
    x, y, _, _ = digits()
    i = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))[:10]
    exposure = torch.rand(10).mul(3).add(0.2).tolist()
    scenes = [light * x[k].repeat(16, 1, 1, 1) + light for k, light in zip(i, exposure, strict=True)]
    frames = [
        (s + 0.02 * torch.randn(16, 1, 16, 16), y[k].repeat(16)) for k, s in zip(i, scenes, strict=True)
    ]
    return Injected(model.train(), None, {"batches": frames})


def other_contrast(model):
    if len(ran(model)) < 3:
        return None
    return Injected(model, {next(iter(ran(model)))}, {"batches": [(0.2 * x + 0.5, y) for x, y in batches()]})


def dropout_first(model):
    head = [nn.Dropout(0.5), nn.Linear(10, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)]
    return Injected(headed(model, *head, train=True), {"head.2"}, {"batches": batches()})


class Twice(nn.Module):
    """One norm for two inputs of different scale."""

    def __init__(self, base):
        super().__init__()
        self.base, self.norm, self.read = base, nn.BatchNorm1d(10), nn.Linear(20, 10)

    def forward(self, x):
        y = output(self.base, x)
        return self.read(torch.cat([self.norm(y), self.norm(3 * y + 4)], 1))


def one_norm_for_two(model):
    whole = Twice(model.requires_grad_(False))
    fit(whole, 30)
    return Injected(whole.eval(), {"norm"}, {"batches": batches()})


class Offset(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.norm, self.read = base, nn.BatchNorm1d(10), nn.Linear(10, 10)

    def forward(self, x):
        return self.read(self.norm(output(self.base, x) + 1e6))


def far_from_zero(model):
    whole = Offset(model.requires_grad_(False))
    fit(whole, 30)
    return Injected(whole.eval(), {"norm"}, {"batches": batches()})


class Loud(nn.Module):
    def forward(self, x):
        return 1000 * x


def loud_layer_norm(model):
    return Injected(
        headed(model, Loud(), nn.LayerNorm(10), nn.Linear(10, 10)), {"head.1"}, {"batches": batches(count=3)}
    )


class Overflow(nn.Module):
    def forward(self, x):
        return (1e3 * x.abs()).exp()


def overflowing(model):
    return Injected(headed(model, Overflow(), nn.Linear(10, 10)), {"head.0"}, {"batches": batches(count=3)})


class PaddedTokens(Tokens):
    """A group norm over channels and time, and a mean over the first ten frames only."""

    def __init__(self, base):
        super().__init__(base, nn.GroupNorm(2, 16))

    def forward(self, x):
        frames = self.norm(self.embed(x.squeeze(1)).transpose(1, 2))[:, :, :10]
        return output(self.base, x[:, :, :16]) + self.read(frames.mean(2))


def padded_frames(model):
    return Injected(
        PaddedTokens(model).eval(), {"norm"}, {"batches": batches(count=3), "expect": {"padding": 2}}
    )


class Raises(nn.Module):
    def forward(self, x):
        if x.shape[0] != 16:
            raise KeyError("no such batch")
        return x


def raising(model):
    odd = [*batches(count=2), batches(size=7, count=1)[0]]
    return Injected(headed(model, nn.Identity(), Raises()), {"head.1"}, {"batches": odd})


Recipe = Callable[[nn.Module], Injected | None]

#: Kind, its recipe, for every kind of `examine` (several recipes for some).
FAULTS: list[tuple[str, Recipe]] = [
    ("nonfinite-statistics", infinite_activation),
    ("nonfinite-statistics", negative_variance),
    ("nonfinite-parameter", diverged),
    ("untouched-statistics", forgotten_copy),
    ("momentum-convention", keras_momentum),
    ("half-frozen", momentum_zero),
    ("half-frozen", tracking_off),
    ("frozen-by-gradient-only", without_gradient),
    ("mixed-mode", one_awake),
    ("no-running-statistics", without_statistics),
    ("half-range", sixteen_bits),
    ("half-range", beyond_half),
    ("outlier-gain", dead_channel),
    ("zero-scale", all_scales_zero),
    ("odd-eps", no_eps),
    ("few-values", batch_of_two),
    ("constant-output", one_value_a_group),
    ("wrong-axis", position_means),
    ("wrong-axis", normalized_over_positions),
    ("norm-at-output", norm_last),
    ("bessel-gap", ten_norms),
    ("ragged-batch", last_batch_of_one),
    ("redundant-bias", biased),
    ("stale-statistics", larger_weights),
    ("stale-statistics", summary_tool),
    ("stale-statistics", few_steps),
    ("stale-statistics", parameters_averaged),
    ("stale-statistics", pruned),
    ("train-eval-gap", worse_in_evaluation),
    ("neighbour-dependence", mean_over_the_batch),
    ("neighbour-dependence", forgotten_eval),
    ("unlike-batches", sorted_data),
    ("two-populations", two_domains),
    ("few-effective-values", alike),
    ("shifted-inputs", other_contrast),
    ("dropout-before-norm", dropout_first),
    ("shared-norm", one_norm_for_two),
    ("large-offset", far_from_zero),
    ("fp16-squares", loud_layer_norm),
    ("nonfinite-activation", overflowing),
    ("padding-dependence", padded_frames),
    ("forward-fails", raising),
]


# --------------------------------------------------------------------------- a loop, two models


def steps(model: nn.Module, optimizer, count: int = 4, passes: int = 1, scaler=None) -> None:
    """A few steps of training; each step may make several passes."""
    x, y, _, _ = digits()
    for step in range(count):
        optimizer.zero_grad()
        for part in range(passes):
            i = torch.arange(16) + 16 * (step * passes + part)
            loss = nn.functional.cross_entropy(output(model, x[i]), y[i])
            (loss if scaler is None else scaler.scale(loss)).backward()
        optimizer.step() if scaler is None else scaler.step(optimizer)


def accumulating(model, watch):
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.001)
    with watch(model, optimizer) as w:
        steps(model, optimizer, passes=4)
    return w, set(norms(model))


def never_train(model, watch):
    optimizer = torch.optim.SGD(model.eval().parameters(), lr=0.001)
    with watch(model, optimizer) as w:
        steps(model, optimizer)
    return w, set(norms(model))


def thawed(model, watch):
    model.train()
    name, norm = middle(model)
    norm.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    with watch(model, optimizer) as w:
        steps(model, optimizer, 2)
        model.eval()  # a validation
        model.train()
        steps(model, optimizer, 2)
    return w, {name}


class Scaler:
    """What torch.amp.GradScaler does on the CPU here: it skips the steps whose gradient is not finite."""

    def scale(self, loss):
        return loss * math.inf

    def step(self, optimizer):
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if all(bool(torch.isfinite(g).all()) for g in gradients):
            optimizer.step()


def skipped_step(model, watch):
    optimizer, scaler = torch.optim.SGD(model.train().parameters(), lr=0.001), Scaler()
    with watch(model, optimizer, scaler=scaler) as w:
        steps(model, optimizer, 2, scaler=scaler)
    return w, None


LOOPS = [
    ("updates-per-step", accumulating),
    ("trains-in-evaluation", never_train),
    ("mode-flip", thawed),
    ("update-from-skipped-step", skipped_step),
]


def parameters_only(model):
    """An averaged copy that began as the untrained network, and took the parameters only."""
    b = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter += 0.02 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0
    for norm in norms(b).values():
        _reset(norm)
    return model, b, set(ran(b))


def other_eps(model):
    b = copy.deepcopy(model)
    name, norm = middle(b)
    norm.eps = 0.1
    return model, b, {name}


def scale_ignored(model):
    b = copy.deepcopy(model)
    name, norm = middle(b)
    with torch.no_grad():
        norm.weight.fill_(1)
    return model, b, {name}


def biased_variance(model):
    b = copy.deepcopy(model)
    name, norm = middle(b)
    norm.running_var *= 0.8
    return model, b, {name}


def left_in_training(model):
    b = copy.deepcopy(model)
    name, norm = middle(b)
    norm.train()
    return model, b, {name}


COMPARISONS = [
    ("left-behind-buffers", parameters_only),
    ("first-difference", other_eps),
    ("first-difference", scale_ignored),
    ("first-difference", biased_variance),
    ("first-difference", left_in_training),
]
