"""What the interactive figures begin with: their numbers, and the picture that stays without JavaScript.

The numbers come from :mod:`bnbook` and are embedded in the page. The scripts in ``book/_static/sliders``
compute from them what the package would compute; browser tests compare the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from bnbook import data, norms, plots, sgd, whitening
from bookbuild import playground_data
from bookbuild.keys import code_cells
from bookbuild.results import BOOK

Floats = NDArray[np.float64]
Data = dict[str, Any]

BOUND = float(np.log(19))  # a sigmoid is saturated beyond it, as in the chapter on saturation
LANDSCAPE = BOOK / "sliders" / "landscape.json"
STEPS, EXAMPLES, RUNS = 300, 64, 5
# One letter for each of the 64 examples
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"


class Slider(NamedTuple):
    """One interactive figure."""

    data: Callable[[], Data]  # what the page embeds; JSON
    draw: Callable[[Data], Figure]  # the picture that stays without JavaScript
    assets: tuple[str, ...]  # its scripts and styles in book/_static


def _looks(*methods: str) -> Data:
    """Colour, dash and name of some methods, as the scripts use them."""
    looks = {}
    for method in methods:
        look = plots.METHODS[method]
        dash = "none" if look.dash == "-" else " ".join(f"{2 * length:g}" for length in look.dash[1])
        looks[method] = {"colour": look.colour, "dash": dash, "name": look.name}
    return looks


def _hex(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour[:3])


def _numbers(values: Any, decimals: int = 4) -> Any:
    """Nested lists of rounded numbers; the scripts and the tests both begin with the rounded ones."""
    return np.round(np.asarray(values, float), decimals).tolist()


# --------------------------------------------------------------------------- batch_norm, gamma


def sigmoid(z: ArrayLike) -> Floats:
    """The logistic function."""
    return np.asarray(1 / (1 + np.exp(-np.asarray(z, float))))


def _batch_norm_data() -> Data:
    images = data.digits().x_train.astype(np.float64)
    weights = np.random.default_rng(0).normal(size=(64, 32)) / np.sqrt(64)  # as in the chapter
    middle = brentq(lambda z: 0.9 * z / 4 - (sigmoid(z) - 0.5), 0.1, 3)  # 10 % below the tangent
    return {
        "inputs": _numbers((images @ weights)[:400, 0]),
        "middle": round(float(middle), 4),
        "saturated": round(BOUND, 4),
        "start": {"gamma": 1, "beta": 0, "eps": -5, "scale": 1},
        "methods": _looks("batch"),
    }


def _gamma_data() -> Data:
    return {**_batch_norm_data(), "simple": True}


def _draw_batch_norm(start: Data) -> Figure:
    y, _ = norms.batch_norm(np.array(start["inputs"])[:, None], np.ones(1), np.zeros(1))
    fig, ax = plots.figure()
    counts, edges = np.histogram(y, bins=40, range=(-10, 10))
    ax.axvspan(-start["middle"], start["middle"], color=plots.METHODS["batch"].colour, alpha=0.15)
    ax.stairs(counts / counts.max(), edges, fill=True, color="#bbbbbb")
    z = np.linspace(-10, 10, 201)
    ax.plot(z, sigmoid(z), color=plots.METHODS["batch"].colour)
    ax.set(xlabel="y = γ x̂ + β", ylabel="σ(y)", ylim=(0, 1.05))
    return fig


# --------------------------------------------------------------------------- backward


def _backward_data() -> Data:
    losses = {"y₁": [1, 0, 0, 0], "y₁ + 2 y₃ − y₄": [1, 0, 2, -1], "y₁ + y₂ + y₃ + y₄": [1, 1, 1, 1]}
    return {
        "x": [1, 2, 3, 4],  # as in the chapter
        "gamma": 2,
        "eps": 0.75,
        "losses": [{"text": text, "dy": dy} for text, dy in losses.items()],
        "methods": _looks("batch"),
    }


def _draw_backward(start: Data) -> Figure:
    nodes = {
        "x": (0.0, 0.0, "$x_i$", "4"),
        "mu": (1.15, 1.55, "$\\mu_B$", "3"),
        "var": (2.3, 0.95, "$\\sigma_B^2$", "2"),
        "x_hat": (3.6, 0.0, "$\\hat x_i$", "1"),
        "y": (4.75, 0.0, "$y_i$", ""),
        "J": (5.8, 0.0, "$J$", ""),
        "gamma": (4.3, -1.2, "$\\gamma$", "5"),
        "beta": (5.2, -1.2, "$\\beta$", "6"),
    }
    statistics = "x mu, x var, mu var, mu x_hat, var x_hat"
    looks = [
        (statistics, plots.METHODS["batch"]),
        ("x x_hat, x_hat y, y J, gamma y, beta y", plots.METHODS["none"]),
    ]
    fig, ax = plots.figure(height=3.5)
    for edges, look in looks:
        for edge in edges.split(", "):
            begin, end = edge.split()
            bend = -0.35 if edge == "mu x_hat" else 0.0
            style = {"arrowstyle": "-|>", "color": look.colour, "lw": 1.8, "shrinkA": 14, "shrinkB": 14}
            style["connectionstyle"] = f"arc3,rad={bend}"
            ax.annotate("", nodes[end][:2], nodes[begin][:2], arrowprops=style)
    for x, y, name, number in nodes.values():
        ax.plot(x, y, "o", markersize=25, color="white", markeredgecolor="black")
        ax.text(x, y, name, ha="center", va="center", fontsize=12)
        if number:
            ax.text(x - 0.06, y - 0.52, f"({number})", ha="center", va="center")
    ax.text(0.0, 2.15, "over all $m$ examples", color=plots.darker(plots.METHODS["batch"].colour))
    ax.set(xlim=(-0.4, 6.2), ylim=(-1.9, 2.4))
    ax.set_axis_off()
    return fig


# --------------------------------------------------------------------------- sgd

NARROW, WIDE = np.array([-1.0, 0.0]), np.array([1.0, 0.0])


def loss(w: Floats) -> Floats:
    """The loss with a narrow and a wide minimum of the chapter on SGD, for w of shape (..., 2)."""
    a, b = np.square(w - NARROW).sum(-1), np.square(w - WIDE).sum(-1)
    hills = -0.5 * np.exp(-a / (2 * 0.15**2)) - np.exp(-b / (2 * 0.6**2))
    return np.asarray(hills + 0.05 * np.square(w).sum(-1))


def loss_gradient(w: Floats) -> Floats:
    """Its gradient."""
    a = np.square(w - NARROW).sum(-1, keepdims=True)
    b = np.square(w - WIDE).sum(-1, keepdims=True)
    steep = 0.5 * np.exp(-a / (2 * 0.15**2)) / 0.15**2 * (w - NARROW)
    return np.asarray(steep + np.exp(-b / (2 * 0.6**2)) / 0.6**2 * (w - WIDE) + 0.1 * w)


def mini_batch_gradients(start: Data, N: int, run: int) -> Callable[[sgd.Array], sgd.Array]:
    """The gradients that one run of the slider sees, one a call, from the tables that the page embeds.

    Parameters
    ----------
    start : dict
        What the page embeds.
    N : int
        Batch size: step t takes the first N letters of row t, or all examples.
    run : int
        0 to 4; run r begins with row 60 r.

    Returns
    -------
    function
        For :func:`bnbook.sgd.descend`.
    """
    xi, rows = np.array(start["xi"]), iter(range(STEPS))

    def gradient(w: sgd.Array) -> sgd.Array:
        row = start["order"][(next(rows) + run * STEPS // RUNS) % STEPS]
        batch = [LETTERS.index(letter) for letter in row[:N]] if N < EXAMPLES else list(range(EXAMPLES))
        return loss_gradient(np.asarray(w, float)) + xi[batch].mean(0)

    return gradient


def _sgd_data() -> Data:
    rng = np.random.default_rng(0)
    xi = rng.standard_normal((EXAMPLES, 2))
    xi = 3.0 * (xi - xi.mean(0)) / xi.std(0)
    order = ["".join(LETTERS[i] for i in rng.permutation(EXAMPLES)[:32]) for _ in range(STEPS)]
    grid = np.stack(np.meshgrid(np.linspace(-1.7, 2.3, 61), np.linspace(-1.2, 1.2, 37)), axis=-1)
    fig, ax = plots.figure()
    contours = ax.contour(*np.moveaxis(grid, -1, 0), loss(grid), levels=10)
    lines = [_numbers(part, 2) for level in contours.allsegs for part in level if len(part) > 1]
    plt.close(fig)
    return {
        "xi": _numbers(xi),
        "order": order,
        "letters": LETTERS,
        "contours": lines,
        "start": {"batch": 0, "rate": 0.04, "steps": 300, "run": 1},
        "methods": _looks("batch", "noisy"),
    }


def _draw_sgd(start: Data) -> Figure:
    path = sgd.descend(sgd.step, mini_batch_gradients(start, 1, 0), NARROW, STEPS, lr=0.04)
    fig, ax = plots.figure()
    for line in start["contours"]:
        ax.plot(*np.transpose(line), color="#999999", linewidth=0.8)
    ax.plot(*path.T, ".-", color=plots.METHODS["batch"].colour, linewidth=0.5, markersize=2.5)
    ax.plot(*path[-1], "o", color=plots.METHODS["noisy"].colour, markersize=6)
    ax.set(xlabel="θ₁", ylabel="θ₂", xlim=(-1.7, 2.3), ylim=(-1.2, 1.2))
    ax.grid(False)
    return fig


# --------------------------------------------------------------------------- whitening


def _whitening_data() -> Data:
    noise = np.random.default_rng(0).standard_normal((200, 2))
    return {
        "noise": _numbers(whitening.apply(whitening.fit_zca_whitening(noise), noise)),
        "mean": [3.0, 1.0],
        "std": [1.5, 0.5],
        "start": {"correlation": 0.8, "stage": "raw"},
        "shades": [_hex(shade) for shade in plots.shades(5)],
    }


def _cloud(start: Data, correlation: float) -> Floats:
    """The raw cloud of the slider at a correlation."""
    z = np.array(start["noise"])
    second = correlation * z[:, 0] + np.sqrt(1 - correlation**2) * z[:, 1]
    return np.asarray(start["mean"] + start["std"] * np.column_stack([z[:, 0], second]))


def _draw_whitening(start: Data) -> Figure:
    x = _cloud(start, 0.8)
    turn = np.linspace(0, 2 * np.pi, 73)
    root = np.linalg.cholesky(whitening.covariance(x))
    fig, ax = plots.figure(height=3.4)
    ax.scatter(*x.T, c=np.array(start["noise"])[:, 0], cmap="viridis", s=7)
    ax.plot(*(x.mean(0)[:, None] + 2 * root @ [np.cos(turn), np.sin(turn)]), color="black", linewidth=1)
    ax.set(xlabel="first", ylabel="second", xlim=(-4, 8), ylim=(-4, 4), aspect="equal")
    return fig


# --------------------------------------------------------------------------- inference


def _inference_data() -> Data:
    noise = np.random.default_rng(0).standard_normal(600)
    return {
        "noise": _numbers((noise - noise.mean()) / noise.std()),
        "jump": 400,
        "start": {"alpha": -1.0, "batch": 5},
        "methods": _looks("batch"),
    }


def _draw_inference(start: Data) -> Figure:
    noise, jump = np.array(start["noise"]), start["jump"]
    level = np.arange(1, len(noise) + 1) > jump
    stream = level + noise / np.sqrt(32)
    average = norms.RunningStats(1, momentum=0.1, dtype=np.float64)
    stored = []
    for mean in stream:
        average.update(np.array([[mean - 1], [mean + 1]]))
        stored.append(average.mean[0])
    steps = np.arange(1, len(noise) + 1)
    fig, ax = plots.figure()
    ax.plot(steps, stream, ".", color="#bbbbbb", markersize=2)
    ax.step(steps, level, color="black", linewidth=0.8)
    ax.plot(steps, stored, color=plots.METHODS["batch"].colour)
    ax.set(xlabel="step", ylabel="mean of a channel")
    return fig


# --------------------------------------------------------------------------- landscape


def landscape_walks() -> Data:
    """Run the cells of the chapter on the landscape up to its walk along the gradient; takes seconds.

    Returns
    -------
    dict
        ``lengths``, and for each norm: ``loss``, over that at the start, for each of 5 networks and each
        length; ``slope``, the squared length of the gradient over the loss at the start.
    """
    cells = code_cells((BOOK / "landscape.md").read_text("utf-8"))
    last = next(i for i, source in enumerate(cells) if "walks[norm].append" in source)
    space: Data = {}
    for source in cells[: last + 1]:
        exec(source, space)
    plt.close("all")
    walks: Data = {"lengths": [float(f"{length:.6g}") for length in space["lengths"] if length < 31]}
    for norm, nets in space["trained"].items():
        starts = [
            space["landscape"].along_gradient(net, space["F"].cross_entropy, *space["images"](seed), 0.1)
            for seed, net in zip(space["SEEDS"], nets, strict=True)
        ]
        walks[norm] = {
            "loss": [
                [float(f"{value:.6g}") for value in row[: len(walks["lengths"])]]
                for row in space["walks"][norm]
            ],
            "slope": [float(f"{start['gradient'] ** 2 / start['loss']:.6g}") for start in starts],
        }
    return walks


def _landscape_data() -> Data:
    return {
        **json.loads(LANDSCAPE.read_text("utf-8")),
        "start": {"length": 6},
        "methods": _looks("none", "batch"),
    }


def _draw_landscape(start: Data) -> Figure:
    fig, ax = plots.figure()
    for norm in ("none", "batch"):
        ax.plot(
            start["lengths"], np.transpose(start[norm]["loss"]), plots.METHODS[norm].colour, linewidth=0.4
        )
        plots.line(ax, start["lengths"], np.median(start[norm]["loss"], axis=0), norm, label="")
    ax.axhline(1, color="black", linewidth=0.6)
    ax.axvline(0.1, color="black", linewidth=0.6)
    ax.set(xscale="log", yscale="log", ylim=(0.1, 1e3), xlim=(1e-3, 31))
    ax.set(xlabel="length of the step", ylabel="loss / loss at the start")
    for norm, x, y in (("none", 0.6, 30), ("batch", 6, 0.7)):
        look = plots.METHODS[norm]
        ax.text(x, y, look.name, color=plots.darker(look.colour), ha="right")
    return fig


# --------------------------------------------------------------------------- group_norm


def _group_norm_data() -> Data:
    return {
        "shape": [4, 6, 4],
        "start": {"norm": "group", "groups": 1, "example": 1, "channel": 1, "position": 1},
        "methods": _looks("batch", "layer", "instance", "group", "rms"),
    }


def _draw_group_norm(start: Data) -> Figure:
    N, C, S = start["shape"]
    fig, axes = plots.figure(2, 2, height=3.4)
    x = np.random.default_rng(0).normal(size=(N, C, S))
    _, cache = norms.group_norm(x, 2, np.ones(C), np.zeros(C))
    dy = np.zeros_like(x)
    dy[0, 0, 0] = 1
    members = np.abs(norms.group_norm_backward(dy, cache)[0]) > 1e-12
    colour = plots.METHODS["group"].colour
    for n, ax in enumerate(axes.flat):
        for c in range(C):
            for s in range(S):
                face = colour if members[n, c, s] else "white"
                ax.add_patch(Rectangle((c, s), 1, 1, facecolor=face, edgecolor="#555555"))
        ax.set(title=f"example {n + 1}", xlim=(0, C), ylim=(S, 0), xticks=[], yticks=[], aspect="equal")
        ax.set(xlabel="channels", ylabel="positions")
    axes[0, 0].plot(0.5, 0.5, "ko")
    return fig


def save_picture(figure: Figure, path: Path) -> None:
    """Write the picture, and forget the figure."""
    figure.savefig(path)
    plt.close(figure)


PLAYGROUND = tuple(
    f"playground/{name}.js" for name in ("random", "layers", "network", "worker", "view", "page")
)


def _playground(small: bool) -> Slider:
    return Slider(
        lambda: {**playground_data.start(small), "methods": _looks(*playground_data.KNOBS["norm"]["values"])},
        lambda _: playground_data.draw(),
        ("playground/playground.css", *PLAYGROUND),
    )


SLIDERS = {
    "batch_norm": Slider(_batch_norm_data, _draw_batch_norm, ("sliders/batch_norm.js",)),
    "gamma": Slider(_gamma_data, _draw_batch_norm, ("sliders/batch_norm.js",)),
    "backward": Slider(_backward_data, _draw_backward, ("sliders/backward.js",)),
    "sgd": Slider(_sgd_data, _draw_sgd, ("sliders/sgd.js",)),
    "whitening": Slider(_whitening_data, _draw_whitening, ("sliders/whitening.js",)),
    "inference": Slider(_inference_data, _draw_inference, ("sliders/inference.js",)),
    "landscape": Slider(_landscape_data, _draw_landscape, ("sliders/landscape.js",)),
    "group_norm": Slider(_group_norm_data, _draw_group_norm, ("sliders/group_norm.js",)),
    "playground": _playground(small=False),
    "playground_small": _playground(small=True),
}


if __name__ == "__main__":  # after a change of the chapter: python -m bookbuild.slider_data
    LANDSCAPE.write_text(json.dumps(landscape_walks(), indent=1) + "\n", "utf-8")
    print(f"wrote {LANDSCAPE}", file=sys.stderr)
