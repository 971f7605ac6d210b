import copy
import itertools
import math
from functools import partial

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnbook import data, models, sgd, training

DIGITS = data.digits()
SMALL = data.Data(DIGITS.x_train[:300], DIGITS.y_train[:300], DIGITS.x_test[:100], DIGITS.y_test[:100])
STEPS = 30


# Rounding errors grow along a training: a group-normalized network at rate 0.5 takes 1e-16 to 1e-8 in 30
# steps. In float64 they stay so small that a wrong step cannot hide behind them.
DOUBLE = data.Data(SMALL.x_train.astype(float), SMALL.y_train, SMALL.x_test.astype(float), SMALL.y_test)


def small_mlp(in_shape, classes, **settings):
    return models.mlp(in_shape, classes, depth=2, width=12, **settings).double()


def swept(build=small_mlp, steps=STEPS, **settings):
    defaults = {"seeds": 2, "batch_size": 32, "evaluate_every": 7}
    return training.sweep(build, DOUBLE, steps=steps, **{**defaults, **settings})


def fitted(build, seed, *, steps=STEPS, record=None, schedule=None, **settings):
    """What `fit` gives with this seed and these settings."""
    rates = {name: settings.pop(name) for name in ("lr", "momentum", "weight_decay") if name in settings}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(DOUBLE.x_train.shape[1:], 10, **settings)
    shared = {"batch_size": 32, "evaluate_every": 7, "record": record, "schedule": schedule}
    return training.fit(model, DOUBLE, steps=steps, seed=seed, **shared, **rates)


def member_of(runs, **settings):
    """The loss and the series of one member of a sweep."""
    index = tuple(runs.axes[name].index(settings[name]) for name in runs.axes)
    return runs.loss[index], {name: values[index] for name, values in runs.series.items()}


def equal_to_fit(runs, build=small_mlp, **fixed):
    """Every member of a sweep has the losses and series of `fit`."""
    for combination in itertools.product(*runs.axes.values()):
        settings = dict(zip(runs.axes, combination, strict=True))
        loss, series = member_of(runs, **settings)
        alone = fitted(build, **{**fixed, **settings})
        np.testing.assert_allclose(loss, alone.loss, rtol=1e-6)
        assert runs.steps.tolist() == alone.steps.tolist()
        assert series.keys() == alone.series.keys()
        for name, values in alone.series.items():
            np.testing.assert_allclose(series[name], values, rtol=1e-6)


# Groups of 6 units: those of 3 now and then have hardly any variance, and blow rounding up to 1e-6.
@pytest.mark.parametrize("norm", ["none", "batch", ("group", 2), "layer", ("ghost", 8), "renorm"])
def test_each_member_of_a_sweep_is_what_fit_gives_for_every_norm(norm):
    settings = {"norm": norm, "activation": "sigmoid"}
    equal_to_fit(swept(lr=[0.1, 0.5], **settings), **settings)


def test_each_member_of_a_sweep_is_what_fit_gives_for_every_rate_and_initial_weight():
    settings = {"momentum": [0.0, 0.9], "weight_decay": [0.0, 0.01], "init": ["he", 0.5]}
    equal_to_fit(swept(lr=0.05, norm="batch", **settings), lr=0.05, norm="batch")


def test_frozen_layers_stay_frozen_in_a_sweep():
    def build(in_shape, classes):
        model = small_mlp(in_shape, classes, norm="batch")
        model[0].requires_grad_(False)
        return model

    runs = swept(build, lr=[0.1, 0.5])
    equal_to_fit(runs, build)
    assert not np.allclose(runs.loss, swept(lr=[0.1, 0.5], norm="batch").loss)


def test_each_member_of_a_sweep_is_what_fit_gives_with_a_schedule():
    halved = lambda step: 0.5 ** (step // 10)  # noqa: E731
    runs = swept(lr=[0.1], norm="batch", schedule=halved)
    equal_to_fit(runs, norm="batch", schedule=halved)
    assert not np.allclose(runs.loss, swept(lr=[0.1], norm="batch").loss)


def test_members_in_float32_are_what_fit_gives_up_to_its_rounding():
    build = partial(models.mlp, depth=2, width=12, norm="batch")
    runs = training.sweep(build, SMALL, steps=10, seeds=2, batch_size=32)
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build((64,), 10)
        alone = training.fit(model, SMALL, steps=10, seed=seed, batch_size=32)
        assert runs.loss.dtype == alone.loss.dtype
        np.testing.assert_allclose(runs.loss[seed], alone.loss, rtol=1e-4)


def test_convolutions_in_a_stack_are_what_fit_gives():
    def build(in_shape, classes, norm):
        return models.vgg(in_shape, classes, widths=(4, 0, 4), norm=norm).double()

    part = data.fashion()
    images = (
        part.x_train[:96].astype(float),
        part.y_train[:96],
        part.x_test[:50].astype(float),
        part.y_test[:50],
    )
    tiny = data.Data(*images)
    runs = training.sweep(build, tiny, steps=4, seeds=2, batch_size=16, norm=["none", "batch"])
    for norm, seed in itertools.product(["none", "batch"], range(2)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build(tiny.x_train.shape[1:], 10, norm)
        alone = training.fit(model, tiny, steps=4, seed=seed, batch_size=16)
        np.testing.assert_allclose(member_of(runs, norm=norm, seed=seed)[0], alone.loss, rtol=1e-9)


def test_what_is_recorded_is_the_same_in_a_sweep_and_in_fit():
    def record(model, step):
        return {"first": model[0].weight.detach()[0, :3], "step": step, "mode": model.training}

    runs = swept(lr=[0.1], norm="batch", record=record)
    equal_to_fit(runs, norm="batch", record=record)
    assert runs.series["first"].shape == (1, 2, len(runs.steps), 3)
    np.testing.assert_array_equal(runs.series["step"][0, 0], runs.steps)
    assert not runs.series["mode"].any()  # in evaluation mode
    assert not np.array_equal(runs.series["first"][0, 0, 0], runs.series["first"][0, 0, -1])  # copies
    assert "first" not in runs.table()


def test_processes_change_no_result():
    settings = {"norm": ["none", "batch"], "lr": 0.1, "steps": 8}
    one, two = swept(**settings), swept(jobs=2, **settings)
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-9)


def test_fit_takes_the_steps_of_torch_optim():
    model = small_mlp((64,), 10)
    rival = copy.deepcopy(model)
    history = training.fit(
        model, DOUBLE, steps=5, seed=3, batch_size=32, lr=0.1, momentum=0.9, weight_decay=0.01
    )
    optimizer = torch.optim.SGD(rival.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    batches = sgd.mini_batches(300, 32, np.random.default_rng(3), drop_last=True)
    for step, batch in enumerate(batches[:5]):
        optimizer.zero_grad()
        loss = F.cross_entropy(
            rival(torch.from_numpy(DOUBLE.x_train[batch])), torch.from_numpy(DOUBLE.y_train[batch])
        )
        assert history.loss[step] == pytest.approx(loss.item(), rel=1e-12)
        loss.backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), rival.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_epoch_of_fit_sees_each_example_once_and_the_next_another_order():
    order = training._batches(10, 3, 7, seed=0)
    assert order.shape == (7, 3)
    for epoch in (order[:3], order[3:6]):
        assert len(set(epoch.ravel().tolist())) == 9
    assert not np.array_equal(order[:3], order[3:6])


def test_evaluation_uses_the_test_set_in_evaluation_mode():
    model = models.mlp((64,), 10, norm="batch", depth=1, width=8)
    history = training.fit(model, SMALL, steps=4, batch_size=32)
    model.eval()
    with torch.no_grad():
        scores = model(torch.from_numpy(SMALL.x_test))
    y = torch.from_numpy(SMALL.y_test)
    assert history.series["test_accuracy"][-1] == pytest.approx((scores.argmax(1) == y).float().mean().item())
    assert history.series["test_loss"][-1] == pytest.approx(F.cross_entropy(scores, y).item(), rel=1e-5)
    assert history.steps.tolist() == [0, 1, 2, 3, 4]


def test_a_member_that_diverges_is_recorded_and_spoils_no_other():
    alone = swept(lr=[0.1], norm="batch", steps=12)
    runs = swept(lr=[0.1, 1e200], norm="batch", steps=12, init=1.0)
    same = swept(lr=[0.1], norm="batch", steps=12, init=1.0)
    np.testing.assert_allclose(runs.select(lr=0.1).loss, same.select(lr=0.1).loss, rtol=1e-5)
    assert np.isfinite(alone.loss).all()
    bad = runs.select(lr=1e200)
    assert np.isfinite(bad.diverged).all()
    assert np.isnan(runs.select(lr=0.1).diverged).all()
    for seed in range(2):
        at = int(bad.diverged[seed])
        assert np.isfinite(bad.loss[seed, :at]).all()
        assert not np.isfinite(bad.loss[seed, at:]).any()
        assert np.isnan(bad.series["test_accuracy"][seed, bad.steps > at]).all()
    equal_to_fit(runs, norm="batch", steps=12, init=1.0)


def test_fit_stops_where_the_loss_is_no_longer_finite():
    history = fitted(small_mlp, 0, lr=1e200, steps=12)
    assert history.diverged is not None
    assert np.isnan(history.loss[history.diverged + 1 :]).all()
    assert len(history.series["test_accuracy"]) == len(history.steps)


def test_a_sweep_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    swept(norm="batch", steps=3)
    assert torch.equal(torch.rand(3), expected)


def test_noise_trains_alone_with_draws_of_its_seed():
    first, again = (swept(norm="noisy", steps=5) for _ in range(2))
    np.testing.assert_array_equal(first.loss, again.loss)
    assert not np.allclose(first.loss, swept(norm="batch", steps=5).loss)


def test_dropout_trains_alone_with_draws_of_its_seed():
    def with_dropout(in_shape, classes):
        return nn.Sequential(nn.Linear(in_shape[0], 8), nn.Dropout(0.5), nn.Linear(8, classes))

    first, again = (training.sweep(with_dropout, SMALL, steps=5, seeds=2) for _ in range(2))
    np.testing.assert_array_equal(first.loss, again.loss)
    assert not np.array_equal(first.loss[0], first.loss[1])


@pytest.fixture
def runs():
    """Two rates, three seeds, four evaluations, with accuracies made by hand."""
    accuracy = np.array(
        [[[0, 0.5, 0.9, 0.9], [0, 0.9, 0.9, 0.9], [0, 0.1, 0.2, 0.3]], [[0, 0.2, 0.4, 0.9]] * 3], dtype=float
    )
    axes = {"lr": [0.1, 1.0], "seed": [0, 1, 2]}
    empty = np.full((2, 3), np.nan)
    return training.Runs(
        axes, np.zeros((2, 3, 30)), np.array([0, 10, 20, 30]), {"test_accuracy": accuracy}, empty
    )


def test_steps_to_a_level_count_to_the_first_evaluation_there(runs):
    np.testing.assert_array_equal(runs.steps_to(0.9), [[20, 10, np.inf], [30, 30, 30]])


def test_the_best_setting_is_that_of_the_best_median(runs):
    np.testing.assert_array_equal(runs.best(runs.steps_to(0.9)), [20, 10, np.inf])
    np.testing.assert_array_equal(runs.best(runs.steps_to(0.9), lr=1.0), [30, 30, 30])
    np.testing.assert_array_equal(runs.best(runs.final(), largest=True), [0.9, 0.9, 0.3])


def test_a_table_has_a_row_for_each_member(runs):
    table = runs.table()
    assert table[["lr", "seed"]].to_numpy().tolist() == [[a, b] for a in (0.1, 1.0) for b in range(3)]
    assert table["test_accuracy"].tolist() == [0.9, 0.9, 0.3, 0.9, 0.9, 0.9]


def test_a_selected_part_keeps_its_other_axes(runs):
    part = runs.select(lr=1.0)
    assert part.axes == {"seed": [0, 1, 2]}
    assert part.series["test_accuracy"].shape == (3, 4)
    assert part.final().tolist() == [0.9] * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swept(lr=[]), "lr: got an empty list, an axis of the grid needs at least one value"),
        (lambda: swept(seeds=0), "seeds: got none, at least one is needed"),
        (lambda: swept(lr=[0.1, -1.0]), "lr: got -1.0, expected a finite number, 0 or larger"),
        (lambda: swept(lr=math.nan), "lr: got nan, expected a finite number"),
        (lambda: swept(batch_size=301), "batch_size: got 301, expected a whole number from 1 to 300"),
        (lambda: swept(steps=0), "steps: got 0, expected a whole number, 1 or more"),
        (lambda: swept(evaluate_every=0), "evaluate_every: got 0, expected a whole number, 1 or more"),
        (lambda: swept(norm=["bath"]), "norm: got 'bath', allowed are"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_setting_that_is_not_in_the_grid_is_named(runs):
    with pytest.raises(ValueError, match="norm: is not an axis of this grid, which has lr, seed"):
        runs.select(norm="batch")
    with pytest.raises(ValueError, match=r"lr: got 0.2, the grid has \[0.1, 1.0\]"):
        runs.select(lr=0.2)


def test_the_same_call_runs_on_a_dask_cluster():
    # Imported here: it takes a second, and no other test needs it.
    from distributed import Client, LocalCluster

    settings = {"norm": ["none", "batch"], "lr": 0.1, "steps": 5}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        on_cluster = swept(**settings)
    np.testing.assert_allclose(on_cluster.loss, swept(**settings).loss, rtol=1e-6)
