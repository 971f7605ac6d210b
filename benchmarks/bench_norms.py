"""Ratios of our layers' time and memory to PyTorch's: `make bench`.

Every number is a ratio of medians taken in one run, in which the candidates take turns, so that a busy
machine slows all of them alike. Nothing here is a test: a clock is not one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bnbook import layers, norms

ROUNDS = 15
SHAPE = (64, 64, 32, 32)


class PlainBatchNorm(nn.Module):
    """Batch norm as one would write it first, with its gradient left to autograd."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C) or (N, C, H, W)."""
        axes, shape = (0, 2, 3)[: x.ndim - 1], (-1, *[1] * (x.ndim - 2))
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
        return self.weight.view(shape) * (x - mean) / torch.sqrt(var + 1e-5) + self.bias.view(shape)


def naive_batch_norm(x: np.ndarray) -> np.ndarray:
    """One loop over the channels, as in many tutorials."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        channel = x[:, c]
        y[:, c] = (channel - channel.mean()) / np.sqrt(channel.var() + 1e-5)
    return y


def medians(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each candidate; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for warm in range(-2, ROUNDS):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if warm >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], object]:
    """One forward and one backward pass."""
    return lambda: layer(x.detach().requires_grad_()).backward(dy)


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that the forward pass keeps for the backward one, without the input and the parameters."""
    known = {x.untyped_storage().data_ptr(), *(p.untyped_storage().data_ptr() for p in layer.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(x.requires_grad_())
    total = sum(kept.values())
    del output
    return total


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    x, dy = torch.randn(SHAPE), torch.randn(SHAPE)
    channels = SHAPE[1]
    print(
        f"input {SHAPE}, float32, {torch.get_num_threads()} thread(s); ratios to the first row of each block"
    )
    print(f"\n{'forward and backward':36}{'time':>8}{'kept memory / input':>22}")
    blocks: list[dict[str, nn.Module]] = [
        {
            "nn.BatchNorm2d": nn.BatchNorm2d(channels),
            "layers.BatchNorm": layers.BatchNorm(channels),
            "plain autograd batch norm": PlainBatchNorm(channels),
        },
        {"nn.GroupNorm(8)": nn.GroupNorm(8, channels), "layers.GroupNorm(8)": layers.GroupNorm(8, channels)},
    ]
    for block in blocks:
        seconds = medians({name: step(layer, x, dy) for name, layer in block.items()})
        base = next(iter(seconds.values()))
        for name, layer in block.items():
            memory = kept_bytes(layer, x.detach().clone()) / (x.numel() * 4)
            print(f"{name:36}{seconds[name] / base:>7.2f}x{memory:>21.2f}x")

    a = x[:16].numpy()
    one, zero = np.ones(channels, "float32"), np.zeros(channels, "float32")
    seconds = medians(
        {
            "NumPy, loop over channels": lambda: naive_batch_norm(a),
            "norms.batch_norm": lambda: norms.batch_norm(a, one, zero),
        }
    )
    print(f"\n{f'forward only, {a.shape}':36}{'time':>8}")
    base = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"{name:36}{value / base:>7.2f}x")


if __name__ == "__main__":
    main()
