"""Execute what changed and build the HTML: ``python -m bookbuild.build``, which is ``make book``."""

from __future__ import annotations

import gc
import shutil
import sys

from jupyter_book.cli.main import main as jupyter_book

from bookbuild import execute
from bookbuild.results import ROOT

# Warnings are errors, of which all are shown before the build fails.
OPTIONS = ["build", str(ROOT), "-W", "-n", "--keep-going", "--quiet"]


def main() -> int:
    """Return 0, or another number if a page failed or the build warned of something."""
    if failed := execute.main([]):
        return failed
    # The document trees are millions of objects that stay until the process ends, and hardly any is garbage:
    # looking for it took a third of a build.
    gc.disable()
    try:
        jupyter_book(OPTIONS, standalone_mode=False)
    except BaseException:
        # Sphinx warns of a page only when it reads it: after a failure all are read again, or the next
        # build would pass.
        shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)
        raise
    print(f"Open {ROOT / '_build/html/index.html'}")
    gc.freeze()  # nor is it looked for at the end, which took two seconds
    return 0


if __name__ == "__main__":
    sys.exit(main())
