"""Where the executed chapters are kept, and when they are out of date.

jupyter-cache finds an executed chapter by its code cells. It does not see what the cells import,
so each state of ``code/bnbook`` and ``requirements.txt`` has a cache folder of its own, and a chapter whose
claims were reworded is executed again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.readers import get_reader
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "_build" / "executed"
KEPT_STATES = 3  # cache folders of earlier states of the package: going back costs no execution

READ = get_reader({"type": "plugin", "name": "myst_nb_md"})


class Result(NamedTuple):
    """An executed chapter and how long its cells took, in seconds."""

    notebook: NotebookNode
    seconds: float


def parts() -> dict[str, list[Path]]:
    """The pages of ``_toc.yml`` by the captions of their parts, in the order of the book."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    return {
        part.get("caption", ""): [ROOT / f"{chapter['file']}.md" for chapter in part["chapters"]]
        for part in toc["parts"]
    }


def chapters() -> list[Path]:
    """The pages that have code cells, in the order of the book."""
    pages = [page for part in parts().values() for page in part]
    return [page for page in pages if "```{code-cell}" in page.read_text("utf-8")]


def package_key() -> str:
    """A hash of all that the chapters import: ``code/bnbook``, the pinned packages and the Python version."""
    code = files_key(ROOT / "requirements.txt", *(ROOT / "code/bnbook").rglob("*"))
    return f"py{'.'.join(map(str, sys.version_info[:3]))}-{code}"


def files_key(*files: Path) -> str:
    """A hash of the names and contents of those files that are no by-products of Python's."""
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(ROOT).as_posix()
        if file.is_file() and not re.search(r"__pycache__|\.egg-info|/\.|\.pyc$", name):
            digest.update(f"{name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(chapter: Path) -> str:
    """A hash of what decides a chapter's outputs besides its cells: the package and its claims."""
    claims = _parsed((BOOK / "claims.yml").read_text("utf-8"))
    named = re.findall(r"claim\(\s*[\"']([\w-]+)[\"']", chapter.read_text("utf-8"))
    mine = {name: claims.get(name) for name in sorted(named)}
    return hashlib.sha256(f"{package_key()}{mine}".encode()).hexdigest()[:16]


@lru_cache(maxsize=1)  # all chapters ask for the same text, and it takes .4 s to parse
def _parsed(claims: str) -> dict[str, Any]:
    return yaml.safe_load(claims) or {}


def open_cache() -> JupyterCacheAbstract:
    """The cache of this state of the package; folders of much earlier states are removed."""
    folder = EXECUTED / package_key()
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()  # the most recently used one is the youngest
    states = sorted(EXECUTED.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in states[KEPT_STATES + 1 :]:
        shutil.rmtree(old)
    return get_cache(str(folder))


def read_chapter(chapter: Path) -> NotebookNode:
    """The chapter as a notebook without outputs."""
    return READ(str(chapter))


def find_result(cache: JupyterCacheAbstract, chapter: Path) -> Result | None:
    """The executed chapter, if its cells, the package and its claims are as they were then."""
    notebook = read_chapter(chapter)
    try:
        record = cache.match_cache_notebook(notebook)
    except KeyError:
        return None
    if record.data.get("fingerprint") != fingerprint(chapter):
        cache.remove_cache(record.pk)
        return None
    _, merged = cache.merge_match_into_notebook(notebook)
    return Result(merged, record.data["execution_seconds"])


def keep_result(cache: JupyterCacheAbstract, chapter: Path, result: Result) -> None:
    """Put an executed chapter into the cache."""
    data = {"execution_seconds": result.seconds, "fingerprint": fingerprint(chapter)}
    bundle = CacheBundleIn(result.notebook, str(chapter), data=data)
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
