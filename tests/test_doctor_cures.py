"""Freeze, recompute, fold and replace; a healthy loop; two models that agree; files; processes."""

import copy
import io
import json
import math
import os
import pickle
import socket
import sys
import warnings
import zipfile

import doctor_faults as faults
import doctor_zoo as zoo
import pytest
import torch
from torch import multiprocessing, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from bnbook import doctor
from bnbook.doctor import __main__ as command


@pytest.fixture(scope="module")
def residual():
    torch.set_num_threads(1)
    return zoo.trained("residual", steps=60)


def statistics(model):
    return {n: (m.running_mean.clone(), m.running_var.clone()) for n, m in faults.norms(model).items()}


def moved(before, model):
    after = statistics(model)
    return [n for n in before if not all(torch.equal(a, b) for a, b in zip(before[n], after[n], strict=True))]


# -------------------------------------------------------------------------------------- freeze


@pytest.mark.parametrize("norms", [zoo.TORCH, zoo.OURS], ids=["torch", "ours"])
def test_what_is_frozen_stays_frozen_after_train_copies_and_saving(norms):
    model = doctor.freeze(zoo.ResNet(*norms))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for version in (model, copy.deepcopy(model), torch.load(stream, weights_only=False)):
        before = statistics(version)
        version.train()
        version(torch.randn(4, 1, 16, 16))
        assert moved(before, version) == []
        assert version.layer1.training
        assert not any(p.requires_grad for norm in faults.norms(version).values() for p in norm.parameters())
        assert doctor.examine(version).of("frozen-by-gradient-only") == []


def test_a_copy_of_a_frozen_model_freezes_itself_and_not_the_original():
    model = doctor.freeze(nn.Sequential(nn.BatchNorm1d(3)))
    twin = copy.deepcopy(model)
    model[0].training = True
    twin.train()
    assert model[0].training
    assert not twin[0].training


def test_freeze_may_leave_scale_and_shift_to_train():
    model = doctor.freeze(nn.Sequential(nn.BatchNorm1d(3)), affine=False)
    assert model[0].weight.requires_grad


def test_freeze_refuses_a_norm_without_statistics():
    with pytest.raises(ValueError, match="keeps no running statistics"):
        doctor.freeze(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))


# ----------------------------------------------------------------------------------- recompute


def test_recompute_is_algorithm_2():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    batches = [torch.randn(n, 3) * 2 + 1 for n in (32, 32, 8)]
    doctor.recompute(nn.Sequential(norm), batches)
    weight = torch.tensor([32.0, 32, 8]) / 72
    torch.testing.assert_close(
        norm.running_mean, sum(w * b.mean(0) for w, b in zip(weight, batches, strict=True))
    )
    torch.testing.assert_close(
        norm.running_var, sum(w * b.var(0) for w, b in zip(weight, batches, strict=True))
    )
    assert norm.momentum == 0.1


def test_recompute_equals_update_bn_where_that_is_right(residual):
    """Equal batches and no dropout: then torch's tool does the same."""
    batches = [x for x, _ in zoo.batches(count=4)]
    ours, theirs = copy.deepcopy(residual), copy.deepcopy(residual)
    assert len(doctor.recompute(ours, batches)) == 8
    update_bn(batches, theirs)
    for name, (mean, var) in statistics(ours).items():
        torch.testing.assert_close(mean, statistics(theirs)[name][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(var, statistics(theirs)[name][1], atol=1e-4, rtol=1e-4)


def test_recompute_mends_what_examine_found(residual):
    injected = faults.larger_weights(copy.deepcopy(residual))
    batches = injected.options["batches"]
    assert doctor.examine(injected.model, batches).of("stale-statistics")
    doctor.recompute(injected.model, batches)
    assert doctor.examine(injected.model, batches).of("stale-statistics") == []
    assert zoo.accuracy(injected.model) > 0.9 * zoo.accuracy(residual)


def test_recompute_leaves_dropout_off_and_all_else_alone():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    x = torch.randn(64, 3)
    state = torch.get_rng_state()
    doctor.recompute(model, [x])
    torch.testing.assert_close(model[1].running_var, x.var(0))
    assert model.training
    assert model[0].training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "batches", "said"),
    [
        (nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(8, 3)], "at least 32"),
        (nn.Sequential(nn.Linear(3, 3)), [torch.randn(40, 3)], "no batch norm"),
        (doctor.freeze(nn.Sequential(nn.BatchNorm1d(3))), [torch.randn(40, 3)], "no batch norm"),
        (nn.Sequential(nn.BatchNorm1d(3)), torch.randn(70, 3).split(32), "a tuple of 3 tensors alike"),
    ],
)
def test_recompute_refuses_what_it_cannot_do(model, batches, said):
    with pytest.raises(ValueError, match=said):
        doctor.recompute(model, batches)


def test_recompute_writes_nothing_that_is_not_finite_and_names_the_cause():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = copy.deepcopy(model.state_dict())
    good, bad = torch.randn(40, 3), torch.randn(40, 3)
    bad[7, 1] = math.nan
    with pytest.raises(ValueError, match="batches: batch 1 holds NaN or infinity"):
        doctor.recompute(model, [good, bad])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    nn.init.constant_(model[0].bias, math.nan)
    with pytest.raises(ValueError, match="because of the weights"):
        doctor.recompute(model, [good])


def test_recompute_names_the_batch_that_a_norm_refuses():
    model = nn.Sequential(nn.BatchNorm1d(3))
    before = statistics(model)
    with pytest.raises(
        RuntimeError, match="batch 2: the forward pass failed in 0: ValueError: Expected more than 1"
    ):
        doctor.recompute(model, [torch.randn(32, 3), torch.randn(32, 3), torch.randn(1, 3)])
    assert moved(before, model) == []


# ---------------------------------------------------------------------------------------- fold


def randomized(model):
    for norm in faults.norms(model).values():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        with torch.no_grad():
            norm.weight.normal_(1, 0.3)
            norm.bias.normal_()
    return model.eval()


@pytest.mark.parametrize(
    "name", ["mlp", "vgg", "residual", "dense", "inverted residual", "u-net", "1-d convolution", "generator"]
)
@pytest.mark.parametrize("norms", [zoo.TORCH, zoo.OURS], ids=["torch", "ours"])
def test_a_folded_network_returns_the_same(name, norms):
    model = randomized(zoo.ZOO[name](*norms))
    folded = doctor.fold(model, (2, 1, 16, 16))
    x = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(zoo.output(folded.model, x), zoo.output(model, x), atol=1e-4, rtol=1e-3)
    assert len(folded.folded) + len(folded.kept) == len(faults.norms(model))
    assert len(faults.norms(folded.model)) == len(folded.kept)
    if name != "dense":  # whose norms stand before the convolutions
        assert folded.kept == {}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_folds_into_grouped_and_transposed_convolutions(groups, bias):
    for layer in (
        nn.ConvTranspose2d(8, 12, 3, 2, 1, groups=groups, bias=bias),
        nn.Conv2d(8, 12, 3, groups=groups, bias=bias),
        nn.ConvTranspose2d(8, 8, 2, groups=groups, bias=bias),
    ):
        model = randomized(nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))
        folded = doctor.fold(model, (2, 8, 5, 5))
        assert folded.folded == ["1"]
        x = torch.randn(2, 8, 5, 5)
        torch.testing.assert_close(folded.model(x), model(x), atol=1e-5, rtol=1e-4)


class SharedConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y).mean((2, 3)) + y.mean((2, 3))


def test_fold_says_what_it_did_not_fold():
    crepe = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    assert "no linear layer directly before" in str(doctor.fold(crepe, (2, 1, 8, 8)))
    assert "something else reads" in doctor.fold(SharedConvolution(), (2, 1, 8, 8)).kept["bn"]
    assert "more than normalize" in doctor.fold(zoo.Timm(*zoo.TORCH), (2, 1, 16, 16)).kept["bn1"]
    first = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3))
    assert "the input" in doctor.fold(first, (2, 1, 8, 8)).kept["0"]


# ------------------------------------------------------------------------------------- replace


def test_replace_keeps_eight_channels_a_group_and_the_affine_part():
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.Conv2d(48, 12, 3), nn.BatchNorm2d(12))
    with torch.no_grad():
        model[1].weight.normal_()
    weight = model[1].weight
    doctor.replace(model, groups=32)
    assert (model[1].num_groups, model[3].num_groups) == (6, 1)
    assert model[1].weight is weight
    model(torch.randn(1, 3, 8, 8))


def test_replace_refuses_a_group_of_one_value_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 6), nn.BatchNorm2d(1))
    with pytest.raises(ValueError, match="3 would have one value"):
        doctor.replace(model, example=(4, 1, 8, 8))
    assert isinstance(model[1], nn.BatchNorm2d)
    with pytest.raises(ValueError, match="does more than normalize"):
        doctor.replace(zoo.Timm(*zoo.TORCH))
    with pytest.raises(ValueError, match="no batch norm"):
        doctor.replace(nn.Linear(2, 2))


def test_replace_by_what_opacus_accepts_leaves_no_dependence(residual):
    model = doctor.replace(copy.deepcopy(residual)).train()
    report = doctor.examine(model, zoo.batches(count=3), expect={"per_example": True})
    assert report.of("neighbour-dependence") == []


# ------------------------------------------------------------------------------- watch, compare


def test_a_healthy_loop_has_no_findings_and_keeps_no_hooks(residual):
    model = copy.deepcopy(residual).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with doctor.watch(model, optimizer) as w:
        for _ in range(2):
            faults.steps(model, optimizer, 3)
            model.eval()
            model(torch.randn(4, 1, 16, 16))
            model.train()
    assert w.findings == []
    assert w.steps == 6
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not optimizer._optimizer_step_post_hooks


def test_a_watch_that_saw_no_step_says_how_to_use_it(residual):
    model = copy.deepcopy(residual).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = doctor.watch(model, optimizer)
    faults.steps(model, optimizer, 1)
    assert "no step of the optimizer was seen; train inside `with doctor.watch" in str(watched)
    with watched:
        faults.steps(model, optimizer, 1)
    assert "no step" not in str(watched)


def test_the_momentum_that_is_advised_mends_accumulation():
    """Four updates with the advised momentum weigh the past like one with the old."""
    model = zoo.Mlp(*zoo.TORCH)
    watched, _ = faults.accumulating(model, doctor.watch)
    advised = float(watched.findings[0].remedy.split("=")[1].split(";")[0])
    assert (1 - advised) ** 4 == pytest.approx(1 - 0.1, abs=1e-4)


def test_checkpointing_shows_as_two_updates_a_step():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with doctor.watch(model, optimizer) as w:
        torch.utils.checkpoint.checkpoint(model, torch.randn(8, 4), use_reentrant=False).sum().backward()
        optimizer.step()
    assert w.findings[0].evidence["updates per step"] == 2


def test_watch_takes_declared_intent():
    model = zoo.Mlp(*zoo.TORCH).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with doctor.watch(model, optimizer, expect={"forwards": 2}) as w:
        faults.steps(model, optimizer, passes=2)
    assert w.findings == []
    with pytest.raises(ValueError, match="got forward, allowed"):
        doctor.watch(model, optimizer, expect={"forward": 2})
    with pytest.raises(ValueError, match="every"):
        doctor.watch(model, optimizer, every=0)


def test_a_detector_that_keeps_its_norms_in_evaluation_is_a_note(residual):
    model = copy.deepcopy(residual).train()
    for norm in faults.norms(model).values():
        norm.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with doctor.watch(model, optimizer) as w:
        faults.steps(model, optimizer, 2)
    assert [f.severity for f in w.findings] == ["note"]


def test_infinity_in_the_statistics_is_seen_with_its_step():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with doctor.watch(model, optimizer, every=1) as w:
        for step in range(4):
            x = torch.randn(8, 4)
            x[0, 0] = math.inf if step == 2 else 0
            model(x)
            optimizer.step()
    finding = next(f for f in w.findings if f.kind == "nonfinite-statistics")
    assert finding.evidence["seen at step"] == 2
    assert "2" in str(w.report().table())


def test_a_copy_agrees_with_itself(residual):
    report = doctor.compare(residual, copy.deepcopy(residual), zoo.batches(count=2))
    assert report.findings == []
    assert "up to 0 standard" in str(report)


def test_a_copied_buffer_is_no_fault(residual):
    """Averaged parameters with the live network's buffers: the usual remedy."""
    b = copy.deepcopy(residual)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter *= 1 + 0.001 * torch.randn_like(parameter)
    assert doctor.compare(residual, b, zoo.batches(count=4)).of("left-behind-buffers") == []


def test_averaged_weights_are_no_fault_and_their_buffers_are(residual):
    """Weights differ everywhere on purpose: one error, with every norm, and none after the cure."""
    a, b, norms = faults.parameters_only(copy.deepcopy(residual))
    report = doctor.compare(a, b, zoo.batches(count=4))
    assert [f.kind for f in report.findings if f.severity == "error"] == ["left-behind-buffers"]
    assert set(report.findings[0].modules) == norms
    doctor.recompute(b, zoo.batches(count=10))
    report = doctor.compare(a, b, zoo.batches(count=4))
    assert [(f.kind, f.severity) for f in report.findings] == [("first-difference", "note")]


def test_statistics_that_moved_alone_are_one_finding_with_its_own_remedy(residual):
    """A part that was frozen by its gradient alone: weights agree, so nothing has to be converted."""
    b = copy.deepcopy(residual).train()
    with torch.no_grad():
        for x, _ in zoo.batches():
            b(1 - x)
    (found,) = doctor.compare(residual, b.eval(), zoo.batches(count=4)).findings
    assert found.kind == "left-behind-buffers"
    assert "freeze" in found.remedy
    assert "averaged" not in found.says


def test_a_norm_frozen_by_its_gradient_alone_is_seen_in_the_loop(residual):
    model = copy.deepcopy(residual).train()
    model.layer1.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001)
    with doctor.watch(model, optimizer) as w:
        faults.steps(model, optimizer, 3, passes=2)
    found = {f.kind: set(f.modules) for f in w.findings}
    assert found["frozen-by-gradient-only"] == {"layer1.0.bn1", "layer1.0.bn2"}
    assert found["updates-per-step"].isdisjoint(found["frozen-by-gradient-only"])
    doctor.freeze(model.layer1)
    with doctor.watch(model, optimizer) as w:
        faults.steps(model, optimizer, 3)
    assert w.findings == []


def test_torchs_averaged_model_is_matched_by_its_own_names(residual):
    average = AveragedModel(copy.deepcopy(residual))
    for norm in faults.norms(average).values():
        norm.reset_running_stats()
    found = doctor.compare(residual, average, zoo.batches(count=4)).of("left-behind-buffers")
    assert len(found[0].modules) == 8


def test_a_folded_network_agrees_with_the_original(residual):
    folded = doctor.fold(residual, (2, 1, 16, 16)).model
    assert doctor.compare(residual, folded, zoo.batches(count=2)).findings == []


def test_a_norm_that_thawed_is_one_finding(residual):
    watched, modules = faults.thawed(copy.deepcopy(residual), doctor.watch)
    assert [(f.kind, {f.module}) for f in watched.findings] == [("mode-flip", modules)]


# --------------------------------------------------------------------------------------- files


def nan_model():
    model = zoo.ResNet(*zoo.TORCH).eval()
    model.bn1.running_var[0] = math.nan
    return model


@pytest.mark.parametrize(
    "wrapped", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"x": torch.ones(2)}}]
)
def test_a_state_dict_is_read_without_the_models_code(tmp_path, wrapped, capsys):
    torch.save(wrapped(nan_model().state_dict()), tmp_path / "net.pt")
    assert command.main([str(tmp_path / "net.pt"), "--table"]) == 1
    out = capsys.readouterr().out
    assert "nonfinite-statistics" in out
    assert "bn1" in out
    assert "8 batch norms" in out
    torch.save(zoo.ResNet(*zoo.TORCH).state_dict(), tmp_path / "fresh.pt")
    assert command.main([str(tmp_path / "fresh.pt")]) == 0


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save(zoo.Mlp(*zoo.TORCH), tmp_path / "whole.pt")
    for name in ("bomb.pt", "plain.pt", "whole.pt"):
        assert command.main([str(tmp_path / name)]) == 2
        assert "nothing in it was executed" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


def test_a_scripted_archive_is_refused(tmp_path, capsys):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "scripted.pt")
    assert command.main([str(tmp_path / "scripted.pt")]) == 2
    assert "nothing in it was executed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["text.pt", "text.onnx", "missing.pt", "readme.md", "empty.pt"])
def test_a_file_that_is_no_model_is_refused_in_words(tmp_path, name, capsys):
    if name != "missing.pt":
        (tmp_path / name).write_text("" if name == "empty.pt" else "I am no model")
    assert command.main([str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.startswith("file: ")


def write_safetensors(path, state):
    """The format by hand: eight bytes of length, a JSON header, the numbers."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in state.items():
        numbers = tensor.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        offsets = [len(body), len(body) + len(numbers)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        body += numbers
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("name", ["residual", "mlp", "1-d convolution"])
def test_safetensors_are_read_as_they_were_written(tmp_path, name, capsys):
    model = zoo.ZOO[name](*zoo.TORCH)
    write_safetensors(tmp_path / "net.safetensors", model.state_dict())
    assert command.main([str(tmp_path / "net.safetensors")]) == 0
    assert f"{len(faults.norms(model))} batch norms" in capsys.readouterr().out
    module, norm = next(iter(faults.norms(model).items()))
    norm.running_var[0] = math.nan
    write_safetensors(tmp_path / "net.safetensors", model.state_dict())
    assert command.main([str(tmp_path / "net.safetensors"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["id"] == f"nonfinite-statistics:{module}"


def test_safetensors_of_the_library_are_read(tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    model = nan_model().bfloat16()
    torch_files.save_file(model.state_dict(), tmp_path / "net.safetensors")
    assert doctor.examine_file(tmp_path / "net.safetensors").findings[0].module == "bn1"


def test_odd_files_are_refused_in_words(tmp_path, capsys):
    model = zoo.ResNet(*zoo.TORCH)
    write_safetensors(tmp_path / "whole.safetensors", model.state_dict())
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    tensors, pickled = (tmp_path / "whole.safetensors").read_bytes(), (tmp_path / "whole.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "no model")
    odd = {
        "cut.safetensors": tensors[: len(tensors) // 2],
        "header.safetensors": tensors[:100],
        "empty.safetensors": b"",
        "text.safetensors": b"I am no model, and longer than eight bytes",
        "list.safetensors": (2).to_bytes(8, "little") + b"[]",
        "pickle.safetensors": pickled,
        "cut.pt": pickled[: len(pickled) // 2],
        "tensors.pt": tensors,
        "pickle.onnx": pickled,
        "empty.onnx": b"",
        "zip.onnx": (tmp_path / "zip.pt").read_bytes(),
    }
    for name, content in odd.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.pt").mkdir()
    for name in (*odd, "zip.pt", "folder.pt"):
        assert command.main([str(tmp_path / name)]) == 2, name
        assert capsys.readouterr().err.startswith("file: "), name


@pytest.mark.parametrize("name", ["residual", "inverted residual", "generator"])
def test_an_exported_network_shows_the_mode_in_which_it_was_exported(tmp_path, name):
    pytest.importorskip("onnx")
    model, x = zoo.ZOO[name](*zoo.TORCH), torch.randn(2, 1, 16, 16)
    kinds = {}
    for mode in (torch.onnx.TrainingMode.EVAL, torch.onnx.TrainingMode.TRAINING):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter that writes training mode is the old one
            torch.onnx.export(
                model.eval(),
                (x,),
                tmp_path / "net.onnx",
                dynamo=False,
                training=mode,
                do_constant_folding=mode == torch.onnx.TrainingMode.EVAL,
            )
        kinds[mode.name] = {f.kind for f in doctor.examine_file(tmp_path / "net.onnx").findings}
    assert kinds["TRAINING"] == {"exported-in-training"}
    assert kinds["EVAL"] <= {"not-folded"}  # the exporter leaves norms behind a transposed convolution


def onnx_file(path, model, training):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    norm = model.bn1
    fields = {"scale": norm.weight, "B": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
    numbers = [numpy_helper.from_array(t.detach().numpy(), name) for name, t in fields.items()]
    constant = helper.make_node("Constant", [], ["var"], value=numbers.pop())
    outputs = ["y", "m", "v"] if training else ["y"]
    node = helper.make_node("BatchNormalization", ["x", *fields], outputs, name="bn1", training_mode=training)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8, 4, 4])
    onnx.save(helper.make_model(helper.make_graph([constant, node], "g", [x], [y], numbers)), path)


def test_an_onnx_model_shows_its_norms_and_its_mode(tmp_path):
    pytest.importorskip("onnx")
    onnx_file(tmp_path / "net.onnx", zoo.ResNet(*zoo.TORCH), 0)
    healthy = doctor.examine_file(tmp_path / "net.onnx")
    assert [(f.kind, f.severity) for f in healthy.findings] == [("not-folded", "note")]
    onnx_file(tmp_path / "net.onnx", nan_model(), 1)
    assert {f.kind for f in doctor.examine_file(tmp_path / "net.onnx").findings} == {
        "nonfinite-statistics",
        "exported-in-training",
    }


def test_onnx_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="pip install onnx"):
        doctor.examine_file(tmp_path / "net.onnx")


# ----------------------------------------------------------------------------------- processes


def _rank(rank, port, apart, results):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    model[1].running_mean += apart * rank
    report = doctor.examine(model, expect={"ranks": "equal"})
    results.put((rank, [f.module for f in report.of("ranks-differ")]))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("apart", "found"), [(0.5, ["1"]), (0.03, [])])
def test_ranks_with_different_statistics_are_told(apart, found):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, port, apart, results)) for rank in range(2)]
    for process in processes:
        process.start()
    said = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert said == {0: found, 1: found}


def test_ranks_without_processes_are_not_examined():
    report = doctor.examine(nn.Sequential(nn.BatchNorm1d(3)), expect={"ranks": "equal"})
    assert ("ranks", "no process group is initialized") in report.not_examined
