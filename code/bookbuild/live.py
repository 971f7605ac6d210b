"""Rebuild the page that was saved and reload the browser: ``python -m bookbuild.live`` (``make live``).

Sphinx and the book are loaded once. After each save a copy of this process (a fork) builds and ends, so that
nothing of a build is left for the next one, and nothing is loaded again. Needs a POSIX system.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
import traceback
from functools import partial

from jupyter_book.config import get_final_config
from livereload import Server
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from bookbuild import execute, sphinx_ext
from bookbuild.results import ROOT

HTML = ROOT / "_build" / "html"
PAGES = ("book/**/*.md", "book/claims.yml", "book/references.bib", "book/_static/**/*")
# A change of these needs what was loaded to be loaded again.
LOADED = ("code/**/*.py", "_config.yml", "_toc.yml", "book/_templates/*")


def load() -> Sphinx:
    """Sphinx with this book, as Jupyter Book sets it up."""
    cli = {"latex_individualpages": False, "external_toc_path": str(ROOT / "_toc.yml"), "nitpicky": True}
    config, _ = get_final_config(user_yaml=ROOT / "_config.yml", sourcedir=ROOT, cli_config=cli)
    return Sphinx(
        srcdir=ROOT,
        confdir=None,
        outdir=HTML,
        doctreedir=ROOT / "_build" / ".doctrees",
        buildername="html",
        confoverrides=config,
        status=None,
        warning=sys.stderr,
    )


def rebuild(app: Sphinx) -> None:
    """Execute the pages whose cells changed, and build; tell errors and go on."""
    start = time.perf_counter()
    if execute.main([]):
        print("The last built pages stay until this is mended.", flush=True)
        return
    child = os.fork()
    if child == 0:
        status = 1
        try:
            gc.disable()  # this process ends at once; the search for garbage takes a third of a build
            sphinx_ext.results.cache_clear()
            app.build()
            status = app.statuscode
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"{'Failed after' if failed else 'Built in'} {time.perf_counter() - start:.1f} s", flush=True)


def restart() -> None:
    """Begin again: code or settings changed."""
    print("Code or settings changed: starting again.", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "bookbuild.live", *sys.argv[1:]])


def main(arguments: list[str] | None = None) -> None:
    """Build once, then serve and watch until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild.live", description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args(arguments).port
    # In another process, so that what is loaded below is up to date.
    if subprocess.run([sys.executable, "-m", "bookbuild.build"], check=False).returncode:
        print("Mend this, and save: it is built again.", flush=True)
    with patch_docutils(None), docutils_namespace():
        app = load()
        server = Server()
        for pattern in PAGES:
            server.watch(str(ROOT / pattern), partial(rebuild, app))
        for pattern in LOADED:
            server.watch(str(ROOT / pattern), restart)
        print(
            f"Open http://localhost:{port}/book/index.html; every save is built. Ctrl-C ends it.", flush=True
        )
        server.serve(port=port, host="localhost", root=str(HTML))


if __name__ == "__main__":
    main()
