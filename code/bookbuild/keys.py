"""What decides the outputs of a chapter, as one hash: its key.

These are its cells, its claims, the modules of ``bnbook`` that they import, directly or through others, the
data that come with those, and the installed versions of the packages that chapters use. Prose is not among
them, nor what only a reader of the API sees: a docstring counts with the first line, which ``show_source``
shows.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "bnbook"
EXERCISES = f"{PACKAGE}.exercises"
# Packages that load by name one module only, which the page names.
BY_NAME = {EXERCISES, f"{PACKAGE}.experiments"}
# Which files of the folder assets/ a module reads; the tables of experiments count where they are named.
ASSETS = {"data": "fashion*", "doctor": "doctor.json"}
TABLE = "{}-*.csv.gz"


def chapter_key(page: Path) -> str:
    """A hash of all that decides the outputs of a page."""
    claims = ROOT / "book" / "claims.yml"
    return _chapter_key(page, page.stat().st_mtime_ns, claims.stat().st_mtime_ns)


@cache
def _chapter_key(page: Path, mtime: int, mtime_of_claims: int) -> str:
    text = page.read_text("utf-8")
    cells = code_cells(text)
    return _digest([*cells, repr(named_claims(text)), *_shown_by(closure(page), *cells)])


def cells_key(page: Path) -> str:
    """A hash of the cells of a page and of its claims."""
    text = page.read_text("utf-8")
    return _digest([*code_cells(text), repr(named_claims(text))])


def source_key(file: Path, *read: Path) -> str:
    """A hash of a source file, of all that it imports of the package, and of the files that it reads."""
    source = file.read_text("utf-8")
    return _digest([source, files_key(*read), *_shown_by(_closure(imports(source)), source)])


def _shown_by(modules: set[str], *sources: str) -> list[str]:
    """All that these sources depend on, where they import these modules."""
    folder = ROOT / "code" / PACKAGE / "assets"
    patterns = [pattern for module, pattern in ASSETS.items() if f"{PACKAGE}.{module}" in modules]
    patterns += tables_of(*sources, *(_visible(_files()[name]) for name in sorted(modules)))
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    assets = [f"{file.name} {_content(file, file.stat().st_mtime_ns)}" for file in files]
    return [repr(versions()), *(f"{name} {_visible(_files()[name])}" for name in sorted(modules)), *assets]


def tables_of(*sources: str) -> list[str]:
    """Patterns of the shipped tables that sources read: ``shipped("ics")``; of all, if one names none."""
    calls = re.findall(r"(?<!def )\bshipped\(\s*(?:[\"'](\w+)[\"'])?", "\n".join(sources))
    return sorted({TABLE.format(name or "*") for name in calls})


def closure(page: Path) -> set[str]:
    """The modules of the package that the cells of a page import, directly or through others.

    A chapter loads the exercises of its own chapters only, by name.
    """
    # A line that only IPython understands, such as %matplotlib, imports nothing.
    cells = [re.sub(r"^\s*[%!].*", "pass", cell, flags=re.M) for cell in code_cells(page.read_text("utf-8"))]
    exercises = re.findall(r"\b(?:check|solution)\(\s*[\"'](\w+)\.", "\n".join(cells))
    return _closure(imports("\n".join(cells)) | {f"{EXERCISES}.{chapter}" for chapter in exercises})


def _closure(names: Iterable[str]) -> set[str]:
    todo, found = list(names), set[str]()
    while todo:
        name = todo.pop()
        if name in _files() and name not in found:
            found.add(name)
            todo += [name.rpartition(".")[0], *_imports_of(name)]
    return found


def imports(source: str, package: str = "") -> set[str]:
    """Dotted names of all that a source text may import, inside functions too."""
    found = set()
    for node in _statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = resolve_name(relative, package) if node.level else relative
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a tree, without a look into expressions: a tenth of the time of ``ast.walk``."""
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(tree, block, ()) if not isinstance(tree, ast.expr) else ():
            yield statement
            yield from _statements(statement)


def code_cells(text: str) -> list[str]:
    """The code cells of a page, without the options at their head."""
    cells = re.findall(r"^```\{code-cell\}.*\n((?:.*\n)*?)```\s*$", text, flags=re.MULTILINE)
    return [re.sub(r"\A---\n(?:.*\n)*?---\n|\A(?::.*\n)+", "", cell).strip("\n") for cell in cells]


def named_claims(text: str) -> dict[str, Any]:
    """The claims that a page checks, as they stand in ``claims.yml``."""
    file = ROOT / "book" / "claims.yml"
    claims = _claims(file, file.stat().st_mtime_ns)
    names = re.findall(r"claim\(\s*[\"']([\w-]+)[\"']", text)
    return {name: claims.get(name) for name in sorted(names)}


@cache
def versions() -> dict[str, str]:
    """Installed versions of Python and of what ``pyproject.toml`` names: an upgrade by hand counts."""
    project = tomllib.loads((ROOT / "code/pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project.get("optional-dependencies", {}).get("book", [])]
    names = sorted({re.split(r"[^\w.-]", name)[0].lower() for name in wanted})
    return {"python": ".".join(map(str, sys.version_info[:3]))} | {name: _version(name) for name in names}


def files_key(*files: Path) -> str:
    """A hash of the names and contents of those files."""
    return _digest(part for file in sorted(files) for part in (file.name, file.read_bytes().hex()))


def forget() -> None:
    """Read everything anew: files that this process has read changed."""
    for function in (versions, _files, _imports_of, _visible, _chapter_key):
        function.cache_clear()


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\0{part}".encode())
    return digest.hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@cache
def _files() -> dict[str, Path]:
    """The files of the package by the names of their modules."""
    code = ROOT / "code"
    files = (code / PACKAGE).rglob("*.py")
    names = {".".join(file.relative_to(code).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


@cache
def _imports_of(name: str) -> set[str]:
    """What a module may import; one that imports by name may import any module beside it."""
    file = _files()[name]
    source = file.read_text("utf-8")
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    found = imports(source, package)
    if "import_module(" in source and package not in BY_NAME:
        found |= {other for other in _files() if other.startswith(f"{package}.")}
    return found


@cache
def _visible(file: Path) -> str:
    """What outputs can depend on in a module."""
    source = file.read_text("utf-8")
    lines, tree = source.splitlines(), ast.parse(source)
    for node in (tree, *_statements(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            first, last = node.body[0].lineno, node.body[0].end_lineno or 0
            lines[first:last] = [""] * (last - first)
    return "\n".join(line for line in lines if line)


@cache
def _content(file: Path, mtime: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _claims(file: Path, mtime: int) -> dict[str, Any]:
    # The loader in C needs a tenth of the other's time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text("utf-8"), loader) or {}
