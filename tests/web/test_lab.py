"""Two notebooks in a real JupyterLab: what a reader sees there, and a right answer that passes."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from browser import NOTEBOOKS

PAGES = ("backward", "batch_norm")
# Cells outside the window stay rendered, so that a test sees them; nobody is asked about news.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": '{"fetchNews": "false"}',
}
STARTED_S, SHOWN_MS, RUN_MS = 90, 60_000, 120_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a running JupyterLab with a copy of the two notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in SETTINGS.items():
        (folder / "settings" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "settings" / name).write_text(text, "utf-8")
    (folder / "notebooks").mkdir()
    for page in PAGES:
        shutil.copy(NOTEBOOKS / f"{page}.ipynb", folder / "notebooks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = [f"--ServerApp.port={port}", "--IdentityProvider.token=", "--no-browser", "--allow-root"]
    options += [f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.news_url="]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    with open(folder / "log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        address = f"http://localhost:{port}/lab"
        try:
            for _ in range(STARTED_S):
                try:
                    urllib.request.urlopen(address, timeout=1).close()
                    break
                except OSError:
                    time.sleep(1)
            else:
                pytest.fail(f"JupyterLab did not start:\n{(folder / 'log').read_text()[-2000:]}")
            yield address
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def open_notebook(chromium, lab):
    """Open a notebook and wait until its last cell and its formulas are shown."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})

    def opened(name):
        page = context.new_page()
        page.goto(f"{lab}/tree/{name}.ipynb?reset")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=SHOWN_MS)
        page.wait_for_function(
            """() => [...document.querySelectorAll(".jp-MarkdownCell")].every(
              (cell) => cell.querySelector(".jp-RenderedMarkdown")) &&
              document.querySelectorAll("mjx-container").length > 50""",
            timeout=SHOWN_MS,
        )
        return page

    yield opened
    context.close()


def shown(page):
    """The text that a reader sees in the Markdown cells."""
    return "\n".join(page.locator(".jp-RenderedMarkdown").all_inner_texts())


@pytest.mark.parametrize(("name", "number", "exercises"), [("backward", 7, 2), ("batch_norm", 6, 3)])
def test_a_reader_sees_text_numbers_and_titles_and_no_directive_and_no_solution(
    open_notebook, name, number, exercises
):
    page = open_notebook(name)
    text = shown(page)
    raw = r"(?:`{3,}|:{3,}) ?\{|\{[a-z]+(?::[a-z]+)?\}|^:[a-z]+:|\{math\}"
    assert [line for line in text.splitlines() if re.search(raw, line)] == []
    assert page.get_by_text("Would you like to get notified").count() == 0
    # MathJax shows the tag of a numbered equation as a label.
    assert page.locator("mjx-mlabeledtr, mjx-labels mjx-mtd").count() >= 5
    for exercise in range(1, exercises + 1):
        assert re.search(rf"^Exercise {number}\.{exercise}\. \w", text, flags=re.MULTILINE)
    assert f"Fig. {number}.2." in text
    closed = page.locator("details", has_text="Solution of exercise")
    assert closed.count() >= exercises
    assert all(not element.get_attribute("open") for element in closed.all())
    assert not any(page.locator("details > p").nth(i).is_visible() for i in range(closed.count()))
    folded = page.locator(".jp-Placeholder-contentContainer", has_text="Solution of exercise")
    assert folded.count() >= exercises  # a folded cell shows its first line
    code = "\n".join(page.locator(".jp-CodeCell .jp-InputArea-editor").all_inner_texts())
    assert "solution(" not in code
    assert page.get_by_text("not answered yet").count() >= exercises - 1


def test_a_right_answer_that_is_typed_into_its_cell_passes(open_notebook):
    page = open_notebook("batch_norm")
    first = page.locator(".jp-CodeCell .cm-content").first
    first.click()
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        """() => /\\[1\\]/.test(document.querySelector(".jp-CodeCell .jp-InputPrompt").innerText)""",
        timeout=RUN_MS,
    )
    answer = page.locator(".jp-CodeCell", has_text='check("batch_norm.bound"').first
    answer.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(
        'def bound(m):\n    return np.sqrt(m - 1)\n\n\ncheck("batch_norm.bound", bound)'
    )
    page.keyboard.press("Control+Enter")
    answer.get_by_text(re.compile("passed")).first.wait_for(timeout=RUN_MS)
