"""What the book adds to Sphinx.

* Outputs come from the executed chapters of :mod:`bookbuild.results`, and a page whose outputs changed
  is read again even if its text did not; so is one whose tables collect something that changed.
* ``{runtime}`` tells how long a chapter runs; ``{claims-table}`` and ``{chapter-map}`` collect all chapters.
* ``{slider}`` is an interactive figure (:mod:`bookbuild.sliders`).
* The sources that docstrings cite are those of ``references.bib``.
* MathJax is copied into the book, so that no page asks another host.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from bnbook.claims import VERDICTS, Claim, read_claims
from bnbook.show import spread
from bookbuild import sliders
from bookbuild.pages import question
from bookbuild.results import (
    BOOK,
    EXECUTED,
    Result,
    chapters,
    files_key,
    find_result,
    fingerprint,
    open_cache,
    package_key,
    parts,
)


@cache
def results() -> dict[Path, Result]:
    """The executed chapters, in the order of the book; read once a build, since that takes seconds."""
    cache = open_cache()
    found = {chapter: find_result(cache, chapter) for chapter in chapters()}
    missing = [chapter.name for chapter, result in found.items() if result is None]
    if missing:
        raise ExtensionError(f"not executed yet: {', '.join(missing)}; run `make book`, which does it first")
    return {chapter: result for chapter, result in found.items() if result is not None}


def checked_claims(result: Result) -> Iterable[tuple[str, list[float]]]:
    """Id and measured values of each claim that an executed chapter checked."""
    for cell in result.notebook.cells:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get("bnbook")
            if record:
                yield record["claim"], record["measured"]


class Runtime(SphinxRole):
    """``{runtime}`sgd``` : the seconds that a chapter's cells took."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the time as text."""
        return [nodes.Text(f"{results()[BOOK / f'{self.text}.md'].seconds:.0f} s")], []


class ParsedDirective(SphinxDirective):
    """A directive whose content is MyST text made at build time."""

    @classmethod
    def text(cls) -> str:
        """The MyST text."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Parse the text."""
        container = nodes.container(classes=[self.name])
        lines = StringList(self.text().splitlines(), source=self.env.docname)
        self.state.nested_parse(lines, self.content_offset, container)
        return [container]


def _row(cells: Iterable[object]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


class ClaimsTable(ParsedDirective):
    """All claims with source, published figure, our measurement and verdict."""

    @classmethod
    def text(cls) -> str:
        """Unfolding tables, one a chapter, below the counts; a claim that no chapter checks is an error."""
        claims = read_claims()
        checked = [(result, list(checked_claims(result))) for result in results().values()]
        seen = {name for _, rows in checked for name, _ in rows}
        unchecked = sorted(set(claims) - seen)
        if unchecked:
            raise ExtensionError(f"claims.yml: no chapter checks {', '.join(unchecked)}")
        parts = [f"All {len(claims)} claims: {cls.verdicts(claims, seen)}."]
        for result, rows in checked:
            if rows:
                title = result.notebook.cells[0].source.partition("\n")[0].lstrip("# ")
                head = f"{title} – {cls.verdicts(claims, [name for name, _ in rows])}"
                parts.append(f":::{{dropdown}} {head}\n{cls.table(claims, rows)}\n:::")
        return "\n\n".join(parts)

    @staticmethod
    def verdicts(claims: dict[str, Claim], names: Iterable[str]) -> str:
        """How many of them have each verdict."""
        counts = Counter(claims[name].expect for name in names)
        words = {"holds": "holds here", "reverses": "does not hold at our scale", "corrected": "is corrected"}
        return ", ".join(f"{text}: {counts[verdict]}" for verdict, text in words.items() if counts[verdict])

    @staticmethod
    def table(claims: dict[str, Claim], rows: list[tuple[str, list[float]]]) -> str:
        """The claims of one chapter; without the literature's column if it gives no figure for any."""
        columns = ["Claim", "Source", "Published", "Measured here", "Verdict"]
        if not any(claims[name].published for name, _ in rows):
            columns.remove("Published")
        lines = [_row(columns), "| --- " * len(columns) + "|"]
        for name, measured in rows:
            claim = claims[name]
            runs = f", {len(measured)} values" if len(measured) > 1 else ""
            cells = {
                "Claim": claim.says,
                "Source": claim.citation(),
                "Published": claim.published or "–",
                "Measured here": f"{claim.measures}: {spread(measured)}{runs}",
                "Verdict": f"{{ref}}`{VERDICTS[claim.expect]} <claim-{name}>`",
            }
            lines.append(_row([cells[column] for column in columns]))
        return "\n".join(lines)


class ChapterMap(ParsedDirective):
    """The chapters, by parts, with the question each answers, what it builds on, and the time it runs."""

    @classmethod
    def text(cls) -> str:
        """One table a part. A chapter builds on those that its paragraph "You need ..." names."""
        executed = results()
        lines: list[str] = []
        for caption, pages in parts().items():
            rows = [cls.row(page, executed[page]) for page in pages if page in executed]
            if rows:
                head = _row(["Chapter", "The question it answers", "Builds on", "Claims", "Runs in"])
                lines += [f":::{{rubric}} {caption}\n:::\n", head, "| --- " * 5 + "|", *rows, ""]
        return "\n".join(lines)

    @staticmethod
    def row(page: Path, result: Result) -> str:
        """One chapter."""
        text = "\n\n".join(cell.source for cell in result.notebook.cells if cell.cell_type == "markdown")
        asked = question(text)
        if not asked:
            raise ExtensionError(f"{page.name}: no paragraph begins with **The question.**")
        need = re.search(r"^You need .+?(?=\n\n|\Z)", text, flags=re.DOTALL | re.MULTILINE)
        before = dict.fromkeys(re.findall(r"{doc}`(\w+)`", need[0])) if need else {}
        builds_on = ", ".join(f"{{doc}}`/book/{name}`" for name in before) or "–"
        claims = sum(1 for _ in checked_claims(result))
        return _row([f"{{doc}}`/book/{page.stem}`", asked, builds_on, claims, f"{result.seconds:.0f} s"])


COLLECTED: dict[str, type[ParsedDirective]] = {"book/claims": ClaimsTable, "book/index": ChapterMap}


def use_executed_chapters(app: Sphinx, config: Any) -> None:
    """Point myst-nb at the cache of this state of the package."""
    config.nb_execution_cache_path = str(EXECUTED / package_key())
    results.cache_clear()
    results()  # says what is missing before any page is read


def reread_changed_outputs(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Name the pages whose outputs, or what they collect of others, changed since they were read."""
    before: dict[str, str] = getattr(env, "bnbook_read", {})
    now = {f"book/{chapter.stem}": fingerprint(chapter) for chapter in chapters()}
    now |= {page: directive.text() for page, directive in COLLECTED.items()}
    env.bnbook_read = now  # type: ignore[attr-defined]
    return [page for page in now if page in env.found_docs and before.get(page) != now[page]]


@cache
def sources() -> set[str]:
    """The keys of ``references.bib``."""
    return set(re.findall(r"^@\w+\{(\S+),", (BOOK / "references.bib").read_text("utf-8"), re.MULTILINE))


def _citation(mark: re.Match[str]) -> str:
    if mark[1] not in sources():
        raise ExtensionError(f"{mark[0]}: references.bib has no such source")
    return f":cite:t:`{mark[1]}`"


def tidy_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Cite the book's sources, and print the types of attributes, which are prose, as they are.

    ``[ioffe2015]_`` becomes a citation of the book, and the docstring's own entry is left out. A key that
    ``references.bib`` lacks stops the build.
    """
    text = re.sub(r"^\.\. \[\w+\] .*(\n +.*)*", "", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"\[(\w+)\]_\b", _citation, text)
    types = dict(re.findall(r"^:vartype (.+?): (.*)$", text, flags=re.MULTILINE))
    text = re.sub(r"^:vartype .*\n?", "", text, flags=re.MULTILINE)
    text = re.sub(  # Sphinx takes the first of several words for a type
        r"^:ivar (.+?):",
        lambda m: f":ivar {m[1].replace(', ', ',')}: *{types[m[1]]}* –",
        text,
        flags=re.MULTILINE,
    )
    # A | or a single * is a sign of mathematics here, but in literals.
    parts = re.split(r"(``.*?``)", text)
    parts[::2] = [re.sub(r"\||(?<!\*)\*(?=\w+[,)\]])", r"\\\g<0>", part) for part in parts[::2]]
    lines[:] = "".join(parts).splitlines()


def skip_field_numbers(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out "Alias for field number 0", which Python writes for each field of a named tuple."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


# startup.js and core.js, and what `mathjax3_config` in _config.yml names; output/svg asks for its glyphs.
MATHJAX_FILES = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "output/svg.js",
    "output/svg/fonts/tex.js",
    "a11y/assistive-mml.js",
    "ui/lazy.js",
)


def mathjax_folder() -> Path:
    """Where the installed MathJax is."""
    package = find_spec("sphinx-mathjax-offline")  # with hyphens, so it cannot be imported by name
    if package is None or package.origin is None:
        raise ExtensionError("sphinx-mathjax-offline is missing: install what requirements.txt names")
    return Path(package.origin).parent / "static" / "mathjax"


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy what the pages load of MathJax (the whole folder has 24 MB)."""
    if exception is None and app.builder.format == "html":
        for name in MATHJAX_FILES:
            target = Path(app.outdir) / "_static" / "mathjax" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(mathjax_folder() / name, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    # With another state of these tools, every page is read again.
    app.add_config_value("bookbuild_state", files_key(*Path(__file__).parent.glob("*.py")), "env")
    app.add_role("runtime", Runtime())
    app.add_directive("claims-table", ClaimsTable)
    app.add_directive("chapter-map", ChapterMap)
    sliders.setup(app)
    app.connect("config-inited", use_executed_chapters)
    app.connect("env-get-outdated", reread_changed_outputs)
    app.connect("autodoc-skip-member", skip_field_numbers)
    app.connect("autodoc-process-docstring", tidy_docstring, priority=600)  # after napoleon
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
