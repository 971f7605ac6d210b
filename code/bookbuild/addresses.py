"""Where the book is public: read from what CI says or from the git remote, never typed in.

GitHub alone counts, since Colab opens notebooks from there and the pages are published there.
"""

from __future__ import annotations

import os
import re
import subprocess

from bookbuild.results import ROOT

COLAB_BRANCH = "colab"  # CI puts the notebooks there that the built pages offer


def repository() -> str:
    """``OWNER/NAME`` of the repository on GitHub, or '' if there is none."""
    if os.environ.get("GITHUB_SERVER_URL") == "https://github.com":
        return os.environ.get("GITHUB_REPOSITORY", "")
    if not (ROOT / ".git").exists():  # an unpacked archive; git would find the repository of a folder above
        return ""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        return on_github(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    except FileNotFoundError:
        return ""


def on_github(remote: str) -> str:
    """``OWNER/NAME`` from the address of a git remote, or '' if it is not on GitHub."""
    host = r"(?:(?:https?|ssh|git)://(?:[^@/]+@)?(?:www\.)?github\.com(?::\d+)?/|(?:[^@/]+@)?github\.com:)"
    found = re.fullmatch(host + r"/?([\w.-]+/[\w.-]+?)(?:\.git)?/?", remote, flags=re.IGNORECASE)
    return found[1] if found else ""


def pages(repository: str) -> str:
    """Where GitHub publishes the pages of a repository, or '' without one."""
    if not repository:
        return ""
    owner, name = repository.split("/")
    site = f"{owner.lower()}.github.io"
    return f"https://{site}" if name.lower() == site else f"https://{site}/{name}"


def colab(repository: str, page: str) -> str:
    """Where Colab opens the notebook of a page."""
    return f"https://colab.research.google.com/github/{repository}/blob/{COLAB_BRANCH}/{page}.ipynb"


def binder(repository: str, page: str) -> str:
    """Where Binder opens the notebook of a page."""
    return f"https://mybinder.org/v2/gh/{repository}/HEAD?labpath=notebooks/{page}.ipynb"


def package(repository: str) -> str:
    """What pip installs: the book's package with all that chapters need, in whatever versions."""
    return f"bnbook[book] @ git+https://github.com/{repository}#subdirectory=code"
