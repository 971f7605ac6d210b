"""The picture that messengers show of a link to the book: ``python -m bookbuild.picture``.

Inputs of four sigmoid units of a fresh network on real digits, before and after batch normalization.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bnbook import data, norms, plots
from bookbuild.results import BOOK

FILE = BOOK / "_static" / "share.png"


def draw(path: Path = FILE) -> None:
    """Draw the picture, 1200 x 630 pixels."""
    plots.use_style()
    rng = np.random.default_rng(1)
    x = data.mnist5k().x_train.reshape(-1, 784)
    inputs = x @ rng.normal(0, 0.12, (784, 4)) + rng.normal(0, 2, 4)
    normalized, _ = norms.batch_norm(inputs, np.ones(4), np.zeros(4))
    fig, axes = plt.subplots(1, 2, figsize=(12, 6.3), dpi=100, sharey=True, constrained_layout=False)
    fig.subplots_adjust(left=0.05, right=0.95, bottom=0.1, top=0.62, wspace=0.08)
    titles = ("four units of a network", "after batch normalization")
    for ax, values, title in zip(axes, (inputs, normalized), titles, strict=True):
        for unit, method in zip(values.T, ("batch", "group", "layer", "instance"), strict=True):
            ax.hist(unit, np.linspace(-7, 7, 71), density=True, alpha=0.6, color=plots.METHODS[method].colour)
        ax.set_title(title, fontsize=22, loc="center")
        ax.set(yticks=[], xlim=(-7, 7))
        ax.tick_params(labelsize=16)
        ax.spines["left"].set_visible(False)
    fig.text(0.05, 0.84, "Batch Normalization, Measured", fontsize=44, weight="bold")
    fig.text(0.05, 0.755, "A course textbook that you can run", fontsize=26)
    fig.savefig(path)
    plt.close(fig)


if __name__ == "__main__":
    draw()
