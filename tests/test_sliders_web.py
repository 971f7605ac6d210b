"""The interactive figures in Chromium: moved with the keyboard, compared with what the package computes."""

import json
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from bnbook import norms
from bookbuild import slider_data

PAGES = {
    "batch_norm": "book/batch_norm.html",
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


@pytest.mark.parametrize("name", ["batch_norm"])
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
        xhat, _ = norms.batch_norm(x, np.ones(1), np.zeros(1), 10.0**eps)
        y, _ = norms.batch_norm(x, np.array([gamma]), np.array([beta]), 10.0**eps)
        same(figure.number("std"), xhat.std())
        same(figure.number("mean"), y.mean())
        same(figure.number("width"), y.std())
        near = np.abs(sigmoid(y) - 0.5 - y / 4) < 0.1 * np.abs(y / 4)
        same(figure.number("linear"), near.mean())
        same(figure.number("saturated"), (np.minimum(sigmoid(y), 1 - sigmoid(y)) < 0.05).mean())


# --------------------------------------------------------------------------- every reader


@pytest.mark.parametrize("name", PAGES)
def test_without_javascript_the_picture_stays(open_page, name):
    figure = open_page(PAGES[name], java_script=False).locator(f"figure:has(script[data-slider={name}])")
    assert figure.locator("img").is_visible()
    assert len(figure.locator("img").get_attribute("alt")) > 40
    assert figure.locator("figcaption").is_visible()
    assert figure.locator("input").count() == 0


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
    results = Axe().run(figure.page)  # fetches style sheets, which is a fault on a page
    assert not results.response["violations"], results.generate_report()


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
