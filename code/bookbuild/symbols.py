r"""What a symbol means, from the table of ``book/notation.md``: ``symbols.js`` shows it over a formula.

A symbol's key is its characters in order of code, without marks of TeX: ``\sigma_B^2`` is ``2Bσ``. So the
script finds it in a formula that is drawn, whichever of index and exponent comes first there.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

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


def meanings(text: str, page: str) -> dict[str, str]:
    """What the symbols mean on a page: the book's table, and what a letter means there instead.

    Parameters
    ----------
    text : str
        Of ``notation.md``.
    page : str
        Its name; a deeper page shares its chapter's letters.

    Returns
    -------
    dict
        Texts by the keys of symbols.
    """
    general, _, other = text.partition("\n## Where a letter")
    found = dict[str, str]()
    for symbols, meaning, *_ in rows(general):
        written = re.findall(r"\$([^$]+)\$", symbols)
        shown = ", ".join(plain(tex).replace("_", "") for tex in written)
        words = re.sub(r"\$([^$]+)\$", lambda m: plain(m[1]), meaning).replace("*", "")
        found |= {key(tex): f"{shown}: {words}" for tex in written if "mathbf" not in tex}
    for chapters, letters in rows(other.partition("\n## ")[0]):
        if page.rpartition("/")[2] in re.findall(r"\{doc\}`([^`]+)`", chapters):
            for entry in letters.split("; "):
                written = re.findall(r"\$([^$]+)\$", entry.partition(":")[0])
                found |= {key(tex): re.sub(r"\$([^$]+)\$", lambda m: plain(m[1]), entry) for tex in written}
    return found


def offer_symbols(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give a page of the book the meanings of its symbols."""
    if doctree is not None and pagename.startswith("book/"):
        embedded = json.dumps(meanings(NOTATION.read_text("utf-8"), pagename), ensure_ascii=False)
        app.add_js_file(None, body=f"const BOOK_SYMBOLS = {embedded};")
        app.add_js_file("symbols.js", loading_method="defer")
