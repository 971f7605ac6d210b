"""The networks of the chapter on what replaces batch norm."""

import pytest
import torch

from bnbook import layers
from bnbook.experiments import beyond


def test_a_transformer_without_its_mean_has_rms_norms_and_the_same_outputs():
    torch.manual_seed(0)
    model = beyond.transformer((64,), 10, norm="layer").double()
    for norm in (part for part in model.modules() if isinstance(part, layers.LayerNorm)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = torch.rand(5, 64).double()
    other = beyond.without_mean(model)
    kinds = {type(part) for part in other.modules()}
    assert layers.RMSNorm in kinds
    assert layers.LayerNorm not in kinds
    torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("kind", ["none", "batch", "layer", "rms", "dyt", "fixup", "nf"])
def test_a_block_without_its_branch_is_the_identity(kind):
    block = beyond.block(kind, 3, 8, 4)
    last = [part for part in block.modules() if isinstance(part, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    x = torch.randn(6, 4)
    torch.testing.assert_close(block(x), x)


def test_standardized_pixels_have_mean_zero_and_a_width_of_one_at_most():
    start = beyond.residual((128,), 2, kind="none", images="standardized")[0]
    x = start(torch.from_numpy(beyond.pairs().x_train))
    torch.testing.assert_close(x.mean(0), torch.zeros(128), atol=1e-4, rtol=0)
    assert x.square().mean().sqrt().item() < 1.0 + 1e-4


def test_one_digit_of_a_pair_says_nothing_about_the_answer():
    pairs, half = beyond.pairs(), 64
    # The mean image of either side, by answer: apart by less than four standard errors of a pixel.
    for side in (slice(0, half), slice(half, None)):
        x = torch.from_numpy(pairs.x_train[:, side])
        yes, no = x[pairs.y_train == 1], x[pairs.y_train == 0]
        error = x.std(0) * (1 / len(yes) + 1 / len(no)) ** 0.5
        assert ((yes.mean(0) - no.mean(0)).abs() <= 4 * error + 1e-6).all()


@pytest.mark.parametrize(("name", "settings"), [("images", {"images": "blue"}), ("kind", {"kind": "blue"})])
def test_names_that_do_not_exist_are_refused(name, settings):
    with pytest.raises(ValueError, match=f"{name}: got 'blue'"):
        beyond.residual((128,), 2, **{"kind": "batch", **settings})
