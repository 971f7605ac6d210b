import math

import pytest
import torch
from torch import nn

from bnbook import layers, models

IMAGE = (1, 28, 28)
BUILDERS = {
    "mlp": (models.mlp, (64,)),
    "mlp on images": (models.mlp, IMAGE),
    "deep_linear": (models.deep_linear, (10,)),
    "lenet": (models.lenet, IMAGE),
    "vgg": (models.vgg, IMAGE),
}
# A dense unit has one position, so instance norm is not for it; ghosts need a size, and lp its p.
DENSE_NORMS = [
    *(norm for norm in models.NORMS if norm not in ("instance", "ghost", "lp", "rms")),
    ("ghost", 5),
]
DENSE_NORMS += [("lp", p) for p in (1, 2, math.inf)]


def kinds(model):
    return [type(module).__name__ for module in model]


@pytest.mark.parametrize("norm", DENSE_NORMS, ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_maps_a_batch_to_one_score_a_class_and_every_parameter_gets_a_gradient(name, norm):
    build, in_shape = BUILDERS[name]
    model = build(in_shape, 7, norm=norm)
    scores = model(torch.rand(5, *in_shape))
    assert scores.shape == (5, 7)
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_mlp_reads_like_its_diagram():
    assert kinds(models.mlp((4,), 2, depth=2)) == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    before = models.mlp((4,), 2, depth=1, norm="batch", activation="sigmoid")
    assert kinds(before) == ["Linear", "BatchNorm", "Sigmoid", "Linear"]
    after = models.mlp((4,), 2, depth=1, norm="batch", activation="sigmoid", placement="after")
    assert kinds(after) == ["Linear", "Sigmoid", "BatchNorm", "Linear"]
    assert kinds(models.deep_linear((4,), 2, depth=3)) == ["Linear"] * 4


def test_only_a_norm_right_behind_a_layer_makes_its_bias_redundant():
    assert models.mlp((4,), 2, norm="batch")[0].bias is None
    assert models.mlp((4,), 2, norm="batch", bias=True)[0].bias is not None
    assert models.mlp((4,), 2, norm="batch", placement="after")[0].bias is not None
    assert models.mlp((4,), 2)[0].bias is not None
    assert models.mlp((4,), 2, norm="batch")[-1].bias is not None


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ("he", math.sqrt(2 / 400)),
        ("glorot", math.sqrt(2 / 1000)),
        (3.0, 3 / math.sqrt(400)),
        (1, 1 / math.sqrt(400)),
        (("std", 0.05), 0.05),
    ],
)
def test_weights_have_the_standard_deviation_that_was_asked_for_and_biases_are_zero(init, std):
    torch.manual_seed(0)
    layer = models.mlp((400,), 2, depth=1, width=600, init=init)[0]
    # 240,000 draws: the estimate's own standard deviation is 0.15 %.
    assert layer.weight.std().item() == pytest.approx(std, rel=0.01)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.01 * std)
    assert not layer.bias.any()


def test_the_fan_in_of_a_convolution_counts_its_kernel():
    torch.manual_seed(0)
    convolution = models.vgg((64, 4, 4), 2, widths=(128,), init="he")[0]
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.01)


def test_the_original_lenet_has_its_known_number_of_parameters():
    assert sum(p.numel() for p in models.lenet(IMAGE, 10).parameters()) == 61_706


def test_layer_norm_of_a_model_normalizes_the_whole_example():
    x = torch.randn(3, 8)
    expected = nn.functional.layer_norm(x, (8,))
    torch.testing.assert_close(models.make_norm("layer", 8)(x), expected, rtol=0, atol=1e-6)


def test_a_norm_takes_its_number_along():
    assert isinstance(models.make_norm("group", 8), layers.GroupNorm)
    assert models.make_norm(("group", 2), 8).num_groups == 2
    assert models.make_norm(("lp", math.inf), 8).p == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.make_norm("bath", 8), "norm: got 'bath', allowed are none, batch, group"),
        (lambda: models.mlp((4,), 2, norm=("grup", 2)), r"norm: got 'grup', allowed are"),
        (lambda: models.make_norm("ghost", 8), "ghost_size: got 0"),
        (lambda: models.make_norm("lp", 8), "p: got None, allowed are 1, 2 and math.inf"),
        (lambda: models.mlp((4,), 2, activation="rel"), "activation: got 'rel', allowed are relu, sigmoid"),
        (lambda: models.mlp((4,), 2, placement="under"), "placement: got 'under', allowed are before, after"),
        (
            lambda: models.mlp((4,), 2, init="xavier"),
            "init: got 'xavier', allowed are 'he', 'glorot', a gain",
        ),
        (lambda: models.mlp((4,), 2, init=-1.0), "init: got -1.0, allowed"),
        (lambda: models.mlp((4,), 2, init=("std", math.inf)), r"init: got \('std', inf\), allowed"),
        (lambda: models.vgg((784,), 2), r"in_shape: got \(784,\), expected \(C, H, W\)"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
