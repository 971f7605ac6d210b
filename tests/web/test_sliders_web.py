"""The interactive figures in Chromium: moved with the keyboard, compared with what the package computes."""

import json
import re

import numpy as np
import pytest
import torch
from browser import violations

from bnbook import norms, sgd, whitening
from bookbuild import slider_data

PAGES = {
    "backward": "book/backward.html",
    "sgd": "book/deeper/sgd.html",
    "whitening": "book/whitening.html",
    "batch_norm": "book/batch_norm.html",
    "inference": "book/inference.html",
    "landscape": "book/landscape.html",
    "group_norm": "book/group_norm.html",
    "gamma": "book/start.html",
}


class Driver:
    """One interactive figure on an open page."""

    def __init__(self, page, name):
        self.page = page
        self.figure = page.locator(f"figure:has(script[data-slider={name}])")
        self.data = json.loads(self.figure.locator("script[data-slider]").text_content())

    def set(self, **controls):
        """Move controls with the arrow keys, as a reader without a mouse does."""
        for name, wanted in controls.items():
            control = self.figure.locator(f":is(input, select)[name={name}]")
            control.focus()
            if control.evaluate("control => control.tagName") == "SELECT":
                values = control.evaluate("control => [...control.options].map(option => option.value)")
                presses = values.index(str(wanted)) - values.index(control.input_value())
                forward, backward = "ArrowDown", "ArrowUp"
            else:
                presses = round(
                    (wanted - float(control.input_value())) / float(control.get_attribute("step"))
                )
                forward, backward = "ArrowRight", "ArrowLeft"
            for _ in range(abs(presses)):
                self.page.keyboard.press(forward if presses > 0 else backward)

    def text(self, name):
        return self.figure.locator(f"output[name={name}]").text_content()

    def number(self, name):
        """The number that a value shows, with its % taken into account."""
        text = self.text(name).replace("−", "-").replace("∞", "inf")
        found = re.search(r"-?(inf|[0-9.]+(e[-+]?[0-9]+)?)", text)
        return float(found[0]) / (100 if "%" in text else 1)


@pytest.fixture
def slider(open_page):
    """Open the page of an interactive figure."""

    def open_slider(name, **settings):
        return Driver(open_page(PAGES[name], **settings), name)

    return open_slider


def same(shown, expected):
    """Equal to the four digits that the page shows."""
    assert shown == pytest.approx(expected, rel=5.1e-4, abs=1e-9)


# --------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", PAGES)
def test_the_page_embeds_the_numbers_of_python(slider, name):
    assert slider(name).data == json.loads(json.dumps(slider_data.SLIDERS[name].data()))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_batch_norm_shows_what_the_package_computes(slider):
    figure = slider("batch_norm")
    for gamma, beta, eps, scale in [
        (1, 0, -5, 1),
        (3, 0, -5, 1),
        (3, 4, -5, 1),
        (0.1, -6, 1, 1),
        (2.5, 0.7, -4, 0.01),
    ]:
        figure.set(gamma=gamma, beta=beta, eps=eps, scale=scale)
        x = scale * np.array(figure.data["inputs"])[:, None]
        x_hat, _ = norms.batch_norm(x, np.ones(1), np.zeros(1), 10.0**eps)
        y, _ = norms.batch_norm(x, np.array([gamma]), np.array([beta]), 10.0**eps)
        same(figure.number("std"), x_hat.std())
        same(figure.number("mean"), y.mean())
        same(figure.number("width"), y.std())
        near = np.abs(sigmoid(y) - 0.5 - y / 4) < 0.1 * np.abs(y / 4)
        same(figure.number("linear"), near.mean())
        same(figure.number("saturated"), (np.minimum(sigmoid(y), 1 - sigmoid(y)) < 0.05).mean())


def test_gamma_shows_what_the_package_computes(slider):
    figure = slider("gamma")
    x = np.array(figure.data["inputs"])[:, None]
    for gamma in (1, 3.4, 10, 0.1):
        figure.set(gamma=gamma)
        y, _ = norms.batch_norm(x, np.array([gamma]), np.zeros(1))
        near = np.abs(sigmoid(y) - 0.5 - y / 4) < 0.1 * np.abs(y / 4)
        same(figure.number("linear"), near.mean())
        same(figure.number("saturated"), (np.minimum(sigmoid(y), 1 - sigmoid(y)) < 0.05).mean())


def test_backward_shows_what_autograd_finds_at_each_node(slider):
    figure = slider("backward")
    gamma = torch.tensor(float(figure.data["gamma"]), requires_grad=True)
    beta = torch.tensor(0.0, requires_grad=True)
    for index, loss in enumerate(figure.data["losses"]):
        x = torch.tensor(figure.data["x"], dtype=torch.float, requires_grad=True)
        straight = [
            x.detach().clone().requires_grad_() for _ in range(2)
        ]  # x on its ways to x_hat and to var
        mu = x.mean()
        var = (straight[1] - mu).square().mean()
        x_hat = (straight[0] - mu) / (var + figure.data["eps"]).sqrt()
        J = (torch.tensor(loss["dy"]) * (gamma * x_hat + beta)).sum()
        names = ["dx_hat", "dvar", "dmu", "dgamma", "dbeta", "straight", "by_var", "by_mu"]
        found = dict(
            zip(names, torch.autograd.grad(J, [x_hat, var, mu, gamma, beta, *straight, x]), strict=True)
        )
        found["dx"] = found["straight"] + found["by_var"] + found["by_mu"]
        figure.set(loss=index, step=6)
        for name, value in found.items():
            entries = [f"{name}-{i + 1}" for i in range(4)] if value.ndim else [name]
            shown = [figure.number(entry) for entry in entries]
            assert shown == pytest.approx(np.atleast_1d(value.tolist()), rel=5.1e-3, abs=1e-6)


def test_backward_shows_a_derivative_from_its_step_on(slider):
    figure = slider("backward")
    steps = {"dx_hat-1": 1, "dvar": 2, "dmu": 3, "by_mu-2": 4, "dx-4": 4, "dgamma": 5, "dbeta": 6}
    for step in range(7):
        figure.set(step=step)
        assert [name for name in steps if figure.text(name) != "·"] == [
            n for n, k in steps.items() if k <= step
        ]
        leaving = figure.figure.locator("path.leaves").count()
        assert leaving == [1, 1, 1, 2, 3, 1, 1][step]


def test_sgd_takes_the_steps_of_the_package(slider):
    figure = slider("sgd")
    for batch, rate, steps, run in [
        (0, 4, 300, 1),
        (0, 4, 120, 3),
        (2, 8, 300, 5),
        (1, 2, 200, 2),
        (6, 8, 300, 1),
    ]:
        figure.set(batch=batch, rate=rate / 100, steps=steps, run=run)
        paths = [
            sgd.descend(
                sgd.step,
                slider_data.mini_batch_gradients(figure.data, 2**batch, r),
                np.array([-1.0, 0.0]),
                steps,
                lr=rate / 100,
            )
            for r in range(5)
        ]
        away = np.linalg.norm(np.array(paths) - [-1, 0], axis=-1)
        mine = away[run - 1]
        same(figure.number("distance"), mine[-1])
        same(figure.number("loss"), slider_data.loss(paths[run - 1][-1]))
        left = str((mine > 0.5).argmax()) if (mine > 0.5).any() else "none"
        assert figure.text("left") == left
        assert figure.number("share") == (away[:, -1] > 0.5).sum()


def test_sgd_stays_in_the_narrow_minimum_as_the_text_says(slider):
    figure = slider("sgd")
    assert figure.number("share") == 5
    figure.set(batch=2)
    for rate in (4, 5, 6, 7):
        figure.set(rate=rate / 100)
        assert figure.number("share") == 0
    figure.set(rate=0.08)
    assert figure.number("share") == 5


def test_whitening_shows_what_the_package_computes(slider):
    figure = slider("whitening")
    fits = {
        "centred": whitening.fit_centring,
        "standardized": whitening.fit_standardizing,
        "rotated": whitening.fit_pca_whitening,
        "pca": whitening.fit_pca_whitening,
        "zca": whitening.fit_zca_whitening,
    }
    noise = np.array(figure.data["noise"])
    for rho in (0.8, -0.95, 0.05):
        figure.set(correlation=rho)
        second = rho * noise[:, 0] + np.sqrt(1 - rho**2) * noise[:, 1]
        x = np.column_stack([3 + 1.5 * noise[:, 0], 1 + 0.5 * second])
        for stage in ("raw", *fits):
            figure.set(stage=stage)
            z = x if stage == "raw" else whitening.apply(fits[stage](x), x)
            if stage == "rotated":  # the whitening map without its division
                z = z * np.sqrt(np.linalg.eigvalsh(whitening.covariance(x))[::-1])
            cov = whitening.covariance(z)
            shown = [float(entry) for entry in figure.text("cov").replace("−", "-").split()]
            np.testing.assert_allclose(shown, cov.ravel(), rtol=0, atol=6e-5)
            same(figure.number("condition"), whitening.condition_number(cov))
            with_one = np.column_stack([z, np.ones(len(z))])
            same(figure.number("bowl"), whitening.condition_number(with_one.T @ with_one / len(z)))


def test_whitening_draws_the_points_of_the_package(slider):
    figure = slider("whitening")
    figure.set(stage="zca", correlation=0.8)
    noise = np.array(figure.data["noise"])
    x = np.column_stack([3 + 1.5 * noise[:, 0], 1 + 0.5 * (0.8 * noise[:, 0] + 0.6 * noise[:, 1])])
    z = whitening.apply(whitening.fit_zca_whitening(x), x)
    drawn = re.findall(r"M([\d.]+) ([\d.]+)h0", figure.figure.locator("path.halo").get_attribute("d"))
    across, down = np.array(drawn, float).T
    # The plot's frame spans -4 to 8 and -4 to 4; a tenth of a pixel is 0.004.
    left, width = figure.figure.locator("clipPath rect").evaluate(
        "r => [r.x, r.width].map(v => v.baseVal.value)"
    )
    top, height = figure.figure.locator("clipPath rect").evaluate(
        "r => [r.y, r.height].map(v => v.baseVal.value)"
    )
    np.testing.assert_allclose(12 * (across - left) / width - 4, z[:, 0], rtol=0, atol=0.005)
    np.testing.assert_allclose(4 - 8 * (down - top) / height, z[:, 1], rtol=0, atol=0.005)


def test_inference_averages_as_the_package_does(slider):
    figure = slider("inference")
    noise = np.array(figure.data["noise"])
    for exponent, batch in [(-1, 5), (-2, 5), (-0.3, 1), (0, 10), (-1.5, 3)]:
        figure.set(alpha=exponent, batch=batch)
        alpha, m = 10**exponent, 2**batch
        stream = (np.arange(len(noise)) >= 400) + noise / np.sqrt(m)
        average, stored = norms.RunningStats(1, momentum=alpha, dtype=np.float64), []
        for mean in stream:
            average.update(np.array([[mean - 1], [mean + 1]]))
            stored.append(average.mean[0])
        same(figure.number("age"), (1 - alpha) / alpha)
        assert figure.number("half") == 1 + next(i for i, v in enumerate(stored[400:]) if v >= 0.5)
        same(figure.number("derived"), np.sqrt(alpha / (2 - alpha) / m))
        same(figure.number("measured"), np.sqrt(np.mean(np.square(stored[100:400]))))


def test_landscape_shows_the_measurements_of_the_chapter(slider):
    figure = slider("landscape")
    walks = json.loads(slider_data.LANDSCAPE.read_text("utf-8"))
    for index, length in enumerate(walks["lengths"]):
        figure.set(length=index)
        for norm in ("none", "batch"):
            losses = np.array(walks[norm]["loss"])[:, index]
            same(figure.number(f"loss-{norm}"), np.median(losses))
            same(figure.number(f"promise-{norm}"), np.median(1 - length * np.array(walks[norm]["slope"])))
            assert figure.number(f"below-{norm}") == (losses < 1).sum()


def index_set(norm, groups, cell):
    """True for each input that moves the output of a cell, by the package's gradient."""
    x = np.random.default_rng(0).normal(size=(4, 6, 4))
    ones, zeros = np.ones(6), np.zeros(6)
    if norm == "rms":  # over the channels of one position
        y, cache = norms.rms_norm(np.ascontiguousarray(x.transpose(0, 2, 1)), ones)
        dy = np.zeros_like(y)
        dy[cell[0], cell[2], cell[1]] = 1
        return np.abs(norms.rms_norm_backward(dy, cache)[0].transpose(0, 2, 1)) > 1e-12
    y, cache = {
        "batch": lambda: norms.batch_norm(x, ones, zeros),
        "layer": lambda: norms.layer_norm(x, np.ones((6, 4)), np.zeros((6, 4))),
        "instance": lambda: norms.instance_norm(x, ones, zeros),
        "group": lambda: norms.group_norm(x, groups, ones, zeros),
    }[norm]()
    dy = np.zeros_like(y)
    dy[cell] = 1
    return np.abs(norms.batch_norm_backward(dy, cache)[0]) > 1e-12


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "rms"])
def test_group_norm_colours_the_cells_that_the_gradient_reaches(slider, norm):
    figure = slider("group_norm")
    for choice, groups in enumerate((1, 2, 3, 6)):
        if norm == "group":
            figure.set(groups=choice)
        elif choice:
            break
        figure.set(norm=norm)
        for cell in [(0, 0, 0), (3, 5, 3), (1, 3, 2)]:
            figure.set(example=cell[0] + 1, channel=cell[1] + 1, position=cell[2] + 1)
            members = index_set(norm, groups, cell)
            drawn = figure.figure.locator("rect.cell").evaluate_all(
                "cells => cells.map(c => 'member' in c.dataset)"
            )
            assert drawn == members.ravel().tolist()
            assert figure.number("size") == members.sum()
            assert figure.number("sets") == 96 / members.sum()
            assert figure.number("examples") == members.any((1, 2)).sum()


# --------------------------------------------------------------------------- every reader


@pytest.mark.parametrize("name", PAGES)
def test_without_javascript_the_picture_stays(open_page, name):
    figure = open_page(PAGES[name], java_script=False).locator(f"figure:has(script[data-slider={name}])")
    assert figure.locator("img").is_visible()
    assert len(figure.locator("img").get_attribute("alt")) > 40
    assert figure.locator("figcaption").is_visible()
    assert figure.locator("input").count() == 0


def test_if_a_script_is_lost_the_picture_stays(open_page):
    page = open_page("book/notation.html")
    page.route("**/sliders/group_norm.js*", lambda route: route.abort())
    page.goto(page.url.replace("notation", "group_norm"))
    assert page.locator("figure.slider img").is_visible()
    assert page.locator(".slider-panel").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_moved_figure_fits_a_phone_and_axe_finds_nothing(slider, name, theme):
    figure = slider(name, width=375, theme=theme)
    for control in figure.figure.locator("input[type=range]").all():
        control.focus()
        figure.page.keyboard.press("End")
        assert figure.page.evaluate("document.documentElement.scrollWidth") <= 375
    for control in figure.figure.locator("input, select, button").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 24, "too small for a finger"
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 375
    assert figure.page.faults == []
    assert not violations(figure.page, "figure.slider")


@pytest.mark.parametrize("name", PAGES)
def test_every_control_says_its_name_and_its_value(slider, name):
    figure = slider(name)
    controls = figure.figure.locator("input, select")
    assert controls.count()
    for control in controls.all():
        label = control.evaluate("control => control.labels[0].textContent")
        assert len(label) > 3
        if control.get_attribute("type") == "range":
            shown = figure.figure.locator(f"output[for={control.get_attribute('id')}]").text_content()
            assert shown
            assert control.get_attribute("aria-valuetext") == shown
    for output in figure.figure.locator(".slider-value output").all():
        assert output.text_content(), output.get_attribute("name")


@pytest.mark.parametrize("name", PAGES)
def test_reset_brings_everything_back(slider, name):
    figure = slider(name)
    before = figure.figure.locator(".slider-panel").inner_html()
    for control in figure.figure.locator("input, select").all():
        control.focus()
        figure.page.keyboard.press("End")
    assert figure.figure.locator(".slider-panel").inner_html() != before
    figure.figure.get_by_role("button", name="Reset").press("Enter")
    assert figure.figure.locator(".slider-panel").inner_html() == before


@pytest.mark.parametrize("name", PAGES)
def test_nothing_moves_by_itself(slider, name):
    figure = slider(name)
    before = figure.figure.inner_html()
    figure.page.wait_for_timeout(400)
    assert figure.figure.inner_html() == before
    assert figure.page.evaluate("document.getAnimations().length") == 0


def test_the_controls_are_not_printed(slider):
    figure = slider("batch_norm")
    figure.page.emulate_media(media="print")
    assert not figure.figure.locator("input[type=range]").first.is_visible()
    assert figure.figure.locator(".slider-panel svg").is_visible()


def test_the_scripts_are_loaded_only_where_they_are_used(open_page):
    page = open_page("book/notation.html")
    assert page.locator("script[src*=sliders], link[href*=sliders]").count() == 0
