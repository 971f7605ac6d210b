"""Train one network, or a grid of settings times seeds at once.

:func:`fit` trains one model. :func:`sweep` trains every combination of settings and seeds, and gives each
member the result that :func:`fit` gives with the same seed and settings: same initial weights, same
mini-batches, same updates. Members of equal shape are stacked and trained as one
(``torch.func.stack_module_state`` and ``vmap``); the rest runs over the cores with joblib.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from bnbook.data import Data
from bnbook.layers import Noise, NoisyBatchNorm, let_values_diverge
from bnbook.sgd import mini_batches

__all__ = ["History", "Runs", "fit", "sweep"]

Schedule = Callable[[int], float]
Record = Callable[[nn.Module, int], dict[str, Any]]
Floats = NDArray[np.float64]

# The settings of the optimizer; all other settings of a sweep go to the model.
RATES = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
EVALUATED_AT_ONCE = 500  # test examples: the activations of many stacked networks have to fit


@dataclass(frozen=True)
class History:
    """What happened in one training.

    Attributes
    ----------
    loss : ndarray of shape (steps,)
        Training loss of the mini-batch of each step, before its update; NaN after a divergence.
    steps : ndarray of int, shape (evaluations,)
        Number of updates before each evaluation.
    series : dict of str to ndarray of shape (evaluations, ...)
        ``test_accuracy`` (0 to 1), ``test_loss``, and what `record` returned; NaN after a divergence.
    diverged : int or None
        The step whose loss was the first that is not finite.
    """

    loss: Floats
    steps: NDArray[np.int64]
    series: dict[str, NDArray[Any]]
    diverged: int | None


@let_values_diverge()  # a loss that is not finite ends a training: a layer's error would come before it
def fit(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    schedule: Schedule | None = None,
    evaluate_every: int | None = None,
    record: Record | None = None,
    progress: bool = False,
) -> History:
    """Train a classifier with SGD, in place.

    Parameters
    ----------
    model : nn.Module
        From an input to one score a class.
    data : Data
        As the functions of :mod:`bnbook.data` return it.
    steps : int
        Number of updates.
    seed : int
        Of the order of the mini-batches. (The model's weights were drawn before.)
    batch_size, lr, momentum, weight_decay
        As in ``torch.optim.SGD``.
    schedule : function, optional
        From the step to a factor of `lr`, such as ``lambda t: 0.5 ** (t // 100)``.
    evaluate_every : int, optional
        Updates between two evaluations; by default a twentieth of `steps`. There is always one before
        the first update and one after the last.
    record : function, optional
        Called at each evaluation with the model, in evaluation mode, and the step; the numbers or arrays
        it returns become series of the history. It must leave the model as it was.
    progress : bool
        Whether to show a progress bar on a terminal.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        For a number out of range.
    """
    _check(data, steps=steps, batch_size=batch_size, lr=lr, momentum=momentum, weight_decay=weight_decay)
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    order = torch.from_numpy(_batches(len(x), batch_size, steps, seed))
    evaluations = _evaluation_steps(steps, evaluate_every)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    loss_of, series, diverged = np.full(steps, np.nan), [], None

    for step in tqdm(range(steps + 1), disable=None if progress else True, leave=False):
        if step in evaluations:
            evaluated = _evaluate(model, data)
            recorded = record(model, step) if record else {}
            # Copies: what was recorded may be a view of a parameter that will change.
            series.append(evaluated | {name: np.array(value, float) for name, value in recorded.items()})
        if step == steps:
            break
        model.train()
        batch = order[step]
        loss = F.cross_entropy(model(x[batch]), y[batch])
        loss_of[step] = loss.item()
        if not math.isfinite(loss_of[step]):
            diverged = step
            break
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = lr * (schedule(step) if schedule else 1.0)
        optimizer.step()
    return History(loss_of, np.array(evaluations), _stacked(series, len(evaluations)), diverged)


def sweep(
    build: Callable[..., nn.Module],
    data: Data,
    *,
    steps: int,
    seeds: int | Iterable[int] = 8,
    batch_size: int = 64,
    schedule: Schedule | None = None,
    evaluate_every: int | None = None,
    record: Record | None = None,
    jobs: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> Runs:
    """Train a model for every combination of settings and every seed.

    Parameters
    ----------
    build : function
        ``build(in_shape, classes, **settings)`` returns a model, such as those of :mod:`bnbook.models`.
    data : Data
        As the functions of :mod:`bnbook.data` return it.
    steps, batch_size, schedule, evaluate_every, record
        As :func:`fit`, the same for all.
    seeds : int or iterable of int
        A number n for the seeds 0 to n - 1. A seed draws the initial weights and the mini-batches.
    jobs : int, optional
        Processes; by default what ``joblib.parallel_config`` says, and 1 without it. With its Dask
        backend the same call runs on a cluster.
    progress : bool
        Whether to show a progress bar on a terminal.
    **settings
        ``lr``, ``momentum`` and ``weight_decay`` for the optimizer, the rest for `build`. A **list** is an
        axis of the grid; anything else is the same for all.

    Returns
    -------
    Runs

    Raises
    ------
    ValueError
        If a list is empty, or for what :func:`fit` and `build` reject.
    """
    axes = {name: value for name, value in settings.items() if isinstance(value, list)}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"{name}: got an empty list, an axis of the grid needs at least one value")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise ValueError("seeds: got none, at least one is needed")
    members = [
        {**settings, **dict(zip(axes, values, strict=True)), "seed": seed}
        for *values, seed in itertools.product(*axes.values(), seeds)
    ]
    for member in members:
        _check(data, steps=steps, batch_size=batch_size, **{k: member.get(k, v) for k, v in RATES.items()})

    shared = {
        "build": build,
        "data": data,
        "steps": steps,
        "batch_size": batch_size,
        "schedule": schedule,
        "evaluate_every": evaluate_every,
        "record": record,
    }
    tasks = _tasks(build, data, members, joblib.effective_n_jobs(jobs))
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    results = parallel(
        joblib.delayed(_fit_stack if stacked else _fit_one)([members[i] for i in task], **shared)
        for task, stacked in tasks
    )
    histories: dict[int, History] = {}
    with tqdm(total=len(members), disable=None if progress else True, leave=False) as bar:
        for (task, _), result in zip(tasks, results, strict=True):
            histories.update(zip(task, result, strict=True))
            bar.update(len(task))
    return _collect(axes, seeds, [histories[i] for i in range(len(members))])


@dataclass(frozen=True)
class Runs:
    """The results of a sweep, as arrays with an axis for each setting, then one for the seeds.

    Attributes
    ----------
    axes : dict of str to list
        Name and values of each axis of the grid; the last one is ``seed``.
    loss : ndarray of shape (*axes, steps)
        As ``History.loss``.
    steps : ndarray of int, shape (evaluations,)
        As ``History.steps``.
    series : dict of str to ndarray of shape (*axes, evaluations)
        As ``History.series``.
    diverged : ndarray of float, shape (*axes,)
        The step of the first loss that is not finite; NaN where there is none.
    """

    axes: dict[str, list[Any]]
    loss: Floats
    steps: NDArray[np.int64]
    series: dict[str, Floats]
    diverged: Floats

    def select(self, **settings: Any) -> Runs:
        """The part of the grid with these settings; their axes go away.

        Parameters
        ----------
        **settings
            One value for each axis to fix.

        Returns
        -------
        Runs

        Raises
        ------
        ValueError
            If an axis or a value is not in the grid.
        """
        index = self._index(settings)
        axes = {name: values for name, values in self.axes.items() if name not in settings}
        series = {name: values[index] for name, values in self.series.items()}
        return Runs(axes, self.loss[index], self.steps, series, self.diverged[index])

    def final(self, name: str = "test_accuracy") -> Floats:
        """The last value of a series: an array of shape (*axes, ...)."""
        last: Floats = np.take(self.series[name], -1, axis=len(self.axes))
        return last

    def steps_to(self, level: float, name: str = "test_accuracy") -> Floats:
        """Updates until a series is at `level` or above for the first time; infinity where it never is.

        Parameters
        ----------
        level : float
        name : str
            A key of ``series``.

        Returns
        -------
        ndarray of shape (*axes,)
        """
        reached = self.series[name] >= level
        return np.where(reached.any(-1), self.steps[reached.argmax(-1)], np.inf)

    def best(self, values: Floats, *, largest: bool = False, **settings: Any) -> Floats:
        """The values, one a seed, at the setting whose median over the seeds is best.

        Parameters
        ----------
        values : ndarray of shape (*axes,)
            From :meth:`steps_to` or :meth:`final`.
        largest : bool
            Whether the largest median is the best; otherwise the smallest.
        **settings
            Axes to fix, as in :meth:`select`; the best is sought over the others.

        Returns
        -------
        ndarray of shape (seeds,)

        Raises
        ------
        ValueError
            As :meth:`select`.
        """
        table = values[self._index(settings)].reshape(-1, values.shape[-1])
        medians = np.median(table, axis=1)
        best: Floats = table[medians.argmax() if largest else medians.argmin()]
        return best

    def table(self) -> pd.DataFrame:
        """A row for each member: its settings and seed, the last value of each series, where it diverged."""
        rows = itertools.product(*self.axes.values())
        frame = pd.DataFrame(rows, columns=list(self.axes))
        for name, values in self.series.items():
            if values.ndim == len(self.axes) + 1:  # a recorded array has no place in a column
                frame[name] = self.final(name).ravel()
        frame["diverged"] = self.diverged.ravel()
        return frame

    def _index(self, settings: dict[str, Any]) -> tuple[Any, ...]:
        for name, value in settings.items():
            if name not in self.axes:
                raise ValueError(f"{name}: is not an axis of this grid, which has {', '.join(self.axes)}")
            if value not in self.axes[name]:
                raise ValueError(f"{name}: got {value!r}, the grid has {self.axes[name]}")
        return tuple(
            values.index(settings[name]) if name in settings else slice(None)
            for name, values in self.axes.items()
        )


# --------------------------------------------------------------------------- one member, and many at once


def _build(build: Callable[..., nn.Module], data: Data, member: dict[str, Any]) -> nn.Module:
    """The model of one member, with weights drawn from its seed."""
    settings = {name: value for name, value in member.items() if name not in {*RATES, "seed"}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member["seed"])
        return build(data.x_train.shape[1:], int(data.y_train.max()) + 1, **settings)


def _fit_one(members: list[dict[str, Any]], build: Any, data: Data, **shared: Any) -> list[History]:
    """Train members one after another."""
    histories = []
    for member in members:
        rates = {name: member.get(name, default) for name, default in RATES.items()}
        # Dropout and noise draw from the global state: each member has its own, from its seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(member["seed"])
            histories.append(fit(_build(build, data, member), data, seed=member["seed"], **rates, **shared))
    return histories


@let_values_diverge()
def _fit_stack(
    members: list[dict[str, Any]],
    build: Callable[..., nn.Module],
    data: Data,
    steps: int,
    batch_size: int,
    schedule: Schedule | None,
    evaluate_every: int | None,
    record: Record | None,
) -> list[History]:
    """Train members of equal shape as one network with stacked parameters."""
    models = [_build(build, data, member) for member in members]
    skeleton = models[0]
    stacked, buffers = stack_module_state(models)
    frozen = {name: stacked.pop(name).detach() for name in _frozen(skeleton)}
    shapes = {name: value.shape for name, value in stacked.items()}
    # One row a member: the whole stack is updated at once, with a rate for each row.
    theta = torch.cat([value.detach().flatten(1) for value in stacked.values()], 1).requires_grad_()

    def named(theta: Tensor) -> dict[str, Tensor]:
        """The stacked parameters by their names: those that are trained are views of `theta`."""
        parts = torch.split(theta, [math.prod(shape[1:]) for shape in shapes.values()], 1)
        trained = {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
        return {**frozen, **trained}

    rates = {
        name: torch.tensor([[float(member.get(name, default))] for member in members], dtype=theta.dtype)
        for name, default in RATES.items()
    }
    decays, remembers = bool(rates["weight_decay"].any()), bool(rates["momentum"].any())
    velocity = torch.zeros_like(theta)
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    order = torch.from_numpy(
        np.stack([_batches(len(x), batch_size, steps, member["seed"]) for member in members], axis=1)
    )
    evaluations = _evaluation_steps(steps, evaluate_every)

    def scores(theta: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(skeleton, (theta, buffers), (x,))
        return out

    each_its_own, all_the_same = vmap(scores), vmap(scores, in_dims=(0, 0, None))
    loss_of, series = np.full((steps, len(members)), np.nan), []
    skeleton.train()
    for step in range(steps + 1):
        if step in evaluations:
            now = named(theta.detach())
            evaluated = _evaluate_stack(partial(all_the_same, now, buffers), skeleton, data)
            series.append({**evaluated, **_record_each(record, models, now, buffers, step)})
            skeleton.train()
        if step == steps:
            break
        batch = order[step]
        out, target = each_its_own(named(theta), buffers, x[batch]), y[batch]
        loss = (
            F.cross_entropy(out.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)
        )
        loss_of[step] = loss.detach().numpy()
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        factor = schedule(step) if schedule else 1.0
        with torch.no_grad():  # torch.optim.SGD's update
            if decays:
                gradient += rates["weight_decay"] * theta
            if remembers:
                gradient = velocity.mul_(rates["momentum"]).add_(gradient)
            theta -= factor * rates["lr"] * gradient
    values = {name: np.stack([row[name] for row in series]) for name in series[0]}
    return [_member_history(loss_of, evaluations, values, k) for k in range(len(members))]


def _record_each(
    record: Record | None,
    models: list[nn.Module],
    theta: dict[str, Tensor],
    buffers: dict[str, Tensor],
    step: int,
) -> dict[str, Floats]:
    """What `record` returns for each member of a stack, which is unstacked for it."""
    if record is None:
        return {}
    rows = []
    for k, model in enumerate(models):
        stacked = {**theta, **buffers}
        model.load_state_dict({name: value[k].detach() for name, value in stacked.items()})
        rows.append(record(model.eval(), step))
    return {name: np.stack([np.asarray(row[name], float) for row in rows]) for name in rows[0]}


def _member_history(
    loss_of: Floats, evaluations: Sequence[int], values: dict[str, Floats], k: int
) -> History:
    """What :func:`fit` would have returned for member k: nothing after a divergence."""
    loss = loss_of[:, k].copy()
    bad = np.flatnonzero(~np.isfinite(loss))
    series = {name: value[:, k].copy() for name, value in values.items()}
    if not bad.size:
        return History(loss, np.array(evaluations), series, None)
    loss[bad[0] + 1 :] = np.nan
    for value in series.values():
        value[np.array(evaluations) > bad[0]] = np.nan
    return History(loss, np.array(evaluations), series, int(bad[0]))


def _tasks(
    build: Callable[..., nn.Module], data: Data, members: list[dict[str, Any]], jobs: int
) -> list[tuple[list[int], bool]]:
    """Indices of the members that are trained together, and whether as one stack."""
    groups: dict[str, list[int]] = {}
    alone: list[int] = []
    kinds: dict[str, str | None] = {}
    for i, member in enumerate(members):
        settings = repr({name: value for name, value in member.items() if name not in {*RATES, "seed"}})
        if settings not in kinds:
            kinds[settings] = _kind(_build(build, data, member))
        kind = kinds[settings]
        if kind is None:
            alone.append(i)
        else:
            groups.setdefault(kind, []).append(i)
    tasks = [([i], False) for i in alone]
    for group in groups.values():
        parts = np.array_split(group, min(jobs, len(group)))
        tasks += [(part.tolist(), True) for part in parts]
    return tasks


def _kind(model: nn.Module) -> str | None:
    """The same text for models that can be stacked with each other; None if a model has to train alone.

    Alone train models with layers that draw at random: a stack could not repeat their draws.
    """
    if any(isinstance(module, nn.Dropout | Noise | NoisyBatchNorm) for module in model.modules()):
        return None
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return f"{model!r} {shapes} {_frozen(model)}"


def _frozen(model: nn.Module) -> list[str]:
    """Names of the parameters that are not to be trained."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


# --------------------------------------------------------------------------- small shared parts


def _batches(M: int, N: int, steps: int, seed: int) -> NDArray[np.int64]:
    """Indices of the mini-batch of each step, (steps, N): shuffled epochs without their short last batch."""
    rng = np.random.default_rng(seed)
    epochs = (mini_batches(M, N, rng, drop_last=True) for _ in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), steps)
    return np.array(list(batches), dtype=np.int64).reshape(steps, N)


def _evaluation_steps(steps: int, every: int | None) -> list[int]:
    """0, then every so many steps, then the end."""
    if every is None:
        every = max(1, steps // 20)
    if every < 1:
        raise ValueError(f"evaluate_every: got {every}, at least 1 is needed")
    return sorted({*range(0, steps, every), steps})


@torch.no_grad()
def _evaluate(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy and loss on the test set, in evaluation mode."""
    model.eval()
    scores = torch.cat([model(x) for x in torch.split(torch.from_numpy(data.x_test), EVALUATED_AT_ONCE)])
    y = torch.from_numpy(data.y_test)
    accuracy = (scores.argmax(1) == y).double().mean().item()
    return {"test_accuracy": accuracy, "test_loss": F.cross_entropy(scores, y).item()}


@torch.no_grad()
def _evaluate_stack(score: Callable[[Tensor], Tensor], skeleton: nn.Module, data: Data) -> dict[str, Floats]:
    """As :func:`_evaluate`, for each member of a stack."""
    skeleton.eval()
    scores = torch.cat(
        [score(x) for x in torch.split(torch.from_numpy(data.x_test), EVALUATED_AT_ONCE)], dim=1
    )
    y = torch.from_numpy(data.y_test).expand(scores.shape[:2])
    each = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    accuracy = (scores.argmax(2) == y).double().mean(1).numpy()
    return {"test_accuracy": accuracy, "test_loss": each.mean(1).double().numpy()}


def _stacked(series: list[dict[str, Any]], evaluations: int) -> dict[str, NDArray[Any]]:
    """One array a name; NaN for the evaluations that a diverged training did not reach."""
    stacked = {}
    for name in series[0]:
        values = np.stack([np.asarray(row[name], float) for row in series])
        missing = np.full((evaluations - len(values), *values.shape[1:]), np.nan)
        stacked[name] = np.concatenate([values, missing])
    return stacked


def _collect(axes: dict[str, list[Any]], seeds: list[int], histories: list[History]) -> Runs:
    """Histories in the order of the grid, as arrays."""
    axes = {**axes, "seed": seeds}
    grid = tuple(len(values) for values in axes.values())
    first = histories[0]

    def on_grid(values: list[Any]) -> Floats:
        array = np.array(values, dtype=float)
        return array.reshape(*grid, *array.shape[1:])

    return Runs(
        axes,
        on_grid([history.loss for history in histories]),
        first.steps,
        {name: on_grid([history.series[name] for history in histories]) for name in first.series},
        on_grid([np.nan if history.diverged is None else history.diverged for history in histories]),
    )


def _check(data: Data, **numbers: float) -> None:
    """Say which number is out of range."""
    for name, value in numbers.items():
        if name in ("steps", "batch_size"):
            high = len(data.x_train) if name == "batch_size" else math.inf
            if not (isinstance(value, int) and 1 <= value <= high):
                raise ValueError(f"{name}: got {value!r}, expected a whole number from 1 to {high}")
        elif not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise ValueError(f"{name}: got {value!r}, expected a finite number, 0 or larger")
