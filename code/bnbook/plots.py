"""One look for every figure.

A method has the same colour and the same dash everywhere. Figures are 5 inches wide, so that
their 10 point letters are still 9 pixels high on a phone; panels stand below one another.
Functions here take data, not models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bnbook._checks import check_choice
from bnbook._extra import book_extra

with book_extra():
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

__all__ = [
    "METHODS",
    "Method",
    "band",
    "darker",
    "figure",
    "heat_map",
    "label_end",
    "line",
    "shades",
    "use_style",
]


class Method(NamedTuple):
    """How one method is drawn in the whole book: colour, dash and name."""

    colour: str
    dash: Any
    name: str


METHODS = {
    "none": Method("#6b6b6b", (0, (4, 1.5)), "plain"),
    "batch": Method("#0072B2", "-", "batch"),
    "group": Method("#E69F00", (0, (6, 1.5, 1.5, 1.5)), "group"),
    "layer": Method("#009E73", (0, (2, 1)), "layer"),
    "instance": Method("#CC79A7", (0, (1, 1)), "instance"),
    "rms": Method("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), "RMS"),
    "noisy": Method("#D55E00", (0, (3, 1, 1, 1)), "noisy"),
    # Okabe-Ito's last but for yellow, which is too pale for a line; then two of Tol's muted colours.
    "dyt": Method("#000000", (0, (1, 2)), "DyT"),
    "fixup": Method("#882255", (0, (8, 2)), "Fixup"),
    "nf": Method("#999933", (0, (3, 1.5)), "NF"),
}
"""How each method is drawn, by the name that models use."""

_STYLE: dict[Any, Any] = {
    "figure.figsize": (5.0, 3.0),
    "figure.dpi": 200,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


def use_style() -> None:
    """Set the book's look; the first code cell of a chapter calls it.

    >>> use_style()
    >>> mpl.rcParams["axes.titlelocation"]
    'left'
    """
    mpl.rcParams.update(_STYLE)


def figure(rows: int = 1, columns: int = 1, height: float = 3.0, **kwargs: Any) -> tuple[Figure, Any]:
    """Open a figure of the book's width and a height in inches: ``plt.subplots`` with further settings.

    More than one column only for panels without small print.

    >>> fig, axes = figure(rows=2, height=5.0)
    >>> fig.get_size_inches(), axes.shape
    (array([5., 5.]), (2,))
    >>> plt.close(fig)
    """
    use_style()
    return plt.subplots(rows, columns, figsize=(5.0, height), **kwargs)


def _drawn_as(method: str, overrides: dict[str, Any]) -> dict[str, Any]:
    check_choice(METHODS, method=method)
    look = METHODS[method]
    return {"color": look.colour, "linestyle": look.dash, **overrides}


def line(ax: Axes, x: ArrayLike, y: ArrayLike, method: str, label: str | None = None, **kwargs: Any) -> None:
    """Draw one curve of a method and write its name, or `label`, where it ends.

    Parameters
    ----------
    method : str
        A key of :data:`METHODS`.
    label : str, optional
        Instead of the method's name; empty for none.
    **kwargs
        For ``ax.plot``.

    Examples
    --------
    >>> fig, ax = figure()
    >>> line(ax, [0, 1, 2], [3, 1, 0], "batch")
    >>> ax.lines[0].get_color(), ax.texts[0].get_text()
    ('#0072B2', 'batch')
    >>> plt.close(fig)
    """
    ax.plot(x, y, **_drawn_as(method, kwargs))
    label_end(ax, x, y, METHODS[method].name if label is None else label, METHODS[method].colour)


def band(
    ax: Axes,
    x: ArrayLike,
    runs: ArrayLike,
    colour: Any,
    label: str = "",
    **kwargs: Any,
) -> None:
    """Draw the median of several runs and a band from their first to their third quartile.

    Parameters
    ----------
    runs : array_like of shape (seeds, n)
    colour : str
        A key of :data:`METHODS`, which also sets the dash, or a colour.
    label : str
        Written where the median ends.
    **kwargs
        For ``ax.plot``.

    Examples
    --------
    >>> fig, ax = figure()
    >>> band(ax, [0, 1], [[0, 1], [2, 5], [4, 6]], "batch")
    >>> ax.lines[0].get_ydata()
    array([2., 5.])
    >>> plt.close(fig)
    """
    x, runs = np.asarray(x), np.asarray(runs, float)
    if runs.ndim != 2 or runs.shape[1] != len(x):
        raise ValueError(f"runs: got shape {runs.shape}, expected (seeds, {len(x)})")
    look = _drawn_as(colour, kwargs) if colour in METHODS else {"color": colour, **kwargs}
    low, median, high = np.percentile(runs, [25, 50, 75], axis=0)
    ax.fill_between(x, low, high, color=look["color"], alpha=0.25, linewidth=0)
    ax.plot(x, median, **look)
    label_end(ax, x, median, label, look["color"])


def label_end(ax: Axes, x: ArrayLike, y: ArrayLike, label: str, colour: Any, dy: float = 0.0) -> None:
    """Write `label` right of the last finite point of a curve, in a darker shade of its colour.

    `dy` moves the label up, in points, where two would meet.

    >>> fig, ax = figure()
    >>> label_end(ax, [0, 1, 2], [5, 4, np.nan], "diverges", "C0")
    >>> ax.texts[0].xy == (1, 4)
    True
    >>> plt.close(fig)
    """
    x, y = np.asarray(x), np.asarray(y, float)
    finite = np.flatnonzero(np.isfinite(y))
    if label and finite.size:
        end = finite[-1]
        ax.annotate(
            label,
            (x[end], y[end]),
            xytext=(4, dy),
            textcoords="offset points",
            va="center",
            color=darker(colour),
            annotation_clip=False,
        )


def heat_map(
    ax: Axes, values: ArrayLike, x: Sequence[float], y: Sequence[float], *, mark: float = math.inf
) -> QuadMesh:
    """Draw percentages over two settings: in each cell the median of the runs that did not diverge.

    A cell in which more than half of the runs diverged is grey.

    Parameters
    ----------
    values : array_like of shape (len(y), len(x), runs)
        From 0 to 100, NaN for a run that diverged.
    mark : float
        A frame stands where the median is at least this.

    Returns
    -------
    QuadMesh
        For ``fig.colorbar``.

    Examples
    --------
    >>> fig, ax = figure()
    >>> _ = heat_map(ax, [[[97, 95, np.nan], [10, np.nan, np.nan]]], x=[0.1, 1.0], y=[3.0], mark=90)
    >>> [text.get_text() for text in ax.texts], len(ax.patches)
    (['96', '∞'], 1)
    >>> plt.close(fig)
    """
    values = np.asarray(values, float)
    if values.ndim != 3 or values.shape[:2] != (len(y), len(x)):
        raise ValueError(f"values: got shape {values.shape}, expected ({len(y)}, {len(x)}, runs)")
    gone = np.isnan(values).mean(-1) > 0.5
    median = np.nanmedian(np.where(gone[..., None], 0, values), axis=-1)
    colours = mpl.colormaps["viridis"].with_extremes(bad="#c4c4c4")
    image = ax.pcolormesh(np.ma.masked_where(gone, median), cmap=colours, vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(median):
        word, ink = ("∞", "black") if gone[i, j] else (f"{value:.0f}", "white" if value < 60 else "black")
        ax.text(j + 0.5, i + 0.5, word, ha="center", va="center", color=ink)
        if value >= mark:
            ax.add_patch(Rectangle((j + 0.06, i + 0.06), 0.88, 0.88, fill=False, linewidth=1.6))
    ax.grid(False)
    ax.set_xticks(np.arange(len(x)) + 0.5, [f"{v:g}" for v in x])
    ax.set_yticks(np.arange(len(y)) + 0.5, [f"{v:g}" for v in y])
    return image


def darker(colour: Any) -> tuple[float, ...]:
    """A darker shade of a colour, as red, green and blue, for text: lines may be paler than letters.

    >>> darker("white")
    (0.65, 0.65, 0.65)
    """
    return tuple(0.65 * channel for channel in to_rgb(colour))


def shades(n: int) -> list[tuple[float, float, float, float]]:
    """`n` colours from dark to light, for series that have an order but are no method.

    They are from viridis, without its palest end, which white paper hides.

    >>> len(shades(3))
    3
    """
    return [mpl.colormaps["viridis"](value) for value in np.linspace(0.0, 0.8, n)]
