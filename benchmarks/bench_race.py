"""Seconds of training to 85 % test accuracy on Fashion-MNIST: `make bench`.

The textbook's recipe is a LeNet with sigmoids and a batch norm that is written in plain autograd, batches
of 128, rate 0.1. Ours differs in what the chapters of this book measure: ReLU instead of the sigmoid, the
layer with the analytic backward, momentum, and memory in channels_last order.

Both take turns, on the same images, and the evaluations are not timed. The full set is read from the
folder given by `--root` (`make bench FASHION_MNIST=FOLDER`), else from the cache, else downloaded (30 MB).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from bench_norms import PlainBatchNorm
from torch import Tensor, nn

from bnbook import data, layers, models

LEVEL = 0.85
SEEDS = 3
EVALUATE_EVERY = 25
MOST_STEPS = 6000


def textbook() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sigmoid LeNet whose batch norms leave their gradient to autograd."""
    model = models.lenet((1, 28, 28), 10, norm="batch", activation="sigmoid")
    for i, part in enumerate(model):
        if isinstance(part, layers.BatchNorm):
            model[i] = PlainBatchNorm(part.num_features)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def ours() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A ReLU LeNet with the package's layer, trained with momentum."""
    model = models.lenet((1, 28, 28), 10, norm="batch", activation="relu")
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def batches(x: Tensor, y: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled mini-batches without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(len(x), generator=generator).split(size):
            if len(part) == size:
                yield x[part], y[part]


def seconds_to_level(recipe: str, images: data.Data, seed: int) -> tuple[float, int]:
    """Seconds and steps of training until the test accuracy is LEVEL; infinite beyond MOST_STEPS."""
    torch.manual_seed(seed)
    model, optimizer = textbook() if recipe == "textbook" else ours()
    x, y, x_test, y_test = map(torch.from_numpy, images)
    if recipe == "ours":
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    trained = 0.0
    for step, (xb, yb) in enumerate(batches(x, y, 128, seed), 1):
        start = time.perf_counter()
        loss = F.cross_entropy(model(xb), yb)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trained += time.perf_counter() - start
        if step % EVALUATE_EVERY == 0:
            with torch.no_grad():
                # Batch statistics for both: the textbook layer keeps no others.
                accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
            if accuracy >= LEVEL:
                return trained, step
        if step == MOST_STEPS:
            break
    return float("inf"), MOST_STEPS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", help="folder with the four files of Fashion-MNIST; no download then")
    root = parser.parse_args().root
    torch.set_num_threads(1)
    images = data.fashion_mnist(root)
    images = images._replace(x_test=images.x_test[:2000], y_test=images.y_test[:2000])
    print(f"Fashion-MNIST, {100 * LEVEL:.0f} % of 2,000 test images, LeNet, one thread, {SEEDS} seeds")
    print(f"\n{'recipe':12}{'median steps':>14}{'median seconds':>16}")
    seconds: dict[str, list[float]] = {"textbook": [], "ours": []}
    steps: dict[str, list[int]] = {"textbook": [], "ours": []}
    for seed in range(SEEDS):
        for recipe in seconds:
            taken, needed = seconds_to_level(recipe, images, seed)
            seconds[recipe].append(taken)
            steps[recipe].append(needed)
    for recipe, values in seconds.items():
        print(f"{recipe:12}{statistics.median(steps[recipe]):>14.0f}{statistics.median(values):>16.1f}")
    ratio = statistics.median(a / b for a, b in zip(seconds["textbook"], seconds["ours"], strict=True))
    print(f"\nours is {ratio:.1f} times as fast (median over the seeds)")


if __name__ == "__main__":
    main()
