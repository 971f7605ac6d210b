import itertools
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnbook import experiments, layers, models, probes, training
from bnbook.experiments import __main__ as cli
from bnbook.experiments import _vision, ics

SHIPPED = ["ics", "landscape"]
TINY_VGG = {"images": "small", "widths": (4, 0, 4, 4), "batch_size": 8, "lr": 0.1, "init": "he"}
NOISY = TINY_VGG | {"steps": 7, "every": 3, "layers": (0, 2), "seed": 3}
DEFINITION = TINY_VGG | {"network": "vgg", "steps": 3, "every": 2, "layers": (0, 2), "seed": 3}
LINEAR = {"network": "deep_linear", "init": 1.0, "lr": 1e-7, "layers": (16, 22), "seed": 3}


class Counting:
    """An experiment that remembers what it ran, and stops where it is told to."""

    def __init__(self, stop_at=None):
        self.SCALES = {"small": [{"lr": [0.1, 0.2], "widths": (1, 2)}]}
        self.ran, self.stop_at = [], stop_at

    def run(self, member, device="cpu"):
        if len(self.ran) == self.stop_at:
            raise KeyboardInterrupt
        self.ran.append(member)
        value = member["lr"] / 3 + member["seed"]
        return [{"step": k, "loss": value + k, "gone": float("nan")} for k in range(2)]


MEMBERS = experiments.members(Counting(), "small", range(3))


# --------------------------------------------------------------------------- names, tables, files


def test_experiments_are_found_by_their_module_and_offer_what_the_command_line_needs():
    assert "ics" in experiments.names()
    assert not any(name.startswith("_") for name in experiments.names())
    for name in experiments.names():
        experiment = experiments.load(name)
        assert "medium" in experiment.SCALES
        for scale in experiment.SCALES:
            members = experiments.members(experiment, scale, [5, 7])
            grids = experiment.SCALES[scale]
            own = {grid["seed"] for grid in grids if "seed" in grid}
            given = {5, 7} if any("seed" not in grid for grid in grids) else set()
            assert {member["seed"] for member in members} == own | given
            texts = [json.dumps(member, sort_keys=True) for member in members]
            assert len(set(texts)) == len(texts)  # a file each


def test_an_unknown_experiment_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"name: got 'icy', allowed are .*ics"):
        experiments.load("icy")


def test_a_table_has_the_settings_beside_every_row():
    table = experiments.collect(Counting(), MEMBERS)
    assert list(table.columns) == ["lr", "widths", "seed", "step", "loss", "gone"]
    assert len(table) == 12
    assert table.loss.iloc[-1] == 0.2 / 3 + 2 + 1
    assert table.widths.iloc[0] == (1, 2)


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_table(tmp_path):
    whole = experiments.collect(Counting(), MEMBERS)
    with pytest.raises(KeyboardInterrupt):
        experiments.collect(Counting(stop_at=4), MEMBERS, out=tmp_path)
    assert experiments.missing(MEMBERS, tmp_path) == MEMBERS[4:]
    second = Counting()
    pd.testing.assert_frame_equal(experiments.collect(second, MEMBERS, out=tmp_path), whole)
    assert second.ran == MEMBERS[4:]
    third = Counting()
    pd.testing.assert_frame_equal(experiments.collect(third, MEMBERS, out=tmp_path), whole)
    assert third.ran == []
    assert len(list(tmp_path.iterdir())) == len(MEMBERS)  # nothing half-written stays


def test_a_file_that_could_not_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        experiments.collect(Counting(), MEMBERS, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"member": {}, "rows": 0}\n',
        b"7\n",
        None,  # a row is missing at the end
        "no dict",
    ],
)
def test_a_damaged_file_is_named_and_nothing_else_is_lost(tmp_path, content):
    experiments.collect(Counting(), MEMBERS, out=tmp_path)
    path = experiments._file(tmp_path, MEMBERS[2])
    if content is None:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    elif content == "no dict":
        path.write_text("\n".join([*path.read_text().splitlines()[:-1], "5"]))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: is damaged; delete this file"):
        experiments.collect(Counting(), MEMBERS, out=tmp_path)
    path.unlink()
    again = Counting()
    experiments.collect(again, MEMBERS, out=tmp_path)
    assert again.ran == [MEMBERS[2]]


def test_the_order_of_settings_does_not_make_another_member(tmp_path):
    experiments.collect(Counting(), MEMBERS, out=tmp_path)
    assert experiments.missing([dict(reversed(member.items())) for member in MEMBERS], tmp_path) == []
    assert experiments.missing([{**MEMBERS[0], "lr": 0.3}], tmp_path)


def test_members_that_run_at_once_give_the_same_table_and_files(tmp_path):
    linear = LINEAR | {"experiment": "definition_2_1", "norm": "none", "steps": 1, "every": 1}
    members = [linear | {"seed": seed} for seed in range(3)]
    one = experiments.collect(ics, members)
    pd.testing.assert_frame_equal(experiments.collect(ics, members, jobs=2, out=tmp_path), one)
    assert experiments.missing(members, tmp_path) == []


def test_a_grid_may_have_its_own_seeds_as_one_member_whose_rows_say_which():
    def noise(level, seed):
        return [{"seed": s, "error": level * s} for s in seed]

    grid = {"map": "noise", "level": [1, 2], "seed": (7, 8)}
    experiment = SimpleNamespace(SCALES={"medium": [grid]}, run=experiments.by_name(noise))
    members = experiments.members(experiment, "medium", range(5))
    assert [member["seed"] for member in members] == [(7, 8)] * 2
    table = experiments.collect(experiment, members)
    assert table.seed.tolist() == [7, 8] * 2
    assert table.error.tolist() == [7, 8, 14, 16]
    with pytest.raises(ValueError, match="map: got 'nose', allowed are noise"):
        experiment.run({"map": "nose", "seed": (1,)})


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
def test_processes_share_the_members_without_gap_or_overlap(world_size):
    workers = [Counting() for _ in range(world_size)]
    for rank, worker in enumerate(workers):
        experiments.collect(worker, MEMBERS, rank=rank, world_size=world_size)
        assert worker.ran == MEMBERS[rank::world_size]
    assert sorted(map(str, itertools.chain(*(w.ran for w in workers)))) == sorted(map(str, MEMBERS))


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_out_of_range_is_refused(rank, world_size):
    with pytest.raises(ValueError, match="rank: got"):
        experiments.collect(Counting(), MEMBERS, rank=rank, world_size=world_size)


# --------------------------------------------------------------------------- the command line

# A small experiment in place of "ics", in another process as well.
STAND_IN = """
import sys
from bnbook.experiments import __main__, ics
ics.SCALES = {"small": [dict(experiment="definition_2_1", network="deep_linear", norm=["none", "batch"],
                             init=1.0, lr=1e-7, steps=2, every=1, layers=(20,))]}
__main__.main(sys.argv[1:])
"""


def in_process(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", STAND_IN, "ics", "--seeds", "2", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_ranks_together_give_what_one_process_gives(tmp_path):
    one = in_process("--out", tmp_path / "one")
    assert one.wait() == 0, one.stderr.read()
    ranks = [
        in_process("--out", tmp_path / "two", RANK=str(r), WORLD_SIZE="2", LOCAL_RANK=str(r))
        for r in range(2)
    ]
    said = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert any("table.csv" in out for out, _ in said)
    tables = [(tmp_path / name / "table.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]
    assert len(pd.read_csv(tmp_path / "one" / "table.csv")) == 8  # 2 norms, 2 seeds, 2 measurements


@pytest.fixture
def counting(monkeypatch):
    experiment = Counting()
    monkeypatch.setattr(experiments, "load", lambda name: experiment)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return experiment


def test_the_command_line_writes_one_table_into_its_folder(tmp_path, monkeypatch, capsys, counting):
    monkeypatch.chdir(tmp_path)
    cli.main(["ics", "--seeds", "3"])
    path = Path("_build/experiments/ics-small/table.csv")
    assert f"6 members, 12 rows: {path}" in capsys.readouterr().out
    table = pd.read_csv(path)
    assert table.loss.tolist() == experiments.collect(Counting(), MEMBERS).loss.tolist()
    assert not list(path.parent.glob(".*"))


def test_a_rank_that_is_ready_first_leaves_the_table_to_the_others(tmp_path, monkeypatch, capsys, counting):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    cli.main(["ics", "--seeds", "3", "--out", str(tmp_path)])
    assert "rank 1 is ready; 3 of 6 members are left" in capsys.readouterr().out
    assert not (tmp_path / "table.csv").exists()
    monkeypatch.setenv("RANK", "0")
    cli.main(["ics", "--seeds", "3", "--out", str(tmp_path)])
    assert (tmp_path / "table.csv").exists()
    assert len(counting.ran) == 6


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["icy"], {}, "invalid choice: 'icy'"),
        (["ics", "--scale", "huge"], {}, "--scale: got 'huge', allowed are small"),
        (["ics", "--seeds", "0"], {}, "--seeds: got 0, at least 1"),
        (["ics", "--jobs", "0"], {}, "--jobs: got 0, at least 1"),
        (["ics"], {"RANK": "2", "WORLD_SIZE": "2"}, "RANK: got 2"),
        (["ics"], {"WORLD_SIZE": "two"}, "WORLD_SIZE: got 'two'"),
        (["ics"], {"RANK": "-1"}, "RANK: got '-1'"),
        (["ics", "--device", "cuda"], {"LOCAL_RANK": "3"}, "cuda:3 is not there, PyTorch sees 2 GPUs"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    monkeypatch, capsys, counting, tmp_path, arguments, environment, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert counting.ran == []


def test_each_rank_has_a_gpu_of_its_own(monkeypatch, tmp_path, counting):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    devices = []
    monkeypatch.setattr(counting, "run", lambda member, device: devices.append(device) or [{"step": 0}])
    cli.main(["ics", "--device", "cuda", "--seeds", "1", "--out", str(tmp_path)])
    assert set(devices) == {"cuda:1"}


def test_a_damaged_file_ends_the_command_with_its_name(tmp_path, counting):
    cli.main(["ics", "--seeds", "3", "--out", str(tmp_path)])
    path = experiments._file(tmp_path, MEMBERS[0])
    path.write_text("{")
    with pytest.raises(SystemExit, match=f"error: {re.escape(str(path))}: is damaged"):
        cli.main(["ics", "--seeds", "3", "--out", str(tmp_path)])


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments", "--help"])
    monkeypatch.delitem(sys.modules, "bnbook.experiments.__main__")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("bnbook.experiments", run_name="__main__")
    assert stopped.value.code == 0
    assert "--scale" in capsys.readouterr().out


# --------------------------------------------------------------------------- tables in the package


def rows_of(table, member):
    """Rows with these settings; a column of the file may have turned 32 into 32.0, and 1.0 into "1.0"."""
    for key, value in member.items():
        texts = {str(value), str(float(value))} if isinstance(value, int | float) else {str(value)}
        table = table[table[key].astype(str).isin(texts)]
    return table


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_has_every_member_of_its_scale(name):
    experiment, table = experiments.load(name), experiments.shipped(name)
    members = [m for m in experiments.members(experiment, "medium", range(5)) if "map" not in m]
    if "map" in table:  # a map's rows are the subject of test_maps
        table = table[table["map"].isna()]
    for member in members:
        rows = rows_of(table, member)
        assert len(rows) >= member["steps"] / member["every"], member
        table = table.drop(rows.index)
    assert table.empty


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_is_what_the_code_measures(name):
    experiment, table = experiments.load(name), experiments.shipped(name)
    for grid in experiment.SCALES["medium"]:
        if "map" in grid:
            continue
        member = experiments.points(grid)[-1] | {"seed": 1}
        rows = experiment.run(member | {"steps": 1})
        stored = rows_of(table, member)
        first = [row for row in rows if row["step"] == 0]
        assert first
        for row, old in zip(first, stored[stored.step == 0].to_dict("records"), strict=True):
            # The first numbers do not depend on a training, in which rounding errors grow.
            assert {key: old[key] for key in row} == pytest.approx(row, rel=2e-3, nan_ok=True)


def along(table, value, first, last, how="median", **settings):
    """A number for each seed: the median over the steps of the value (the smallest of the layers)."""
    table = table[table.step.between(first, last)]
    for name, wanted in settings.items():
        table = table[table[name] == wanted]
    by_step = table.dropna(subset=[value]).pivot_table(value, "seed", "step", aggfunc="min")
    assert by_step.shape[0] == 5
    return getattr(by_step, how)(axis=1)


def test_ics_revisited_says_of_the_longer_run_what_its_table_shows():
    table = experiments.shipped("ics")
    cosine = {
        norm: [
            along(
                table[table.experiment == "definition_2_1"],
                "cosine",
                *steps,
                network="vgg",
                init="glorot",
                norm=norm,
            ).median()
            for steps in ((0, 100), (300, 1000), (1500, 2000))
        ]
        for norm in ("none", "batch")
    }
    start, middle, end = (plain - batch for plain, batch in zip(cosine["none"], cosine["batch"], strict=True))
    assert cosine["none"][0] > 0.95
    assert middle < 0 < end < start / 2  # as restless or more, then steadier again by far less
    noisy = table[table.experiment == "noisy_batch_norm"]
    loss = {n: along(noisy, "loss", 2000, 2000, norm=n).median() for n in ("none", "noise", "batch", "noisy")}
    assert loss["batch"] < loss["noisy"] < loss["none"] < loss["noise"]
    assert 0.8 < (loss["noisy"] / loss["batch"]) / (loss["noise"] / loss["none"]) < 1.25
    last = noisy[noisy.accuracy.notna()].groupby("norm")[["accuracy", "accuracy_batch"]].median()
    assert last.accuracy_batch["noisy"] >= last.accuracy_batch.max() - 0.01
    assert last.accuracy["noisy"] < last.accuracy["none"]
    linear = table[table.network == "deep_linear"]
    calm = {n: along(linear, "cosine", 100, 5000, lr=1e-7, norm=n).median() for n in ("none", "batch")}
    assert calm["none"] > 0.95
    assert calm["batch"] < 0
    plain = linear[(linear.lr == 1e-7) & (linear.norm == "none") & (linear.step >= 100)]
    cosines = plain.dropna(subset=["cosine"]).pivot_table("cosine", "seed", "step", aggfunc="min")
    assert (cosines.min(axis=1) > 0.95).sum() == 4  # calm on four of five seeds
    turning = cosines.loc[cosines.min(axis=1).idxmin()]
    turned = turning[turning < 0].index  # on the fifth they turn round twice, and calm down
    assert turned[turned < 1200].to_numpy().mean() == pytest.approx(800, abs=100)
    assert turned[turned >= 1200].to_numpy().mean() == pytest.approx(1600, abs=100)
    assert (turning[[1200, 1300, 1400, *turning.index[turning.index >= 2000]]] > 0.9).all()


def test_landscape_says_of_the_longer_run_what_its_table_shows():
    table = experiments.shipped("landscape")

    def plain_over_batch(value, first, last, lr):
        plain, batch = (along(table, value, first, last, lr=lr, norm=n).median() for n in ("none", "batch"))
        return plain / batch

    for value in ("range", "distance"):
        assert plain_over_batch(value, 0, 100, 0.1) < 0.5
        assert plain_over_batch(value, 200, 1000, 0.1) > 2
        assert plain_over_batch(value, 0, 900, 0.01) < 0.1
        assert plain_over_batch(value, 1500, 2000, 0.01) > 2
    looks = table[table.lr == 0.1].pivot_table("range", "step", "norm", aggfunc="median")
    ratio = (looks["none"] / looks["batch"]).loc[200:]
    assert 3 < ratio.loc[:1300].median() < 10 < ratio.max()  # several times, at some looks more than ten
    assert plain_over_batch("range", 200, 1000, 0.1) > plain_over_batch("range", 1500, 2000, 0.1) > 1
    assert 0.8 < plain_over_batch("beta", 1500, 2000, 0.1) < 1.25  # about the same
    last = along(table, "loss", 1950, 2000, lr=0.01, norm="none")
    assert sorted(last)[-1] > 2 > 1.5 > sorted(last)[-2]  # one of five has hardly left its plateau, at 2.3
    largest = {n: 0.01 * along(table, "beta", 0, 2000, "max", lr=0.01, norm=n) for n in ("none", "batch")}
    assert largest["batch"].max() < 2
    assert (largest["none"] > 2).sum() >= 3  # most


def test_a_table_is_shipped_and_read_with_five_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "_shipped_file", lambda name, scale: tmp_path / f"{name}-{scale}.csv.gz")
    monkeypatch.setattr(ics, "SCALES", {"small": [{"norm": ["none"]}]})  # without a seed of its own
    monkeypatch.setattr(ics, "run", lambda member, device: [{"step": 0, "loss": 1.23456789}])
    cli.main(["ics", "--out", str(tmp_path / "out"), "--seeds", "2", "--ship"])
    assert f"in the package: {tmp_path / 'ics-small.csv.gz'}" in capsys.readouterr().out
    table = experiments.shipped("ics", "small")
    assert list(table.loss) == [1.2346, 1.2346]
    assert list(table.seed) == [0, 1]
    bytes_before = (tmp_path / "ics-small.csv.gz").read_bytes()
    experiments.ship(table, "ics", "small")
    assert (tmp_path / "ics-small.csv.gz").read_bytes() == bytes_before
    with pytest.raises(ValueError, match=r"got 'ics', 'full', but the package has no ics-full\.csv"):
        experiments.shipped("ics", "full")


# --------------------------------------------------------------------------- internal covariate shift


def test_the_full_scale_has_the_settings_of_the_paper():
    for member in experiments.members(ics, "full", [0]):
        if member.get("network") == "deep_linear":
            assert (member["steps"], member["init"]) == (10_000, 1.0)
            assert member["lr"] in (1e-6, 1e-7)
        else:
            assert (member["steps"], member["batch_size"], member["lr"]) == (15_000, 128, 0.1)
            assert member["images"] == "full"
    noisy = [m for m in experiments.members(ics, "full", [0]) if m["experiment"] == "noisy_batch_norm"]
    assert {m["init"] for m in noisy} == {"glorot"}


def test_members_are_the_grid_times_the_seeds(monkeypatch):
    monkeypatch.setitem(ics.SCALES, "small", [{"norm": ["a", "b"], "lr": [1, 2], "widths": (3, 4)}])
    members = experiments.members(ics, "small", [5, 6])
    assert len(members) == 8
    assert {(m["norm"], m["lr"], m["seed"]) for m in members} == set(itertools.product("ab", (1, 2), (5, 6)))
    assert all(m["widths"] == (3, 4) for m in members)
    with pytest.raises(ValueError, match="scale: got 'large', allowed are small, medium, full"):
        experiments.members(ics, "large", [0])


def test_a_member_runs_its_own_experiment(monkeypatch):
    for name in ("noisy_batch_norm", "definition_2_1"):
        monkeypatch.setattr(ics, name, lambda name=name, **settings: [(name, settings)])
        member = {"experiment": name, "seed": 1}
        assert ics.run(member, "cpu") == [(name, {"seed": 1, "device": "cpu"})]
        assert member == {"experiment": name, "seed": 1}  # still whole


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_losses_are_those_of_training_with_the_books_own_layers(norm):
    rows = ics.noisy_batch_norm(norm=norm, **NOISY)
    x, y, x_test, y_test = (value.numpy() for value in _vision.images_of("small", "cpu"))

    part = _vision.data.Data(x, y, x_test[:500], y_test[:500])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = models.vgg((1, 14, 14), 10, widths=(4, 0, 4, 4), norm=norm, init="he")
    history = training.fit(model, part, steps=7, seed=3, batch_size=8, lr=0.1, evaluate_every=7)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert [step for step, _ in losses] == [3, 6, 7]
    expected = [history.loss[:3].mean(), history.loss[3:6].mean(), history.loss[6]]
    assert [loss for _, loss in losses] == pytest.approx(expected, rel=1e-4)
    assert rows[-1]["accuracy"] == pytest.approx(history.series["test_accuracy"][-1], abs=0.005)


def test_noise_stands_behind_each_norm_or_each_convolution_and_nowhere_else():
    part = _vision.images_of("small", "cpu")
    kinds = {
        norm: [type(layer).__name__ for layer in ics.vgg(part, norm, (4, 0, 4), "he")]
        for norm in ("none", "batch", "noisy", "noise", "same")
    }
    pool, head = ["MaxPool2d"], ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    block = {
        "none": ["Conv2d", "ReLU"],
        "batch": ["Conv2d", "BatchNorm2d", "ReLU"],
        "noisy": ["Conv2d", "BatchNorm2d", "Noise", "ReLU"],
        "noise": ["Conv2d", "Noise", "ReLU"],
        "same": ["Conv2d", "InWidths", "ReLU"],
    }
    assert kinds == {norm: [*parts, *pool, *parts, *head] for norm, parts in block.items()}


def test_noise_in_widths_is_the_same_beside_every_signal_and_none_to_the_gradient():
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    scale, shift = torch.tensor([1e-6, 1.0, 50.0]).double()[:, None, None], 7.0

    def moved(x):
        noise = ics.InWidths(layers.Noise(3, torch.Generator().manual_seed(1)))
        return noise(x)

    change = moved(x) - x
    assert change.std() > 0.1
    torch.testing.assert_close(
        (moved(scale * x + shift) - (scale * x + shift)) / scale, change, rtol=0, atol=1e-8
    )
    assert torch.equal(ics.InWidths(layers.Noise(3)).eval()(torch.zeros(4, 3)), torch.zeros(4, 3))
    x.requires_grad_()
    gradient = torch.autograd.grad(moved(x).sum(), x)[0]
    noise = layers.Noise(3, torch.Generator().manual_seed(1))
    alone = torch.autograd.grad(noise(x).sum(), x)[0]  # s of each value: the noise multiplies, and no more
    torch.testing.assert_close(gradient, alone)


def test_probes_follow_the_fixed_batch_and_measure_movement_in_widths():
    class Shifted(nn.Module):
        """Adds a number to what the ReLU reads."""

        by = 0.0

        def forward(self, x):
            return x + self.by

    x = torch.rand(50, 4)
    model, rows = nn.Sequential(nn.Identity(), Shifted(), nn.ReLU()), []
    before = ics._moved(model, x, (0,), 0, [], rows)
    Shifted.by = 0.5
    ics._moved(model, x, (0,), 5, before, rows)
    low, middle, high = torch.quantile(x, torch.tensor([0.15, 0.5, 0.85]), dim=0)
    assert "moved" not in rows[0]
    assert rows[1]["moved"] == pytest.approx((0.5 / (high - low)).median().item(), rel=1e-5)
    assert rows[1]["width"] == pytest.approx((high - low).median().item(), rel=1e-5)
    assert [rows[1][key] for key in ("p15", "p50", "p85")] == pytest.approx(
        [(edge[0] + 0.5).item() for edge in (low, middle, high)]
    )
    assert (rows[1]["step"], rows[1]["layer"]) == (5, 1)


def test_movement_divides_by_the_mean_of_both_widths():
    x, rows = torch.linspace(0, 1, 101)[:, None], []
    before = ics._moved(nn.ReLU(), x, (0,), 0, [], rows)
    ics._moved(nn.ReLU(), 3 * x, (0,), 1, before, rows)
    assert rows[1]["moved"] == pytest.approx(1.0 / 1.4, rel=1e-4)  # medians .5, 1.5; widths .7, 2.1


def test_the_probes_are_those_of_the_named_layers_at_the_named_steps():
    rows = [row for row in ics.noisy_batch_norm(norm="noisy", **NOISY) if "layer" in row]
    assert [(row["step"], row["layer"]) for row in rows] == [
        (step, layer) for step in (0, 3, 6, 7) for layer in (1, 3)
    ]


def test_noise_moves_what_a_layer_reads_and_is_drawn_anew():
    moved = {
        norm: [
            row["moved"] for row in ics.noisy_batch_norm(norm=norm, **{**NOISY, "lr": 0.0}) if "moved" in row
        ]
        for norm in ("batch", "noisy")
    }
    assert max(moved["batch"]) == 0  # nothing learns, nothing moves
    assert min(moved["noisy"]) > 0.01


def test_the_accuracies_differ_in_noise_and_statistics_alone():
    (last,) = [row for row in ics.noisy_batch_norm(norm="none", **NOISY) if "accuracy" in row]
    assert last["accuracy"] == last["accuracy_noisy"] == last["accuracy_batch"]
    (last,) = [row for row in ics.noisy_batch_norm(norm="batch", **NOISY) if "accuracy" in row]
    assert last["accuracy_noisy"] == last["accuracy_batch"] != last["accuracy"]
    for norm in ("noise", "same"):
        (last,) = [row for row in ics.noisy_batch_norm(norm=norm, **NOISY) if "accuracy" in row]
        assert last["accuracy"] == last["accuracy_batch"]


def test_a_seed_decides_everything_and_leaves_the_global_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = (ics.noisy_batch_norm(norm="noisy", **NOISY) for _ in range(2))
    assert one == two != ics.noisy_batch_norm(norm="noisy", **{**NOISY, "seed": 4})
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_definition_2_1_is_measured_on_the_batch_and_at_the_rate_of_the_step(norm):
    rows = ics.definition_2_1(norm=norm, **DEFINITION)
    assert [(row["step"], row["layer"]) for row in rows] == [(0, 1), (0, 3), (2, 1), (2, 3)]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = models.vgg((1, 14, 14), 10, widths=(4, 0, 4, 4), norm=norm, init="he")
    part = _vision.images_of("small", "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (x, y) in enumerate(_vision.batches_of(part, 8, 3, 3)):
        if step == 2:
            shift = probes.internal_covariate_shift(model, F.cross_entropy, x, y, 0.1, (0, 2))
            g = probes.landscape(model, F.cross_entropy, x, y, [0.1])
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for row, distance, relative in zip(rows[2:], shift.distance, shift.relative, strict=True):
        assert row["distance"] == pytest.approx(distance.item(), rel=1e-3, abs=1e-7)
        assert row["relative"] == pytest.approx(relative.item(), rel=1e-3, abs=1e-6)
        assert row["whole"] == pytest.approx(0.1 * g.beta.item(), rel=1e-3)
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert rows[3]["cosine"] == pytest.approx(shift.cosine[1].item(), rel=1e-3)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_linear_network_is_that_of_the_paper(norm):
    model = ics._deep_linear(norm, 1.0)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert len(linear) == 25
    assert all(layer.weight.shape == (10, 10) for layer in linear)
    assert all(layer.bias is None for layer in linear[:-1])
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in model) == (24 if norm == "batch" else 0)
    assert {type(layer) for layer in model} <= {nn.Linear, nn.BatchNorm1d}
    assert torch.cat([layer.weight.ravel() for layer in linear]).std().item() == pytest.approx(
        10**-0.5, rel=0.1
    )
    output, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    assert ics.squared_error(output, target) == 30


def test_the_linear_network_learns_its_map_and_is_measured():
    rows = ics.definition_2_1(norm="none", steps=3, every=1, **LINEAR)
    assert [(row["step"], row["layer"]) for row in rows] == list(itertools.product(range(3), (17, 23)))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_training_that_diverges_ends_with_its_step():
    rows = ics.definition_2_1(norm="none", steps=50, every=100, **{**LINEAR, "lr": 1e-2})
    assert rows[-1].keys() == {"step", "loss"}
    assert rows[-1]["loss"] == float("inf")
    assert 0 < rows[-1]["step"] < 50


def test_the_images_are_averaged_and_standardized_by_the_training_part(monkeypatch):
    x, y, x_test, _ = _vision.images_of("small", "cpu")
    assert x.shape == (10_000, 1, 14, 14)
    assert x_test.shape == (2_000, 1, 14, 14)
    assert x.mean().item() == pytest.approx(0, abs=1e-4)
    assert x.std().item() == pytest.approx(1, rel=1e-4)
    assert x_test.mean().item() != pytest.approx(0, abs=1e-4)
    part = _vision.data.fashion()
    raw = torch.from_numpy(part.x_train[:1])
    block = raw[0, 0, 12:14, 12:14].mean() - raw[0, 0, 2:4, 12:14].mean()
    here = (x[0, 0, 6, 6] - x[0, 0, 1, 6]) * torch.nn.functional.avg_pool2d(
        torch.from_numpy(part.x_train), 2
    ).std()
    assert here.item() == pytest.approx(block.item(), abs=1e-4)
    monkeypatch.setattr(_vision.data, "fashion_mnist", _vision.data.fashion)
    full = _vision.images_of.__wrapped__("full", "cpu")
    assert full[0].shape == (10_000, 1, 28, 28)
    assert torch.equal(full[1], y)


def test_batches_are_shuffled_epochs():
    part = _vision.images_of("small", "cpu")
    short = tuple(value[:20] for value in part)
    batches = list(_vision.batches_of(short, 8, 5, 0))
    assert [len(x) for x, _ in batches] == [8] * 5
    first = torch.cat([x for x, _ in batches[:2]])
    assert len(torch.unique(first.flatten(1), dim=0)) == 16  # none twice in an epoch


def test_a_gpu_has_its_random_state_put_back_too(monkeypatch):
    asked = []

    class Fork:
        def __init__(self, devices):
            asked.extend(devices)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(ics.torch.random, "fork_rng", Fork)
    monkeypatch.setattr(ics.torch, "manual_seed", lambda seed: None)
    for device in ("cpu", "cuda:1"):
        with _vision.seeded(0, device):
            pass
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: ics.noisy_batch_norm(norm="layer", **NOISY),
            "norm: got 'layer', allowed are none, batch, noisy",
        ),
        (
            lambda: ics.definition_2_1(norm="noisy", **DEFINITION),
            "norm: got 'noisy', allowed are none, batch",
        ),
        (
            lambda: ics.definition_2_1(norm="none", **{**DEFINITION, "network": "mlp"}),
            "network: got 'mlp', allowed are vgg, deep_linear",
        ),
        (lambda: ics.noisy_batch_norm(norm="none", **{**NOISY, "images": "tiny"}), "images: got 'tiny'"),
    ],
)
def test_unknown_settings_are_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_pytorchs_batch_norm_stands_where_ours_stood():
    ours = models.mlp((10,), 10, depth=2, width=10, norm="batch", activation="none")
    theirs = ics._dressed(ours, "batch")
    x = torch.randn(30, 10)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, layers.BatchNorm) for layer in theirs)
