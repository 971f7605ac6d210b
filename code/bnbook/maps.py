"""Maps of validity: over which settings a verdict holds, where it turns, and where networks diverged.

A map compares two sides at each point of a grid of two settings, from a table with a row for each setting,
seed and side, as :func:`bnbook.experiments.collect` and :func:`bnbook.experiments.shipped` return it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook import plots
from bnbook._checks import check_choice
from bnbook._extra import book_extra

with book_extra():
    import matplotlib as mpl
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

__all__ = ["Verdicts", "best", "draw", "edge", "verdicts"]

Side = str | float
Floats = NDArray[np.float64]
MOST_PANELS = 3
# Colour-blind readers can tell these apart, white is no difference, and black signs can be read on the ends.
COLOURS = LinearSegmentedColormap.from_list("map", mpl.colormaps["PuOr_r"](np.linspace(0.15, 0.85, 257)))
DIVERGED = "#c4c4c4"
MARKS: dict[str, dict[str, Any]] = {"holds": {"marker": "o"}, "turns": {"marker": "x", "linewidths": 1.8}}
HATCHES = "///", "\\\\\\"


@dataclass(frozen=True)
class Verdicts:
    """A verdict over a grid of two settings.

    Attributes
    ----------
    x, y : list
        Values of the two settings.
    sides : tuple of str or float
        What is compared.
    change : ndarray of shape (y, x)
        First side minus second, or their ratio: the median over the seeds with which neither diverged, NaN
        where there is none.
    ratio : bool
        Which of the two.
    holds, turns : ndarray of int, shape (y, x)
        With how many seeds the verdict holds, and does not.
    diverged : ndarray of int, shape (2, y, x)
        With how many seeds each side diverged: those are counted neither as `holds` nor as `turns`.
    """

    x: list[Any]
    y: list[Any]
    sides: tuple[Side, Side]
    change: Floats
    ratio: bool
    holds: NDArray[np.int64]
    turns: NDArray[np.int64]
    diverged: NDArray[np.int64]

    @property
    def state(self) -> NDArray[np.str_]:
        """What all seeds say, ``"holds"`` or ``"turns"``; else ``"mixed"``; ``"diverged"`` where any did."""
        clean = np.select([self.turns == 0, self.holds == 0], ["holds", "turns"], "mixed")
        return np.where(self.diverged.any(0), "diverged", clean)


def verdicts(
    table: pd.DataFrame,
    of: str,
    *,
    x: str,
    y: str,
    sides: tuple[Side, Side],
    between: str = "side",
    holds: Callable[[Floats, Floats], NDArray[np.bool_]] = np.less,
    ratio: bool = False,
) -> Verdicts:
    """Compare two sides at each point of a grid, seed by seed.

    Parameters
    ----------
    table : DataFrame
        A row for each point, seed (column ``"seed"``) and side. A value that is not finite says that the
        network diverged; a row that is missing is refused.
    of : str
        Column of what is compared.
    x, y : str
        Columns of the two settings. All others are fixed by choosing rows.
    sides : tuple of str or float
        Two names in the column `between`; a number instead of one is the same everywhere, such as the error
        of a classifier without a learning rate.
    holds : function
        From the values of both sides, arrays with the same seeds, to where the verdict holds; by default
        where the first side is smaller.
    ratio : bool
        Whether the map shows the first side over the second, instead of minus it.

    Examples
    --------
    >>> table = pd.DataFrame({
    ...     "side": ["batch"] * 4 + ["none"] * 4,
    ...     "rate": [0.1, 0.1, 1.0, 1.0] * 2,
    ...     "steps": 100,
    ...     "seed": [0, 1] * 4,
    ...     "loss": [0.2, 0.3, 0.1, 0.2, 0.1, 0.2, 0.5, np.inf],
    ... })
    >>> found = verdicts(table, "loss", x="rate", y="steps", sides=("batch", "none"))
    >>> found.change.round(2), found.state
    (array([[ 0.1, -0.4]]), array([['turns', 'diverged']], dtype='<U8'))
    """
    names = [side for side in sides if isinstance(side, str)]
    if not names:
        raise ValueError(f"sides: got {sides!r}, at least one must be a name in the column {between!r}")
    rows = table[table[between].isin(names)]
    axes = [_values(rows[name]) for name in (y, x, "seed")]
    a, b = (_on_grid(rows, of, {y: axes[0], x: axes[1], "seed": axes[2]}, between, side) for side in sides)
    finite = np.isfinite(a) & np.isfinite(b)
    good = np.zeros(finite.shape, bool)
    good[finite] = holds(a[finite], b[finite])
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(a == b, 1.0, a / b) if ratio else a - b
    change = pd.DataFrame(np.where(finite, each, np.nan).reshape(-1, finite.shape[-1])).median(axis=1)
    return Verdicts(
        axes[1],
        axes[0],
        sides,
        change.to_numpy().reshape(finite.shape[:2]),
        ratio,
        good.sum(-1),
        (finite & ~good).sum(-1),
        np.stack([(~np.isfinite(side)).sum(-1) for side in (a, b)]),
    )


def best(
    table: pd.DataFrame, of: str, *, over: str, by: Sequence[str], largest: bool = False
) -> pd.DataFrame:
    """The rows at each one's best value of a setting: where the median over the seeds is smallest.

    Parameters
    ----------
    over : str
        The setting that is chosen. A value with which any seed diverged is no candidate.
    by : sequence of str
        Columns that tell apart what chooses for itself: the side, and settings such as the steps.
    largest : bool
        Whether the largest median is best.

    Returns
    -------
    DataFrame
        Rows of the table, with a column ``"inside"``: whether the choice is neither the first nor the last
        of its list, so that the list was long enough.

    Examples
    --------
    >>> table = pd.DataFrame({"rate": [0.1, 0.3, 1.0], "steps": 100, "seed": 0, "loss": [0.5, 0.2, np.nan]})
    >>> best(table, "loss", over="rate", by=["steps"])
       rate  steps  seed  loss  inside
    1   0.3    100     0   0.2    True
    """
    chosen = []
    for key, rows in table.groupby(list(by), sort=False):
        finite = rows[of].where(np.isfinite(rows[of])).groupby(rows[over])
        medians = finite.median()[finite.count() == finite.size()]
        if medians.empty:
            raise ValueError(f"{over}: at {_point(by, key)} some seed diverged with every value")
        value = medians.idxmax() if largest else medians.idxmin()
        inside = rows[over].min() < value < rows[over].max()
        chosen.append(rows[rows[over] == value].assign(inside=inside))
    return pd.concat(chosen)


def edge(found: Verdicts, x: str, y: str) -> str:
    """Say for each value of y where along x the verdict holds, turns, is mixed, or networks diverged.

    Rows that agree are named together; `x` and `y` say what the settings are called.

    >>> found = Verdicts([0.1, 0.3, 1.0], [100], ("a", "b"), np.zeros((1, 3)), False,
    ...     np.array([[5, 5, 0]]), np.array([[0, 0, 5]]), np.zeros((2, 1, 3), int))
    >>> edge(found, "rate", "steps")
    'steps 100: holds at rate 0.1 to 0.3, turns at 1'
    """
    parts: list[tuple[list[str], str]] = []
    for value, row in zip(found.y, found.state, strict=True):
        runs = [
            (state, [v for _, v in run])
            for state, run in itertools.groupby(zip(row, found.x, strict=True), lambda pair: pair[0])
        ]
        spans = [
            (state, _text(run[0]) + (f" to {_text(run[-1])}" if len(run) > 1 else "")) for state, run in runs
        ]
        words = {"mixed": "seeds disagree", "diverged": "networks diverged"}
        said = ", ".join(
            f"{words.get(state, state)} at {'' if k else x + ' '}{span}"
            for k, (state, span) in enumerate(spans)
        )
        if parts and parts[-1][1] == said:
            parts[-1][0].append(_text(value))
        else:
            parts.append(([_text(value)], said))
    return "; ".join(f"{y} {', '.join(values)}: {said}" for values, said in parts)


def draw(
    *found: Verdicts,
    xlabel: str,
    ylabel: str,
    label: str,
    titles: Sequence[str] = (),
    here: tuple[Any, Any] | None = None,
    limit: float | None = None,
) -> Figure:
    """Draw one to three maps below one another, with one scale of colours.

    A dot stands where the verdict holds with every seed, a cross where it turns with every seed. A grey cell
    says that a network diverged, and its hatch which side's; a frame marks the chapter's setting.

    Parameters
    ----------
    xlabel, ylabel, label : str
        What the axes and the colours show, with units.
    titles : sequence of str
        One for each map.
    here : tuple, optional
        The chapter's setting, a value of x and one of y.
    limit : float, optional
        The largest difference, or factor, that the colours tell apart; by default the largest of the maps,
        and a factor of 16 at most.

    Examples
    --------
    >>> found = Verdicts([0.1, 1.0], [100], ("a", "b"), np.array([[-0.2, 0.1]]), False,
    ...     np.array([[5, 0]]), np.array([[0, 5]]), np.zeros((2, 1, 2), int))
    >>> fig = draw(found, xlabel="rate", ylabel="steps", label="loss, a minus b", here=(0.1, 100))
    >>> [text.get_text() for text in fig.axes[0].get_xticklabels()]
    ['0.1', '1']
    >>> plots.plt.close(fig)
    """
    if not 1 <= len(found) <= MOST_PANELS:
        raise ValueError(f"found: got {len(found)} maps, a figure takes 1 to {MOST_PANELS}")
    if titles and len(titles) != len(found):
        raise ValueError(f"titles: got {len(titles)}, expected one for each of {len(found)} maps")
    if len({one.ratio for one in found}) > 1:
        raise ValueError("found: got differences and ratios, which have no scale in common")
    norm = _norm(found, limit)
    height = 1.8 + sum(0.6 + 0.36 * len(one.y) for one in found)
    fig, axes = plots.figure(rows=len(found), height=height, squeeze=False)
    for ax, one, title in zip(axes[:, 0], found, titles or [""] * len(found), strict=True):
        image = _panel(ax, one, norm, here)
        ax.set(ylabel=ylabel, title=title)
    axes[-1, 0].set_xlabel(xlabel)
    bar = fig.colorbar(image, ax=axes[:, 0], label=label, location="top", aspect=40)
    if found[0].ratio:
        most = math.floor(math.log2(norm.vmax or 2) + 1e-9)
        ticks = range(-most, most + 1, max(1, most // 3))
        bar.set_ticks([2.0**k for k in ticks], labels=[f"1/{2**-k}" if k < 0 else f"{2**k}" for k in ticks])
        bar.ax.minorticks_off()
    fig.legend(handles=_legend(found, here), loc="outside lower center", ncols=2, handlelength=1.5)
    return fig


# --------------------------------------------------------------------------- small shared parts


def _values(column: pd.Series) -> list[Any]:
    """Its values: numbers from small to large, names as they come."""
    values = column.unique().tolist()
    return sorted(values) if pd.api.types.is_numeric_dtype(column) else values


def _on_grid(rows: pd.DataFrame, of: str, axes: dict[str, list[Any]], between: str, side: Side) -> Floats:
    """Values of a side, an axis for each of `axes`."""
    shape = tuple(map(len, axes.values()))
    if not isinstance(side, str):
        return np.full(shape, float(side))
    check_choice(rows[between].unique().tolist(), **{between: side})
    values = rows[rows[between] == side].set_index([*axes])[of]
    if values.index.has_duplicates:
        twice = _point(axes, values.index[values.index.duplicated()][0])
        raise ValueError(f"table: got several rows for {side} at {twice}; first choose the other settings")
    points = pd.MultiIndex.from_product(axes.values())
    missing = points.difference(values.index)
    if len(missing):
        raise ValueError(f"table: got no row for {side} at {_point(axes, missing[0])}")
    on_grid: Floats = values.reindex(points).to_numpy(float).reshape(shape)
    return on_grid


def _point(names: Iterable[str], values: Iterable[Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def _norm(found: Sequence[Verdicts], limit: float | None) -> Normalize:
    """A scale of colours with "no difference" in its middle."""
    values = np.concatenate([one.change[one.state != "diverged"] for one in found])
    if not found[0].ratio:
        most = limit or np.abs(values).max(initial=0.0) or 1.0
        return Normalize(-most, most)
    with np.errstate(divide="ignore"):
        most = limit or 2 ** np.clip(np.abs(np.log2(values)).max(initial=0.0), 1, 4)
    return LogNorm(1 / most, most)


def _panel(ax: Axes, one: Verdicts, norm: Normalize, here: tuple[Any, Any] | None) -> Any:
    """One map: cells in equal steps, as the values of a grid usually are on a logarithmic axis."""
    state = one.state
    colours = COLOURS.with_extremes(bad=DIVERGED)
    shown = np.ma.masked_where(state == "diverged", one.change)
    if one.ratio:
        shown = np.ma.clip(shown, norm.vmin, norm.vmax)  # a logarithm has no place for 0
    image = ax.pcolormesh(shown, cmap=colours, norm=norm, edgecolors="white", linewidth=1)
    for i, j in np.ndindex(state.shape):
        for count, hatch in zip(one.diverged[:, i, j], HATCHES, strict=True):
            if count:
                look: dict[str, Any] = {"fill": False, "hatch": hatch, "edgecolor": "#555555", "linewidth": 0}
                ax.add_patch(Rectangle((j, i), 1, 1, **look))
    for name, marker in MARKS.items():
        i, j = np.nonzero(state == name)
        ax.scatter(j + 0.5, i + 0.5, s=36, color="black", **marker)
    if here is not None:
        check_choice(one.x, here=here[0])
        check_choice(one.y, here=here[1])
        corner = one.x.index(here[0]), one.y.index(here[1])
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2.2, zorder=3))
    ax.set_xticks(np.arange(len(one.x)) + 0.5, map(_text, one.x))
    ax.set_yticks(np.arange(len(one.y)) + 0.5, map(_text, one.y))
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _legend(found: Sequence[Verdicts], here: tuple[Any, Any] | None) -> list[Any]:
    """An entry for each sign that occurs."""
    plain: dict[str, Any] = {"linestyle": "none", "color": "black"}
    states = {state for one in found for state in one.state.ravel()}
    entries: list[Any] = [
        Line2D([], [], marker=MARKS[state]["marker"], label=f"{state} with every seed", **plain)
        for state in MARKS
        if state in states
    ]
    for k, hatch in enumerate(HATCHES):
        names = dict.fromkeys(str(one.sides[k]) for one in found if one.diverged[k].any())
        if names:
            look: dict[str, Any] = {"facecolor": DIVERGED, "edgecolor": "#555555", "hatch": hatch}
            entries.append(Patch(label=f"diverged: {', '.join(names)}", **look))
    if here is not None:
        entries.append(
            Patch(facecolor="none", edgecolor="black", linewidth=2.2, label="the chapter's setting")
        )
    return entries


def _text(value: Any) -> str:
    """A value as a tick shows it."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
