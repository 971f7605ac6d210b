"""The layers among PyTorch's tools: converters, checkpoints, half precision, compilers, derivatives."""

import copy
import io
import math

import onnx
import onnxruntime
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from helpers import normal as normal64
from helpers import randomize
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from bnbook import layers

f32, f64 = torch.float32, torch.float64
BATCH = {
    "batch": lambda **kw: layers.BatchNorm(4, **kw),
    "ghost": lambda **kw: layers.GhostBatchNorm(4, 3, **kw),
    "renorm": lambda **kw: layers.BatchRenorm(4, 1.2, 0.3, **kw),
    "noisy": lambda **kw: layers.NoisyBatchNorm(4, **kw),
    "lp": lambda **kw: layers.LpBatchNorm(4, 1, **kw),
}
SINGLE = {
    "group": lambda **kw: layers.GroupNorm(2, 4, **kw),
    "instance": lambda **kw: layers.InstanceNorm(4, affine=True, **kw),
    "layer": lambda **kw: layers.LayerNorm((4, 5), **kw),
    "rms": lambda **kw: layers.RMSNorm((4, 5), **kw),
    "dyt": lambda **kw: layers.DyT(4, channels_last=False, **kw),
}
ALL = BATCH | SINGLE
STILL = {name: make for name, make in ALL.items() if name != "noisy"}  # twice the same output
THEIRS = {
    "batch": nn.BatchNorm1d(4),
    "group": nn.GroupNorm(2, 4),
    "instance": nn.InstanceNorm1d(4, affine=True),
    "layer": nn.LayerNorm((4, 5)),
    "rms": nn.RMSNorm((4, 5)),
}


def normal(*shape, dtype=f32, seed=0):
    return normal64(*shape, dtype=dtype, seed=seed)


def each(makers):
    return pytest.mark.parametrize("name", makers)


def trained(name, **settings):
    """A layer with parameters and statistics that are not those of the start."""
    layer = randomize(ALL[name](**settings))
    layer(1 + 2 * normal(6, 4, 5, dtype=layer.weight.dtype, seed=9))
    return layer


# --------------------------------------------------------------------------- subclasses of PyTorch's layers


@each(BATCH)
def test_a_batch_norm_is_found_by_those_who_look_for_pytorchs(name):
    assert isinstance(ALL[name](), _BatchNorm)


@each(THEIRS)
def test_a_layer_is_one_of_pytorchs_with_its_signature(name):
    ours, theirs = ALL[name](), THEIRS[name]
    bases = (_BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    assert [isinstance(ours, base) for base in bases] == [isinstance(theirs, base) for base in bases]


@each(BATCH)
def test_update_bn_averages_the_statistics_of_all_batches(name):
    model = nn.Sequential(nn.Linear(4, 4), ALL[name]())
    model[1].load_state_dict(trained(name).state_dict())
    batches = [3 + normal(6, 4, seed=seed) for seed in range(4)]
    update_bn(batches, model)
    means = torch.stack([model[0](x).mean(0) for x in batches])
    assert model[1].num_batches_tracked == 4
    torch.testing.assert_close(model[1].running_mean, means.mean(0))


@each(ALL)
def test_device_and_dtype_are_those_that_are_asked_for(name):
    layer = ALL[name](device="meta", dtype=f64)
    tensors = [t for t in layer.state_dict().values() if t.is_floating_point()]
    assert tensors
    assert {(t.device.type, t.dtype) for t in tensors} == {("meta", f64)}
    layer(torch.empty(6, 4, 5, device="meta", dtype=f64))


@each(ALL)
def test_reset_parameters_gives_the_layer_of_the_start(name):
    layer = trained(name)
    layer.reset_parameters()
    for key, value in ALL[name]().state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


def test_reset_running_stats_leaves_the_parameters():
    layer = trained("batch")
    weight = layer.weight.clone()
    layer.reset_running_stats()
    assert torch.equal(layer.running_mean, torch.zeros(4))
    assert torch.equal(layer.running_var, torch.ones(4))
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.weight, weight)


def test_a_checkpoint_from_before_batches_were_counted_loads():
    old = {key: value for key, value in trained("batch").state_dict().items() if "batches" not in key}
    layer = layers.BatchNorm(4)
    layer.load_state_dict(old)  # strict
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_mean, old["running_mean"])


@each(BATCH)
def test_pytorchs_converter_makes_every_relative_a_plain_synchronized_norm(name):
    """It cannot be told of relatives; the docstring warns, and `distributed.convert` leaves them alone."""
    old = trained(name)
    new = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(old))[0]
    assert type(new) is nn.SyncBatchNorm
    assert new.weight is old.weight
    assert new.running_var is old.running_var
    assert "convert_sync_batchnorm" in layers.BatchNorm.__doc__


def test_frozen_batch_norms_stay_as_they_are():
    model = nn.Sequential(nn.Linear(4, 4), layers.BatchNorm(4), layers.GhostBatchNorm(4, 3)).train()
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    model(normal(6, 4)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["0.weight", "0.bias"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_third_argument_of_an_instance_norm_is_momentum_as_in_pytorch():
    assert layers.InstanceNorm(4, 1e-3, 0.3).weight is None
    assert layers.InstanceNorm(4, 1e-3, 0.3, True).weight is not None


# --------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each(STILL)
def test_half_precision_is_computed_in_float32_and_comes_out_as_it_came(name, dtype):
    layer, x = trained(name), (100 + 3 * normal(6, 4, 5)).to(dtype).requires_grad_()
    twin, wide = copy.deepcopy(layer), x.detach().float().requires_grad_()
    for mode in (True, False):
        y, expected = layer.train(mode)(x), twin.train(mode)(wide)
        assert y.dtype == dtype
        assert torch.equal(y, expected.to(dtype))
        dy = normal(6, 4, 5, seed=1).to(dtype)
        (dx,), (wide_dx,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, wide, dy.float())
        assert dx.dtype == dtype
        assert torch.equal(dx, wide_dx.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), twin.buffers(), strict=True))
    assert {b.dtype for b in layer.buffers() if b.is_floating_point()} <= {f32}


@each(STILL)
def test_a_layer_that_was_moved_to_half_precision_trains(name):
    layer, x = trained(name).to(torch.bfloat16), normal(6, 4, 5).bfloat16()
    y = layer(x)
    y.sum().backward()
    assert {y.dtype, *(p.grad.dtype for p in layer.parameters())} == {torch.bfloat16}
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    layer.eval()(x)


@each(ALL)
def test_autocast_works_and_the_statistics_stay_in_float32(name):
    model, x = nn.Sequential(nn.Conv1d(4, 4, 1), ALL[name]()), normal(6, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == f32 and p.grad.isfinite().all() for p in model.parameters())
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} <= {f32}


def test_weight_standardization_of_half_precision_is_computed_in_float32():
    weight = 100 + normal(3, 50)
    expected = layers.standardized(weight.bfloat16().float()).bfloat16()
    assert torch.equal(layers.standardized(weight.bfloat16()), expected)
    assert layers.WSLinear(5, 4, dtype=torch.bfloat16)(normal(2, 5).bfloat16()).dtype == torch.bfloat16


# --------------------------------------------------------------------------- compilers and exporters


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@each(STILL)
def test_a_compiled_layer_has_no_graph_break_and_does_the_same(name, backend):
    torch._dynamo.reset()
    layer = trained(name)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for mode in (True, False):
        results = []
        for run, owner in ((compiled, layer), (twin, twin)):
            owner.train(mode)
            x = normal(6, 4, 5, seed=3).requires_grad_()
            y = run(x)
            results.append((y, *torch.autograd.grad(y, [x, *owner.parameters()], y.detach() ** 2)))
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)
    for actual, expected in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@each(STILL)
def test_an_exported_layer_does_the_same(name, training):
    layer, x = trained(name).train(training), normal(6, 4, 5, seed=3)
    expected = copy.deepcopy(layer)(x)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)


@pytest.mark.filterwarnings("ignore")
@each(BATCH)
def test_in_evaluation_onnx_sees_a_batch_norm_that_it_can_fold(name, tmp_path):
    model, x = nn.Sequential(nn.Conv1d(3, 4, 1), trained(name)).eval(), normal(2, 3, 5)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    nodes = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert nodes <= {"Conv", "BatchNormalization"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)


def test_evaluation_of_float32_with_mean_1e6_keeps_its_digits_where_pytorch_loses_them():
    """So F.batch_norm, which exporters know, serves for them alone."""
    x = (1e6 + normal(512, 4, dtype=f64)).float()
    layer = layers.BatchNorm(4, momentum=1.0)
    layer(x)
    layer.eval()
    exact = copy.deepcopy(layer).double()(x.double())
    theirs = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    assert (layer(x) - exact).abs().max() < 1e-6
    assert (theirs - exact).abs().max() > 1e-2


# --------------------------------------------------------------------------- forward derivatives


def by_definition(name):
    """The same function of PyTorch's operations alone."""

    def norm(x, axes):
        d = x - x.mean(axes, keepdim=True)
        return d / (d.square().mean(axes, keepdim=True) + 1e-5).sqrt()

    return {
        "batch": lambda x: norm(x, (0, 2)),
        "group": lambda x: norm(x.reshape(6, 2, 10), (2,)).view(x.shape),
        "instance": lambda x: norm(x, (2,)),
        "layer": lambda x: norm(x, (1, 2)),
    }[name]


@each(["batch", "group", "instance", "layer"])
def test_derivatives_forward_backward_and_of_each_other_are_those_of_the_definition(name):
    """A quarter of the second derivatives, or 0, is what a forgotten dependence of the statistics gives."""
    layer, reference = ALL[name](dtype=f64), by_definition(name)
    x, dx, weight = normal(6, 4, 5, dtype=f64), normal(6, 4, 5, dtype=f64, seed=1), normal(6, 4, 5, seed=2)
    torch.testing.assert_close(jvp(layer, (x,), (dx,)), jvp(reference, (x,), (dx,)))

    def along(function):
        return lambda x: jvp(function, (x,), (dx,))[1]

    ours, theirs = (lambda x, f=f: (f(x) ** 3 * weight).sum() for f in (layer, reference))
    expected = along(along(theirs))(x)
    assert expected.abs() > 0.1
    torch.testing.assert_close(along(along(ours))(x), expected)
    torch.testing.assert_close((grad(along(ours))(x) * dx).sum(), expected)  # backward over forward
    torch.testing.assert_close((along(grad(ours))(x) * dx).sum(), expected)  # forward over backward
    torch.testing.assert_close((grad(lambda x: (grad(ours)(x) * dx).sum())(x) * dx).sum(), expected)
    torch.testing.assert_close(along(along(along(ours)))(x), along(along(along(theirs)))(x))
    with forward_ad.dual_level():  # without torch.func, and without a graph of the gradient
        dual = forward_ad.make_dual(x.clone().requires_grad_(), dx)
        (gradient,) = torch.autograd.grad(ours(dual), dual)
        torch.testing.assert_close((forward_ad.unpack_dual(gradient).tangent * dx).sum(), expected)


def test_jacobians_forward_and_backward_agree():
    layer, x = layers.BatchNorm(4, dtype=f64), normal(3, 4, dtype=f64)
    torch.testing.assert_close(jacfwd(layer)(x), jacrev(layer)(x))


@pytest.mark.parametrize("momentum", [0.1, None])
@each(BATCH)
def test_running_statistics_move_under_a_transform_as_without_one(name, momentum):
    """PyTorch's own layer refuses: torch.func forbids it to change what the function was not given."""
    x = 3 + normal(6, 4, 5)
    twin = ALL[name](momentum=momentum)
    twin(x)
    for transformed in (
        lambda layer: jvp(layer, (x,), (x,)),
        lambda layer: grad(lambda x: layer(x).sum())(x),
        lambda layer: grad(lambda x: jvp(layer, (x,), (x,))[1].sum())(x),
    ):
        layer = ALL[name](momentum=momentum)
        transformed(layer)
        for actual, expected in zip(layer.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(actual, expected)


def test_a_stack_has_forward_derivatives():
    layer = layers.BatchNorm(4, dtype=f64)
    x, dx = normal(3, 6, 4, dtype=f64), normal(3, 6, 4, dtype=f64, seed=1)
    state = {key: torch.stack([value] * 3) for key, value in layer.state_dict().items()}

    def along(state, x, dx):
        return jvp(lambda x: functional_call(layer, {**state}, (x,)), (x,), (dx,))[1]

    actual = vmap(along)(state, x, dx)
    for i in range(3):
        torch.testing.assert_close(actual[i], jvp(layers.BatchNorm(4, dtype=f64), (x[i],), (dx[i],))[1])


# --------------------------------------------------------------------------- nothing is silent


@each(["batch", "ghost", "renorm", "lp", "group", "instance", "layer", "rms"])
def test_eps_0_is_refused_where_a_variance_is_0_and_nowhere_else(name):
    kind = {"eps": 0.0} | ({"momentum": 1.0} if name in BATCH else {})
    layer, constant = ALL[name](**kind), torch.zeros(6, 4, 5)
    layer(normal(6, 4, 5))
    with pytest.raises(ValueError, match=r"^eps: got 0 where \d+ of \d+ variances are 0 too"):
        layer(constant)


def test_eps_0_is_refused_in_evaluation_too_and_for_constant_filters():
    layer = layers.BatchNorm(2, eps=0).eval()
    layer.running_var.zero_()
    with pytest.raises(ValueError, match="eps: got 0 where 2 of 2"):
        layer(torch.ones(3, 2))
    with pytest.raises(ValueError, match="eps: got 0 where 4 of 4"):
        layers.standardized(torch.ones(4, 3), eps=0)


@each(BATCH)
def test_poison_of_half_precision_raises_before_it_reaches_the_statistics(name):
    layer, x = ALL[name](), normal(6, 4).half()
    x[0, 0] = math.inf
    with pytest.raises(ValueError, match="NaN, infinity"):
        layer(x)
    assert torch.equal(layer.running_mean, torch.zeros(4))


def test_a_saved_model_loads_and_runs():
    buffer = io.BytesIO()
    model = nn.Sequential(*(trained(name) for name in STILL))
    torch.save(model, buffer)
    buffer.seek(0)
    x = normal(6, 4, 5)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), model(x))
