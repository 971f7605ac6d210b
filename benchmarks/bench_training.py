"""Ratios of a sweep's time to that of training its members one after another: `make bench`.

As in :mod:`bench_norms`, every number is a ratio taken in one run, and nothing here is a test.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from bnbook import data, models, training

STEPS = 200
ROUNDS = 7


def seconds(run: Callable[[], object]) -> float:
    """Processor time of this process, which does not count what others do on a busy machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def one_after_another(build: Callable[..., nn.Module], images: data.Data, seeds: int, steps: int) -> None:
    """What a loop over the seeds does."""
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = build(images.x_train.shape[1:], 10)
        training.fit(model, images, steps=steps, seed=seed, evaluate_every=steps)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    digits, fashion = data.digits(), data.fashion()
    small = data.Data(
        fashion.x_train[:2000, :, ::2, ::2].copy(),
        fashion.y_train[:2000],
        fashion.x_test[:500, :, ::2, ::2].copy(),
        fashion.y_test[:500],
    )
    mlp, cnn = partial(models.mlp, depth=2, width=32), partial(models.vgg, widths=(8, 8, 0, 16, 16))
    print("training.sweep against a loop of training.fit, one thread")
    print(f"\n{'networks':44}{'sweep is faster by':>24}")
    for name, build, images, seeds, steps in (
        ("16 MLPs 64-32-32-10, plain", partial(mlp, norm="none"), digits, 16, STEPS),
        ("16 MLPs 64-32-32-10, batch norm", partial(mlp, norm="batch"), digits, 16, STEPS),
        ("64 MLPs 64-32-32-10, batch norm", partial(mlp, norm="batch"), digits, 64, STEPS),
        ("8 CNNs on 14 x 14 images, plain", partial(cnn, norm="none"), small, 8, 20),
        ("8 CNNs on 14 x 14 images, batch norm", partial(cnn, norm="batch"), small, 8, 20),
    ):
        loop = partial(one_after_another, build, images, seeds, steps)
        stack = partial(training.sweep, build, images, steps=steps, seeds=seeds, evaluate_every=steps)
        stack()  # the first run of all loads what PyTorch loads late
        low, *_, high = ratios = sorted(seconds(loop) / seconds(stack) for _ in range(ROUNDS))
        print(f"{name:44}{f'{statistics.median(ratios):.1f}x [{low:.1f}, {high:.1f}]':>24}")


if __name__ == "__main__":
    main()
