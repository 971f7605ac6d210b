"""Batch norm on several devices: with real processes of this machine, and with ghosts in a single one.

:func:`launch` starts ``python -m bnbook.experiments.distributed`` several times, with torchrun; each process
runs the same jobs, such as :func:`normalize` and :func:`train`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bnbook import data, doctor, layers
from bnbook.distributed import Group, SyncBatchNorm, convert
from bnbook.experiments import by_name
from bnbook.experiments.saturation import images_of
from bnbook.models import mlp
from bnbook.sgd import mini_batches

__all__ = [
    *("EACH", "LOOPBACK", "SCALES", "OfDevices", "accuracy", "device_batches", "in_one_process", "launch"),
    *("main", "normalize", "recomputed", "run", "skew", "train"),
]

# The network interface that does not leave the machine, by its name on macOS and on Linux.
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
EACH = 8
"""Examples of each device in a step."""

SIDES = ("SyncBN", "device 0", "recomputed")
SCALES: dict[str, list[dict[str, Any]]] = {
    "medium": [
        {
            "map": "skew",
            "images": images,
            "K": K,
            "rate": (0.01, 0.03, 0.1, 0.3, 1.0),
            "steps": (40, 160, 640),
            "side": SIDES,
            "seed": (100, 101, 102),  # the chapter's verdicts use others
        }
        for images, K in (("digits", 10), ("digits", 2), ("fashion", 10))
    ]
}
"""Grids by the name of the scale."""


# --------------------------------------------------------------------------- what each process does


def normalize(
    x: NDArray[Any],
    dy: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any],
    sizes: Sequence[int],
    *,
    sync: bool,
) -> dict[str, NDArray[Any]]:
    """Normalize this process's part of a batch, and carry the gradient back.

    Parameters
    ----------
    x, dy : ndarray of shape (N, C, ...)
        The whole batch, and the gradient of its output.
    weight, bias : ndarray of shape (C,)
    sizes : sequence of int
        Examples of each process.
    sync : bool
        With the statistics of all processes, or with its own.

    Returns
    -------
    dict
        y and dx of the part, the part's dweight and dbias, running_mean, running_var, and sent: numbers and
        bytes of each message, (messages, 2).
    """
    layer = (SyncBatchNorm if sync else layers.BatchNorm)(len(weight)).to(torch.from_numpy(x).dtype)
    layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}, strict=False)
    mine, upstream = (torch.split(torch.from_numpy(z), list(sizes))[dist.get_rank()] for z in (x, dy))
    mine = mine.clone().requires_grad_()
    with _sent() as sent:
        y = layer(mine)
        torch.autograd.backward(y, upstream)
    values = {
        "y": y.detach(),
        "dx": mine.grad,
        **{f"d{name}": value.grad for name, value in layer.named_parameters()},
        **{name: value for name, value in layer.named_buffers() if name.startswith("running")},
    }
    arrays = {name: value.numpy() for name, value in values.items() if value is not None}
    return {**arrays, "sent": np.array(sent).reshape(-1, 2)}


def train(
    x: NDArray[Any], y: NDArray[Any], order: NDArray[np.int64], *, seed: int, rate: float, sync: bool
) -> dict[str, NDArray[Any]]:
    """Train on this process's part of each batch: its loss in each step, and the final state.

    `order` is from :func:`device_batches`; all processes start from the same weights.
    """
    torch.manual_seed(seed)
    model: nn.Module = mlp(x.shape[1:], 10, depth=2, width=32, norm="batch").double()
    if sync:
        model = convert(model)  # on GPUs: nn.SyncBatchNorm.convert_sync_batchnorm(model)
    network = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    inputs, labels = torch.from_numpy(x).double(), torch.from_numpy(y)
    losses = []
    for batch in order[:, dist.get_rank()]:
        loss = F.cross_entropy(network(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return {"loss": np.array(losses), **{key: value.numpy() for key, value in model.state_dict().items()}}


@contextlib.contextmanager
def _sent() -> Iterator[list[tuple[int, int]]]:
    """Numbers and bytes of each message that this process sends."""
    sent: list[tuple[int, int]] = []

    def gather(parts: list[Tensor], message: Tensor, group: Group) -> None:
        sent.append((message.numel(), message.nbytes))
        all_gather(parts, message, group)

    def reduce(message: Tensor, group: Group) -> None:
        sent.append((message.numel(), message.nbytes))
        all_reduce(message, group=group)

    all_gather, all_reduce = dist.all_gather, dist.all_reduce
    with mock.patch.multiple(dist, all_gather=gather, all_reduce=reduce):
        yield sent


# --------------------------------------------------------------------------- how they are started


def launch(
    *jobs: Callable[[], Any], processes: int = 2, timeout: float = 60, limit: float = 120
) -> list[list[Any]]:
    """Run jobs in several processes of this machine, with torchrun, and wait for their results.

    The processes talk through the loopback interface, on a port that is free.

    Parameters
    ----------
    jobs : function
        Each a function of a module, or a ``functools.partial`` of one: another process cannot find what a
        cell of a notebook defines.
    timeout : float
        Seconds for which a process waits for a message of another.
    limit : float
        Seconds for everything; then ``subprocess.TimeoutExpired`` is raised.

    Returns
    -------
    list of list
        For each job, what each process returned.
    """
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "jobs").write_bytes(pickle.dumps((timeout, jobs)))
        script = ["-m", "bnbook.experiments.distributed", folder]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *script]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": LOOPBACK, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as torchrun:
            try:
                _, err = torchrun.communicate(timeout=limit)
            except BaseException:
                torchrun.terminate()  # it ends its processes, which a kill would leave behind
                raise
        if torchrun.returncode:
            raise RuntimeError(f"torchrun: exit code {torchrun.returncode}\n{err[-4000:]}")
        results = [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(processes)]
    return [list(of_job) for of_job in zip(*results, strict=True)]


def main(folder: str) -> None:
    """The script of each process; torchrun has told it by the environment which one it is."""
    timeout, jobs = pickle.loads(Path(folder, "jobs").read_bytes())
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    results = [job() for job in jobs]
    Path(folder, str(dist.get_rank())).write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


# --------------------------------------------------------------------------- the same in one process


def device_batches(
    y: NDArray[Any], K: int, steps: int, seed: int, *, skewed: bool = False
) -> NDArray[np.int64]:
    """Indices of the ``EACH`` examples that each of K devices trains on, in every step.

    The examples have the classes `y`. They are drawn from all and dealt out; if `skewed`, each device keeps
    its own share of the examples, sorted by class. The result has shape (steps, K, EACH).

    >>> device_batches(np.repeat([0, 1], 8), K=2, steps=1, seed=0, skewed=True)[0] // 8
    array([[0, 0, 0, 0, 0, 0, 0, 0],
           [1, 1, 1, 1, 1, 1, 1, 1]])
    """
    rng = np.random.default_rng(seed)
    shares = np.array_split(np.argsort(y, kind="stable"), K) if skewed else [np.arange(len(y))]
    size = K * EACH // len(shares)

    def stream(share: NDArray[Any]) -> Iterator[NDArray[Any]]:
        while True:
            yield from (share[batch] for batch in mini_batches(len(share), size, rng, drop_last=True))

    streams = [stream(share) for share in shares]
    drawn = [[next(s) for s in streams] for _ in range(steps)]
    return np.array(drawn, dtype=np.int64).reshape(steps, K, EACH)


class OfDevices(layers.GhostBatchNorm):
    """What devices compute with ``EACH`` examples and their own statistics; those of device 0 are kept."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, EACH)

    def by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, _, _ = super().by_batch(x, gamma, beta)
        var, mean = torch.var_mean(x.detach()[:EACH], 0)
        return y, mean, var


def in_one_process(
    images: data.Data,
    order: NDArray[np.int64],
    *,
    seed: int,
    rate: float,
    sync: bool,
    double: bool = False,
) -> Iterator[tuple[float, nn.Sequential]]:
    """Train as devices do, each with its part of `order`: the mean loss, and the network, after each step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(images.x_train.shape[1:], 10, depth=2, width=32, norm="batch")
    if not sync:
        parts = [OfDevices(p.num_features) if isinstance(p, layers.BatchNorm) else p for p in model]
        model = nn.Sequential(*parts)
    dtype = torch.float64 if double else torch.float32
    model.to(dtype)
    x, y = torch.from_numpy(images.x_train).to(dtype), torch.from_numpy(images.y_train)
    for batch in order.reshape(len(order), -1):
        model.train()
        loss = F.cross_entropy(model(x[batch]), y[batch])
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad, alpha=-rate)  # type: ignore[arg-type]
        yield loss.item(), model


def recomputed(model: nn.Sequential, images: data.Data) -> nn.Sequential:
    """The same weights, with the statistics of the whole training set ([ioffe2015]_, Algorithm 2)."""
    plain = mlp(images.x_train.shape[1:], 10, depth=2, width=32, norm="batch")
    plain.load_state_dict(model.state_dict())
    doctor.recompute(plain, [torch.from_numpy(images.x_train).float()])
    return plain


@torch.no_grad()
def accuracy(model: nn.Module, images: data.Data) -> float:
    """Percent of the test images that are named rightly, in evaluation mode."""
    dtype = next(model.parameters()).dtype
    guess = model.eval()(torch.from_numpy(images.x_test).to(dtype)).argmax(1)
    return 100 * float((guess.numpy() == images.y_test).mean())


def skew(
    images: str,
    K: int,
    rate: Sequence[float],
    steps: Sequence[int],
    side: Sequence[str],
    seed: Sequence[int],
) -> list[dict[str, Any]]:
    """Test accuracy of networks from K devices that have each their own classes, over rates and steps."""
    chosen, rows = images_of(images), list[dict[str, Any]]()
    for s in seed:
        order = device_batches(chosen.y_train, K, max(steps), s, skewed=True)
        for r, sync in itertools.product(rate, (True, False)):
            runs = in_one_process(chosen, order, seed=s, rate=r, sync=sync)
            for step, (loss, model) in enumerate(runs, start=1):
                if step not in steps:
                    continue
                found = {"SyncBN": model} if sync else {"device 0": model}
                if not sync and "recomputed" in side:
                    found["recomputed"] = recomputed(model, chosen)
                point = {"rate": r, "steps": step, "seed": s}
                rows += [
                    {
                        **point,
                        "side": name,
                        "accuracy": accuracy(one, chosen) if np.isfinite(loss) else np.nan,
                    }
                    for name, one in found.items()
                    if name in side
                ]
    return rows


run = by_name(skew)

if __name__ == "__main__":
    main(sys.argv[1])
