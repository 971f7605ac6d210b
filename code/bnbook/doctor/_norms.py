"""What is a norm? One answer for torch's classes, for what behaves like them, and for a state dict."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.swa_utils import AveragedModel

_FAMILIES: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "batch"),
    (_InstanceNorm, "instance"),
    (nn.GroupNorm, "group"),
    (nn.LayerNorm, "layer"),
    (nn.RMSNorm, "rms"),
)
# Longer names first: FrozenBatchNorm2d and SyncBatchNorm are batch norms, RMSNorm is no plain norm.
_NAMES = {
    "batchnorm": "batch",
    "instancenorm": "instance",
    "groupnorm": "group",
    "layernorm": "layer",
    "rmsnorm": "rms",
}


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalization layer as the rules see it.

    Attributes
    ----------
    family : {'batch', 'instance', 'group', 'layer', 'rms'}
    module : nn.Module or None
        None if it was read from a file.
    mean, var, gamma, beta : Tensor or None
        Running statistics, scale and shift, shape (channels,).
    training : bool or None
        Its mode; None in a file.
    frozen : bool
        A FrozenBatchNorm: the batch never normalizes and no statistic ever moves.
    tracks : bool
        Whether a training pass may move the running statistics (``track_running_stats``).
    """

    name: str
    family: str
    module: nn.Module | None
    mean: Tensor | None
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    eps: float
    momentum: float | None
    training: bool | None
    frozen: bool
    tracks: bool

    @property
    def channels(self) -> int:
        """Number of running statistics, or of gammas."""
        for tensor in (self.var, self.gamma):
            if tensor is not None:
                return tensor.numel()
        features: Any = getattr(self.module, "num_features", None) or getattr(self.module, "num_channels", 0)
        return int(features)

    @property
    def dtype(self) -> torch.dtype:
        """In what its numbers are kept."""
        return next((t.dtype for t in (self.gamma, self.var) if t is not None), torch.float32)

    @property
    def by_batch(self) -> bool:
        """Whether the batch normalizes, in the mode in which it stands."""
        return self.family == "batch" and not self.frozen and (bool(self.training) or self.mean is None)

    @property
    def moves(self) -> bool:
        """Whether the next forward pass moves the running statistics."""
        return (
            bool(self.training)
            and not self.frozen
            and self.tracks
            and self.mean is not None
            and self.momentum != 0
        )

    @property
    def held(self) -> bool:
        """Whether ``doctor.freeze`` makes it stand still."""
        own = getattr(self.module, "__dict__", {}).get("train")
        return isinstance(own, functools.partial) and own.func is stay

    @property
    def trainable(self) -> bool:
        """Whether the scale or the shift is trained."""
        return any(t is not None and t.requires_grad for t in (self.gamma, self.beta))

    @property
    def initial(self) -> bool:
        """Whether the running statistics are the 0 and 1 that a layer is born with."""
        mean, var = self.mean, self.var
        return mean is not None and var is not None and bool((mean == 0).all() and (var == 1).all())

    @property
    def gain(self) -> Tensor | None:
        """What a channel is multiplied by in evaluation, absolute value, shape (channels,)."""
        if self.var is None:
            return None
        gamma = torch.ones_like(self.var) if self.gamma is None else self.gamma.detach()
        return gamma.float().abs() / (self.var.float() + self.eps).sqrt()

    def values(self, shape: tuple[int, ...]) -> int:
        """How many numbers share a mean, for an input of this shape."""
        if self.family == "batch":
            ghost = getattr(self.module, "ghost_size", None)
            examples = shape[0] if not isinstance(ghost, int) else min(ghost, shape[0])
            return examples * math.prod(shape[1:]) // max(self.channels, 1)
        if self.family == "instance":
            return math.prod(shape[2:])
        if self.family == "group":
            groups = int(getattr(self.module, "num_groups", 1))
            return math.prod(shape[1:]) // max(groups, 1)
        normalized = getattr(self.module, "normalized_shape", None) or shape[-1:]
        return math.prod([normalized] if isinstance(normalized, int) else normalized)


def family(module: nn.Module) -> str | None:
    """Which kind of norm a module is, None if it is none."""
    for cls, name in _FAMILIES:
        if isinstance(module, cls):
            return name
    scripted = isinstance(module, torch.jit.ScriptModule)
    kept = {name for name, _ in module.named_buffers(recurse=False)} if scripted else set(module._buffers)
    if {"running_mean", "running_var"} <= kept:
        return "batch"  # also without statistics: then the entries are None
    original = str(getattr(module, "original_name", type(module).__name__)).lower().rstrip("123d")
    if scripted or original in ("rmsnorm", "rmsnormfp32"):
        return next((known for ending, known in _NAMES.items() if original.endswith(ending)), None)
    return None


def norms(model: nn.Module) -> list[Norm]:
    """The normalization layers of a model, in its order, under the names that its state dict uses."""
    return [
        read(clean(name), module, kind)
        for name, module in model.named_modules()
        if (kind := family(module)) is not None
    ]


def read(name: str, module: nn.Module, kind: str) -> Norm:
    """A module as a `Norm`."""
    known = isinstance(module, tuple(cls for cls, _ in _FAMILIES))
    buffers = dict(module.named_buffers(recurse=False))
    eps = getattr(module, "eps", None)
    return Norm(
        name=name,
        family=kind,
        module=module,
        mean=_tensor(module, "running_mean"),
        var=_tensor(module, "running_var"),
        gamma=_tensor(module, "weight"),
        beta=_tensor(module, "bias"),
        eps=1e-5 if eps is None else float(eps),
        momentum=getattr(module, "momentum", None),
        training=module.training,
        frozen=not known and not hasattr(module, "momentum") and "weight" in buffers,
        tracks=bool(getattr(module, "track_running_stats", True)),
    )


def norms_of_state(state: Mapping[str, Tensor], eps: float = 1e-5) -> list[Norm]:
    """The norms with running statistics among the entries of a state dict."""
    return [
        Norm(
            name=name,
            family="batch",
            module=None,
            mean=state.get(_join(name, "running_mean")),
            var=state[_join(name, "running_var")],
            gamma=state.get(_join(name, "weight")),
            beta=state.get(_join(name, "bias")),
            eps=eps,
            momentum=None,
            training=None,
            frozen=False,
            tracks=True,
        )
        for key in state
        if key == "running_var" or key.endswith(".running_var")
        for name in [key.removesuffix("running_var").removesuffix(".")]
    ]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a compiled, a data-parallel or an averaged one."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
        if inner is None and isinstance(model, wrappers):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def clean(name: str) -> str:
    """A module's name without what FSDP, compile and checkpoint wrappers put into it."""
    wrappers = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")
    return ".".join(part for part in name.split(".") if part not in wrappers)


def lazy(model: nn.Module) -> Iterator[str]:
    """Names of parameters and buffers that have no shape yet."""
    everything: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers()]
    return (name for name, tensor in everything if nn.parameter.is_lazy(tensor))


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `train` in a frozen norm: whatever the mode, it evaluates."""
    return type(module).train(module, False)
