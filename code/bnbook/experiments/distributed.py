"""Training in several processes of this machine: what each of them does, and how they are started.

``python -m bnbook.experiments.distributed`` is the script of each process; :func:`launch` starts several.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bnbook.distributed import Group, SyncBatchNorm, average_gradients, convert
from bnbook.layers import BatchNorm
from bnbook.models import mlp
from bnbook.sgd import mini_batches

__all__ = ["DIED", "LOOPBACK", "compare", "device_batches", "fail", "launch", "main", "train"]

# The network interface that does not leave the machine, by its name on macOS and on Linux.
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
DIED = 17  # exit code of a process that was told to die

Arrays = dict[str, NDArray[Any]]


def device_batches(
    y: NDArray[Any], K: int, N: int, steps: int, seed: int, *, skewed: bool = False
) -> NDArray[np.int64]:
    """Indices of the examples that each of K devices trains on, in every step.

    Parameters
    ----------
    y : ndarray of shape (M,)
        Classes of the training examples.
    K : int
        Number of devices.
    N : int
        Examples of a step, a multiple of K.
    steps : int
    seed : int
    skewed : bool
        Whether each device keeps its own share of the examples, sorted by class. Otherwise each mini-batch is
        drawn from all examples and dealt out.

    Returns
    -------
    ndarray of shape (steps, K, N / K)

    Raises
    ------
    ValueError
        If K does not divide N.
    """
    if N % K:
        raise ValueError(f"N: got {N}, allowed are multiples of K = {K}")
    rng = np.random.default_rng(seed)
    shares = np.array_split(np.argsort(y, kind="stable"), K) if skewed else [np.arange(len(y))]
    size = N // len(shares)

    def stream(share: NDArray[Any]) -> Iterator[NDArray[Any]]:
        while True:
            yield from (share[batch] for batch in mini_batches(len(share), size, rng, drop_last=True))

    streams = [stream(share) for share in shares]
    steps_of = [[next(s) for s in streams] for _ in range(steps)]
    return np.array(steps_of, dtype=np.int64).reshape(steps, K, N // K)


def compare(given: Arrays) -> Arrays:
    """Normalize the parts of a batch on each process, with SyncBatchNorm ("sync") and BatchNorm ("batch").

    For each NAME in `given`, NAME.x is a batch (N, C, *spatial), NAME.dy the gradient of its output,
    NAME.weight and NAME.bias have shape (C,), and NAME.sizes, of shape (K,), counts the examples of each
    process. Returned are NAME.METHOD.y and .dx of the whole batch, .dweight and .dbias, summed over the
    processes, .running_mean and .running_var of shape (K, C), and .sent of shape (messages, 2): numbers and
    bytes of what a process sent.
    """
    results: Arrays = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in given):
        x, dy, weight, bias, sizes = (
            given[f"{name}.{key}"] for key in ("x", "dy", "weight", "bias", "sizes")
        )
        layers: dict[str, BatchNorm] = {"sync": SyncBatchNorm(len(weight))}
        if min(sizes) > 1:  # one example alone has no variance
            layers["batch"] = BatchNorm(len(weight))
        for method, layer in layers.items():
            layer.to(torch.from_numpy(x).dtype)
            layer.load_state_dict(
                {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}, strict=False
            )
            mine, upstream = (
                torch.split(torch.from_numpy(z), sizes.tolist())[dist.get_rank()] for z in (x, dy)
            )
            mine = mine.clone().requires_grad_()
            with _sent() as sent:
                y = layer(mine)
                torch.autograd.backward(y, upstream)
            whole = _gather({"y": y.detach(), "dx": mine.grad})
            summed = _gather({f"d{key}": value.grad for key, value in layer.named_parameters()})
            stacked = _gather({key: getattr(layer, key) for key in ("running_mean", "running_var")})
            joined = {
                **{key: np.concatenate(parts) for key, parts in whole.items()},
                **{key: np.sum(parts, axis=0) for key, parts in summed.items()},
                **{key: np.stack(parts) for key, parts in stacked.items()},
                "sent": np.array(sent).reshape(-1, 2),
            }
            results |= {f"{name}.{method}.{key}": value for key, value in joined.items()}
    return results


def train(given: Arrays, settings: argparse.Namespace) -> Arrays:
    """Train a network for each norm, each way to deal out examples, and each seed.

    `given` holds x_train and y_train, and `settings` what the command line says. Returned are, for each run
    NORM.SHARDS.SEED, its loss of shape (steps,), the mean over the processes, and every entry of the final
    state dict, with an axis for the processes in front.
    """
    results: Arrays = {}
    K, rank = dist.get_world_size(), dist.get_rank()
    x, y = torch.from_numpy(given["x_train"]).double(), torch.from_numpy(given["y_train"])
    for norm, shards, seed in itertools.product(settings.norm, settings.shards, settings.seeds):
        torch.manual_seed(seed)  # the same on all processes: they start from the same weights
        shape = {"depth": settings.depth, "width": settings.width}
        model: nn.Module = mlp(x.shape[1:], int(y.max()) + 1, norm="batch", **shape).double()
        if norm == "sync":
            convert(model)
        network = DistributedDataParallel(model) if settings.ddp else model
        order = device_batches(
            given["y_train"], K, settings.batch_size, settings.steps, seed, skewed=shards == "skewed"
        )
        losses = []
        for batch in torch.from_numpy(order[:, rank]):
            model.zero_grad()
            loss = F.cross_entropy(network(x[batch]), y[batch])
            torch.autograd.backward(loss)
            if not settings.ddp:  # or else it has been done already
                average_gradients(model)
            with torch.no_grad():  # torch.optim.SGD's update, without the second that its import takes
                for parameter in model.parameters():
                    parameter.add_(parameter.grad, alpha=-settings.lr)  # type: ignore[arg-type]
            losses.append(loss.detach())
        run = {key: np.stack(parts) for key, parts in _gather(model.state_dict()).items()}
        run["loss"] = np.mean(_gather({"loss": torch.stack(losses)})["loss"], axis=0)
        results |= {f"{norm}.{shards}.{seed}.{key}": value for key, value in run.items()}
    return results


def fail(how: str) -> None:
    """Let the last process die or stall while the others wait for it."""
    if dist.get_rank() == dist.get_world_size() - 1:
        if how == "die":
            os._exit(DIED)  # at once, without a goodbye: as when a machine loses power
        time.sleep(3600)
    dist.all_reduce(torch.ones(1))


def _gather(own: dict[str, Any]) -> dict[str, list[NDArray[Any]]]:
    """The arrays of each process, in the order of the processes."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, {key: value.numpy() for key, value in own.items()})
    return {key: [part[key] for part in parts] for key in own}


@contextmanager
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


def launch(
    *arguments: str, processes: int = 2, limit: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Start this script in several processes of this machine, with torchrun, and wait.

    The processes talk through the loopback interface, on a port that is free.

    Parameters
    ----------
    *arguments : str
        Of the script.
    processes : int
    limit : float
        Seconds after which the processes are ended, and ``subprocess.TimeoutExpired`` is raised.
    check : bool
        Whether a failure is an error here.

    Returns
    -------
    subprocess.CompletedProcess
        With exit code, standard output and standard error.

    Raises
    ------
    RuntimeError
        If `check` is set and the exit code is not 0, with the end of the standard error.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command = [
        sys.executable,
        *torchrun,
        f"--nproc-per-node={processes}",
        "-m",
        "bnbook.experiments.distributed",
        *arguments,
    ]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": LOOPBACK, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as torchrun_process:
        try:
            out, err = torchrun_process.communicate(timeout=limit)
        except BaseException:
            torchrun_process.terminate()  # it ends its processes, which a kill would leave behind
            raise
    done = subprocess.CompletedProcess(command, torchrun_process.returncode, out, err)
    if check and done.returncode:
        raise RuntimeError(f"torchrun: exit code {done.returncode}\n{err[-4000:]}")
    return done


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchrun [...] -m bnbook.experiments.distributed",
        description="Several commands, with the word THEN between them, run one after another.",
    )
    parser.add_argument(
        "--timeout", type=float, default=30, help="seconds to wait for the others (default: 30)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("compare", compare.__doc__), ("train", train.__doc__)):
        command = commands.add_parser(name, help=str(does).partition("\n")[0], description=does)
        command.add_argument("input", help=".npz file, read by all processes")
        command.add_argument("output", help=".npz file, written by process 0")
    command.add_argument("--norm", nargs="+", choices=["sync", "batch"], default=["sync"])
    command.add_argument("--shards", nargs="+", choices=["shuffled", "skewed"], default=["shuffled"])
    command.add_argument("--seeds", nargs="+", type=int, default=[0])
    command.add_argument("--steps", type=int, default=100)
    command.add_argument("--batch-size", type=int, default=32, help="examples of all processes together")
    command.add_argument("--lr", type=float, default=0.1)
    command.add_argument("--depth", type=int, default=2)
    command.add_argument("--width", type=int, default=32)
    command.add_argument("--ddp", action="store_true", help="average gradients with DistributedDataParallel")
    command = commands.add_parser("fail", help=str(fail.__doc__), description=fail.__doc__)
    command.add_argument("how", choices=["die", "stall"])
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The script that each process runs; torchrun has told it by the environment which one it is."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    jobs = [list(job) for then, job in itertools.groupby(words, "THEN".__eq__) if not then] or [[]]
    todo = [parser.parse_args(job) for job in jobs]
    if "RANK" not in os.environ:
        parser.error("this process does not know which of how many it is: let torchrun start it")

    dist.init_process_group("gloo", timeout=timedelta(seconds=todo[0].timeout))
    for settings in todo:
        if settings.command == "fail":
            fail(settings.how)
            continue
        with np.load(settings.input) as file:
            given = dict(file)
        results = compare(given) if settings.command == "compare" else train(given, settings)
        if dist.get_rank() == 0:
            np.savez(settings.output, allow_pickle=False, **results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
