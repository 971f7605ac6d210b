"""The lock holds all that is installed, for every Python and platform that the book says it runs on."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from itertools import product
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OWN = "bnbook"
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PLATFORMS = [("linux", "posix", "Linux"), ("darwin", "posix", "Darwin"), ("win32", "nt", "Windows")]


def read(file):
    """The requirements of a file, without comments, options and the book's own package."""
    lines = (ROOT / file).read_text("utf-8").splitlines()
    return [Requirement(line.split(" #")[0]) for line in lines if line and line[0] not in "#-"]


LOCK = read("constraints.txt")


def locked(environment):
    """The version of each package that applies in an environment, several if the lock contradicts itself."""
    found = {}
    for entry in LOCK:
        if entry.marker is None or entry.marker.evaluate(environment):
            found.setdefault(canonicalize_name(entry.name), []).append(str(entry.specifier))
    return found


def brought(requirements):
    """What the requirements bring into this environment, directly or not: versions, and what is missing."""
    versions, missing, seen = {}, [], set()
    todo = [(requirement, "requirements.txt") for requirement in requirements]
    while todo:
        requirement, asks = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            missing.append(f"{requirement.name}, which {asks} needs here, is not installed")
            continue
        versions[key[0]] = found.version
        for text in found.requires or []:
            below = Requirement(text)
            extras = key[1] or {""}
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append((below, requirement.name))
    return versions, missing


def test_all_that_is_installed_for_the_book_stands_in_the_lock_in_that_version():
    versions, wrong = brought([Requirement(f"{OWN}[book]"), *read("requirements.txt")])
    here = locked(default_environment())
    for name, version in sorted(versions.items()):
        pins = here.get(name, [])
        if name != OWN and not any(SpecifierSet(pin).contains(version, prereleases=True) for pin in pins):
            wrong.append(
                f"{name} {version} is installed, constraints.txt has {', '.join(pins) or 'no entry'}"
            )
    assert not wrong, "\n".join([*wrong, "`make` installs what is locked, `make lock` locks what is newest"])


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_one_version_of_each_package_and_keeps_every_pin(python):
    for platform, os_name, system in PLATFORMS:
        full = {"python_version": python, "python_full_version": f"{python}.9"}
        full |= {"sys_platform": platform, "os_name": os_name, "platform_system": system}
        here = locked(default_environment() | full)
        assert {name: pins for name, pins in here.items() if len(pins) > 1} == {}, platform
        for pin in read("requirements.txt"):
            assert here.get(canonicalize_name(pin.name)) == [str(pin.specifier)], f"{pin} on {platform}"


def test_requirements_name_the_lock_and_pin_exactly():
    assert "-c constraints.txt" in (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in read("requirements.txt"))


def test_every_place_names_the_same_pythons():
    project = tomllib.loads((ROOT / "code/pyproject.toml").read_text("utf-8"))["project"]
    allowed = SpecifierSet(project["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed] == PYTHONS
    jobs = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text("utf-8"))["jobs"]
    one = [step["with"]["python-version"] for step in jobs["build"]["steps"] if "setup-python" in str(step)]
    assert [*one, *jobs["unit"]["strategy"]["matrix"]["python"]] == PYTHONS
    for file in ("README.md", "Makefile"):
        assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / file).read_text("utf-8"), file


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(("minor", "refused"), [*product((10, 15), [True]), *product((11, 14), [False])])
def test_make_refuses_another_python_with_a_sentence(tmp_path, minor, refused):
    folder = tmp_path / "with a space"
    (folder / "code").mkdir(parents=True)
    for file in ("Makefile", "requirements.txt", "constraints.txt", "code/pyproject.toml"):
        shutil.copy(ROOT / file, folder / file)
    python = folder / "python"  # says that it is of another version, and makes no environment
    body = f"import sys; sys.version_info = (3, {minor}, 0); exec(sys.argv[1])"
    python.write_text(f"#!/bin/sh\n[ \"$1\" = -c ] && exec '{sys.executable}' -c '{body}' \"$2\"\nexit 7\n")
    python.chmod(0o755)
    command = ["make", "-C", str(folder), ".venv/.ready", "PYTHON=./python"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MAKEFLAGS": ""})
    assert done.returncode != 0
    assert ("Python 3.11 to 3.14 is needed" in done.stdout) == refused, done.stdout + done.stderr
