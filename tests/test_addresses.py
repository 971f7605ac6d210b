"""Public addresses come from CI or the git remote, and a reader's Colab gets the package from there."""

import json
import re
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

from bookbuild import addresses, notebooks
from bookbuild.results import ROOT


@pytest.mark.parametrize(
    ("remote", "name"),
    [
        ("git@github.com:someone/book.git", "someone/book"),
        ("git@github.com:someone/book", "someone/book"),
        ("ssh://git@github.com/someone/book.git", "someone/book"),
        ("ssh://git@github.com:22/someone/book", "someone/book"),
        ("https://github.com/someone/book.git", "someone/book"),
        ("https://github.com/someone/book/", "someone/book"),
        ("https://name:secret@github.com/someone/a.book.git", "someone/a.book"),
        ("https://gitlab.com/someone/book.git", ""),
        ("git@example.org:github.com/book.git", ""),
        ("https://example.org/github.com/someone/book", ""),
        ("https://notgithub.com/someone/book", ""),
        ("https://githubxcom/someone/book", ""),
        ("https://github.com.example.org/someone/book", ""),
        ("/srv/git/book.git", ""),
        ("file:///srv/github.com/book", ""),
        ("https://github.com/someone", ""),
        ("", ""),
    ],
)
def test_a_remote_on_github_names_the_repository_and_any_other_none(remote, name):
    assert addresses.on_github(remote) == name


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in place of the book's, outside CI."""
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "with a space"
    folder.mkdir()
    monkeypatch.setattr(addresses, "ROOT", folder)
    return folder


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def test_without_a_repository_or_a_remote_or_git_there_is_no_address(checkout, monkeypatch):
    git(checkout.parent, "init")
    git(checkout.parent, "remote", "add", "origin", "https://github.com/someone/else")
    assert addresses.repository() == ""  # the folder above is another project
    git(checkout, "init")
    assert addresses.repository() == ""
    git(checkout, "remote", "add", "origin", "git@github.com:someone/book.git")
    assert addresses.repository() == "someone/book"
    monkeypatch.setenv("PATH", "")
    assert addresses.repository() == ""


def test_ci_names_the_repository_before_the_remote_does(checkout, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/book")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    assert addresses.repository() == "someone/book"
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example.org")  # Colab cannot open it
    assert addresses.repository() == ""


def test_the_pages_of_a_repository_are_below_its_owners_site():
    assert addresses.pages("Someone/Book") == "https://someone.github.io/Book"
    assert addresses.pages("Someone/someone.github.io") == "https://someone.github.io"
    assert addresses.pages("") == ""


def cell():
    return notebooks.install_cell("someone/book").source


def run(monkeypatch, modules):
    """What the cell gives to %pip, with those modules loaded."""
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda magic, line: asked.append((magic, line)))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    exec(TransformerManager().transform_cell(cell()), {"get_ipython": lambda: shell})
    return asked


def test_the_first_cell_of_a_download_installs_the_package_in_colab_and_nowhere_else(monkeypatch):
    assert run(monkeypatch, {}) == []
    [(magic, line)] = run(monkeypatch, {"google.colab": SimpleNamespace()})
    assert magic == "pip"
    wanted = Requirement(re.fullmatch(r'install --quiet "(.+)"', line)[1])
    assert (wanted.name, wanted.extras) == ("bnbook", {"book"})
    assert wanted.url == "git+https://github.com/someone/book#subdirectory=code"


def test_what_the_book_brings_to_colab_asks_for_no_version_of_what_runs_there():
    project = tomllib.loads((ROOT / "code/pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["book"]]
    named = [Requirement(text) for text in texts]
    assert {"ipython", "ipykernel"} <= {requirement.name for requirement in named}
    assert [str(requirement) for requirement in named if requirement.specifier] == []


@pytest.mark.parametrize("repository", ["someone/book", ""])
def test_a_download_has_the_cell_if_the_book_has_an_address_and_the_committed_notebook_never(
    tmp_path, monkeypatch, repository
):
    page = notebooks.pages_named(["sgd"])[0]
    plain = notebooks.read_source(page, notebooks.labels())
    monkeypatch.setattr(notebooks, "repository", lambda: repository)
    monkeypatch.setattr(notebooks, "find_result", lambda page: object())
    monkeypatch.setattr(notebooks, "with_outputs", lambda notebook, result: notebook)
    notebooks.write_with_figures(page, tmp_path / "a/sgd.ipynb")
    written = nbformat.read(tmp_path / "a/sgd.ipynb", as_version=4)
    nbformat.validate(written)
    first = [cell()] if repository else []
    assert [each.source for each in written.cells] == [*first, *(each.source for each in plain.cells)]
    committed = json.loads(notebooks.pair_of(page).read_text("utf-8"))
    assert "google.colab" not in json.dumps(committed)
