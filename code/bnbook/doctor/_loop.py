"""Watch a training loop: updates per step, modes, and finite statistics."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from bnbook.doctor._norms import Norm, norms, unwrap
from bnbook.doctor._report import Finding, Report, arranged
from bnbook.doctor._rules import see
from bnbook.doctor._weights import by_gradient_only


class watch:  # reads as a verb: with doctor.watch(model, optimizer) as w
    """Count what a training loop does to the running statistics.

    Nothing is computed in the model: a counter for each norm, and every `every` steps whether the statistics
    are finite. The findings are there at any time; hooks are gone at the end of the ``with`` block.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
    scaler : torch.amp.GradScaler, optional
        To see which steps were skipped.
    expect : mapping, optional
        ``forwards=2`` if each step makes two passes on purpose; ``frozen=True`` if the norms stand still.
    every : int
        Steps between looks at the statistics.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch(model, optimizer) as w:
    ...     for _ in range(2):
    ...         for part in torch.randn(8, 3).split(4):  # accumulation
    ...             model(part).sum().backward()
    ...         optimizer.step()
    >>> print(w.findings[0].kind, w.findings[0].evidence["updates per step"])
    updates-per-step 2.0
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        scaler: Any = None,
        expect: Mapping[str, Any] | None = None,
        every: int = 10,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: got {every}, expected at least 1")
        self.expect = dict(expect or {})
        if unknown := set(self.expect) - {"forwards", "frozen"}:
            raise ValueError(f"expect: got {', '.join(sorted(unknown))}, allowed are forwards, frozen")
        self.model, self.optimizer, self.scaler, self.every = unwrap(model), optimizer, scaler, every
        self.steps = 0
        self._norms = [
            n for n in norms(self.model) if n.family == "batch" and not n.frozen and n.module is not None
        ]
        self._since = dict.fromkeys((norm.name for norm in self._norms), 0)
        self._updates: dict[str, list[int]] = {norm.name: [] for norm in self._norms}
        self._modes: dict[str, bool] = {}
        self._flips: dict[str, tuple[int, bool]] = {}
        self._evaluating = 0
        self._root_training = 0
        self._bad: dict[str, int] = {}
        self._skipped: list[int] = []
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        for norm in self._norms:
            if norm.module is not None and not isinstance(norm.module, torch.jit.ScriptModule):
                self._undo.append(norm.module.register_forward_pre_hook(self._counter(norm.name)).remove)
        self._undo.append(self.optimizer.register_step_post_hook(self._after_step).remove)
        if self.scaler is not None:
            self._watch_scaler()
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _counter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any) -> None:
            moves = module.training and getattr(module, "track_running_stats", True)
            self._since[name] += bool(moves)

        return hook

    def _watch_scaler(self) -> None:
        """A scaler that finds an infinite gradient does not call the optimizer: then no step was counted."""
        scaler, original = self.scaler, self.scaler.step

        def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            before = self.steps
            result = original(optimizer, *args, **kwargs)
            if optimizer is self.optimizer and self.steps == before and any(self._since.values()):
                self._skipped.append(before)
                self._since = dict.fromkeys(self._since, 0)
            return result

        scaler.step = step
        self._undo.append(lambda: delattr(scaler, "step"))

    def _after_step(self, *_: Any) -> None:
        for norm in self._norms:
            training = bool(norm.module and norm.module.training)
            if self._modes.setdefault(norm.name, training) != training:
                self._flips.setdefault(norm.name, (self.steps, training))
            self._updates[norm.name].append(self._since[norm.name])
        self._evaluating += bool(self._norms) and not any(n.module and n.module.training for n in self._norms)
        self._root_training += self.model.training
        self._since = dict.fromkeys(self._since, 0)
        if self.steps % self.every == 0:
            self._look()
        self.steps += 1

    def _look(self) -> None:
        """Which running statistics have become non-finite; one transfer for all of them."""
        kept = [norm for norm in _now(self._norms) if norm.var is not None and norm.mean is not None]
        if kept:
            sums = torch.stack(
                [
                    (n.var.sum() + n.mean.sum()).float()
                    for n in kept
                    if n.var is not None and n.mean is not None
                ]
            )
            for norm, good in zip(kept, torch.isfinite(sums).tolist(), strict=True):
                if not good:
                    self._bad.setdefault(norm.name, self.steps)

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, worst first."""
        return arranged([*self._by_updates(), *self._by_freezing(), *self._by_modes(), *self._by_skips()])

    def report(self) -> Report:
        """The findings as a report, with a row for each norm."""
        rows = [
            {
                "norm": name,
                "steps": len(updates),
                "updates": sum(updates),
                "not finite since step": self._bad.get(name, ""),
            }
            for name, updates in self._updates.items()
        ]
        missing = [] if self.scaler is not None else [("skipped steps", "scaler= was not given")]
        if not self._norms:
            missing.append(("normalization", "the model has no batch norm"))
        if not self.steps:
            inside = "with doctor.watch(model, optimizer) as watched: ..."
            missing.append(("training", f"no step of the optimizer was seen; train inside `{inside}`"))
        return Report(self.findings, rows, missing, f"{len(rows)} batch norms over {self.steps} steps")

    def __str__(self) -> str:
        return str(self.report())

    def _by_updates(self) -> Iterator[Finding]:
        declared = self.expect.get("forwards", 1)
        for norm in _now(self._norms):
            # Steps in which it evaluates are mode-flip's; a frozen norm should not be updated at all.
            updates = [count for count in self._updates[norm.name] if count]
            ratio = statistics.median(updates) if updates else 0
            if norm.mean is None or not updates or ratio == declared or self._moves_frozen(norm):
                continue
            alpha = 0.1 if norm.momentum is None else norm.momentum
            mended = 1 - (1 - alpha) ** (1 / ratio)
            yield Finding(
                "updates-per-step",
                "warning",
                norm.name,
                {"updates per step": float(ratio), "expected": declared, "steps": len(updates)},
                "The running statistics are not updated once for each step of the optimizer (accumulation, "
                "checkpointing, a second pass, a summary tool), so they scatter more.",
                f"norm.momentum = {mended:.4g}; expect={{'forwards': {ratio:g}}} if meant",
                see("updates-per-step"),
            )

    def _moves_frozen(self, norm: Norm) -> bool:
        """Whether the last step updated the statistics of a norm that no gradient reaches."""
        return norm.gamma is not None and not norm.trainable and any(self._updates[norm.name][-1:])

    def _by_freezing(self) -> Iterator[Finding]:
        for norm in _now(self._norms):
            if self._moves_frozen(norm) and norm.mean is not None:
                evidence = {"trainable": 0, "updates": sum(self._updates[norm.name]), "steps": self.steps}
                sign = by_gradient_only(norm, self.model, evidence)
                yield Finding("frozen-by-gradient-only", *sign, see=see("frozen-by-gradient-only"))

    def _by_modes(self) -> Iterator[Finding]:
        if self.steps and self._evaluating == self.steps and not self.expect.get("frozen"):
            training = [norm for norm in _now(self._norms) if norm.trainable]
            initial = [norm for norm in training if norm.initial]
            if training:
                # Detectors keep their norms in evaluation within a model that is in training mode.
                meant = self._root_training == self.steps and not initial
                yield Finding(
                    "trains-in-evaluation",
                    "error" if initial else "note" if meant else "warning",
                    training[0].name,
                    {"steps": self.steps, "norms": len(training), "at 0 and 1": len(initial)},
                    "Steps are taken while every batch norm is in evaluation mode: their scales train, their "
                    "statistics stand still.",
                    "model.train() at the top of each epoch; doctor.freeze if it is meant",
                    see("trains-in-evaluation"),
                    tuple(norm.name for norm in training),
                )
        for name, (step, training_now) in self._flips.items():
            yield Finding(
                "mode-flip",
                "warning",
                name,
                {"step": step, "now in": "training" if training_now else "evaluation"},
                "A norm changed its mode between steps: model.train() after a validation wakes what was put "
                "to sleep by eval().",
                "doctor.freeze(part), which survives model.train()",
                see("mode-flip"),
            )

    def _by_skips(self) -> Iterator[Finding]:
        self._look()
        if self._skipped:
            yield Finding(
                "update-from-skipped-step",
                "error" if self._bad else "warning",
                next(iter(self._bad), ""),
                {
                    "skipped steps": len(self._skipped),
                    "first": self._skipped[0],
                    "norms not finite": len(self._bad),
                },
                "The scaler skipped the step, but the forward pass had updated the running statistics.",
                "keep what comes before the norm in float32; after an overflow doctor.recompute",
                see("update-from-skipped-step"),
                tuple(self._bad),
            )
        elif self._bad:
            name, step = next(iter(self._bad.items()))
            yield Finding(
                "nonfinite-statistics",
                "error",
                name,
                {"seen at step": step, "norms": len(self._bad)},
                "An infinite or undefined activation entered the running statistics and stays in them.",
                "norm.reset_running_stats(), then doctor.recompute(model, batches)",
                see("nonfinite-statistics"),
                tuple(self._bad),
            )


def _now(found: list[Norm]) -> list[Norm]:
    """The same norms, read again: buffers may have been replaced since."""
    from bnbook.doctor._norms import read

    return [read(norm.name, norm.module, norm.family) for norm in found if norm.module is not None]
