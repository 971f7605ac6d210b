"""The doctor finds what was put in, accuses nothing healthy, and leaves everything as it was."""

import copy
import itertools
import json
import math
import random
import subprocess
import sys
import warnings
from collections import deque

import doctor_faults as faults
import doctor_zoo as zoo
import pytest
import torch
from torch import nn

from bnbook import doctor

SHORT = ("mlp", "residual", "transformer", "norm with activation")


@pytest.fixture(scope="module")
def trained():
    """Four small networks, trained once; each test takes copies."""
    torch.set_num_threads(1)
    norms = {"mlp": zoo.OURS}
    return {name: zoo.trained(name, norms.get(name, zoo.TORCH), steps=100) for name in SHORT}


def worst(report):
    return [f"{f.severity} {f.id} {dict(f.evidence)}" for f in report.findings if f.severity != "note"]


# -------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("index", "kind", "recipe"),
    [(k, *fault) for k, fault in enumerate(faults.FAULTS)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_fault_is_named_with_its_module(trained, index, kind, recipe):
    for name in SHORT[index % 3 :] + SHORT[: index % 3]:
        injected = recipe(copy.deepcopy(trained[name]))
        if injected is not None:
            break
    found = doctor.examine(injected.model, **injected.options).of(kind)
    assert found
    assert injected.modules is None or found[0].module in injected.modules
    assert found[0].evidence
    assert found[0].remedy


@pytest.mark.parametrize(("kind", "recipe"), faults.LOOPS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_fault_of_the_loop_is_named_with_its_module(trained, kind, recipe):
    watched, modules = recipe(copy.deepcopy(trained["residual"]), doctor.watch)
    found = [finding for finding in watched.findings if finding.kind == kind]
    assert found
    assert modules is None or found[0].module in modules


@pytest.mark.parametrize(("kind", "recipe"), faults.COMPARISONS, ids=lambda v: getattr(v, "__name__", ""))
def test_two_models_part_at_the_norm_that_was_changed(trained, kind, recipe):
    a, b, modules = recipe(copy.deepcopy(trained["residual"]))
    found = doctor.compare(a, b, zoo.batches(count=4)).of(kind)
    assert found[0].module in modules


@pytest.mark.parametrize(
    ("recipe", "field"),
    [(faults.other_eps, "epsilon"), (faults.scale_ignored, "scale"), (faults.biased_variance, "variance")],
)
def test_the_field_that_explains_a_difference_is_named(trained, recipe, field):
    a, b, _ = recipe(copy.deepcopy(trained["residual"]))
    evidence = doctor.compare(a, b, zoo.batches(count=2)).of("first-difference")[0].evidence
    assert field in evidence["field"]
    assert evidence["left when it is exchanged"] < 0.05


def test_every_kind_has_a_recipe():
    tried = {kind for kind, _ in [*faults.FAULTS, *faults.LOOPS, *faults.COMPARISONS]}
    elsewhere = {"ranks-differ", "exported-in-training", "not-folded"}  # test_doctor_cures.py
    assert set(doctor.kinds()) == tried | elsewhere
    assert all(doctor.kinds().values())


# ------------------------------------------------------------------------------------- healthy


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("test", [False, True])
def test_a_healthy_network_is_not_accused(trained, name, test):
    report = doctor.examine(trained[name], zoo.batches(seed=5, size=16, test=test))
    assert worst(report) == []


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_fresh_network_is_not_accused(name):
    model = zoo.ZOO[name](*zoo.TORCH)
    assert worst(doctor.examine(model.train(), zoo.batches(count=3))) == []


def crepe(model):
    """CREPE as it ships: momentum 0 and a counter of 0, in evaluation, with huge variances."""
    for norm in faults.norms(model).values():
        norm.momentum = 0.0
        norm.num_batches_tracked.zero_() if hasattr(norm, "num_batches_tracked") else None
    return model


def tensorflow_port(model):
    for norm in faults.norms(model).values():
        norm.eps = 1e-3
    return model


def maml(model):
    for norm in faults.norms(model).values():
        norm.momentum = 1.0
    return model


def norm_eval(model):
    """A detector that is fine-tuned: its norms evaluate, all else trains."""
    model.train()
    for norm in faults.norms(model).values():
        norm.eval()
    return model


def fixres(model):
    """The last norm trains, all others evaluate."""
    list(faults.norms(model.eval()).values())[-1].train()
    return model


def trained_norms_in_a_frozen_body(model):
    """fast.ai: everything is frozen but the norms."""
    model.requires_grad_(False).train()
    for norm in faults.norms(model).values():
        for parameter in norm.parameters():
            parameter.requires_grad_(True)
    return model


def decayed_channels(model):
    """Strong weight decay: scale and variance died together."""
    for norm in faults.norms(model).values():
        with torch.no_grad():
            norm.weight[:2] *= 1e-4
            norm.running_var[:2] = 1e-7
    return model


def half_for_inference(model):
    return model.eval().bfloat16()


@pytest.mark.parametrize(
    "change",
    [
        crepe,
        tensorflow_port,
        maml,
        norm_eval,
        fixres,
        trained_norms_in_a_frozen_body,
        decayed_channels,
        half_for_inference,
    ],
)
def test_what_is_done_on_purpose_is_not_accused(trained, change):
    """The healthy cases that naive rules accuse: by weights and shapes."""
    model = change(copy.deepcopy(trained["residual"]))
    assert worst(doctor.examine(model, example=(16, 1, 16, 16))) == []


def test_a_frozen_norm_with_statistics_0_and_1_is_not_untouched():
    model = zoo.FrozenStem(*zoo.TORCH)
    model.bn1.weight.uniform_(0.5, 2)
    model.bn1.bias.normal_()
    assert worst(doctor.examine(model.eval())) == []


def test_momentum_0_with_untouched_statistics_is_one_error(trained):
    model = faults.momentum_zero(copy.deepcopy(trained["residual"])).model
    for norm in faults.norms(model).values():
        norm.running_mean.zero_(), norm.running_var.fill_(1)
    for mode in (True, False):
        report = doctor.examine(model.train(mode))
        assert [(f.kind, f.severity) for f in report.findings] == [("half-frozen", "error")]


def test_columns_of_a_table_may_have_any_units():
    model = nn.Sequential(
        nn.BatchNorm1d(8), nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 10)
    )
    table = torch.randn(64, 8) * torch.tensor([1e-3, 1, 1, 1, 1, 1, 1e4, 1])
    for part in table.repeat(4, 1).split(16):
        model(part)
    assert worst(doctor.examine(model, example=(16, 8))) == []


class TeacherAndStudent(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = zoo.Vgg(*zoo.TORCH), zoo.Vgg(*zoo.TORCH).requires_grad_(False)

    def forward(self, x):
        return self.student(x), self.teacher(x)


def test_a_teacher_in_training_mode_is_a_note():
    report = doctor.examine(TeacherAndStudent())
    assert [f.severity for f in report.of("frozen-by-gradient-only")] == ["note"]


def test_dcgans_fresh_scales_do_not_look_trained():
    model = zoo.Generator(*zoo.TORCH)
    for norm in faults.norms(model).values():
        nn.init.normal_(norm.weight, 1, 0.02)
    assert worst(doctor.examine(model)) == []


def test_sorted_test_data_are_a_note_in_evaluation(trained):
    options = faults.sorted_data(copy.deepcopy(trained["residual"])).options
    report = doctor.examine(trained["residual"], **options)
    assert [f.severity for f in report.of("unlike-batches")] == ["note"]
    assert not any(f.severity == "error" for f in report.findings)


def test_batch_two_on_maps_is_not_too_few(trained):
    model = copy.deepcopy(trained["residual"]).train()
    assert worst(doctor.examine(model, example=(2, 1, 16, 16))) == []


def test_a_batch_of_one_in_evaluation_is_fine(trained):
    assert worst(doctor.examine(trained["norm with activation"], example=(1, 1, 16, 16))) == []
    assert worst(doctor.examine(trained["norm with activation"], zoo.batches(size=1, count=4))) == []


class Photographs(nn.Module):
    """A stem on images whose pixels are correlated over long distances."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.net(x).mean((2, 3)))


def test_smooth_images_are_not_unlike_batches():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(160, 1, 2, 2, generator=generator)
    images = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    model = Photographs()
    for part in images.split(16):
        model(part)
    report = doctor.examine(model, list(images.split(16)))
    assert report.of("unlike-batches") == []
    assert report.of("two-populations") == []


class Siamese(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.net = model

    def forward(self, x):
        return zoo.output(self.net, x) - zoo.output(self.net, x.flip(0))


def test_siamese_branches_may_share_a_norm(trained):
    report = doctor.examine(Siamese(trained["residual"]), zoo.batches())
    assert report.of("shared-norm") == []


class Masked(nn.Module):
    def forward(self, x):
        return x.masked_fill(torch.ones_like(x, dtype=torch.bool).triu(1), -math.inf)


def test_a_mask_of_minus_infinity_is_not_a_fault():
    model = nn.Sequential(nn.Flatten(1, 2), Masked(), nn.Softmax(2), nn.Flatten(), nn.Linear(256, 10))
    assert doctor.examine(model, [torch.randn(4, 1, 16, 16)]).of("nonfinite-activation") == []


class WeightNormalized(nn.Conv2d):
    """NFNet's way: F.batch_norm is called on the weights."""

    def forward(self, x):
        w = nn.functional.batch_norm(self.weight.flatten(1)[None], None, None, training=True)
        return self._conv_forward(x, w.reshape(self.weight.shape), self.bias)


def test_a_batch_norm_of_the_weights_is_none_of_activations():
    model = nn.Sequential(WeightNormalized(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10))
    report = doctor.examine(model, zoo.batches(count=3))
    assert worst(report) == []
    assert "no normalization layer" in str(report)


def test_dropout_alone_makes_no_gap_between_the_modes(trained):
    whole = nn.Sequential(copy.deepcopy(trained["residual"]), nn.Dropout(0.5))
    assert doctor.examine(whole, zoo.batches()).of("train-eval-gap") == []


def test_a_mixer_that_turns_the_axes_has_the_right_axis():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.norm, self.head = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)

        def forward(self, x):
            x = x.squeeze(1).transpose(1, 2)  # (examples, features, positions)
            return self.head(self.norm(self.mix(x)).mean(2))

    assert doctor.examine(Mixer(), example=(8, 1, 16, 16)).of("wrong-axis") == []


# --------------------------------------------------------------------------------------- state


class Restless(nn.Module):
    """A forward that changes whatever a forward can change, and raises at the third batch if told so."""

    def __init__(self, raises=False):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(256), nn.Dropout(0.5), nn.Linear(256, 10)
        self.calls, self.queue, self.recent, self.raises = 0, [], deque(maxlen=3), raises
        self.table, self.plain = {}, torch.zeros(3)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        self.calls += 1
        self.queue.append(x)
        self.recent.append(x)
        self.table[self.calls] = x
        self.plain += 1
        torch.rand(3, generator=self.generator)
        with torch.no_grad():
            self.head.weight.data = torch.renorm(self.head.weight.data, 2, 0, 0.1)  # EEGNet's constraint
        self.late = True
        if self.raises and self.calls > 2:
            raise RuntimeError("the third batch")
        return self.head(self.drop(self.norm(x.flatten(1))))


def snapshot(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    state_of_chance = (torch.get_rng_state().clone(), random.getstate())
    return state, modes, hooks, gradients, trains, state_of_chance


def assert_same(before, after):
    for old, new in zip(before[0].items(), after[0].items(), strict=True):
        assert old[0] == new[0]
        assert torch.equal(old[1], new[1])
    assert before[1] == after[1]
    assert before[2] == after[2]
    for name, gradient in before[3].items():
        assert (gradient is None) == (after[3][name] is None)
        assert gradient is None or torch.equal(gradient, after[3][name])
    assert before[4] == after[4]
    assert torch.equal(before[5][0], after[5][0])
    assert before[5][1] == after[5][1]


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_comes_back_as_it_was(raises, training):
    model = Restless(raises).train(training)
    model.norm.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(10)
    model.norm.register_forward_hook(lambda *_: None)
    own = vars(model)
    plain = {name: own[name] for name in ("calls", "raises")}
    generator = model.generator.get_state()
    before = snapshot(model)
    report = doctor.examine(model, zoo.batches(count=4), expect={"padding": 2})
    assert_same(before, snapshot(model))
    assert {name: own[name] for name in plain} == plain
    assert (model.queue, list(model.recent), model.table) == ([], [], {})
    assert torch.equal(model.plain, torch.zeros(3))
    assert torch.equal(generator, model.generator.get_state())
    assert not hasattr(model, "late")
    failed = report.of("forward-fails")
    assert bool(failed) == raises
    if raises:
        assert "the third batch" in failed[0].evidence["error"]


def test_a_graph_that_waits_for_its_backward_pass_stays_valid():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8))
    loss = model(torch.randn(8, 1, 16, 16)).square().sum()
    doctor.examine(model, zoo.batches(count=3))
    loss.backward()


@pytest.mark.parametrize("name", zoo.ZOO)
def test_state_is_kept_in_every_architecture(name):
    model = zoo.ZOO[name](*zoo.TORCH).train()
    before = snapshot(model)
    doctor.examine(model, zoo.batches(count=3))
    assert_same(before, snapshot(model))


def test_a_loader_that_raises_leaves_the_model_as_it_was():
    def broken():
        yield from zoo.batches(count=1)
        raise OSError("disk")

    model = zoo.Mlp(*zoo.TORCH)
    before = snapshot(model)
    with pytest.raises(OSError, match="disk"):
        doctor.examine(model, broken())
    assert_same(before, snapshot(model))


# ----------------------------------------------------------------------------------- bad input


class Segmenting(nn.Module):
    """Which pixels are bright? One score for each class and pixel."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        return self.body(x)


@pytest.fixture(scope="module")
def segmenting():
    torch.manual_seed(0)
    model = Segmenting()
    pictures = [torch.rand(16, 1, 6, 6) for _ in range(8)]
    batches = [(x, (x[:, 0] > 0.5).long()) for x in pictures]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(30):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), batches


def test_labels_of_pixels_say_whether_evaluation_is_worse(segmenting):
    model, batches = segmenting
    assert doctor.examine(model, batches).of("train-eval-gap") == []
    sick = copy.deepcopy(model)
    sick.body[1].running_mean += 3
    (gap,) = doctor.examine(sick, batches).of("train-eval-gap")
    assert gap.severity == "error"
    assert gap.evidence["accuracy in evaluation"] < 0.7 < 0.9 < gap.evidence["with the batch"]
    ignored = [(x, torch.where(x[:, 0] > 0.9, 255, y)) for x, y in batches]
    assert doctor.examine(sick, ignored).of("train-eval-gap")[0].severity == "error"


def test_labels_that_do_not_fit_the_outputs_do_not_make_a_gap_harmless(segmenting):
    model, batches = segmenting
    sick = copy.deepcopy(model)
    sick.body[1].running_mean += 3
    for labels in (lambda y: y + 2, lambda y: y[:, 0, 0, None]):
        (gap,) = doctor.examine(sick, [(x, labels(y)) for x, y in batches]).of("train-eval-gap")
        assert gap.severity == "warning"
        assert "labels do not fit" in gap.says


def test_what_was_frozen_on_purpose_is_no_fault_on_other_data(segmenting):
    model, batches = segmenting
    others = [(x + 5, y) for x, y in batches]
    assert doctor.examine(model, others).of("stale-statistics")[0].severity == "error"
    frozen = doctor.freeze(copy.deepcopy(model))
    (found,) = doctor.examine(frozen, others).of("stale-statistics")
    assert found.severity == "note"
    assert "Frozen on purpose" in found.says


def test_a_file_without_buffers_is_not_passed_over_in_silence(segmenting):
    state = {k: v for k, v in segmenting[0].state_dict().items() if "running" not in k and "num_b" not in k}
    said = str(doctor.examine(state))
    assert "1 layers whose weight has one dimension" in said
    assert "lacks their running statistics" in said


def test_a_failing_forward_names_batch_module_and_error(trained):
    injected = faults.raising(copy.deepcopy(trained["mlp"]))
    finding = doctor.examine(injected.model, **injected.options).of("forward-fails")[0]
    assert (finding.module, finding.evidence["batch"]) == ("head.1", 2)
    assert "KeyError: 'no such batch'" in finding.evidence["error"]


def test_a_model_without_norms_says_so():
    report = doctor.examine(nn.Linear(3, 2), [torch.randn(4, 3)])
    assert "no normalization layer" in str(report)
    assert ("normalization", "the model has no norm that is known here") in report.not_examined


def test_an_endless_iterable_is_read_to_max_batches(trained):
    report = doctor.examine(trained["mlp"], itertools.cycle(zoo.batches(count=2)), max_batches=5)
    assert "5 batches" in str(report)
    assert any("5 were taken" in why for _, why in report.not_examined)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (nn.Linear(3, 2), {"batches": []}, "empty iterable"),
        (nn.Linear(3, 2), {"batches": 7}, "got int, expected an iterable"),
        (nn.Linear(3, 2), {"example": "four"}, "expected the shape"),
        (nn.Linear(3, 2), {"expect": {"frozn": True}}, "got frozn, allowed are frozen"),
        (nn.Linear(3, 2), {"max_batches": 0}, "max_batches"),
        (nn.Linear(3, 2), {"batches": torch.utils.data.TensorDataset(torch.ones(3))}, "DataLoader"),
        ("resnet50", {}, "expected an nn.Module"),
        (nn.LazyLinear(3), {}, "run the model once"),
    ],
)
def test_bad_input_is_refused_in_words(model, options, said):
    with pytest.raises(ValueError, match=said):
        doctor.examine(model, **options)


def test_nan_in_the_data_is_named_and_left_out(trained):
    given = zoo.batches(count=4)
    given[1][0][0, 0, 0, 0] = math.nan
    report = doctor.examine(trained["mlp"], given)
    finding = report.of("nonfinite-activation")[0]
    assert (finding.module, finding.evidence) == ("", {"batches": 1, "first": 1})
    assert "3 batches" in str(report)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: {"x": x, "labels": y},
        lambda x, y: [x, y],
        lambda x, y: (x, y, "name"),
        lambda x, y: x,
    ],
    ids=["dict", "list", "tuple", "tensor"],
)
def test_batches_are_taken_as_a_loader_gives_them(wrap):
    class Named(zoo.Mlp):
        def forward(self, x):
            return super().forward(x)

    report = doctor.examine(Named(*zoo.TORCH), [wrap(x, y) for x, y in zoo.batches(count=3)])
    assert "3 batches of 16" in str(report)
    assert report.of("forward-fails") == []


def test_inputs_labels_and_forward_say_what_a_batch_is(trained):
    given = [{"image": x, "class": y} for x, y in zoo.batches(count=3)]
    by_key = doctor.examine(trained["mlp"], given, inputs="image", labels="class")
    by_forward = doctor.examine(trained["mlp"], given, forward=lambda model, batch: model(batch["image"]))
    assert by_key.of("forward-fails") == by_forward.of("forward-fails") == []
    failed = doctor.examine(trained["mlp"], given, inputs="pixels").of("forward-fails")[0]
    assert "inputs: got 'pixels', but a batch is a dict without it" in failed.evidence["error"]


def test_one_batch_alone_may_be_given(trained):
    x, y = zoo.batches(count=1)[0]
    assert "1 batches" in str(doctor.examine(trained["mlp"], x))
    assert "1 batches" in str(doctor.examine(trained["mlp"], (x, y)))


def test_a_scripted_model_is_known_by_its_names(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(copy.deepcopy(trained["residual"]))
    model.bn1.running_var[0] = math.nan
    report = doctor.examine(model, zoo.batches(count=3))
    assert report.of("nonfinite-statistics")[0].module == "bn1"
    assert len(report.norms) == 8
    assert any("scripted" in what for what, _ in report.not_examined)


def test_compiled_and_parallel_models_are_unwrapped(trained):
    inner = copy.deepcopy(trained["residual"])
    inner.bn1.running_var[0] = math.nan
    for outer in (torch.compile(inner), nn.DataParallel(inner), torch.compile(nn.DataParallel(inner))):
        assert doctor.examine(outer).of("nonfinite-statistics")[0].module == "bn1"


def test_under_autocast_the_passes_run_in_its_type(trained):
    with torch.autocast("cpu", torch.bfloat16):
        assert worst(doctor.examine(trained["residual"], zoo.batches(count=4))) == []


# -------------------------------------------------------------------------------------- report


def test_the_report_prints_the_worst_first_and_what_was_not_examined(trained):
    model = faults.keras_momentum(copy.deepcopy(trained["residual"])).model
    model.bn1.running_var[0] = math.nan
    text = str(doctor.examine(model))
    assert text.index("ERROR") < text.index("WARNING") < text.index("not examined")
    assert "no batches were given" in text


def test_findings_of_one_kind_are_one(trained):
    report = doctor.examine(faults.keras_momentum(copy.deepcopy(trained["residual"])).model)
    (finding,) = report.of("momentum-convention")
    assert len(finding.modules) == 8


def test_raise_for_ignore_and_baseline(trained, tmp_path):
    model = faults.keras_momentum(copy.deepcopy(trained["residual"])).model
    report = doctor.examine(model)
    report.raise_for("error")
    with pytest.raises(AssertionError, match="momentum-convention"):
        report.raise_for("warning")
    with pytest.raises(ValueError, match="severity"):
        report.raise_for("fatal")
    assert doctor.examine(model, ignore=["momentum-convention:*"]).findings == []
    report.to_json(tmp_path / "norms.json")
    assert doctor.examine(model, baseline=tmp_path / "norms.json").findings == []
    model.bn1.running_var[0] = math.nan
    assert [f.kind for f in doctor.examine(model, baseline=tmp_path / "norms.json").findings] == [
        "nonfinite-statistics"
    ]
    (tmp_path / "norms.json").write_text("[]")
    with pytest.raises(ValueError, match="baseline"):
        doctor.examine(model, baseline=tmp_path / "norms.json")


def test_json_and_table_have_a_row_for_each_norm(trained):
    report = doctor.examine(trained["residual"], zoo.batches(count=3))
    assert len(json.loads(report.to_json())["norms"]) == 8
    assert len(report.table().splitlines()) == 9
    assert doctor.examine(nn.Linear(2, 2)).table() == "no norms"


def test_expect_turns_notes_into_errors_and_silence(trained):
    model = copy.deepcopy(trained["residual"]).train()
    frozen = doctor.examine(model, expect={"frozen": "layer1"})
    assert {m for f in frozen.of("frozen-by-gradient-only") for m in f.modules} == {
        "layer1.0.bn1",
        "layer1.0.bn2",
    }
    model.layer1.eval()
    assert doctor.examine(model).of("mixed-mode")
    assert not doctor.examine(model, expect={"frozen": "layer1.*"}).of("mixed-mode")


def test_importing_the_doctor_loads_torch_and_nothing_else():
    code = "import sys, bnbook.doctor; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    others = {"matplotlib", "sklearn", "pandas", "scipy", "IPython", "yaml", "onnx", "mlxtend", "safetensors"}
    assert others.isdisjoint(loaded)
    own = {name for name in loaded if name.startswith("bnbook.")} - {"bnbook._untouched"}
    assert all(name.startswith("bnbook.doctor") for name in own)
