"""Run every page with other seeds and tell which claims flip: ``python -m bookbuild.replicate --seeds 1000``.

The offset is added where random numbers begin, to every seed that a page or the package gives to NumPy or
PyTorch: the pages run as they are, and a page that uses a seed as an index as well stays right. The splits of
the data stay the book's, and so do processes that a page starts. A claim that flips is recorded and does not
stop its page.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

from bookbuild.results import name_of, pages_named, read_chapter

KEY = "bnbook-replicate"
CELL_TIMEOUT = 600  # seconds


def shift_seeds(offset: int) -> None:
    """Add `offset` to every seed that is given to NumPy or PyTorch in this process, but those of the data."""
    import numpy as np
    import torch

    default_rng, manual_seed, generator = np.random.default_rng, torch.manual_seed, torch.Generator

    def shifted(seed: Any = None) -> Any:
        from_data = sys._getframe(1).f_globals.get("__name__") == "bnbook.data"
        return default_rng(seed + offset if isinstance(seed, int | np.integer) and not from_data else seed)

    class Shifted(generator):  # type: ignore[misc, valid-type]
        def manual_seed(self, seed: int) -> Any:
            return super().manual_seed(seed + offset)

    np.random.default_rng = shifted
    torch.manual_seed = lambda seed: manual_seed(seed + offset)
    torch.Generator = Shifted  # type: ignore[misc]


def record_claims() -> None:
    """Let claims record in this process what came out, instead of failing."""
    import numpy as np
    from IPython.display import display

    from bnbook.claims import Claim

    def check(self: Claim, condition: Any, *, measured: Any) -> None:
        values = np.asarray(measured, float).ravel().tolist()
        record = {
            "claim": self.id,
            "as_expected": bool(condition) == (self.expect == "holds"),
            "measured": values,
        }
        display({"text/plain": ""}, metadata={KEY: record}, raw=True)

    Claim.check = check  # type: ignore[method-assign]


def replicate(page: Path, offset: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What the claims of a page came to with other seeds, and the errors of its cells."""
    notebook = read_chapter(page)
    prepare = "from bookbuild.replicate import record_claims, shift_seeds\n"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"{prepare}record_claims()\nshift_seeds({offset})"))
    NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        allow_errors=True,  # one cell that fails must not hide the claims of the others
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(page.parent)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    records = [output.metadata[KEY] for output in outputs if KEY in output.get("metadata", {})]
    errors = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    return records, errors


def main(arguments: list[str] | None = None) -> int:
    """Run the pages; returns the number of claims that flipped and of cells that failed."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild.replicate", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names, such as batch_norm (default: all)")
    parser.add_argument("--seeds", type=int, required=True, metavar="OFFSET", help="added to every seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="pages at once")
    settings = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pages = pages_named(settings.pages)
    with ThreadPoolExecutor(max(1, settings.jobs or 1)) as pool:
        runs = pool.map(lambda page: replicate(page, settings.seeds), pages)
        results = list(tqdm(runs, total=len(pages), unit="page", mininterval=10))
    flipped = failed = checked = 0
    for page, (records, errors) in zip(pages, results, strict=True):
        for record in records:
            checked += 1
            if not record["as_expected"]:
                flipped += 1
                print(f"{name_of(page)}: {record['claim']} flips; measured {record['measured']}")
        for error in errors:
            failed += 1
            print(f"{name_of(page)}: a cell failed with {error}")
    print(f"seeds from {settings.seeds}: {checked} claims, {flipped} flipped, {failed} cells failed")
    return flipped + failed


if __name__ == "__main__":
    sys.exit(main())
