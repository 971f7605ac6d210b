"""What the experiments on images share: a seed, the images, and their mini-batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bnbook import data
from bnbook._checks import check_choice
from bnbook.sgd import endless

Part = tuple[Tensor, Tensor, Tensor, Tensor]  # images and labels, for training and for the test


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """A seed for all that PyTorch draws inside; the global random state is put back."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@cache
def images_of(name: str, device: str) -> Part:
    """Images (n, 1, H, W) with mean 0 and standard deviation 1 over all pixels, and labels."""
    check_choice(("small", "full"), images=name)
    part = data.fashion() if name == "small" else data.fashion_mnist()
    train, test = torch.from_numpy(part.x_train), torch.from_numpy(part.x_test)
    if name == "small":
        train, test = F.avg_pool2d(train, 2), F.avg_pool2d(test, 2)
    std, mean = torch.std_mean(train)
    y_train, y_test = torch.from_numpy(part.y_train), torch.from_numpy(part.y_test)
    tensors = (train - mean) / std, y_train, (test - mean) / std, y_test
    x, y, x_test, y_test = (value.to(device) for value in tensors)
    return x, y, x_test, y_test


def batches_of(part: Part, batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The mini-batch of each step: shuffled epochs without their short last batch."""
    x, y, *_ = part
    for batch in itertools.islice(endless(len(x), batch_size, seed), steps):
        index = torch.from_numpy(batch).to(x.device)
        yield x[index], y[index]
