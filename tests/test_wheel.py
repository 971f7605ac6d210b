"""The package as ``pip install ./code`` installs it: what is in it, and what it needs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CODE = Path(__file__).resolve().parents[1] / "code"
# Modules that need NumPy and torch alone, and those of the book's pages.
LIGHT = [
    *("norms", "sgd", "whitening", "data", "shifts"),
    *("layers", "distributed", "norm_free", "models", "training", "probes", "adaptation"),
]
PAGES = ["claims", "plots", "show"]
BLOCKED = [
    *("IPython", "joblib", "matplotlib", "mlxtend", "pandas", "platformdirs"),
    *("pooch", "scipy", "sklearn", "tqdm", "yaml"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=CODE, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    zipfile.ZipFile(file).extractall(folder / "unpacked")
    return folder / "unpacked"


def python(wheel, program):
    """What a program prints that imports the unpacked wheel, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(wheel)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def imported(wheel):
    """By module: why it cannot be imported without the packages of the book, or None."""
    program = f"""
import importlib, json, sys
sys.modules |= dict.fromkeys({BLOCKED!r})
found = {{"folder": importlib.import_module("bnbook").__file__}}
for name in {[*LIGHT, *PAGES]!r}:
    try:
        found[name] = importlib.import_module(f"bnbook.{{name}}") and None
    except ImportError as error:
        found[name] = str(error)
try:
    sys.modules["bnbook.data"].mnist5k()
except ImportError as error:
    found["mnist5k"] = str(error)
found["fashion"] = len(sys.modules["bnbook.data"].fashion().x_train)
print(json.dumps(found))
"""
    found = python(wheel, program)
    assert found.pop("folder") == str(wheel / "bnbook" / "__init__.py")
    return found


def test_the_wheel_holds_the_package_with_the_claims_and_not_the_tools_of_the_build(wheel):
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"bnbook"}
    there = {path.relative_to(wheel) for path in wheel.rglob("*.*") if path.is_file()}
    sources = {path.relative_to(CODE) for path in (CODE / "bnbook").rglob("*.py")}
    assert sources | {Path("bnbook/py.typed"), Path("bnbook/assets/fashion.npz")} <= there


def test_the_wheel_asks_for_numpy_and_torch_alone(wheel):
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    needed = [line for line in metadata.read_text("utf-8").splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in needed if "extra" not in line] == [
        "Requires-Dist: numpy",
        "Requires-Dist: torch",
    ]
    assert any("extra == 'book'" in line for line in needed)


@pytest.mark.parametrize("module", LIGHT)
def test_a_module_of_models_needs_numpy_and_torch_alone(imported, module):
    assert imported[module] is None


@pytest.mark.parametrize("module", [*PAGES, "mnist5k"])
def test_what_needs_more_says_how_to_get_it(imported, module):
    assert imported[module].endswith(" is not installed; it comes with: pip install './code[book]'")


def test_the_shipped_images_need_nothing_more(imported):
    assert imported["fashion"] == 10_000


def test_the_installed_package_reads_the_claims_that_it_brings(wheel):
    program = """
import json
from bnbook import claims
print(json.dumps([str(claims.CLAIMS_FILE), list(claims.read_claims())]))
"""
    file, names = python(wheel, program)
    assert file == str(wheel / "bnbook" / "assets" / "claims.yml")
    assert Path(file).read_bytes() == (CODE.parent / "book" / "claims.yml").read_bytes()
    assert "bn-whitens" in names
