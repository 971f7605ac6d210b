r"""What a symbol means, from the table of ``book/notation.md``: ``symbols.js`` shows it over a formula.

A symbol's key is its characters in order of code, without marks of TeX: ``\sigma_B^2`` is ``2Bσ``. So the
script finds it in a formula that is drawn, whichever of index and exponent comes first there.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

from sphinx.application import Sphinx

from bookbuild.results import BOOK

NAMES = "Theta Lambda alpha beta gamma eta theta kappa lambda mu sigma phi varepsilon nabla partial"
GREEK = dict(zip(NAMES.split(), "ΘΛαβγηθκλμσφε∇∂", strict=True))
HAT = "\N{COMBINING CIRCUMFLEX ACCENT}"
NOTATION = BOOK / "notation.md"


def plain(tex: str) -> str:
    r"""TeX as characters, without braces and marks.

    >>> plain(r"\lambda_{\max}"), plain(r"n_\text{in}"), plain(r"\sigma_B^2")
    ('λ_max', 'n_in', 'σ_B²')
    """
    tex = re.sub(r"\\hat *(\w)", r"\1" + HAT, tex).replace("^2", "²")
    for name, letter in GREEK.items():
        tex = re.sub(rf"\\{name}(?![A-Za-z])", letter, tex)
    tex = re.sub(r"\\(?:text|operatorname|mathbf|lVert|rVert|mathcal)\b", "", tex)
    tex = tex.replace(r"\times", "×").replace(r"\langle", "⟨").replace(r"\rangle", "⟩")
    return re.sub(r"\s+", " ", re.sub(r"[\\{}]", "", tex)).strip()


def key(tex: str) -> str:
    r"""The key of a symbol.

    >>> key(r"\sigma_B^2")
    '2Bσ'
    """
    return "".join(sorted(unicodedata.normalize("NFKD", re.sub(r"[\s_]", "", plain(tex)))))


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table's body."""
    lines = re.findall(r"^\| (.+) \|$", table, flags=re.MULTILINE)
    return [[cell.strip(" |") for cell in line.split(" | ")] for line in lines if "---" not in line][1:]


def meanings(text: str) -> dict[str, dict[str, str]]:
    """What the symbols mean: texts by their keys, of the whole book under ``""``, then of single chapters.

    Parameters
    ----------
    text : str
        Of ``notation.md``: the book's table, and the table of what a letter means elsewhere.
    """
    general, _, other = text.partition("\n## Where a letter")
    found: dict[str, dict[str, str]] = {"": {}}
    for symbols, meaning, *_ in rows(general):
        written = re.findall(r"\$([^$]+)\$", symbols)
        shown = ", ".join(plain(tex).replace("_", "") for tex in written)
        words = f"{shown}: {in_words(meaning)}".replace("*", "")
        found[""] |= {key(tex): words for tex in written if "mathbf" not in tex}
    for chapters, letters in rows(other.partition("\n## ")[0]):
        for entry in letters.split("; "):
            written = re.findall(r"\$([^$]+)\$", entry.partition(":")[0])
            for chapter in re.findall(r"\{doc\}`([^`]+)`", chapters):
                found.setdefault(chapter, {}).update({key(tex): in_words(entry) for tex in written})
    return found


def in_words(markdown: str) -> str:
    """A cell with its formulas as characters."""
    return re.sub(r"\$([^$]+)\$", lambda formula: plain(formula[1]), markdown)


def write_symbols(app: Sphinx) -> None:
    """Write all meanings into one file, so that no page keeps old ones, and load it on every page."""
    if app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        found = json.dumps(meanings(NOTATION.read_text("utf-8")), ensure_ascii=False)
        (static / "symbols_data.js").write_text(f"const BOOK_SYMBOLS = {found};\n", "utf-8")
        app.add_js_file("symbols_data.js")
        app.add_js_file("symbols.js", loading_method="defer")
