"""Batch norm over several processes: real processes on this machine, that talk over the loopback interface.

A start of two processes takes seconds, so one run serves many tests.
"""

import os
import runpy
import subprocess
import sys
import time
from contextlib import contextmanager
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

from bnbook import distributed, layers, models, norms
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
TRAIN = "--shards shuffled skewed --seeds 3 4 --steps 6 --batch-size 8 --depth 1 --width 6 --norm sync batch"


def given_arrays():
    arrays = {}
    for seed, (name, (shape, sizes, offset, dtype)) in enumerate(CASES.items()):
        rng = np.random.default_rng(seed)
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
        arrays |= {f"{name}.{key}": value.astype(dtype) for key, value in values.items()}
        arrays[f"{name}.sizes"] = np.array(sizes)
    return arrays


def examples():
    rng = np.random.default_rng(0)
    return {"x_train": rng.normal(size=(40, 7)), "y_train": rng.integers(3, size=40)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Results of all jobs, from one start of two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    np.savez(folder / "compare.npz", **given_arrays())
    np.savez(folder / "train.npz", **examples())
    train = "THEN train train.npz {}.npz " + TRAIN
    jobs = f"compare compare.npz 0.npz {train.format(1)} {train.format(2)} --ddp"
    words = [str(folder / word) if word.endswith(".npz") else word for word in jobs.split()]
    done = processes.launch(*words)
    assert done.stdout == ""
    return [dict(np.load(folder / f"{job}.npz")) for job in range(3)]


def one_batch(case):
    """What one process has for the whole batch, in float64 NumPy; the variance is the unbiased one."""
    x, dy, weight, bias = (
        given_arrays()[f"{case}.{key}"].astype(f64) for key in ("x", "dy", "weight", "bias")
    )
    y, cache = norms.batch_norm(x, weight, bias)
    dx, dweight, dbias = norms.batch_norm_backward(dy, cache)
    axes = (0, *range(2, x.ndim))
    return {
        "y": y,
        "dx": dx,
        "dweight": dweight,
        "dbias": dbias,
        "mean": x.mean(axes),
        "var": x.var(axes, ddof=1),
    }


# ------------------------------------------------------------------- two processes are one batch


@EXACT
@pytest.mark.parametrize("key", ["y", "dx", "dweight", "dbias"])
def test_two_processes_give_output_and_gradients_of_one_batch(run, case, key):
    np.testing.assert_allclose(run[0][f"{case}.sync.{key}"], one_batch(case)[key], rtol=0, atol=1e-12)


@ALL
def test_running_statistics_are_those_of_one_batch_on_each_process(run, case):
    mean, var = (run[0][f"{case}.sync.running_{key}"] for key in ("mean", "var"))
    np.testing.assert_array_equal(mean[0], mean[1])  # to the bit
    np.testing.assert_array_equal(var[0], var[1])
    one, tolerance = one_batch(case), 1e-6 if mean.dtype == f32 else 1e-12
    np.testing.assert_allclose(mean[0], 0.1 * one["mean"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        var[0], 0.9 + 0.1 * one["var"], rtol=1e-7 if case == "farther" else max(tolerance, 1e-9)
    )


@pytest.mark.parametrize(("case", "tolerance"), [("far", 2e-6), ("farther", 1e-7)])
@pytest.mark.parametrize("key", ["y", "dx"])
def test_a_large_offset_costs_no_digits(run, case, tolerance, key):
    """None but those that it costs the inputs: near 1e9 float64 numbers lie 1e-7 apart."""
    np.testing.assert_allclose(run[0][f"{case}.sync.{key}"], one_batch(case)[key], rtol=0, atol=tolerance)


@ALL
def test_a_process_sends_2c_plus_1_numbers_forward_and_2c_backward(run, case):
    (_, C, *_), _, _, dtype = CASES[case]
    sent = [[2 * C + 1, 8 * (2 * C + 1)], [2 * C, dtype().itemsize * 2 * C]]
    np.testing.assert_array_equal(run[0][f"{case}.sync.sent"], sent)


@pytest.mark.parametrize("case", ["equal", "unequal", "images"])
def test_statistics_of_each_process_are_those_of_its_part(run, case):
    parts = np.split(given_arrays()[f"{case}.x"], [CASES[case][1][0]])
    weight, bias = (given_arrays()[f"{case}.{key}"] for key in ("weight", "bias"))
    each = np.concatenate([norms.batch_norm(part, weight, bias)[0] for part in parts])
    np.testing.assert_allclose(run[0][f"{case}.batch.y"], each, rtol=0, atol=1e-12)
    assert run[0][f"{case}.batch.sent"].size == 0
    assert np.abs(run[0][f"{case}.batch.y"] - one_batch(case)["y"]).max() > 0.1


def test_a_part_of_one_example_has_statistics_only_together(run):
    assert "single.sync.y" in run[0]
    assert "single.batch.y" not in run[0]


# ------------------------------------------------------------------- training on two processes


def in_one_process(norm, shards, seed):
    """Losses and final parameters of the same training in one process, with one batch or with ghosts."""
    data = examples()
    x, y = (torch.from_numpy(z) for z in data.values())
    order = processes.device_batches(data["y_train"], 2, 8, 6, seed, skewed=shards == "skewed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.mlp((7,), 3, norm=norm, depth=1, width=6).double()
    losses = []
    for batch in torch.from_numpy(order.reshape(6, 8)):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("job", [1, 2], ids=["by hand", "ddp"])
@pytest.mark.parametrize("shards", ["shuffled", "skewed"])
@pytest.mark.parametrize(("method", "norm"), [("sync", "batch"), ("batch", ("ghost", 4))])
@pytest.mark.parametrize("seed", [3, 4])
def test_training_on_two_processes_is_training_on_one(run, job, shards, method, norm, seed):
    losses, model = in_one_process(norm, shards, seed)
    prefix = f"{method}.{shards}.{seed}."
    np.testing.assert_allclose(run[job][prefix + "loss"], losses, rtol=1e-12)
    for name, value in model.named_parameters():
        for of_process in run[job][prefix + name]:
            np.testing.assert_allclose(of_process, value.detach(), rtol=0, atol=1e-12)
    if method == "sync":
        for name, value in model.named_buffers():
            np.testing.assert_allclose(run[job][prefix + name], np.stack([value, value]), rtol=0, atol=1e-12)


# ------------------------------------------------------------------- a process that fails


@pytest.mark.parametrize(
    ("how", "says"),
    [("die", f"exitcode  : {processes.DIED}"), ("stall", "Timed out waiting 10000ms")],
)
def test_a_process_that_fails_ends_the_run_with_an_error(how, says):
    """In seconds, far below the hour for which the one would stall and the other wait."""
    start = time.monotonic()
    done = processes.launch("--timeout", "10", "fail", how, check=False, limit=100)
    assert done.returncode == 1
    assert says in done.stderr
    assert time.monotonic() - start < 60


def test_a_failed_run_raises_with_the_end_of_its_messages():
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1.*No such file or directory: 'nowhere.npz'"):
        processes.launch("compare", "nowhere.npz", "out.npz", processes=1)


def test_a_run_over_its_limit_is_ended_with_its_processes(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/sleep")  # for torchrun: it ends itself and its processes
    started = []
    popen = subprocess.Popen

    def sleep(command, **options):
        started.append(popen(["sleep", "100"], **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", sleep)
    with pytest.raises(subprocess.TimeoutExpired):
        processes.launch("fail", "stall", limit=0.2)
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


def test_averaged_gradients_are_the_sum_over_processes_divided_by_their_number():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[1].bias.requires_grad_(False)
    model(torch.ones(4, 2)).sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with mock.patch.multiple(
        dist, get_world_size=lambda group: 4, all_reduce=lambda message, group: message.mul_(6)
    ):
        distributed.average_gradients(model)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(after) == 3
    for new, old in zip(after, before, strict=True):
        torch.testing.assert_close(new, old * 6 / 4)


@pytest.mark.parametrize("skewed", [False, True])
def test_devices_share_an_epoch_without_an_example_twice(skewed):
    y = np.repeat([2, 0, 1], 8)
    batches = processes.device_batches(y, 3, 6, 4, seed=0, skewed=skewed)
    assert batches.shape == (4, 3, 2)
    assert sorted(batches.ravel()) == list(range(24))
    assert not np.array_equal(batches, processes.device_batches(y, 3, 6, 4, seed=1, skewed=skewed))
    classes = [set(y[batches[:, k]].ravel()) for k in range(3)]
    assert (classes == [{0}, {1}, {2}]) == skewed


def test_a_batch_that_cannot_be_dealt_out_is_an_error():
    with pytest.raises(ValueError, match="N: got 7, allowed are multiples of K = 2"):
        processes.device_batches(np.zeros(20), 2, 7, 1, seed=0)


def test_the_script_runs_all_jobs_of_one_start(tmp_path, monkeypatch):
    start = dist.init_process_group
    monkeypatch.setattr(
        dist,
        "init_process_group",
        lambda backend, timeout: start(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        ),
    )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.chdir(tmp_path)
    arrays = {key: value for key, value in given_arrays().items() if key.startswith(("equal", "single"))}
    arrays |= {"equal.sizes": np.array([16]), "single.sizes": np.array([1]), "single.x": np.zeros((1, 5, 2))}
    np.savez("compare.npz", **arrays | {"single.dy": np.zeros((1, 5, 2))})
    np.savez("train.npz", **examples())
    train = "THEN train train.npz {}.npz " + TRAIN
    processes.main(
        ["compare", "compare.npz", "0.npz", *train.format(1).split(), *train.format(2).split(), "--ddp"]
    )
    assert not dist.is_initialized()
    np.testing.assert_allclose(
        np.load("0.npz")["equal.sync.dx"], one_batch("equal")["dx"], rtol=0, atol=1e-12
    )
    by_hand, ddp = (np.load(f"{job}.npz")["sync.skewed.3.loss"] for job in (1, 2))
    np.testing.assert_allclose(by_hand, ddp, rtol=1e-12)

    # Another process than the first writes nothing.
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(processes, "train", lambda given, settings: given)
    processes.main(["train", "train.npz", "3.npz"])
    assert not os.path.exists("3.npz")
    failed = []
    monkeypatch.setattr(processes, "fail", failed.append)
    processes.main(["--timeout", "5", "fail", "stall"])
    assert failed == ["stall"]


def test_only_the_last_process_fails(one_process_group, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "_exit", calls.append)
    monkeypatch.setattr(time, "sleep", calls.append)
    monkeypatch.setattr(dist, "all_reduce", lambda message: calls.append("waits"))
    processes.fail("die")
    processes.fail("stall")
    assert calls == [processes.DIED, 3600, "waits", 3600, "waits"]
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    processes.fail("die")
    assert calls[5:] == ["waits"]


def test_started_without_torchrun_the_script_says_so(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["distributed.py", "fail", "die"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(processes.__file__, run_name="__main__")
    assert stop.value.code == 2
    assert "let torchrun start it" in capsys.readouterr().err


def test_nothing_to_do_is_an_error(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        processes.main([])
    assert "command" in capsys.readouterr().err
