"""The trainer of the chapter on the paper's other changes, against PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnbook.experiments import accelerating as chapter
from bnbook.experiments.accelerating import OLD, STEADY, Networks, draw_batches, train

LABELS = np.repeat(np.arange(10), 8)


@pytest.fixture(scope="module")
def images():
    whole = chapter.images_of("mnist")
    return whole._replace(x_train=whole.x_train[:400], y_train=whole.y_train[:400])


def twin(networks, depth, norm):
    """PyTorch's own network with the weights of the first of `networks`."""
    parts = []
    for k, weight in enumerate(networks.weights):
        out, n = weight.shape[1:]
        last = k == depth
        linear = nn.Linear(n, out, bias=last or not norm)
        linear.weight.data.copy_(weight[0])
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        parts += [linear] if last else [linear, nn.BatchNorm1d(out) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*parts)


@pytest.mark.parametrize("norm", [True, False])
def test_a_network_among_others_trains_as_pytorchs_own_does(images, norm):
    recipe = STEADY._replace(lr=0.3, halvings=2.0, decay=0.02, affine_decay=0.05)
    steps, N, depth = 12, 40, 2
    found = train(
        [OLD, recipe], images, steps=steps, every=steps, N=N, seeds=[3, 4], depth=depth, width=8, norm=norm
    )
    model = twin(Networks([4], 1, depth=depth, width=8, norm=norm), depth, norm)
    weights = [p for p in model.parameters() if p.ndim == 2]
    output_bias = model[-1].bias
    affine = [p for p in model.parameters() if p.ndim == 1 and p is not output_bias]
    groups = [(weights, 0.02), (affine, 0.05), ([output_bias], 0.0)]
    optimizer = torch.optim.SGD(
        [{"params": params, "weight_decay": decay} for params, decay in groups], lr=0.3
    )
    x, y = map(torch.from_numpy, (images.x_train, images.y_train))
    losses = []
    for t, batch in enumerate(draw_batches(images.y_train, 4, steps, N, "shuffled")):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * 0.5 ** (2 * t / steps)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(found.loss[1, 1], losses, rtol=1e-4)
    model.eval()
    right = (model(torch.from_numpy(images.x_test)).argmax(1).numpy() == images.y_test).mean()
    assert found.accuracy[1, 1, -1] == pytest.approx(right, abs=0.003)


def test_recipes_of_one_seed_share_what_distortion_and_dropout_draw(images):
    found = train([OLD, OLD], images, steps=3, every=3, seeds=[0, 1], depth=2, width=8)
    np.testing.assert_array_equal(found.loss[0], found.loss[1])
    assert (found.loss[:, 0] != found.loss[:, 1]).all()


def test_dropout_keeps_its_share_of_a_layers_outputs_and_their_mean(images):
    seen = {}
    original = Networks.__call__

    def spy(self, x, **options):
        if options.get("training"):
            seen.update(options)
        return original(self, x, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Networks, "__call__", spy)
        recipe = STEADY._replace(dropout=(0.0, 0.25))
        train([recipe], images, steps=1, every=1, seeds=[0], N=400, depth=2, width=50)
    first, second = seen["masks"]
    assert first is None
    assert second.unique().tolist() == pytest.approx([0, 4 / 3])
    assert second.mean().item() == pytest.approx(1, abs=0.02)


def test_statistics_of_neighbours_are_those_of_the_parts_of_the_batch():
    networks = Networks([0, 1], 1, depth=1, width=6, m=5)
    u = torch.randn(2, 6, 15, generator=torch.Generator().manual_seed(2))
    y = networks.normalized(u, 0, training=True)
    for part in range(3):
        own = u[:, :, 5 * part : 5 * part + 5]
        x_hat = (own - own.mean(2, True)) / (own.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(y[:, :, 5 * part : 5 * part + 5], x_hat)
    means = u.view(2, 6, 3, 5).mean(3).mean(2, keepdim=True)
    torch.testing.assert_close(networks.mean[0], 0.1 * means)


def test_recalibrated_networks_normalize_these_images_in_every_layer(images):
    networks = train([STEADY], images, steps=5, every=5, seeds=[0], depth=2, width=8).networks
    networks.recalibrate(images.x_train)
    networks.gamma[1] = torch.ones_like(networks.gamma[1])
    networks.beta[1] = torch.zeros_like(networks.beta[1])
    found = []
    networks.scores(images.x_train, see=lambda k, u, h: found.append(networks.normalized(u, k, False)))
    torch.testing.assert_close(found[1].mean(2), torch.zeros(1, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1].var(2), torch.ones(1, 8), atol=1e-2, rtol=0)


def test_a_diverged_network_has_no_accuracy_and_leaves_its_neighbours_alone(images):
    recipes = [STEADY, STEADY._replace(lr=1e30)]
    both = train(recipes, images, steps=6, every=2, seeds=[0], depth=2, width=8, norm=False)
    alone = train(recipes[:1], images, steps=6, every=2, seeds=[0], depth=2, width=8, norm=False)
    assert np.isnan(both.accuracy[1, 0, 1:]).all()
    np.testing.assert_allclose(both.loss[0], alone.loss[0], rtol=1e-5)
    assert both.steps_to(0.05)[1, 0] < np.inf  # before its first step
    assert both.steps_to(0.99)[1, 0] == np.inf


def companions(batches, example):
    return {tuple(sorted(batch)) for batch in batches if example in batch}


def test_fixed_batches_keep_an_images_companions_and_shuffled_ones_do_not():
    fixed, shuffled = (draw_batches(LABELS, 0, 30, 8, how) for how in ("fixed", "shuffled"))
    assert len(companions(fixed, fixed[0, 0])) == 1
    assert len(companions(shuffled, shuffled[0, 0])) > 1


def test_sorted_batches_have_one_class_and_the_mixed_ones_all_in_two_orders():
    assert all(len(set(LABELS[batch])) == 1 for batch in draw_batches(LABELS, 0, 30, 8, "sorted"))
    ordered, mixed = (draw_batches(LABELS, 0, 9, 20, how) for how in ("in order", "mixed"))
    for batch in ordered:
        assert LABELS[batch].tolist() == np.repeat(np.arange(10), 2).tolist()
    for batch in mixed[:4]:
        assert np.bincount(LABELS[batch]).tolist() == [2] * 10
        assert LABELS[batch].tolist() != sorted(LABELS[batch])
    np.testing.assert_array_equal(np.sort(ordered[:4], axis=1), np.sort(mixed[:4], axis=1))


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match="how: got 'random', allowed are fixed"):
        draw_batches(LABELS, 0, 1, 8, "random")
    with pytest.raises(ValueError, match="name: got 'digits'"):
        chapter.images_of("digits")


def test_the_new_recipe_is_the_old_one_with_all_changes():
    recipe = OLD
    for change in chapter.CHANGES.values():
        recipe = recipe._replace(**change)
    assert recipe == chapter.ALL
    assert OLD.lr * 5 == chapter.ALL.lr
    assert OLD.decay / 5 == pytest.approx(chapter.ALL.decay)
    assert OLD.distortion / 3 == pytest.approx(chapter.ALL.distortion)
    assert chapter.ALL.halvings == 6 * OLD.halvings
