"""Train one network, or a grid of settings times seeds at once.

:func:`fit` trains one model. :func:`sweep` trains every combination of settings and seeds, and gives each
member the result that :func:`fit` gives with the same seed and settings: same initial weights, same
mini-batches, same updates. Members that differ in nothing but the numbers of their parameters and buffers are
stacked and trained as one (``torch.func.stack_module_state`` and ``vmap``), the others one by one; both run
over the cores with joblib.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bnbook._checks import check_not_negative, check_whole
from bnbook._extra import book_extra
from bnbook._stacking import NotStackable, Stack, description
from bnbook.data import Data
from bnbook.layers import let_values_diverge
from bnbook.sgd import endless

if TYPE_CHECKING:
    import pandas as pd

Schedule = Callable[[int], float]
Record = Callable[[nn.Module, int], dict[str, Any]]
Floats = NDArray[np.float64]
Row = dict[str, Any]  # what one evaluation found
Task = tuple[list[int], list[nn.Module], str]

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
    series: dict[str, Floats]
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
    """Train a classifier with ``torch.optim.SGD``, in place.

    Parameters
    ----------
    model : nn.Module
        From inputs to one score a class.
    data : Data
        As the functions of :mod:`bnbook.data` return it.
    steps : int
        Number of updates.
    seed : int
        Of the order of the mini-batches. (The model's weights were drawn before.)
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

    Examples
    --------
    >>> from bnbook import data, models
    >>> model = models.mlp((64,), 10, depth=1, width=16, norm="batch")
    >>> history = fit(model, data.digits(), steps=100, evaluate_every=50)
    >>> history.steps, bool(history.series["test_accuracy"][-1] > 0.7)
    (array([  0,  50, 100]), True)
    """
    rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    _check_training(data, steps, batch_size, evaluate_every, **rates)
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    order = torch.from_numpy(_batches(len(x), batch_size, steps, seed))
    evaluations = _evaluation_steps(steps, evaluate_every)
    lr, momentum, weight_decay = map(float, rates.values())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    loss_of, rows = np.full(steps, np.nan), []

    with _progress_bar(steps, progress) as advance:
        for step in range(steps + 1):
            if step in evaluations:
                model.eval()
                evaluated = _evaluate(lambda x: model(x)[None], data)
                rows.append({name: value[0] for name, value in evaluated.items()})
                rows[-1] |= _recorded(record, model, step)
            if step == steps:
                break
            model.train()
            batch = order[step]
            loss = F.cross_entropy(model(x[batch]), y[batch])
            loss_of[step] = loss.item()
            if not math.isfinite(loss_of[step]):
                break
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            for group in optimizer.param_groups:
                group["lr"] = lr * (schedule(step) if schedule else 1.0)
            optimizer.step()
            advance()
    return _history(loss_of, evaluations, rows)


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
    stack: bool = True,
    jobs: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> Runs:
    """Train a model for every combination of settings and every seed.

    Parameters
    ----------
    build : function
        ``build(in_shape, classes, **settings)`` returns a model, such as those of :mod:`bnbook.models`.
    steps, batch_size, schedule, evaluate_every, record
        As :func:`fit`, the same for all.
    seeds : int or iterable of int
        A number n for the seeds 0 to n - 1. A seed draws the initial weights and the mini-batches.
    stack : bool
        Whether to train members as one where that is possible. It is not for a model that draws at random
        (dropout), branches on its data, or changes an attribute while it runs: these train one by one anyway,
        and the progress bar says why.
    jobs : int, optional
        Processes; by default what ``joblib.parallel_config`` says, and 1 without it. With its Dask
        backend the same call runs on a cluster.
    **settings
        ``lr``, ``momentum`` and ``weight_decay`` for the optimizer, the rest for `build`. A **list** is an
        axis of the grid; anything else, a tuple too, is one setting for all.

    Examples
    --------
    >>> from bnbook import data, models
    >>> runs = sweep(models.mlp, data.digits(), steps=20, seeds=3, lr=[0.1, 0.3], norm="batch", width=8)
    >>> runs.axes, runs.loss.shape
    ({'lr': [0.1, 0.3], 'seed': [0, 1, 2]}, (2, 3, 20))
    """
    axes = {name: value for name, value in settings.items() if isinstance(value, list)}
    seeds = list(range(seeds) if isinstance(seeds, int | np.integer) else seeds)
    _check_grid(build, settings, seeds)
    members = [
        {**settings, **dict(zip(axes, values, strict=True)), "seed": seed}
        for *values, seed in itertools.product(*axes.values(), seeds)
    ]
    for member in members:
        _check_training(data, steps, batch_size, evaluate_every, **_rates(member))
    _check_classes(data)

    shared = {
        "build": build,
        "data": data,
        "steps": steps,
        "batch_size": batch_size,
        "schedule": schedule,
        "evaluate_every": evaluate_every,
        "record": record,
    }
    with book_extra():
        import joblib
    tasks = _tasks(build, data, members, joblib.effective_n_jobs(jobs), stack)
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    results = parallel(
        joblib.delayed(_fit_task)([members[i] for i in task], models, why, **shared)
        for task, models, why in tasks
    )
    histories: dict[int, History] = {}
    with _progress_bar(len(members), progress) as advance:
        for (task, *_), (found, why) in zip(tasks, results, strict=True):
            histories.update(zip(task, found, strict=True))
            advance(len(task), why and f"one by one: {why}")
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
    series : dict of str to ndarray of shape (*axes, evaluations, ...)
        As ``History.series``.
    diverged : ndarray of float, shape (*axes,)
        The step of the first loss that is not finite; NaN where there is none.

    Examples
    --------
    >>> accuracy = np.array([[[0.1, 0.6, 0.9], [0.1, 0.8, 0.8]], [[0.1, 0.9, 0.9], [0.1, 0.9, 0.7]]])
    >>> axes, nothing = {"lr": [0.1, 1.0], "seed": [0, 1]}, np.full((2, 2), np.nan)
    >>> runs = Runs(axes, np.zeros((2, 2, 20)), np.array([0, 10, 20]), {"test_accuracy": accuracy}, nothing)
    >>> runs.final()
    array([[0.9, 0.8],
           [0.9, 0.7]])
    >>> runs.select(lr=1.0).steps_to(0.9)
    array([10., 10.])
    >>> runs.best(runs.steps_to(0.9))
    array([10., 10.])
    """

    axes: dict[str, list[Any]]
    loss: Floats
    steps: NDArray[np.int64]
    series: dict[str, Floats]
    diverged: Floats

    def select(self, **settings: Any) -> Runs:
        """The part of the grid with these settings, one value for each named axis; these axes go away."""
        index = self._index(settings)
        axes = {name: values for name, values in self.axes.items() if name not in settings}
        series = {name: values[index] for name, values in self.series.items()}
        return Runs(axes, self.loss[index], self.steps, series, self.diverged[index])

    def final(self, name: str = "test_accuracy") -> Floats:
        """The last value of a series: an array of shape (*axes, ...)."""
        last: Floats = np.take(self.series[name], -1, axis=len(self.axes))
        return last

    def steps_to(self, level: float, name: str = "test_accuracy") -> Floats:
        """Updates until a series is at `level` or above for the first time; infinity where it never is."""
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
        """
        table = values[self._index(settings)].reshape(-1, values.shape[-1])
        medians = np.median(table, axis=1)
        best: Floats = table[medians.argmax() if largest else medians.argmin()]
        return best

    def table(self) -> pd.DataFrame:
        """A row for each member: its settings and seed, the last value of each series, where it diverged."""
        with book_extra():
            import pandas as pd
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
        try:
            return build(data.x_train.shape[1:], int(data.y_train.max()) + 1, **settings)
        except (TypeError, ValueError) as error:
            several = [
                name for name, value in settings.items() if not isinstance(value, str) and np.ndim(value)
            ]
            if not several:
                raise
            hint = f"{', '.join(several)}: no axis of the grid, as only a list is one"
            raise ValueError(f"{error}; {hint}") from error


def _rates(member: dict[str, Any]) -> dict[str, Any]:
    """The settings of the optimizer."""
    return {name: member.get(name, default) for name, default in RATES.items()}


def _fit_task(
    members: list[dict[str, Any]],
    models: list[nn.Module],
    why: str,
    build: Callable[..., nn.Module],
    data: Data,
    **shared: Any,
) -> tuple[list[History], str]:
    """Train members as one if they come with their models, else or if these refuse one by one; and why."""
    if models:
        try:
            return _fit_stack(members, Stack(models), data, **shared), ""
        except NotStackable as reason:
            why = str(reason)
    histories = []
    for member in members:
        # Dropout and noise draw from the global state: each member has its own, from its seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(member["seed"])
            model = _build(build, data, member)
            histories.append(fit(model, data, seed=member["seed"], **_rates(member), **shared))
    return histories, why


@let_values_diverge()
def _fit_stack(
    members: list[dict[str, Any]],
    stack: Stack,
    data: Data,
    steps: int,
    batch_size: int,
    schedule: Schedule | None,
    evaluate_every: int | None,
    record: Record | None,
) -> list[History]:
    """Train members that are alike as one network with stacked parameters."""
    theta, velocity = stack.theta, torch.zeros_like(stack.theta)
    rates = {  # one for each row of theta
        name: torch.tensor([[float(_rates(member)[name])] for member in members], dtype=theta.dtype)
        for name in RATES
    }
    decays, remembers = bool(rates["weight_decay"].any()), bool(rates["momentum"].any())
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    order = torch.from_numpy(
        np.stack([_batches(len(x), batch_size, steps, member["seed"]) for member in members], axis=1)
    )
    evaluations = _evaluation_steps(steps, evaluate_every)
    loss_of: Floats = np.full((steps, len(members)), np.nan)
    rows: list[list[Row]] = [[] for _ in members]

    for step in range(steps + 1):
        if step in evaluations:
            stack.skeleton.eval()
            evaluated = _evaluate(stack.scores, data)
            stack.check_attributes()
            for k, row in enumerate(rows):
                row.append({name: value[k] for name, value in evaluated.items()})
                if record and np.isfinite(loss_of[:step, k]).all():
                    row[-1] |= _recorded(record, stack.member(k), step)
        if step == steps:
            break
        stack.skeleton.train()
        batch = order[step]
        inputs = x.index_select(0, batch.flatten()).view(*batch.shape, *x.shape[1:])  # faster than x[batch]
        loss = _losses(stack.scores(inputs, each_its_own=True), y[batch])
        loss_of[step] = loss.detach().numpy()
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        factor = schedule(step) if schedule else 1.0
        with torch.no_grad():  # torch.optim.SGD's update
            if decays:
                gradient += rates["weight_decay"] * theta
            if remembers:
                gradient = velocity.mul_(rates["momentum"]).add_(gradient)
            theta -= factor * rates["lr"] * gradient
    return [_history(loss_of[:, k], evaluations, row) for k, row in enumerate(rows)]


def _tasks(
    build: Callable[..., nn.Module], data: Data, members: list[dict[str, Any]], jobs: int, stack: bool
) -> list[Task]:
    """Indices of the members that are trained together, with their models if as one, or why they cannot."""
    if not stack:
        return [([i], [], "") for i in range(len(members))]
    tasks: list[Task] = []
    groups: dict[bytes, list[tuple[int, nn.Module]]] = {}
    for i, member in enumerate(members):
        model = _build(build, data, member)
        try:
            groups.setdefault(description(model), []).append((i, model))
        except NotStackable as reason:
            tasks.append(([i], [], str(reason)))
    for group in groups.values():
        why = "no other model is like it" if len(group) == 1 < len(members) else ""
        for part in np.array_split(range(len(group)), min(jobs, len(group))):
            indices, models = zip(*[group[place] for place in part], strict=True)
            tasks.append(([*indices], [*models] if len(models) > 1 else [], why))
    return tasks


# --------------------------------------------------------------------------- small shared parts


def _batches(M: int, N: int, steps: int, seed: int) -> NDArray[np.int64]:
    """Indices of the mini-batch of each step, (steps, N)."""
    return np.array(list(itertools.islice(endless(M, N, seed), steps)), dtype=np.int64)


def _evaluation_steps(steps: int, every: int | None) -> list[int]:
    """0, then every so many steps, then the end."""
    return sorted({*range(0, steps, every or max(1, steps // 20)), int(steps)})


@torch.no_grad()
def _evaluate(scores_of: Callable[[Tensor], Tensor], data: Data) -> dict[str, Floats]:
    """Accuracy and loss on the test set of the models with scores (models, examples, classes)."""
    scores = torch.cat(
        [scores_of(x) for x in torch.split(torch.from_numpy(data.x_test), EVALUATED_AT_ONCE)], 1
    )
    y = torch.from_numpy(data.y_test).expand(scores.shape[:2])
    accuracy = (scores.argmax(2) == y).double().mean(1)
    return {"test_accuracy": accuracy.numpy(), "test_loss": _losses(scores, y).double().numpy()}


def _losses(scores: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each model."""
    # With the classes in the last axis it would take three times as long.
    return F.cross_entropy(scores.transpose(1, 2), y, reduction="none").mean(1)


def _recorded(record: Record | None, model: nn.Module, step: int) -> Row:
    """What `record` returns, as copies: it may be a view of a parameter that will change."""
    return {name: np.array(value, float) for name, value in record(model, step).items()} if record else {}


def _history(loss: Floats, evaluations: list[int], rows: list[Row]) -> History:
    """What happened up to the first loss that is not finite, and NaN after it."""
    steps = np.array(evaluations)
    bad = np.flatnonzero(~np.isfinite(loss))
    end = int(bad[0]) if bad.size else len(loss)
    reached = np.count_nonzero(steps <= end)
    series = {}
    for name in rows[0]:
        values = np.stack([row[name] for row in rows[:reached]])
        missing = np.full((len(steps) - reached, *values.shape[1:]), np.nan)
        series[name] = np.concatenate([values, missing])
    loss = np.where(np.arange(len(loss)) <= end, loss, np.nan)
    return History(loss, steps, series, end if bad.size else None)


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


@contextmanager
def _progress_bar(total: int, wanted: bool) -> Iterator[Callable[..., None]]:
    """Yield a function that moves a bar on a terminal on, by one or by so many, and writes beside it."""
    if not wanted:
        yield lambda by=1, word="": None
        return
    with book_extra():
        from tqdm import tqdm
    with tqdm(total=total, disable=None, leave=False) as bar:

        def advance(by: int = 1, word: str = "") -> None:
            bar.set_postfix_str(word, refresh=False)
            bar.update(by)

        yield advance


# --------------------------------------------------------------------------- checks


def _check_training(
    data: Data, steps: int, batch_size: int, evaluate_every: int | None, **rates: float
) -> None:
    check_whole(1, steps=steps)
    check_whole(1, len(data.x_train), batch_size=batch_size)
    if evaluate_every is not None:
        check_whole(1, evaluate_every=evaluate_every)
    check_not_negative(**rates)


def _check_classes(data: Data) -> None:
    """The number of classes comes from the training data, which must have all that are in the test."""
    missing = sorted({*data.y_test.tolist()} - {*data.y_train.tolist()})
    if missing:
        raise ValueError(f"data: got classes {missing} in the test that are missing from the training data")


def _check_grid(build: Callable[..., nn.Module], settings: dict[str, Any], seeds: list[Any]) -> None:
    """Say which setting is no axis, belongs to nobody, or is missing."""
    if not seeds:
        raise ValueError("seeds: got none, at least one is needed")
    for seed in seeds:
        check_whole(0, seeds=seed)
    for name, value in settings.items():
        if isinstance(value, list) and not value:
            raise ValueError(f"{name}: got an empty list, an axis of the grid needs at least one value")
        if name in RATES and not isinstance(value, list) and np.ndim(value):
            raise ValueError(
                f"{name}: got {value!r}, expected a number, or a list of them as an axis of the grid"
            )
    try:
        signature = inspect.signature(build)
    except ValueError:  # of some built-in functions nobody knows
        return
    of_both = [name for name in (*RATES, "seed") if name in settings and name in signature.parameters]
    if of_both:
        raise ValueError(f"{of_both[0]}: is a setting of build and of the sweep, build has to rename its own")
    try:
        signature.bind((), 0, **{name: value for name, value in settings.items() if name not in RATES})
    except TypeError as error:
        raise ValueError(
            f"settings: got {', '.join(settings) or 'none'}, but {error}; "
            f"allowed are those of build{signature} but the first two, and {', '.join(RATES)}"
        ) from None
