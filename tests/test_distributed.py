"""Batch norm over several processes: real processes on this machine, that talk over the loopback interface.

A start of two processes takes seconds, so one run serves many tests.
"""

import pickle
import subprocess
from contextlib import contextmanager
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import normal
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from bnbook import data, distributed, layers, norms
from bnbook.distributed import SyncBatchNorm
from bnbook.experiments import distributed as processes

f32, f64 = np.float32, np.float64
# name: shape, examples of each process, offset in standard deviations, dtype
CASES = {
    "equal": ((16, 5), (8, 8), 0, f64),
    "unequal": ((16, 5, 3), (3, 13), 0, f64),
    "images": ((9, 4, 3, 2), (7, 2), 10, f64),
    "single": ((3, 5), (1, 2), 0, f64),
    "empty": ((6, 5, 2, 2), (6, 0), 0, f64),
    "far": ((64, 5), (20, 44), 1e6, f32),
    "farther": ((64, 5), (20, 44), 1e9, f64),
}
ALL = pytest.mark.parametrize("case", CASES)
EXACT = pytest.mark.parametrize("case", [name for name in CASES if "far" not in name])
RUNS = [(sync, skewed, seed) for sync in (True, False) for skewed in (True, False) for seed in (3, 4)]


def given_arrays(case):
    """Arguments of ``processes.normalize``."""
    shape, sizes, offset, dtype = CASES[case]
    rng = np.random.default_rng(list(CASES).index(case))
    C = shape[1]
    # Parts that differ, so that the statistics of a part are not those of the whole.
    x = rng.normal(size=shape) + offset
    x[: sizes[0]] *= 1.5 if offset == 0 else 1
    x[: sizes[0], 0] += 3
    values = {
        "x": x,
        "dy": rng.normal(size=shape),
        "weight": rng.normal(1, 0.5, C),
        "bias": rng.normal(size=C),
    }
    return {key: value.astype(dtype) for key, value in values.items()}


def examples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 7)), rng.integers(10, size=60)
    return data.Data(x, y, x, y)


def order_of(skewed, seed):
    return processes.device_batches(examples().y_train, 2, 6, seed, skewed=skewed)


@pytest.fixture(scope="module")
def run():
    """Results of all jobs by their names, of each of two processes, from one start."""
    jobs = {}
    for case, (_, sizes, *_) in CASES.items():
        for sync in (True, False):
            if sync or min(sizes) > 1:  # one example alone has no variance
                jobs[case, sync] = partial(processes.normalize, **given_arrays(case), sizes=sizes, sync=sync)
    for sync, skewed, seed in RUNS:
        jobs["train", sync, skewed, seed] = partial(
            processes.train,
            examples().x_train,
            examples().y_train,
            order_of(skewed, seed),
            seed=seed,
            rate=0.1,
            sync=sync,
        )
    return dict(zip(jobs, processes.launch(*jobs.values()), strict=True))


def together(run, case, key, sync=True):
    """What all processes have computed: the parts of a batch, or the sum of the parts of a gradient."""
    parts = [process[key] for process in run[case, sync]]
    return sum(parts) if key in ("dweight", "dbias") else np.concatenate(parts)


def one_batch(case):
    """What one process has for the whole batch, in float64 NumPy; the variance is the unbiased one."""
    x, dy, weight, bias = (value.astype(f64) for value in given_arrays(case).values())
    y, cache = norms.batch_norm(x, weight, bias)
    dx, dweight, dbias = norms.batch_norm_backward(dy, cache)
    axes = (0, *range(2, x.ndim))
    found = {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}
    return found | {"mean": x.mean(axes), "var": x.var(axes, ddof=1)}


# ------------------------------------------------------------------- two processes are one batch


@EXACT
@pytest.mark.parametrize("key", ["y", "dx", "dweight", "dbias"])
def test_two_processes_give_output_and_gradients_of_one_batch(run, case, key):
    np.testing.assert_allclose(together(run, case, key), one_batch(case)[key], rtol=0, atol=1e-12)


@ALL
def test_running_statistics_are_those_of_one_batch_on_each_process(run, case):
    mean, var = ([process[f"running_{key}"] for process in run[case, True]] for key in ("mean", "var"))
    np.testing.assert_array_equal(mean[0], mean[1])  # to the bit
    np.testing.assert_array_equal(var[0], var[1])
    one, tolerance = one_batch(case), 1e-6 if mean[0].dtype == f32 else 1e-12
    np.testing.assert_allclose(mean[0], 0.1 * one["mean"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        var[0], 0.9 + 0.1 * one["var"], rtol=1e-7 if case == "farther" else max(tolerance, 1e-9)
    )


@pytest.mark.parametrize(("case", "tolerance"), [("far", 2e-6), ("farther", 1e-7)])
@pytest.mark.parametrize("key", ["y", "dx"])
def test_a_large_offset_costs_no_digits(run, case, tolerance, key):
    """None but those that it costs the inputs: near 1e9 float64 numbers lie 1e-7 apart."""
    np.testing.assert_allclose(together(run, case, key), one_batch(case)[key], rtol=0, atol=tolerance)


@ALL
def test_a_process_sends_2c_plus_1_numbers_forward_and_2c_backward(run, case):
    (_, C, *_), _, _, dtype = CASES[case]
    sent = [[2 * C + 1, 8 * (2 * C + 1)], [2 * C, dtype().itemsize * 2 * C]]
    for process in run[case, True]:
        np.testing.assert_array_equal(process["sent"], sent)


@pytest.mark.parametrize("case", ["equal", "unequal", "images"])
def test_statistics_of_each_process_are_those_of_its_part(run, case):
    given = given_arrays(case)
    parts = np.split(given["x"], [CASES[case][1][0]])
    each = np.concatenate([norms.batch_norm(part, given["weight"], given["bias"])[0] for part in parts])
    np.testing.assert_allclose(together(run, case, "y", sync=False), each, rtol=0, atol=1e-12)
    assert all(process["sent"].size == 0 for process in run[case, False])
    assert np.abs(each - one_batch(case)["y"]).max() > 0.1


# ------------------------------------------------------------------- training on two processes


@pytest.mark.parametrize(("sync", "skewed", "seed"), RUNS)
def test_training_on_two_processes_is_training_on_one(run, sync, skewed, seed):
    steps = processes.in_one_process(
        examples(), order_of(skewed, seed), seed=seed, rate=0.1, sync=sync, double=True
    )
    losses, models = zip(*steps, strict=True)
    each = run["train", sync, skewed, seed]
    np.testing.assert_allclose(np.mean([process["loss"] for process in each], 0), losses, rtol=1e-12)
    for name, value in models[-1].state_dict().items():
        # DDP overwrites the statistics of process 1, so those of process 0 are what a file would hold.
        for process in each if sync or "running" not in name else each[:1]:
            np.testing.assert_allclose(process[name], value, rtol=0, atol=1e-12)


def test_a_failed_run_raises_with_the_end_of_its_messages():
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1.*ZeroDivisionError"):
        processes.launch(partial(divmod, 1, 0), processes=1)


def test_a_run_over_its_limit_is_ended_with_its_processes(monkeypatch):
    started = []
    popen = subprocess.Popen

    def sleep(command, **options):
        started.append(popen(["sleep", "100"], **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", sleep)
    with pytest.raises(subprocess.TimeoutExpired):
        processes.launch(limit=0.2)
    assert started[0].returncode == -15


# ------------------------------------------------------------------- the parts, in one process


@pytest.fixture
def one_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@contextmanager
def empty_partner():
    """A second process that has no examples: what it sends is zeros."""

    def all_gather(parts, message, group):
        parts[0].copy_(message)
        parts[1].zero_()

    with mock.patch.multiple(
        dist,
        is_initialized=lambda: True,
        get_world_size=lambda group=None: 2,
        all_gather=all_gather,
        all_reduce=lambda message, group: None,
    ):
        yield


def randomized(layer, seed=1):
    with torch.no_grad():
        for i, value in enumerate(layer.parameters()):
            value.copy_(normal(*value.shape, seed=seed + i))
    return layer


floats = st.floats(-100, 100)


@given(st.data(), st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any), st.sampled_from([0, 1e6]))
def test_merged_moments_are_those_of_all_values(data, sizes, offset):
    parts = [
        np.array(data.draw(st.lists(st.tuples(floats, floats), min_size=k, max_size=k))).reshape(k, 2)
        + offset
        for k in sizes
    ]
    mean = torch.tensor(np.array([part.mean(0) if len(part) else [7.0, -1.0] for part in parts]))
    m2 = torch.tensor(np.array([part.var(0) * len(part) if len(part) else [0.0, 0.0] for part in parts]))
    n, first, rest, total = distributed.merge_moments(torch.tensor(sizes, dtype=torch.float64), mean, m2)
    whole = np.concatenate(parts)
    assert n == len(whole)
    np.testing.assert_allclose(first + rest, whole.mean(0), rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(total, whole.var(0) * len(whole), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("world", ["alone", "group of one", "empty partner"])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 5)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}]
)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_without_other_examples_it_is_batch_norm(request, world, shape, options, train):
    x, dy = normal(*shape), normal(*shape, seed=5)
    if world == "group of one":
        request.getfixturevalue("one_process_group")
    outcomes = []
    for kind in (SyncBatchNorm, layers.BatchNorm):
        layer, own = randomized(kind(3, **options).double()).train(train), x.clone().requires_grad_()
        with empty_partner() if world == "empty partner" and kind is SyncBatchNorm else mock.patch.dict({}):
            y = layer(own)
            y.backward(dy)
        outcomes.append([y, own.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    for ours, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_the_gradient_agrees_with_finite_differences(one_process_group):
    values = [normal(4, 3, 2).requires_grad_(), *(normal(3, seed=s).requires_grad_() for s in (1, 2))]
    assert gradcheck(lambda x, gamma, beta: distributed.sync_normalize(x, gamma, beta, 1e-5)[0], values)


def test_a_first_layer_needs_no_message_backward(one_process_group):
    gamma, beta = normal(3, seed=1).requires_grad_(), normal(3, seed=2).requires_grad_()
    with processes._sent() as sent:
        y, *_ = distributed.sync_normalize(normal(4, 3, 2), gamma, beta, 1e-5)
        y.sum().backward()
        assert len(sent) == 1
        distributed.sync_normalize(normal(4, 3, 2).requires_grad_(), gamma, beta, 1e-5)[0].sum().backward()
    assert sent == [(7, 56), (7, 56), (6, 48)]
    torch.testing.assert_close(beta.grad, torch.full((3,), 16.0).double())


def test_it_cannot_be_differentiated_twice(one_process_group):
    x = normal(4, 3, 2).requires_grad_()
    y, *_ = distributed.sync_normalize(x, normal(3), normal(3), 1e-5)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_an_empty_part_gets_empty_outputs(one_process_group):
    _, _, var, n = distributed.sync_moments(torch.zeros(0, 3, 2))
    assert n == 0
    assert var.isnan().all()
    first, rest, var, n = distributed.sync_moments(normal(5, 3, 2))
    assert n == 10
    torch.testing.assert_close(first + rest, normal(5, 3, 2).mean((0, 2)))


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (0, 3, 2)], ids=str)
def test_too_few_values_of_all_processes_are_an_error(shape):
    layer = SyncBatchNorm(3)
    with (
        empty_partner(),
        pytest.raises(ValueError, match="from all processes together, at least 2 are needed"),
    ):
        layer(torch.zeros(shape))
    assert layer.num_batches_tracked == 0


def test_nan_does_not_enter_the_running_statistics():
    layer, x = SyncBatchNorm(3), torch.zeros(4, 3)
    x[0, 0] = torch.nan
    with empty_partner(), pytest.raises(ValueError, match="NaN, infinity"):
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.zeros(3))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_its_state_loads_into_pytorchs_layer_and_back(options):
    ours, theirs = randomized(SyncBatchNorm(3, **options)), nn.SyncBatchNorm(3, **options)
    with torch.no_grad():
        for value in ours.buffers():
            value += 3
    theirs.load_state_dict(ours.state_dict())
    again = SyncBatchNorm(3, **options)
    again.load_state_dict(theirs.state_dict())
    assert list(again.state_dict()) == list(ours.state_dict())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, layers.BatchNorm, nn.SyncBatchNorm])
def test_convert_replaces_batch_norms_and_shares_their_state(kind):
    options = {"eps": 1e-3, "momentum": 0.3}
    model = nn.Sequential(nn.Linear(2, 4), nn.Sequential(kind(4, **options)), nn.ReLU()).eval()
    old = model[1][0]
    assert distributed.convert(model, process_group=None) is model
    new = model[1][0]
    assert type(new) is SyncBatchNorm
    assert (new.num_features, new.eps, new.momentum) == (4, 1e-3, 0.3)
    assert not new.training
    assert new.weight is old.weight
    assert new.bias is old.bias
    assert list(new.state_dict()) == list(old.state_dict())
    assert all(a is b for a, b in zip(new.buffers(), old.buffers(), strict=True))


def test_convert_returns_a_layer_for_a_layer_with_its_group():
    group = object()
    layer = distributed.convert(layers.BatchNorm(3, affine=False, track_running_stats=False), group)
    assert type(layer) is SyncBatchNorm
    assert layer.process_group is group
    assert not list(layer.state_dict())


class WithReLU(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Quieter(layers.GhostBatchNorm):
    pass


@pytest.mark.parametrize(
    "layer", [WithReLU(4), Quieter(4, 2), nn.LazyBatchNorm1d()], ids=lambda v: type(v).__name__
)
def test_convert_refuses_a_subclass_and_then_changes_nothing(layer):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Sequential(layer))
    before = list(model.modules())
    with pytest.raises(
        ValueError, match=rf"module: got a {type(layer).__name__} as layer '1.0', .* allowed are"
    ):
        distributed.convert(model)
    assert list(model.modules()) == before


def test_convert_keeps_a_layer_that_is_used_in_several_places_one_layer():
    norm = layers.BatchNorm(4)
    model = nn.Sequential(norm, nn.ReLU(), norm, nn.ModuleDict({"again": norm}))
    distributed.convert(model)
    assert type(model[0]) is SyncBatchNorm
    assert model[2] is model[0]
    assert model[3]["again"] is model[0]


@pytest.mark.parametrize(
    "layer",
    [layers.GhostBatchNorm(4, 2), layers.BatchRenorm(4), layers.GroupNorm(2, 4), nn.InstanceNorm1d(4)],
)
def test_convert_leaves_other_norms_alone(layer):
    model = nn.Sequential(layer)
    distributed.convert(model)
    assert model[0] is layer


# ------------------------------------------------------------------- devices in one process


@pytest.mark.parametrize("skewed", [False, True])
def test_devices_share_an_epoch_without_an_example_twice(skewed):
    y = np.repeat([2, 0, 1], 16)
    batches = processes.device_batches(y, 3, 2, seed=0, skewed=skewed)
    assert batches.shape == (2, 3, 8)
    assert sorted(batches.ravel()) == list(range(48))
    assert not np.array_equal(batches, processes.device_batches(y, 3, 2, seed=1, skewed=skewed))
    classes = [set(y[batches[:, k]].ravel()) for k in range(3)]
    assert (classes == [{0}, {1}, {2}]) == skewed


def test_devices_keep_the_statistics_of_the_first():
    x = normal(16, 3)
    layer, first = processes.OfDevices(3).double(), layers.BatchNorm(3).double()
    y = layer(x)
    torch.testing.assert_close(y[:8], first(x[:8]))
    torch.testing.assert_close(y[8:], layers.BatchNorm(3).double()(x[8:]))
    for ours, expected in zip(layer.buffers(), first.buffers(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_recomputed_statistics_are_those_of_the_whole_training_set():
    *_, (_, model) = processes.in_one_process(examples(), order_of(True, 0), seed=0, rate=0.1, sync=False)
    again = processes.recomputed(model, examples())
    u = torch.from_numpy(examples().x_train).float() @ model[0].weight.T
    torch.testing.assert_close(again[1].running_mean, u.mean(0))
    torch.testing.assert_close(again[1].running_var, u.var(0))
    for name, value in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), value)


def test_the_script_runs_all_jobs_and_leaves_their_results(tmp_path, monkeypatch):
    start = dist.init_process_group
    monkeypatch.setattr(
        dist,
        "init_process_group",
        lambda backend, timeout: start(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        ),
    )
    given = given_arrays("equal")
    jobs = [partial(processes.normalize, **given, sizes=(16,), sync=True)]
    jobs += [
        partial(
            processes.train,
            examples().x_train,
            examples().y_train,
            order_of(False, 0)[:, :1],
            seed=0,
            rate=0.1,
            sync=True,
        )
    ]
    (tmp_path / "jobs").write_bytes(pickle.dumps((5, jobs)))
    processes.main(str(tmp_path))
    assert not dist.is_initialized()
    one, trained = pickle.loads((tmp_path / "0").read_bytes())
    np.testing.assert_allclose(one["dx"], one_batch("equal")["dx"], rtol=0, atol=1e-12)
    assert trained["loss"].shape == (6,)
