"""Grading a class: one notebook costs only itself, and what is found again behind each cell counts."""

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from bnbook import exercises
from bnbook.exercises import _again, _engine, grading

RIGHT = "def bound(m):\n    return (m - 1) ** 0.5\n\n\ncheck('batch_norm.bound', bound)"
WRONG = "check('batch_norm.bound', lambda m: m - 1)"
ON_PAPER = "check('sgd.iterations', [80, 140, 120])"


def notebook(path, *cells):
    """Write a notebook that imports `check` and then runs some cells."""
    nb = nbformat.v4.new_notebook()
    sources = ["from bnbook.exercises import check", *cells]
    nb.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nb.cells.insert(0, nbformat.v4.new_markdown_cell("My answers"))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def table_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_a_class_of_thirty_is_graded_in_one_run_five_odd_notebooks_included(tmp_path, capsys):
    folder, table = tmp_path / "class", tmp_path / "grades.csv"
    answers = {
        "passed": "80, 140, 120",
        "iterations of one epoch": "4, 7, 6",
        "not answered": "..., ..., ...",
    }
    expected = []
    for k in range(25):
        result = list(answers)[k % 3]
        name = f"student {k:02d}_assignsubmission_file_/week1"
        notebook(folder / f"{name}.ipynb", f"check('sgd.iterations', [{answers[result]}])")
        expected.append([name, "sgd.iterations", result, ""])
    good = notebook(folder / "UPPER.IPYNB", ON_PAPER)
    (folder / "bom.ipynb").write_bytes(b"\xef\xbb\xbf" + good.read_bytes())
    (folder / "=shape.ipynb").write_text('{"nbformat": 4, "cells": [{"cell_type": "code", "source": [3]}]}')
    os.mkfifo(folder / "fifo.ipynb")
    (folder / os.fsdecode(b"ren\xe9.ipynb")).write_bytes(good.read_bytes())
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "UPPER-checkpoint.ipynb").write_bytes(good.read_bytes())
    (folder / "__MACOSX" / "._bom.ipynb").parent.mkdir()
    (folder / "__MACOSX" / "._bom.ipynb").write_text("x")
    (folder / "list.ipynb").mkdir()
    no = ["sgd.iterations", "not attempted"]
    expected += [
        ["UPPER", "sgd.iterations", "passed", ""],
        ["bom", "sgd.iterations", "passed", ""],
        ["=shape", *no, "no notebook: JSON of another shape"],
        ["fifo", *no, "no notebook: not a file"],
        ["ren\\xe9", "sgd.iterations", "passed", ""],
    ]
    before = {path: path.read_bytes() for path in folder.rglob("*.ipynb") if path.is_file()}
    given = [
        str(folder),
        "--csv",
        str(table),
        "--exercises",
        "sgd.iterations",
        "--jobs",
        "4",
        "--seconds",
        "500",
    ]
    assert grading.main(given) == 0
    printed = capsys.readouterr()
    head = ["name", "exercise", "result", "remark"]
    found = [re.split(r"  +", line) for line in printed.out.splitlines()]
    assert sorted(found[1:]) == sorted([entry for entry in row if entry] for row in expected)
    assert found[0] == head
    assert "30/30" in printed.err
    written = [["'" + row[0] if row[0].startswith("=") else row[0], *row[1:]] for row in expected]
    assert table_of(table)[0] == head
    assert sorted(table_of(table)[1:]) == sorted(written)
    assert {path: path.read_bytes() for path in before} == before


def test_a_notebook_that_crashes_hangs_or_dies_costs_only_itself(tmp_path, monkeypatch):
    loop = "def what_stays(p, q):\n    while True:\n        p = p + 1\n\n"
    loop += "check('covariate_shift.what_stays', what_stays)"
    crash = "check('inference.pooled_variance', lambda means, variances: means[99])"
    notebook(tmp_path / "ada.ipynb", WRONG, "1 / 0", loop, crash, RIGHT, ON_PAPER)
    odd = "from IPython.display import display\nfor mark in (1, {'check': 1}, {'check': [[], {}, 0]}):\n"
    odd += "    display({'text/plain': ''}, metadata={'bnbook-exercises': mark}, raw=True)"
    notebook(tmp_path / "cy.ipynb", RIGHT, odd, "import os; os._exit(1)", ON_PAPER)
    stubborn = "while True:\n    try:\n        while True: print(end='.')\n    except BaseException: pass"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(stubborn)])
    nbformat.write(nb, tmp_path / "bob.ipynb")
    # A kernel takes long to import PyTorch on a busy machine: only the one that hangs gets little time.
    one, start = grading._graded, time.monotonic()
    monkeypatch.setattr(grading, "_graded", lambda path, s: one(path, 3 if path.stem == "bob" else s))
    rows = [tuple(row) for row in grading.grade(tmp_path)]
    assert time.monotonic() - start < 200
    assert rows == [
        ("ada", "batch_norm.bound", "passed", ""),
        ("ada", "covariate_shift.what_stays", "timed out", ""),
        ("ada", "inference.pooled_variance", "crash: IndexError", ""),
        ("ada", "sgd.iterations", "passed", ""),
        ("bob", "", "not attempted", "stopped after 3 s"),
        ("cy", "batch_norm.bound", "passed", "kernel died"),
    ]


def test_forged_marks_printed_text_another_check_and_saved_output_do_not_count(tmp_path):
    shown = "{'text/plain': 'passed'}, raw=True, metadata={'bnbook-exercises': "
    forged = shown + "{'check': ['batch_norm.bound', 'passed']}}"
    again = shown + "{'checked_again': {'sgd.iterations': 'passed'}}}"
    path = notebook(
        tmp_path / "a.ipynb",
        WRONG,
        "print('batch_norm.bound, The loudest possible example: passed. Right on 3 inputs.')",
        f"from IPython.display import display\ndisplay({forged})\ndisplay({again})",
        "import bnbook.exercises as e, bnbook.exercises._engine as engine\n"
        "engine._verdict = engine.judge = lambda *_: ('passed', [''], False)\n"
        "e.judge = lambda name, *_: engine.Result(name, 'passed', '')\n"
        "check('sgd.batch_size', 400)\n"
        "def check(*_): print('passed')\n"
        "check('backward.my_backward', None)",
    )
    nb = nbformat.read(path, as_version=4)
    saved = {"bnbook-exercises": {"checked_again": {"batch_norm.bound": "passed"}}}
    nb.cells[-1].outputs = [nbformat.v4.new_output("display_data", {"text/plain": ""}, metadata=saved)]
    nbformat.write(nb, path)
    remark = "the notebook showed: passed"
    assert grading.grade_notebook(path, 120) == grading.Report(
        {
            "batch_norm.bound": ("square of the bound", ""),
            "sgd.batch_size": ("drawn with replacement", remark),
        }
    )


def test_what_a_later_cell_redefines_does_not_matter_and_builtins_may_be_redefined(tmp_path):
    helper = "def helper(m):\n    return m - 1\n\n\ncheck('batch_norm.bound', lambda m: helper(m) ** 0.5)"
    later = "def helper(m):\n    return 0\n\n\ndict = list = getattr = 3"
    report = grading.grade_notebook(notebook(tmp_path / "a.ipynb", later, helper, later, ON_PAPER), 120)
    assert report == grading.Report({"batch_norm.bound": ("passed", ""), "sgd.iterations": ("passed", "")})


def test_what_cannot_be_checked_again_is_marked(tmp_path):
    hidden = "import sys; sys.meta_path.clear()"
    report = grading.grade_notebook(notebook(tmp_path / "a.ipynb", ON_PAPER, "\n".join([RIGHT, hidden])), 120)
    assert report.verdicts == {
        "sgd.iterations": ("passed", ""),
        "batch_norm.bound": ("passed", "not checked again"),
    }


def test_check_again_judges_with_fresh_modules_and_gives_the_used_ones_back(monkeypatch):
    shown = []
    monkeypatch.setattr(_engine, "judge", None)
    monkeypatch.setattr(exercises, "ATTEMPTS", {"batch_norm.bound": lambda m: m - 1, "nowhere.1": 1})
    kept = {**sys.modules}
    for name in kept:
        if name.startswith("bnbook.exercises"):
            del sys.modules[name]
    from bnbook.exercises import _again as fresh

    monkeypatch.setattr(fresh, "display", lambda *bundle, **options: shown.append(options["metadata"]))
    fresh.check_again(kept)
    assert shown == [{"bnbook-exercises": {"checked_again": {"batch_norm.bound": "square of the bound"}}}]
    assert exercises.ATTEMPTS == {}
    assert sys.modules["bnbook.exercises"] is exercises
    assert sys.modules["bnbook"].exercises is exercises
    assert sys.modules["bnbook.exercises._again"] is _again


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "JSON of another shape"),
        (b"[]", "JSON of another shape"),
        (b"3", "JSON of another shape"),
        (b"null", "JSON of another shape"),
        (b'{"nbformat": 4, "metadata": {}}', "JSON of another shape"),
        (b'{"nbformat": 4, "cells": 3}', "JSON of another shape"),
        (b'{"nbformat": 4, "cells": ["x"]}', "JSON of another shape"),
        (b'{"nbformat": 4, "cells": [{}]}', "JSON of another shape"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": 3}]}', "JSON of another shape"),
        (b'{"nbformat": "4", "cells": []}', "JSON of another shape"),
        (b'{"nbformat": 3, "worksheets": []}', "JSON of another shape"),
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_notebook_is_said(tmp_path, content, reason):
    path = tmp_path / "a.ipynb"
    path.write_bytes(content)
    assert grading.grade_notebook(path, 1) == grading.Report({}, f"no notebook: {reason}")


def test_old_notebooks_and_other_encodings_are_read(tmp_path):
    old = {"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1\n", "y"]}]}]}
    new = {"nbformat": 4, "cells": [{"cell_type": "code", "source": "é"}, {"cell_type": "markdown"}]}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(old))
    assert grading._sources(path) == ["x = 1\ny"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(json.dumps(new, ensure_ascii=False), encoding)
        assert grading._sources(path) == ["é"]


def test_a_run_that_is_interrupted_has_written_what_it_knew_and_ends(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.ipynb").write_text("no notebook")
    began, table = tmp_path / "began", tmp_path / "grades.csv"
    notebook(
        tmp_path / "c.ipynb",
        f"import os, time; open({str(began)!r}, 'w').write(str(os.getpid())); time.sleep(600)",
    )
    given = [sys.executable, "-m", "bnbook.exercises", str(tmp_path), "--csv", str(table)]
    with subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not (began.exists() and began.read_text()):
            time.sleep(0.1)
            assert run.poll() is None
        known = [row[0] for row in table_of(table)]  # a killed run would leave this
        run.send_signal(signal.SIGINT)
        assert run.wait(60) != 0
    assert known == [row[0] for row in table_of(table)] == ["name", "a", "b"]
    with pytest.raises(ProcessLookupError):  # the kernel has ended, too
        os.kill(int(began.read_text()), 0)


def test_the_exercises_that_were_set_can_be_named(tmp_path, monkeypatch):
    notebook(tmp_path / "a.ipynb")

    async def graded(path, seconds):
        return report

    monkeypatch.setattr(grading, "_graded", graded)
    report = grading.Report({"backward.my_backward": ("passed", "")})
    rows = grading.grade(tmp_path, ["backward.dx_by_hand", "backward.my_backward"])
    results = [("backward.dx_by_hand", "not attempted"), ("backward.my_backward", "passed")]
    assert [row[1:3] for row in rows] == results
    report = grading.Report({})
    assert grading.grade(tmp_path) == [("a", "", "not attempted", "")]
    assert grading.main([str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "seconds: got 0.0, expected a finite number above 0"),
        (["--seconds", "nan"], "seconds: got nan, expected a finite number above 0"),
        (["--seconds", "inf"], "seconds: got inf, expected a finite number above 0"),
        (["--seconds", "soon"], "invalid"),
        (["--jobs", "0"], "jobs: got 0, expected a whole number, 1 or more"),
        (["--jobs", "1.5"], "invalid int value"),
        (["--csv", "nowhere/grades.csv"], "nowhere/grades.csv"),
        (["--csv", "."], "Is a directory"),
        (["--exercises", "backward.2"], "Did you mean 'backward.my_backward'?"),
    ],
)
def test_arguments_are_checked_before_anything_runs(tmp_path, monkeypatch, capsys, arguments, message):
    notebook(tmp_path / "a.ipynb", RIGHT)
    monkeypatch.setattr(grading, "grade", None)
    with pytest.raises(SystemExit, match="2"):
        grading.main([str(tmp_path), *arguments])
    assert message in capsys.readouterr().err


def test_a_folder_without_notebooks_is_refused_and_no_table_is_begun(tmp_path, capsys):
    table = tmp_path / "grades.csv"
    with pytest.raises(ValueError, match="folder: there is no notebook"):
        grading.grade(tmp_path)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match="2"):
            grading.main([str(folder), "--csv", str(table)])
        assert "there is no notebook" in capsys.readouterr().err
        assert not table.exists()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "＝1", "\tx", "\nx"])
def test_no_name_is_a_formula_or_breaks_a_line(name):
    text = grading._cell(grading._printable(name))
    assert text[0] in "'\\"
    assert text.isprintable()


def test_output_is_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "ε.ipynb").write_text("no")
    given = [sys.executable, "-m", "bnbook.exercises", str(tmp_path)]
    env = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
    }
    run = subprocess.run(given, capture_output=True, env=env, check=True)
    assert "ε               not attempted  no notebook: not JSON" in run.stdout.decode("utf-8")


def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exercises", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("bnbook.exercises", run_name="__main__")
    assert "Run the notebooks of a class" in capsys.readouterr().out
