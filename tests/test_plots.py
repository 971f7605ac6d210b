import matplotlib
import numpy as np
import pytest
from helpers import luminance

from bnbook import plots

matplotlib.use("Agg")


@pytest.fixture
def ax():
    fig, axes = plots.figure()
    yield axes
    plots.plt.close(fig)


def test_no_two_methods_share_a_colour_or_a_dash():
    looks = plots.METHODS.values()
    assert len({look.colour for look in looks}) == len({str(look.dash) for look in looks}) == len(looks)


def test_a_band_is_the_interquartile_range_and_its_line_the_median(ax):
    runs = np.random.default_rng(0).normal(size=(9, 4))
    plots.band(ax, np.arange(4), runs, "batch", "batch")
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), np.median(runs, axis=0))
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(np.quantile(runs, 0.25, axis=0).min())
    assert edges.max() == pytest.approx(np.quantile(runs, 0.75, axis=0).max())
    assert line.get_color() == plots.METHODS["batch"].colour


def test_a_band_of_another_shape_is_refused(ax):
    with pytest.raises(ValueError, match=r"runs: got shape \(4,\), expected \(seeds, 4\)"):
        plots.band(ax, np.arange(4), np.zeros(4), "batch")


def test_an_unknown_method_is_refused_and_the_known_ones_are_named(ax):
    with pytest.raises(ValueError, match="method: got 'bath', allowed are none, batch"):
        plots.line(ax, [0], [0], "bath")


def test_a_curve_is_labelled_at_its_last_finite_point(ax):
    plots.line(ax, [0, 1, 2], [5, 6, np.nan], "group")
    (label,) = ax.texts
    assert label.get_text() == "group"
    assert label.xy == (1, 6)


def test_a_curve_without_a_finite_point_or_a_name_gets_no_label(ax):
    plots.line(ax, [0], [np.nan], "group")
    plots.line(ax, [0], [1], "group", label="")
    assert not ax.texts


def test_a_colour_that_is_no_method_draws_an_ordered_series(ax):
    first, last = plots.shades(2)
    plots.band(ax, [0, 1], np.zeros((2, 2)), first)
    assert ax.lines[0].get_color() == first
    assert luminance(first) < luminance(last)


def test_text_in_the_darker_shade_of_a_method_can_be_read_on_white():
    for look in plots.METHODS.values():
        contrast = 1.05 / (luminance(plots.darker(look.colour)) + 0.05)
        assert contrast > 3, look.name  # WCAG AA asks 3 of large text and graphics


def test_a_heat_map_never_counts_a_diverged_network_as_a_bad_one(ax):
    nan = np.nan
    values = [[[90, 92, nan], [nan, nan, 99], [10, 20, 30]]]
    image = plots.heat_map(ax, values, x=[0.1, 1.0, 10.0], y=[3.0], mark=90)
    assert [text.get_text() for text in ax.texts] == ["91", "∞", "20"]
    assert image.get_array().mask.ravel().tolist() == [False, True, False]
    assert [patch.get_x() for patch in ax.patches] == [pytest.approx(0.06)]


def test_a_heat_map_of_another_shape_is_refused(ax):
    with pytest.raises(ValueError, match=r"values: got shape \(1, 2\), expected \(1, 2, runs\)"):
        plots.heat_map(ax, [[1, 2]], x=[1, 2], y=[1])
