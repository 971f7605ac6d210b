"""What the interactive figures begin with, and how they stand on a page."""

import json
import subprocess
import sys

import jupytext
import numpy as np
import pytest

from bnbook import norms, sgd, whitening
from bookbuild import slider_data
from bookbuild.results import BOOK
from bookbuild.slider_data import SLIDERS


def chapter_names(chapter, *wanted):
    """What the first cell of a chapter and the cells that define some names leave behind."""
    cells = [cell.source for cell in jupytext.read(BOOK / f"{chapter}.md").cells if cell.cell_type == "code"]
    space = {}
    for i, source in enumerate(cells):
        if i == 0 or any(source.startswith(name) or f"\n{name}" in source for name in wanted):
            exec(source, space)
    return space


@pytest.mark.parametrize("name", SLIDERS)
def test_what_a_page_embeds_is_small_and_the_same_each_time(name):
    embedded = json.dumps(SLIDERS[name].data())
    assert embedded == json.dumps(SLIDERS[name].data())
    assert len(embedded) < (100_000 if name.startswith("playground") else 30_000)  # the images of digits


def test_the_inputs_are_those_of_the_chapter():
    chapter = chapter_names("deeper/batch_norm", "def hidden_inputs", "def near_tangent")
    start = SLIDERS["batch_norm"].data()
    np.testing.assert_allclose(start["inputs"], chapter["hidden_inputs"](0)[:400, 0], rtol=0, atol=5.1e-5)
    # The band's edge is where the chapter's measure changes sides.
    edge = start["middle"]
    for z, inside in ((edge - 1e-3, 1), (edge + 1e-3, 0), (-edge + 1e-3, 1), (-edge - 1e-3, 0)):
        assert chapter["near_tangent"](chapter["sigmoid"], 0.25, np.array([z])) == inside
    outer = chapter["sigmoid"](-start["saturated"])
    assert outer == pytest.approx(0.05, rel=1e-4)


def test_the_loss_is_that_of_the_chapter():
    chapter = chapter_names("deeper/sgd", "def grad_J")
    w = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(slider_data.loss(w), chapter["J"](w), rtol=1e-12)
    np.testing.assert_allclose(slider_data.loss_gradient(w), chapter["grad_J"](w), rtol=1e-12)


def test_the_noise_is_that_of_mini_batches_without_replacement():
    start = SLIDERS["sgd"].data()
    xi = np.array(start["xi"])
    np.testing.assert_allclose(xi.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(xi.std(0), 3, rtol=1e-4)
    assert len(start["order"]) == 300
    assert all(len(set(row)) == len(row) == 32 for row in start["order"])
    assert len(set(slider_data.LETTERS)) == 64
    # Its variance falls as that of a draw without replacement.
    for N in (1, 4, 32):
        gradient = slider_data.mini_batch_gradients(start, N, 0)
        there = np.array([0.3, -0.2])
        noise = [gradient(there) - slider_data.loss_gradient(there) for _ in range(300)]
        expected = 9 * sgd.variance_factor(N, 64, replace=False)
        assert np.mean(np.square(noise)) == pytest.approx(expected, rel=0.2)
    whole = slider_data.mini_batch_gradients(start, 64, 0)(there)
    np.testing.assert_allclose(whole, slider_data.loss_gradient(there), atol=1e-4)


def test_the_cloud_has_the_correlation_that_the_control_names():
    start = SLIDERS["whitening"].data()
    for rho in (-0.95, 0.0, 0.8):
        x = slider_data._cloud(start, rho)
        np.testing.assert_allclose(x.mean(0), [3, 1], atol=1e-4)
        np.testing.assert_allclose(np.corrcoef(x.T)[0, 1], rho, atol=1e-4)
        cov = whitening.covariance(whitening.apply(whitening.fit_standardizing(x), x))
        assert whitening.condition_number(cov) == pytest.approx((1 + abs(rho)) / (1 - abs(rho)), rel=1e-2)


def test_the_landscape_has_the_numbers_of_its_chapter(capsys):
    stored, now = json.loads(slider_data.LANDSCAPE.read_text("utf-8")), slider_data.landscape_walks()
    assert stored.keys() == now.keys()
    np.testing.assert_allclose(stored["lengths"], now["lengths"], rtol=1e-5)
    for norm in ("none", "batch"):
        for values in ("loss", "slope"):
            # Sixty steps amplify rounding: other instructions of a processor were up to 15 % away.
            np.testing.assert_allclose(
                stored[norm][values],
                now[norm][values],
                rtol=0.3,
                err_msg="run python -m bookbuild.slider_data",
            )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a page with a directive; returns the process and the folder of the result."""

    def build(builder, directive):
        folder = tmp_path_factory.mktemp(builder)
        text = f"# A page\n\n{directive}\n\nSee {{numref}}`slider-one`.\n"
        (folder / "index.md").write_text(text, "utf-8")
        (folder / "other.md").write_text("---\norphan: true\n---\n# Another\n", "utf-8")
        settings = ["-D", "extensions=myst_parser,bookbuild.sliders", "-D", "numfig=1"]
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "-C",
            "-b",
            builder,
            *settings,
            folder,
            folder / "out",
        ]
        return subprocess.run(command, capture_output=True, text=True), folder / "out"

    return build


GROUPS = "```{slider} group_norm\n:name: slider-one\n:alt: Four grids.\nThe *cells* of a set.\n```"


def test_a_page_holds_picture_numbers_caption_and_the_scripts_it_needs(built):
    process, out = built("html", GROUPS)
    assert process.returncode == 0, process.stderr
    page = (out / "index.html").read_text("utf-8")
    assert 'alt="Four grids."' in page
    assert "The <em>cells</em> of a set." in page
    assert 'href="#slider-one"' in page
    embedded = page.partition('data-slider="group_norm">')[2].partition("</script>")[0]
    assert json.loads(embedded) == SLIDERS["group_norm"].data()
    assert [name in page for name in ("slider.js", "group_norm.js", "slider.css", "whitening.js")] == [
        1,
        1,
        1,
        0,
    ]
    assert "sliders/" not in (out / "other.html").read_text("utf-8")


def test_in_latex_the_picture_and_the_caption_stay(built):
    process, out = built("latex", GROUPS)
    assert process.returncode == 0, process.stderr
    (text,) = [
        path.read_text("utf-8") for path in out.glob("*.tex") if "includegraphics" in path.read_text("utf-8")
    ]
    assert "group_norm" in text
    assert "cells" in text
    assert "data-slider" not in text


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        (GROUPS.replace("group_norm", "no_such"), "there are batch_norm"),
        (GROUPS.replace(":alt: Four grids.\n", ""), ":name: and :alt: are needed"),
        (GROUPS.replace("The *cells* of a set.\n", ""), "a caption"),
    ],
)
def test_a_wrong_directive_says_what_is_missing(built, directive, message):
    process, _ = built("html", directive)
    assert process.returncode != 0
    assert message in process.stderr


def test_the_starting_picture_of_the_set_is_the_gradients():
    start = SLIDERS["group_norm"].data()
    figure = SLIDERS["group_norm"].draw(start)
    colours = [[patch.get_facecolor() for patch in ax.patches] for ax in figure.axes]
    white = (1.0, 1.0, 1.0, 1.0)
    assert [sum(colour != white for colour in one) for one in colours] == [12, 0, 0, 0]
    slider_data.plt.close(figure)


def test_the_moving_average_of_the_picture_is_the_packages():
    start = SLIDERS["inference"].data()
    figure = SLIDERS["inference"].draw(start)
    stored = figure.axes[0].lines[-1].get_ydata()
    average = norms.RunningStats(1, momentum=0.1, dtype=np.float64)
    for step in range(600):
        mean = (step >= 400) + start["noise"][step] / np.sqrt(32)
        average.update(np.array([[mean - 1], [mean + 1]]))
    assert stored[-1] == pytest.approx(average.mean[0])
    slider_data.plt.close(figure)
