"""The tools around the build: rebuilding at a save, and which pages a change touches."""

import pytest

from bookbuild import build, changed, execute, live


@pytest.fixture
def executed(monkeypatch):
    """How many pages fail when the executor is asked; change it at will."""
    failing = {"pages": 0}
    monkeypatch.setattr(execute, "main", lambda _: failing["pages"])
    return failing


class App:
    """As much of Sphinx as is needed: a build that works, warns or raises."""

    def __init__(self, folder, statuscode=0, error=None):
        self.built, self.statuscode, self.error = folder / "built", statuscode, error

    def build(self):
        if self.error:
            raise self.error
        self.built.write_text("yes", "utf-8")


def test_a_save_builds_in_a_process_of_its_own_and_leaves_this_one_as_it_was(executed, tmp_path, capfd):
    app = App(tmp_path)
    app.seen = []
    live.rebuild(app)
    assert app.built.exists()
    assert "Built in" in capfd.readouterr().out


@pytest.mark.parametrize(("statuscode", "error"), [(1, None), (0, RuntimeError("a page is broken"))])
def test_a_build_that_warns_or_raises_is_told_and_does_not_end_the_watching(
    executed, tmp_path, capfd, statuscode, error
):
    live.rebuild(App(tmp_path, statuscode, error))
    told = capfd.readouterr()
    assert "Failed after" in told.out
    assert error is None or "a page is broken" in told.err


def test_a_page_that_fails_keeps_the_last_build(executed, tmp_path, capfd):
    executed["pages"] = 1
    app = App(tmp_path)
    live.rebuild(app)
    assert not app.built.exists()
    assert "stay until this is mended" in capfd.readouterr().out


def test_after_a_failed_build_every_page_is_read_again(executed, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    read = tmp_path / "_build/.doctrees"
    read.mkdir(parents=True)

    def fail(*_, **__):
        raise SystemExit(1)

    monkeypatch.setattr(build, "jupyter_book", fail)
    with pytest.raises(SystemExit):
        build.main()
    assert not read.exists()


def test_nothing_is_built_if_a_page_fails(executed, monkeypatch):
    executed["pages"] = 2
    monkeypatch.setattr(build, "jupyter_book", None)
    assert build.main() == 2


def test_a_change_touches_the_pages_of_its_texts_notebooks_and_claims():
    files = ["book/cnn.md", "book/deeper/cnn.md", "notebooks/sgd.ipynb", "notebooks/deeper/sgd.ipynb"]
    files += [
        "book/claims.yml",
        "book/references.bib",
        "book/_static/book.css",
        "code/bnbook/norms.py",
        "README.md",
    ]
    assert changed.changed_pages(files) == [
        *("book/claims", "book/cnn", "book/deeper/cnn", "book/deeper/sgd", "book/references", "book/sgd")
    ]
    assert '<a href="book/cnn.html">' in changed.page_of_links(["book/cnn"])
    assert "No page" in changed.page_of_links([])
