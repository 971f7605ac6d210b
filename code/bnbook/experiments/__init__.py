"""Experiments that run at a chapter's size, and at a paper's size from the command line.

An experiment is a module of this package with

- ``SCALES``: explicit settings by the name of the scale, as grids in which a list is an axis: ``"small"`` is
  what the chapters run, ``"medium"`` takes up to an hour on one core, ``"full"`` needs a GPU or days;
- ``run(member, device)``: what one member, one point of a grid with one seed, measured, as rows (dicts) of a
  table.

A tuple in a grid goes to ``run`` whole, to be trained at once, and the rows say which of its values they are
for: so may the seeds. That is how a chapter's module holds its maps for :mod:`bnbook.maps`, with
:func:`by_name`.

:func:`members` lists the members of a scale, :func:`collect` runs them and returns one table, each row with
the settings that made it.
``python -m bnbook.experiments NAME --scale small`` does the same into a folder, and goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import joblib
import pandas as pd
from tqdm import tqdm

from bnbook._checks import check_choice, check_whole

__all__ = [
    "Experiment",
    "by_name",
    "collect",
    "load",
    "members",
    "missing",
    "names",
    "points",
    "ship",
    "shipped",
]

Member = dict[str, Any]
Row = dict[str, Any]


class Experiment(Protocol):
    """What a module of this package offers."""

    SCALES: dict[str, list[dict[str, Any]]]

    def run(self, member: Member, device: str = "cpu") -> list[Row]:
        """Run one member."""


def names() -> list[str]:
    """Names of all experiments, in alphabetical order.

    >>> {"ics", "landscape"} <= set(names())
    True
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def load(name: str) -> Experiment:
    """Import an experiment by one of :func:`names`.

    >>> sorted(load("landscape").SCALES)
    ['full', 'medium', 'small']
    """
    check_choice(names(), name=name)
    return cast(Experiment, importlib.import_module(f"{__name__}.{name}"))


def points(grid: dict[str, Any]) -> list[dict[str, Any]]:
    """Every point of a grid: its settings, with one value of each list; the last axis runs fastest.

    Everything but a list is one setting, a tuple too.

    >>> points({"norm": "batch", "lr": [0.1, 1.0]})
    [{'norm': 'batch', 'lr': 0.1}, {'norm': 'batch', 'lr': 1.0}]
    """
    axes = {name: value for name, value in grid.items() if isinstance(value, list)}
    return [{**grid, **dict(zip(axes, values, strict=True))} for values in itertools.product(*axes.values())]


def members(experiment: Experiment, scale: str, seeds: Sequence[int]) -> list[Member]:
    """Every run of a key of ``SCALES``: each point of its grids with each seed, as JSON can hold them.

    A grid that has its own ``"seed"`` keeps it.

    >>> len(members(load("landscape"), "small", seeds=[0, 1, 2]))
    12
    """
    check_choice(experiment.SCALES, scale=scale)
    found = [point for grid in experiment.SCALES[scale] for point in points(grid)]
    return [
        {**point, "seed": seed} for point in found for seed in ([point["seed"]] if "seed" in point else seeds)
    ]


def by_name(*measures: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
    """Make the ``run`` of an experiment of several functions: a member's ``"map"`` names the one to call.

    >>> def noise(level, seed):
    ...     return [{"seed": s, "error": level * s} for s in seed]
    >>> by_name(noise)({"map": "noise", "level": 0.5, "seed": (1, 2)})
    [{'seed': 1, 'error': 0.5}, {'seed': 2, 'error': 1.0}]
    """
    by = {measure.__name__: measure for measure in measures}

    def run(member: Member, device: str = "cpu") -> list[Row]:
        settings = dict(member)
        name = settings.pop("map")
        check_choice(by, map=name)
        return by[name](**settings)

    return run


def collect(
    experiment: Experiment,
    members: Sequence[Member],
    *,
    device: str = "cpu",
    out: str | os.PathLike[str] | None = None,
    rank: int = 0,
    world_size: int = 1,
    jobs: int = 1,
    progress: bool = False,
) -> pd.DataFrame:
    """Run members of an experiment, and put their rows into one table.

    Parameters
    ----------
    members : sequence of dict
        From :func:`members`, or a part of them.
    device : str
        As ``torch.device`` reads it.
    out : path, optional
        Folder for the results. A member's file is written as soon as it is finished, whole or not at all,
        and a member whose file is there is read instead of run. The name of a file comes from the
        member's settings and knows nothing of the code: empty the folder when that has changed.
    rank, world_size : int
        Of several processes that share the members: process `rank` runs those whose index is `rank` modulo
        `world_size`.
    jobs : int
        Members that run at once, each in a process with its share of the cores.
    progress : bool
        Whether to show a progress bar on a terminal.

    Returns
    -------
    DataFrame
        The rows of this process's members in their order; the settings are the first columns.

    Examples
    --------
    >>> linear = [m for m in members(load("ics"), "small", [0]) if m.get("network") == "deep_linear"]
    >>> table = collect(load("ics"), [linear[0] | {"steps": 1}])
    >>> list(table["layer"])
    [17, 23]
    """
    check_whole(0, world_size - 1, rank=rank)
    share = members[rank::world_size]
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    found = parallel(joblib.delayed(_finish)(experiment, member, device, out) for member in share)
    found = tqdm(found, total=len(share), disable=None if progress else True, leave=False)
    return pd.DataFrame(
        [{**member, **row} for member, rows in zip(share, found, strict=True) for row in rows]
    )


def _finish(
    experiment: Experiment, member: Member, device: str, out: str | os.PathLike[str] | None
) -> list[Row]:
    """Rows of a member: read, or run and written."""
    rows = None if out is None else _read(Path(out), member)
    if rows is None:
        rows = experiment.run(member, device)
        if out is not None:
            _write(Path(out), member, rows)
    return rows


def missing(members: Sequence[Member], out: str | os.PathLike[str]) -> list[Member]:
    """Members that have no file in a folder yet.

    >>> missing([{"lr": 0.1, "seed": 0}], "no such folder")
    [{'lr': 0.1, 'seed': 0}]
    """
    return [member for member in members if not _file(Path(out), member).exists()]


# --------------------------------------------------------------------------- tables in the package


def ship(table: pd.DataFrame, name: str, scale: str) -> Path:
    """Put a table of :func:`collect` into the package, to five significant digits; return its path.

    A chapter can then read with :func:`shipped` what takes too long to run.
    """
    path = _shipped_file(name, scale)
    # Without the time in the head of the file, the same table gives the same bytes.
    table.to_csv(path, index=False, float_format="%.5g", compression={"method": "gzip", "mtime": 0})
    return path


def shipped(name: str, scale: str = "medium") -> pd.DataFrame:
    """Read a table that ``python -m bnbook.experiments NAME --scale SCALE --ship`` put into the package.

    >>> shipped("ics").shape[1] > 10
    True
    """
    path = _shipped_file(name, scale)
    if not path.exists():
        raise ValueError(f"name, scale: got {name!r}, {scale!r}, but the package has no {path.name}")
    return pd.read_csv(path)


def _shipped_file(name: str, scale: str) -> Path:
    return Path(__file__).parents[1] / "assets" / f"{name}-{scale}.csv.gz"


# --------------------------------------------------------------------------- a member's file


def _file(out: Path, member: Member) -> Path:
    """Where a member's rows are stored: the same settings have the same name."""
    text = json.dumps(member, sort_keys=True)
    return out / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"


def _write(out: Path, member: Member, rows: list[Row]) -> None:
    """Write the member and its rows, a line each. The file has its name only when it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"member": member, "rows": len(rows)}), *map(json.dumps, rows)]
    part = out / f".{uuid.uuid4().hex}.part"
    try:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(_file(out, member))
    finally:
        part.unlink(missing_ok=True)


def _read(out: Path, member: Member) -> list[Row] | None:
    """Rows of a member, or None if it was not run yet."""
    path = _file(out, member)
    try:
        head, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        whole = head == {"member": json.loads(json.dumps(member)), "rows": len(rows)}
        whole &= all(isinstance(row, dict) for row in rows)
    except FileNotFoundError:
        return None
    except ValueError:  # no JSON, or no text
        whole = False
    if not whole:
        raise ValueError(f"{path}: is damaged; delete this file and start again, the others are kept")
    return rows
