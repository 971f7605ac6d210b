"""Run an experiment: ``python -m bnbook.experiments NAME --scale small``.

What is finished is kept in the folder, so a run that was stopped goes on where it stopped. Under
``torchrun`` the processes share the members, each with a GPU of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from bnbook import experiments


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run this process's share, and write the table once all is there.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m bnbook.experiments", description=__doc__)
    parser.add_argument("name", choices=experiments.names(), help="the experiment")
    parser.add_argument("--scale", default="small", help="small (as in the chapters), medium or full")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="folder of the results [_build/experiments/NAME-SCALE]")
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        metavar="N",
        help="seeds 0 to N - 1 [5], where the experiment has none of its own",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="members that run at once [1]")
    parser.add_argument("--ship", action="store_true", help="also put the table into the package")
    options = parser.parse_args(arguments)

    experiment = experiments.load(options.name)
    if options.scale not in experiment.SCALES:
        parser.error(f"--scale: got {options.scale!r}, allowed are {', '.join(experiment.SCALES)}")
    for name in ("seeds", "jobs"):
        if vars(options)[name] < 1:
            parser.error(f"--{name}: got {vars(options)[name]}, at least 1 is needed")
    rank, world_size, local = (
        _from_torchrun(parser, name, default)
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if not 0 <= rank < world_size:
        parser.error(f"RANK: got {rank}, expected a whole number from 0 to WORLD_SIZE - 1 = {world_size - 1}")
    if options.device == "cuda" and local >= torch.cuda.device_count():
        parser.error(f"--device: cuda:{local} is not there, PyTorch sees {torch.cuda.device_count()} GPUs")
    device = f"cuda:{local}" if options.device == "cuda" else "cpu"

    out = options.out or Path("_build/experiments") / f"{options.name}-{options.scale}"
    members = experiments.members(experiment, options.scale, range(options.seeds))
    share = {"rank": rank, "world_size": world_size, "jobs": options.jobs}
    try:
        experiments.collect(experiment, members, device=device, out=out, progress=True, **share)
        left = experiments.missing(members, out)
        if left:
            print(f"rank {rank} is ready; {len(left)} of {len(members)} members are left to the others")
            return
        table = experiments.collect(experiment, members, out=out)  # reads what all have written
    except ValueError as error:
        sys.exit(f"error: {error}")
    part = out / f".{uuid.uuid4().hex}.part"
    table.to_csv(part, index=False)
    part.replace(out / "table.csv")
    print(f"{len(members)} members, {len(table)} rows: {out / 'table.csv'}")
    if options.ship:
        print(f"in the package: {experiments.ship(table, options.name, options.scale)}")


def _from_torchrun(parser: argparse.ArgumentParser, name: str, default: int) -> int:
    """A number that torchrun puts into the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        parser.error(f"{name}: got {text!r}, expected a whole number, as torchrun sets it")
    return int(text)


if __name__ == "__main__":
    main()
