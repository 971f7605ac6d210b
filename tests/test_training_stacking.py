"""A sweep gives each member what `fit` gives, for a reader's own model too; and `fit` leaves no trace."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnbook import data, layers, models, norm_free, training

RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 3
DATA = data.Data(RNG.standard_normal((40, 6)), LABELS, RNG.standard_normal((20, 6)), LABELS[:20])
STEPS = {"steps": 4, "batch_size": 8, "evaluate_every": 2}


def alone(build, seed, lr=0.1, momentum=0.0, weight_decay=0.0, record=None, **settings):
    """What `fit` gives with this seed and these settings."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build((6,), 3, **settings)
    torch.manual_seed(seed)  # dropout draws from the global state
    return training.fit(
        model, DATA, seed=seed, lr=lr, momentum=momentum, weight_decay=weight_decay, record=record, **STEPS
    )


def assert_each_is_what_fit_gives(build, **sweep):
    runs = training.sweep(build, DATA, **STEPS, **{"seeds": 2, **sweep})
    settings = {name: value for name, value in sweep.items() if name not in ("seeds", "stack")}
    for place in itertools.product(*(range(len(values)) for values in runs.axes.values())):
        member = {name: values[i] for i, (name, values) in zip(place, runs.axes.items(), strict=True)}
        right = alone(build, **{**settings, **member})
        np.testing.assert_allclose(runs.loss[place], right.loss, rtol=1e-6)
        assert runs.series.keys() == right.series.keys()
        for name, values in right.series.items():
            np.testing.assert_allclose(runs.series[name][place], values, rtol=1e-6, err_msg=name)
    return runs


def refuse_to_stack(*_):
    raise AssertionError("this sweep must not stack")


def refuse_to_fit(*_, **__):
    raise AssertionError("this sweep must stack")


# --------------------------------------------------------------------------- layers of a reader


class Activation(nn.Module):
    """Its function is an attribute that `repr` does not show."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


class AssignedNorm(nn.Module):
    """Batch norm as in many tutorials: forward assigns the buffers."""

    def __init__(self, n):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("var", torch.ones(n), persistent=False)

    def forward(self, x):
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            self.mean = 0.9 * self.mean + 0.1 * mean.detach()
            self.var = 0.9 * self.var + 0.1 * var.detach()
        return (x - mean) / torch.sqrt(var + 1e-5)


class InPlaceNorm(AssignedNorm):
    """The same, with buffers that change in place."""

    def forward(self, x):
        if not self.training:
            return (x - self.mean) / torch.sqrt(self.var + 1e-5)
        mean, var = x.mean(0), x.var(0)
        self.mean.mul_(0.9).add_(mean.detach(), alpha=0.1)
        self.var.mul_(0.9).add_(var.detach(), alpha=0.1)
        return (x - mean) / torch.sqrt(var + 1e-5)


class AttributeNorm(nn.Module):
    """The same without buffers: what it remembers is an attribute, which stack_module_state does not know."""

    def __init__(self, n):
        super().__init__()
        self.mean = torch.zeros(n, dtype=torch.float64)

    def forward(self, x):
        if not self.training:
            return x - self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return x - x.mean(0)


class Fading(nn.Module):
    """Counts its calls in training, and fades."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return x / (1 + self.calls)


class Branch(nn.Module):
    """Does with the data as they are."""

    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


class Clamped(nn.Linear):
    """Changes its own weight while it runs."""

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.2, 0.2)
        return super().forward(x)


class Replaced(nn.Linear):
    """Puts another parameter in the place of its weight, in training."""

    def forward(self, x):
        if self.training:
            self.weight = nn.Parameter(0.9 * self.weight.detach())
        return super().forward(x)


class Single(nn.Linear):
    """Stays in float32, as parts of a network do under mixed precision."""

    def _apply(self, fn, recurse=True):
        return self

    def forward(self, x):
        return super().forward(x.float()).double()


class Fixed(nn.Module):
    """Multiplies by a number that the seed chooses, as a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.factor = torch.rand((), dtype=torch.float64)

    def forward(self, x):
        return self.factor * x


class Frozen(layers.BatchNorm):
    """Stays in evaluation mode."""

    def train(self, mode=True):
        return super().train(False)


class Watched(nn.Linear):
    """Halves the gradient of its weight."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.weight.register_hook(lambda gradient: gradient / 2)


# Width 5: with 4 units a layer norm can have next to no variance, and blow rounding up.
STACKED = {
    "nothing": nn.Identity,
    "torch's batch norm": lambda: nn.BatchNorm1d(5),
    "torch's layer norm": lambda: nn.LayerNorm(5),
    "our batch norm": lambda: layers.BatchNorm(5),
    "our batch norm without statistics": lambda: layers.BatchNorm(5, track_running_stats=False),
    "our layer norm": lambda: layers.LayerNorm(5),
    "frozen batch norm": lambda: Frozen(5),
    "buffers that forward assigns": lambda: AssignedNorm(5),
    "buffers that change in place": lambda: InPlaceNorm(5),
    "a function": lambda: Activation(torch.tanh),
    "a local function": lambda: Activation(lambda x: x.sin()),
    "block": lambda: norm_free.NormFreeBlock(5, 0, alpha=0.5),
    "a frozen layer": lambda: nn.Linear(5, 5).requires_grad_(False),
    "dropout that drops nothing": lambda: nn.Dropout(0.0),
}
ONE_BY_ONE = {
    "dropout": lambda: nn.Dropout(0.4),
    "alpha dropout": lambda: nn.AlphaDropout(0.4),
    "noise": lambda: layers.Noise(5),
    "torch's cumulative batch norm": lambda: nn.BatchNorm1d(5, momentum=None),
    "a branch on the data": Branch,
    "a count": Fading,
    "statistics as attributes": lambda: AttributeNorm(5),
    "a tensor as an attribute": Fixed,
    "a hook on a weight": lambda: Watched(5, 5),
    "a weight that forward replaces": lambda: Replaced(5, 5),
    "a part in another dtype": lambda: Single(5, 5),
    "a parametrization": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)),
}
EITHER = {"a weight that forward clamps": lambda: Clamped(5, 5)}


def network(*names):
    """Build two linear layers with these layers between them, in float64."""

    def build(in_shape, classes):
        middle = [{**STACKED, **ONE_BY_ONE, **EITHER}[name]() for name in names]
        return nn.Sequential(nn.Linear(6, 5), *middle, nn.Linear(5, classes)).double()

    return build


@pytest.mark.parametrize("name", STACKED)
def test_what_can_be_stacked_is_stacked_and_is_what_fit_gives(name, monkeypatch):
    assert_each_is_what_fit_gives(network(name))
    monkeypatch.setattr(training, "fit", refuse_to_fit)
    training.sweep(network(name), DATA, seeds=2, **STEPS)


@pytest.mark.parametrize("name", [*ONE_BY_ONE, *EITHER])
def test_what_cannot_be_stacked_runs_one_by_one_and_is_what_fit_gives(name):
    assert_each_is_what_fit_gives(network(name))


@settings(max_examples=40)
@given(
    names=st.lists(st.sampled_from([*STACKED, *ONE_BY_ONE, *EITHER]), min_size=1, max_size=3),
    rates=st.fixed_dictionaries(
        {},
        optional={
            "lr": st.sampled_from([0.05, [0.01, 0.3]]),
            "momentum": st.sampled_from([0.9, [0.0, 0.9]]),
            "weight_decay": st.sampled_from([0.01, [0.0, 0.1]]),
            "seeds": st.sampled_from([1, 2, [3, 1]]),
            "stack": st.booleans(),
        },
    ),
)
def test_a_sweep_over_any_model_is_what_fit_gives(names, rates):
    assert_each_is_what_fit_gives(network(*names), **rates)


# --------------------------------------------------------------------------- what tells members apart


def branch(in_shape, classes, alpha):
    block = norm_free.NormFreeBlock(5, 0, alpha=alpha)
    return nn.Sequential(nn.Linear(6, 5), block, nn.Linear(5, classes)).double()


def activated(in_shape, classes, f):
    return nn.Sequential(nn.Linear(6, 5), Activation(f), nn.Linear(5, classes)).double()


def multiplied(in_shape, classes, by):
    return activated(in_shape, classes, lambda x: by * x.relu())


def in_mode(in_shape, classes, kind):
    model = nn.Sequential(nn.Linear(6, 5), kind(5), nn.Linear(5, classes)).double()
    return model


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (branch, {"alpha": [0.2, 2.0]}),
        (activated, {"f": [torch.relu, torch.sigmoid, torch.zeros_like]}),
        (multiplied, {"by": [1.0, 3.0]}),
        (in_mode, {"kind": [layers.BatchNorm, Frozen]}),
    ],
)
def test_a_setting_that_repr_does_not_show_tells_members_apart(build, setting):
    runs = assert_each_is_what_fit_gives(build, **setting)
    finals = runs.final("test_loss")
    assert len(np.unique(finals.round(6))) == finals.size


def test_members_of_one_setting_stay_together_when_another_setting_tells_apart(monkeypatch):
    monkeypatch.setattr(training, "fit", refuse_to_fit)
    training.sweep(multiplied, DATA, by=[1.0, 3.0], seeds=2, **STEPS)


def test_shared_weights_are_no_weights_of_their_own():
    def build(in_shape, classes, shared):
        first, second = nn.Linear(6, 6), nn.Linear(6, 6)
        if shared:
            second.weight = first.weight
        return nn.Sequential(first, nn.ReLU(), second, nn.Linear(6, classes)).double()

    assert_each_is_what_fit_gives(build, shared=[True, False])


def test_without_stacking_the_result_is_the_same(monkeypatch):
    stacked = training.sweep(network("our batch norm"), DATA, seeds=2, **STEPS)
    monkeypatch.setattr(training, "_fit_stack", refuse_to_stack)
    one_by_one = training.sweep(network("our batch norm"), DATA, seeds=2, stack=False, **STEPS)
    np.testing.assert_allclose(stacked.loss, one_by_one.loss, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("dropout", "random"),
        ("a branch on the data", "data-dependent control flow"),
        ("a count", "an attribute changes while the model runs"),
        ("a hook on a weight", "with a hook"),
        ("a tensor as an attribute", "no other model is like it"),
        ("a weight that forward replaces", "the forward assigns a parameter"),
        ("a part in another dtype", "several dtypes"),
        ("nothing", ""),
    ],
)
def test_the_progress_bar_says_why_members_train_one_by_one(name, word, monkeypatch):
    from tqdm import tqdm

    words = []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda bar, text, refresh: words.append(text))
    training.sweep(network(name), DATA, seeds=2, progress=True, stack=True, **STEPS)
    said = [text for text in words if text]
    assert all(text.startswith("one by one: ") and word in text for text in said)
    assert bool(said) == bool(word)


def test_a_record_that_knows_no_nan_is_not_called_after_a_divergence():
    def record(model, step):
        values = torch.cat([value.flatten() for value in model.parameters()])
        if not values.isfinite().all():
            raise ValueError("NaN")
        return {"largest": values.abs().max().item()}

    runs = assert_each_is_what_fit_gives(network("nothing"), lr=[0.1, 1e200], record=record)
    assert np.isfinite(runs.diverged[1]).all()
    assert np.isnan(runs.series["largest"][1, :, -1]).all()


def test_a_record_sees_the_buffers_that_the_state_dict_leaves_out():
    def record(model, step):
        return {"var": model[1].var.clone()}

    runs = assert_each_is_what_fit_gives(network("buffers that forward assigns"), record=record)
    assert not np.array_equal(runs.series["var"][0, 0], runs.series["var"][0, -1])


# --------------------------------------------------------------------------- what stays behind


def poisoned():
    x = torch.randn(8, 6)
    x[0, 0] = math.nan
    return x


def test_after_fit_and_sweep_a_nan_still_raises_from_the_layer():
    built = []

    def build(in_shape, classes):
        built.append(models.mlp(in_shape, classes, depth=1, width=8, norm="batch").double())
        return built[-1]

    training.sweep(build, DATA, seeds=2, **STEPS)
    training.fit(build((6,), 3), DATA, **STEPS)
    training.fit(build((6,), 3), DATA, lr=1e200, **STEPS)  # also after a divergence
    with pytest.raises(ArithmeticError):  # and after an error
        training.fit(build((6,), 3), DATA, record=lambda *_: 1 / 0, **STEPS)
    for model in built:
        with pytest.raises(ValueError, match="NaN"):
            model.train()(poisoned().double())


# --------------------------------------------------------------------------- arguments


def test_numpys_numbers_are_numbers():
    build = network("nothing")
    plain = training.sweep(build, DATA, steps=4, batch_size=8, evaluate_every=2, seeds=2, lr=0.5)
    ours = {"steps": np.int64(4), "batch_size": np.int32(8), "evaluate_every": np.int64(2)}
    runs = training.sweep(build, DATA, seeds=np.int64(2), lr=np.float32(0.5), momentum=np.float64(0), **ours)
    np.testing.assert_array_equal(runs.loss, plain.loss)
    torch.manual_seed(0)
    history = training.fit(build((6,), 3), DATA, lr=np.float32(0.5), seed=np.int64(0), **ours)
    np.testing.assert_allclose(history.loss, plain.loss[0], rtol=1e-9)


def sweep(build=None, part=DATA, **settings):
    return lambda: training.sweep(build or network("nothing"), part, **{**STEPS, "seeds": 1, **settings})


def with_momentum(in_shape, classes, momentum=0.1):
    return nn.Linear(6, classes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (sweep(lr=(0.1, 0.5)), r"lr: got \(0.1, 0.5\), expected a number, or a list .* axis of the grid"),
        (sweep(momentum=np.array([0.1])), "momentum: got array.*, expected a number, or a list"),
        (sweep(branch, alpha=(0.1, 0.2)), "alpha: got .*; alpha: no axis of the grid, as only a list is one"),
        (
            sweep(widht=3),
            "settings: got widht, but got an unexpected keyword argument 'widht'; allowed",
        ),
        (sweep(branch), "settings: got none, but missing a required argument: 'alpha'"),
        (sweep(with_momentum, momentum=0.5), "momentum: is a setting of build and of the sweep"),
        (sweep(seed=3), "settings: got seed, but got an unexpected keyword argument 'seed'"),
        (sweep(seeds=[0.5]), "seeds: got 0.5, expected a whole number"),
        (sweep(seeds=-1), "seeds: got none"),
        (sweep(steps=2.5), "steps: got 2.5, expected a whole number"),
        (sweep(lr="0.1"), "lr: got '0.1', expected a finite number"),
        (sweep(lr=[0.1, "0.1"]), "lr: got '0.1', expected a finite number"),
        (
            sweep(part=data.Data(DATA.x_train, LABELS % 2, DATA.x_test, DATA.y_test)),
            r"data: got classes \[2\] in the test that are missing from the training data",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_came_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
