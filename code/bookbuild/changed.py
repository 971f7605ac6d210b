"""Which pages a change touches: ``python -m bookbuild.changed REVISION``.

Writes ``changed.html`` into the built book, with a link to each page whose text, notebook or claims differ
from that revision: what a reviewer of a pull request opens first.
"""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

from bookbuild.results import ROOT

HTML = ROOT / "_build" / "html"


def changed_pages(files: list[str]) -> list[str]:
    """The pages, such as ``book/batch_norm``, to which these files of the project belong."""
    pages = set()
    for name in files:
        path = Path(name)
        if path.parts[0] == "book" and path.suffix == ".md":
            pages.add(path.with_suffix("").as_posix())
        elif path.parts[0] == "notebooks":
            pages.add((Path("book") / path.relative_to("notebooks")).with_suffix("").as_posix())
        elif path == Path("book/claims.yml"):
            pages.add("book/claims")
        elif path == Path("book/references.bib"):
            pages.add("book/references")
    return sorted(pages)


def page_of_links(pages: list[str]) -> str:
    """A page with a link to each of these."""
    links = "\n".join(
        f'<li><a href="{html.escape(page)}.html">{html.escape(page)}</a></li>' for page in pages
    )
    body = f"<ul>\n{links}\n</ul>" if pages else "<p>No page of the book changed.</p>"
    head = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Pages that changed</title>\n'
    return f"{head}<h1>Pages that changed</h1>\n{body}\n</html>\n"


def main(arguments: list[str]) -> None:
    """Ask git, and write the page."""
    if len(arguments) != 1:
        sys.exit("usage: python -m bookbuild.changed REVISION")
    command = ["git", "diff", "--name-only", "--diff-filter=d", arguments[0]]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    pages = [page for page in changed_pages(files) if (HTML / f"{page}.html").exists()]
    (HTML / "changed.html").write_text(page_of_links(pages), "utf-8")
    print(f"{len(pages)} pages changed: {HTML / 'changed.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
