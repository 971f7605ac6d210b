"""Let a page run with other seeds, in its kernel and in every process that it starts.

It imports nothing heavy: each of those processes reads it at its start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@contextmanager
def environment_with(offset: int) -> Iterator[dict[str, str]]:
    """Environment variables with which Python adds `offset` to the seeds from its start."""
    with TemporaryDirectory() as folder:
        program = f"from {__name__} import shift_seeds\nshift_seeds({offset})\n"
        Path(folder, "sitecustomize.py").write_text(program, "utf-8")
        paths = [folder, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        yield {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def shift_seeds(offset: int) -> None:
    """Add `offset` to every seed that is given to NumPy or PyTorch in this process, but those of the data."""
    import numpy as np
    import torch

    default_rng, manual_seed, generator = np.random.default_rng, torch.manual_seed, torch.Generator

    def shifted(seed: Any = None) -> Any:
        if sys._getframe(1).f_globals.get("__name__") == "bnbook.data":
            return default_rng(seed)
        if isinstance(seed, int | np.integer):
            return default_rng(seed + offset)
        if isinstance(seed, list | tuple):  # such as (seed, step)
            return default_rng([seed[0] + offset, *seed[1:]])
        return default_rng(seed)

    class Shifted(generator):  # type: ignore[misc, valid-type]
        def manual_seed(self, seed: int) -> Any:
            return super().manual_seed(seed + offset)

    np.random.default_rng = shifted
    torch.manual_seed = lambda seed: manual_seed(seed + offset)
    torch.Generator = Shifted  # type: ignore[misc]
