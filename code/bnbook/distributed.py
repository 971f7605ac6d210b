"""Batch norm over several processes, and the script that torchrun starts in each of them.

:class:`SyncBatchNorm` is :class:`bnbook.layers.BatchNorm` with statistics over the batches of all processes
of a ``torch.distributed`` group. In training a layer sends one message forward, of 2 C + 1 numbers for C
channels, and one backward, of 2 C numbers.

``python -m bnbook.distributed`` is the script; :func:`launch` starts it in several processes of this machine.
"""

from __future__ import annotations

import argparse
import itertools
import math
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
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from bnbook.layers import BatchNorm, _moments
from bnbook.models import mlp
from bnbook.sgd import mini_batches

__all__ = [
    "DIED",
    "LOOPBACK",
    "SyncBatchNorm",
    "average_gradients",
    "convert",
    "device_batches",
    "launch",
    "main",
    "merge_moments",
    "sync_moments",
    "sync_normalize",
]

# The network interface that does not leave the machine, by its name on macOS and on Linux.
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
DIED = 17  # exit code of a process that was told to die

Arrays = dict[str, NDArray[Any]]
Group = dist.ProcessGroup | None


# --------------------------------------------------------------------------- the layer


def merge_moments(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge the means and the sums of squared deviations of several parts ([chan1983], section 2).

    Only means are subtracted from each other, never squares: no digits are lost at a large offset.

    Parameters
    ----------
    count : Tensor of shape (K,)
        Number of values of each part. A part may be empty, but not all of them.
    mean, m2 : Tensor of shape (K, C)
        Mean of each part, and the sum of its squared deviations from it. For an empty part anything finite.

    Returns
    -------
    n : Tensor of shape ()
        Number of values of all parts.
    first, rest : Tensor of shape (C,)
        The mean of all values is first + rest: a number and a small correction, as the sum would round.
    m2 : Tensor of shape (C,)
        Sum of all squared deviations from that mean.
    """
    n = count.sum()
    first = mean[count.argmax()]
    away = mean - first  # small, whatever the offset is
    rest = (count[:, None] * away).sum(0) / n
    return n, first, rest, (m2 + count[:, None] * (away - rest).square()).sum(0)


@torch.no_grad()
def sync_moments(x: Tensor, group: Group = None) -> tuple[Tensor, Tensor, Tensor, int]:
    """Mean and biased variance of each channel, over the batches of all processes: one message.

    Each process sends its count, its means and its sums of squared deviations, in double precision, and
    merges what it receives. All do the same arithmetic in the same order: the result is the same to the bit.

    Parameters
    ----------
    x : Tensor of shape (N, C, S)
        This process's part of the batch; N may differ between processes, and may be 0.
    group : ProcessGroup or None
        None is the group of all processes.

    Returns
    -------
    first, rest : Tensor of shape (C,)
        Mean, as two numbers, in the dtype of `x`; see :func:`merge_moments`.
    var : Tensor of shape (C,)
        Biased variance; NaN if there is no value at all.
    n : int
        Values per channel of all processes.
    """
    N, C, S = x.shape
    message = torch.zeros(2 * C + 1, dtype=torch.float64, device=x.device)
    if N * S:  # an empty part sends zeros: it has to send something, or the others would wait
        first, rest, var, _ = (moment.double() for moment in _moments(x))
        message[0] = N * S
        message[1 : C + 1] = first + rest
        message[C + 1 :] = N * S * var
    messages = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    dist.all_gather(messages, message, group)
    count, mean, m2 = torch.split(torch.stack(messages), [1, C, C], 1)
    n, first, rest, m2 = merge_moments(count[:, 0], mean, m2)
    rounded = first.to(x.dtype)
    rest = (first - rounded + rest).to(x.dtype)  # float32 may not hold the mean: keep what it cuts off
    return rounded, rest, (m2 / n).to(x.dtype), int(n)


def sync_normalize(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, group: Group = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Normalize (N, C, S) over the batches of all processes, then scale and shift each channel.

    Each process has to call this as often as the others, and to call backward as often.

    Parameters
    ----------
    x : Tensor of shape (N, C, S)
        This process's part of the batch, float32 or float64.
    gamma, beta : Tensor of shape (C,)
        Scale and shift.
    eps : float
        Added to the variance, under the root.
    group : ProcessGroup or None
        None is the group of all processes.

    Returns
    -------
    y : Tensor of shape (N, C, S)
        The gradient of `x` is that of the sum of the losses of **all** processes; the gradients of `gamma`
        and `beta` are this process's part of it, as those of all other parameters are.
    mean, var : Tensor of shape (C,)
        Of all processes; var is biased. No gradient flows through these two.
    n : int
        Values per channel of all processes.
    """
    first, rest, var, n = sync_moments(x, group)
    y: Tensor = _SyncNormalize.apply(x, gamma, beta, first, rest, torch.rsqrt(var + eps), n, group)  # type: ignore[no-untyped-call]
    return y, first + rest, var, n


class _SyncNormalize(torch.autograd.Function):
    """y = gamma * (x - mean) * inv_std + beta, where all processes made mean and inv_std."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        first: Tensor,
        rest: Tensor,
        inv_std: Tensor,
        n: int,
        group: Group,
    ) -> Tensor:
        ctx.save_for_backward(x, gamma, first, rest, inv_std)
        ctx.n, ctx.group = n, group
        scale = gamma * inv_std
        shift = beta - rest * scale
        return torch.addcmul(shift[:, None], x - first[:, None], scale[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, first, rest, inv_std = ctx.saved_tensors
        xhat = (x - first[:, None] - rest[:, None]) * inv_std[:, None]
        dbeta, dgamma = dy.sum((0, 2)), (dy * xhat).sum((0, 2))
        if not ctx.needs_input_grad[0]:
            return None, dgamma, dbeta, *[None] * 5
        sums = torch.cat([dbeta, dgamma])
        dist.all_reduce(sums, group=ctx.group)  # over all processes
        along_one, along_xhat = (sums / ctx.n).split(len(gamma))
        scale = (gamma * inv_std)[:, None]
        dx = scale * (dy - along_one[:, None] - xhat * along_xhat[:, None])
        return dx, dgamma, dbeta, *[None] * 5


class SyncBatchNorm(BatchNorm):
    """Batch norm with the statistics of the batches of all processes, as ``nn.SyncBatchNorm``.

    In training each channel is normalized with the mean and the biased variance over all processes of the
    group, whose batches may differ in size. All processes keep the same running statistics. With a single
    process, or without ``torch.distributed.init_process_group``, this is :class:`bnbook.layers.BatchNorm`; so
    it is in evaluation. Runs on CPU and GPU; ``nn.SyncBatchNorm`` needs a GPU to train.

    The gradient is that of the **sum** of the losses of all processes. It cannot be differentiated twice.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps, momentum, affine, track_running_stats
        As in :class:`bnbook.layers.BatchNorm`.
    process_group : ProcessGroup or None
        The processes that share statistics; None for all.

    Raises
    ------
    ValueError
        As :class:`bnbook.layers.BatchNorm`. Too few values, NaN and infinity are errors on all processes
        at once, as they judge the merged statistics; a wrong shape or dtype only where it occurs.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Group = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_group = process_group

    def _by_batch(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.training or not dist.is_initialized() or dist.get_world_size(self.process_group) == 1:
            return super()._by_batch(x, gamma, beta)
        rows = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        y, mean, var, n = sync_normalize(rows, gamma, beta, self.eps, self.process_group)
        if n < 2:
            raise ValueError(
                f"x: got {n} values per channel from all processes together, at least 2 are needed"
            )
        return y.view(x.shape), mean, var * (n / (n - 1))


def convert(module: nn.Module, process_group: Group = None) -> nn.Module:
    """Replace the batch norms of a network by :class:`SyncBatchNorm`.

    As ``nn.SyncBatchNorm.convert_sync_batchnorm``. The new layers share parameters and running statistics
    with those in whose place they come. Other norms stay as they are, and so do the relatives of batch norm
    in :mod:`bnbook.layers`, such as ghosts.

    Parameters
    ----------
    module : nn.Module
        Changed in place, unless it is itself a batch norm.
    process_group : ProcessGroup or None
        For the new layers.

    Returns
    -------
    nn.Module
        `module`, or the layer in its place.
    """
    if type(module) is BatchNorm or isinstance(module, _BatchNorm):
        settings = module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        layer = SyncBatchNorm(*settings, process_group)
        layer.weight, layer.bias = module.weight, module.bias
        layer.running_mean, layer.running_var = module.running_mean, module.running_var
        layer.num_batches_tracked = module.num_batches_tracked
        return layer.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, convert(child, process_group))
    return module


def average_gradients(model: nn.Module, group: Group = None) -> None:
    """Replace each gradient by its mean over the processes, in one message.

    If each process's loss is the mean over its own batch, this is the gradient of the mean of these means.
    Where batches differ in size, let process k multiply its loss by K n_k / n: that gives the gradient of the
    mean over all examples.

    Parameters
    ----------
    model : nn.Module
        The same on all processes; parameters without a gradient are left alone.
    group : ProcessGroup or None
        None is the group of all processes.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message, group=group)
    message /= dist.get_world_size(group)
    for gradient, mean in zip(gradients, torch.split(message, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


# --------------------------------------------------------------------------- what each process does


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


def _compare(given: Arrays) -> Arrays:
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


def _train(given: Arrays, settings: argparse.Namespace) -> Arrays:
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


def _fail(how: str) -> None:
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


# --------------------------------------------------------------------------- starting it


def launch(
    *arguments: str, processes: int = 2, limit: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Start ``python -m bnbook.distributed`` in several processes of this machine, with torchrun, and wait.

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
        "bnbook.distributed",
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
        prog="torchrun [...] -m bnbook.distributed",
        description="Several commands, with the word THEN between them, run one after another.",
    )
    parser.add_argument(
        "--timeout", type=float, default=30, help="seconds to wait for the others (default: 30)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("compare", _compare.__doc__), ("train", _train.__doc__)):
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
    command = commands.add_parser("fail", help=str(_fail.__doc__), description=_fail.__doc__)
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
            _fail(settings.how)
            continue
        with np.load(settings.input) as file:
            given = dict(file)
        results = _compare(given) if settings.command == "compare" else _train(given, settings)
        if dist.get_rank() == 0:
            np.savez(settings.output, allow_pickle=False, **results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
