"""Checked exercises: every solution passes, every mistake is called by its name, and nothing else breaks."""

import csv
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from bnbook import exercises, norms
from bnbook.exercises import Exercise, Mistake, _engine, catalogue, check, grading
from bnbook.exercises._engine import judge

BOOK = Path(__file__).parents[1] / "book"
CATALOGUE = catalogue()
ALL = list(CATALOGUE)


def doubling(**settings):
    """A small exercise: twice x, on inputs of one, three and six values."""
    given = {
        "title": "Double",
        "asks": "double(x)",
        "inputs": lambda: [{"x": np.arange(1.0, n + 1)} for n in (1, 3, 6)],
        "solution": lambda x: 2 * x,
        "returns": ("y",),
        "mistakes": (
            Mistake("squared", "Multiply by two.", lambda x: x**2),
            Mistake(
                "only small arrays",
                "Larger ones, too.",
                lambda x: np.zeros((2, 2)) + x if x.size == 6 else 2 * x,
            ),
        ),
    }
    return Exercise(**{**given, **settings})


def said(answer, **settings):
    return judge("toy.1", doubling(**settings), answer)


# --------------------------------------------------------------------------- the catalogue


@pytest.mark.parametrize("name", ALL)
def test_the_solution_passes(name):
    result = judge(name, CATALOGUE[name], CATALOGUE[name].solution)
    assert result.passed, result


@pytest.mark.parametrize("name", ALL)
def test_every_mistake_is_called_by_its_own_name_and_no_other(name):
    exercise = CATALOGUE[name]
    names = [mistake.name for mistake in exercise.mistakes]
    assert len(set(names)) == len(names) >= 2
    outcomes = _engine._catalogued(exercise)
    for mistake in exercise.mistakes:
        assert mistake.advice.endswith((".", "?"))
        result = judge(name, exercise, mistake.wrong)
        assert result.verdict == mistake.name
        assert mistake.advice in result.message
        equal = [
            other
            for other in names
            if all(
                _engine._agree(exercise, *pair)
                for pair in zip(outcomes[other], outcomes[mistake.name], strict=True)
            )
        ]
        assert equal == [mistake.name]


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_the_same_whenever_they_are_made(name):
    make = CATALOGUE[name].inputs
    if make is not None:
        torch.manual_seed(1)
        first = _engine._made.__wrapped__(make)
        torch.manual_seed(2)
        second = _engine._made.__wrapped__(make)
        for one, other in zip(first, second, strict=True):
            assert list(one) == list(other)
            assert all(_engine._untouched(one[key], other[key]) for key in one)


def headings(chapter):
    """The titles of the exercises of a chapter, in their order."""
    return re.findall(r"^`{3,}\{exercise\} (.+)$", (BOOK / f"{chapter}.md").read_text("utf-8"), re.M)


@pytest.mark.parametrize("name", ALL)
def test_the_catalogue_has_the_titles_of_the_book(name):
    chapter, number = name.split(".")
    assert CATALOGUE[name].title == headings(chapter)[int(number) - 1]


def parts_of(chapter):
    """The text of each exercise of a chapter, and of its solution."""
    text = (BOOK / f"{chapter}.md").read_text("utf-8")
    pieces = re.split(r"^`{3,}\{exercise\} ", text, flags=re.M)[1:]
    return [piece.split("{solution-start}", 1) for piece in pieces]


@pytest.mark.parametrize("name", ALL)
def test_the_book_says_how_to_check_and_its_solution_does(name):
    chapter, number = name.split(".")
    asked, solved = parts_of(chapter)[int(number) - 1]
    assert f'check("{name}",' in asked
    assert f'check("{name}",' in solved
    exercise = CATALOGUE[name]
    if exercise.inputs is not None:
        called = exercise.asks.split("(")[0]
        assert f"`{called}(" in asked
        assert f'check("{name}", {called})' in asked


def test_the_check_of_one_chapter_imports_no_other_chapter():
    script = """
import sys
from bnbook.exercises import check, CHAPTERS

def loaded():
    chapters = [name for name in CHAPTERS if f"bnbook.exercises.{name}" in sys.modules]
    heavy = [name for name in ("scipy", "sklearn", "mlxtend", "pandas", "joblib") if name in sys.modules]
    print("loaded", *chapters, *heavy)

loaded()
check("sgd.2", 1)
loaded()
check("backward.2", lambda dy, x, gamma, eps: x)
loaded()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("loaded")]
    assert lines == ["loaded", "loaded sgd", "loaded sgd backward"]


def test_every_check_in_the_book_is_in_the_catalogue():
    used = {
        name
        for page in BOOK.glob("*.md")
        for name in re.findall(r'check\("([^"]+)"', page.read_text("utf-8"))
    }
    assert used == set(CATALOGUE)


# --------------------------------------------------------------------------- right answers of another kind


def test_a_solution_with_loops_passes():
    def my_batch_norm(x, gamma, beta, eps=1e-5):
        y = np.empty_like(x)
        for c in range(x.shape[1]):
            values = x[:, c]
            mean = values.sum() / values.size
            var = ((values - mean) ** 2).sum() / values.size
            y[:, c] = gamma[c] * (values - mean) / (var + eps) ** 0.5 + beta[c]
        return y

    assert judge("batch_norm.2", CATALOGUE["batch_norm.2"], my_batch_norm).passed


def test_the_six_equations_of_the_paper_pass():
    def my_backward(dy, x, gamma, eps):
        axes, m = (0, 2, 3), x.size // x.shape[1]
        wide = (1, -1, 1, 1)
        mean = x.mean(axes, keepdims=True)
        var = x.var(axes, keepdims=True)
        dx_hat = dy * gamma.reshape(wide)
        dvar = (dx_hat * (x - mean) * -0.5 * (var + eps) ** -1.5).sum(axes, keepdims=True)
        dmean = (-dx_hat / np.sqrt(var + eps)).sum(axes, keepdims=True)
        dx = dx_hat / np.sqrt(var + eps) + dvar * 2 * (x - mean) / m + dmean / m
        return [dx, (dy * (x - mean) / np.sqrt(var + eps)).sum(axes), dy.sum(axes)]

    assert judge("backward.2", CATALOGUE["backward.2"], my_backward).passed


def test_autograd_passes():
    def my_backward(dy, x, gamma, eps):
        x, gamma = (torch.tensor(v).requires_grad_() for v in (x, gamma))
        beta = torch.zeros_like(gamma).requires_grad_()
        y = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)
        return torch.autograd.grad(y, (x, gamma, beta), torch.tensor(dy))

    assert judge("backward.2", CATALOGUE["backward.2"], my_backward).passed


def test_the_formula_with_eps_is_the_length_of_the_gradient():
    exercise = CATALOGUE["landscape.2"]
    for case in exercise.inputs():
        x = case["x_hat"] * np.sqrt(case["sigma"] ** 2 + case["eps"])
        _, cache = norms.batch_norm(x[:, None], np.full(1, case["gamma"]), np.zeros(1), case["eps"])
        dx, _, _ = norms.batch_norm_backward(case["dy"][:, None], cache)
        assert np.isclose((dx**2).sum(), exercise.solution(**case), rtol=1e-12)


# --------------------------------------------------------------------------- check


def test_an_unknown_id_names_what_is_allowed():
    with pytest.raises(ValueError, match=r"exercise: got 'backward.9', allowed are backward\.1, backward\.2"):
        check("backward.9", 1)


def test_check_prints_in_a_script_and_returns_the_result(capsys):
    result = check("batch_norm.4", lambda m: (m - 1) ** 0.5)
    assert result.passed
    assert capsys.readouterr().out == repr(result) + "\n"
    assert repr(result) == "batch_norm.4, The loudest possible example: passed. Right on 3 inputs."


def test_check_in_a_notebook_shows_the_message_once_with_its_verdict_as_metadata(monkeypatch):
    shown = []
    monkeypatch.setattr(InteractiveShell, "initialized", lambda: True)
    monkeypatch.setattr(exercises, "display", lambda *bundle, **options: shown.append((bundle, options)))
    result = check("batch_norm.4", lambda m: m - 1)
    result._ipython_display_()
    ((bundle,), options), *more = shown
    assert not more
    assert bundle == {"text/plain": result.message}
    assert options["metadata"] == {"bnbook-exercises": {"check": ["batch_norm.4", "square of the bound"]}}


def test_check_keeps_the_last_answer_for_the_grading():
    check("batch_norm.1", [1, 2, 3, 4])
    check("batch_norm.1", [0, 0, 0, 0])
    assert exercises.ATTEMPTS["batch_norm.1"] == [0, 0, 0, 0]


# --------------------------------------------------------------------------- verdicts


def test_two_mistakes_in_two_parts_are_both_named():
    both = {m.name: m.wrong for m in CATALOGUE["backward.2"].mistakes}

    def my_backward(dy, x, gamma, eps):
        dx, dgamma, _ = both["lost 1/m"](dy, x, gamma, eps)
        return dx, dgamma, both["dbeta averaged"](dy, x, gamma, eps)[2]

    result = judge("backward.2", CATALOGUE["backward.2"], my_backward)
    assert result.verdict == "lost 1/m + dbeta averaged"
    assert "dx: lost 1/m. Both corrections" in result.message
    assert "dgamma:" not in result.message


def test_a_part_with_a_name_is_named_beside_one_without():
    wrong = {m.name: m.wrong for m in CATALOGUE["backward.2"].mistakes}["lost 1/m"]
    result = judge("backward.2", CATALOGUE["backward.2"], lambda *g: (*wrong(*g)[:2], wrong(*g)[2] + 1))
    assert result.verdict == "lost 1/m + wrong result"
    assert "dx: lost 1/m. Both" in result.message
    assert "dbeta\n  expected [" in result.message
    assert "dx\n" not in result.message


def test_a_part_without_a_name_is_shown_on_the_smallest_input():
    right = CATALOGUE["backward.2"].solution
    result = judge(
        "backward.2", CATALOGUE["backward.2"], lambda *given: (right(*given)[0] + 1, *right(*given)[1:])
    )
    assert result.verdict == "wrong result"
    assert "array" not in result.message.split("dx\n")[1]
    assert "expected [[" in result.message
    assert "dgamma" not in result.message


def test_an_unknown_mistake_shows_input_expected_and_got():
    result = said(lambda x: 2 * x + (x.size > 1))
    assert result.verdict == "wrong result"
    assert str(result).splitlines() == [
        "toy.1, Double: not yet. The mistake is not in the catalogue. The smallest input on which it shows:",
        "  x = [1., 2., 3.]",
        "y",
        "  expected [2., 4., 6.]",
        "  got      [3., 5., 7.]",
    ]


def test_a_large_array_shows_the_first_value_that_differs():
    result = said(lambda x: 2 * x + (x == 15), inputs=lambda: [{"x": np.arange(20.0).reshape(2, 10)}])
    assert "x = array of shape (2, 10), float64" in result.message
    assert "y, at [1, 5]\n  expected 30\n  got      31" in result.message


def test_a_mistake_that_crashes_on_some_inputs_is_still_named():
    assert said(lambda x: np.zeros((3, 3)) + x if x.size > 3 else 2 * x).verdict == "only small arrays"


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (lambda x: -2 * x, "sign flipped", "Y: the sign is wrong everywhere."),
        (lambda x: 3 * x, "constant factor", "1.5 times what is right"),
        (lambda x: 2 * x * x.size, "factor", "off by a factor, on the inputs by 1, 3, 6."),
        (lambda x: None, "returned nothing", "is there a `return`?"),
        (lambda x: "two", "wrong type", "y: expected numbers, got a str."),
        (lambda x: [[1], [1, 2]], "wrong type", "y: expected numbers, got a list."),
        (lambda x: {1, 2}, "wrong type", "y: expected numbers, got a set."),
        (lambda x: ["one", "two"], "wrong type", "y: got a list of text."),
        (
            lambda x: (2 * x)[:, None],
            "wrong shape",
            "y: expected an array of shape (1,), got an array of shape (1, 1).",
        ),
        (lambda x: 2 * x * np.nan, "not a number", "y: NaN or infinity."),
        (lambda x: 1 / (x - x), "not a number", "y: NaN or infinity."),
        (lambda x: x * 0, "wrong result", "got      [0.]"),
        (7, "wrong type", "Expected a function: double(x). Got an int."),
        (None, "wrong type", "Got None."),
    ],
)
def test_other_failures_are_described(answer, verdict, text):
    result = said(answer, returns=("Y",) if "Y" in text else ("y",))
    assert result.verdict == verdict
    assert text in result.message


def test_a_transposed_result_is_seen():
    result = said(lambda x: (2 * x).T, inputs=lambda: [{"x": np.ones((2, 3))}])
    assert "Transposed, it would fit." in result.message


def test_a_value_is_not_told():
    exercise = doubling(inputs=None, solution=[1, 2.5], returns=("first", "second"), asks="both", mistakes=())
    assert judge("toy.1", exercise, (1, 2.5)).message == "toy.1, Double: passed. That is right."
    result = judge("toy.1", exercise, [1, 4])
    assert (
        result.message
        == "toy.1, Double: not yet. 4 is not right for second. The mistake is not in the catalogue."
    )
    assert "2.5" not in result.message
    assert judge("toy.1", exercise, [1]).verdict == "wrong number of values"
    assert "got a float." in judge("toy.1", exercise, 1.0).message
    assert "Expected a value: both. Got a function." in judge("toy.1", exercise, len).message.replace(
        "builtin_", ""
    )
    column = doubling(inputs=None, solution=[1, 2], mistakes=())
    assert judge("toy.1", column, np.array([[1.0], [2.0]])).passed
    assert "Expected double(x), 2 numbers; got 3." in judge("toy.1", column, [1, 2, 3]).message


def test_sets_and_tensors_are_compared():
    exercise = doubling(solution=lambda x: {"a"}, mistakes=(Mistake("b", "No.", lambda x: {"b"}),))
    assert judge("toy.1", exercise, lambda x: {"a"}).passed
    assert judge("toy.1", exercise, lambda x: {"b"}).verdict == "b"
    result = judge("toy.1", exercise, lambda x: {"c", "a"})
    assert "expected {'a'}\n  got      {'a', 'c'}" in result.message
    assert "y: expected a set, got numbers." in judge("toy.1", exercise, lambda x: x).message
    tensors = doubling(inputs=lambda: [{"x": torch.ones(2)}])
    assert judge("toy.1", tensors, lambda x: 2 * x).passed
    assert "x = [1., 1.]" in judge("toy.1", tensors, lambda x: x + torch.arange(2)).message


def test_lost_float32_is_noticed_where_it_matters():
    given = {"inputs": lambda: [{"x": np.ones(3, np.float32)}]}
    assert said(lambda x: 2 * x.astype(float), **given).passed
    assert said(lambda x: 2 * x.astype(float), **given, keeps_dtype=True).verdict == "dtype lost"
    assert said(lambda x: 2 * x, **given, keeps_dtype=True).passed


def test_something_else_than_a_network_is_refused():
    exercise = CATALOGUE["saturation.1"]
    result = judge("saturation.1", exercise, lambda net: 3)
    assert result.verdict == "wrong type"
    assert "What your function returned, an int, cannot be used: expected a network" in result.message
    assert "it still has a tanh" in judge("saturation.1", exercise, lambda net: net).message


# --------------------------------------------------------------------------- what readers' code can do


def test_a_change_of_the_input_is_found_although_the_result_is_right():
    def double(x):
        x *= 2
        return x

    result = said(double)
    assert result.verdict == "argument changed in place"
    assert "changes x, which belongs to the caller" in result.message
    assert said(double, may_change=("x",)).passed


def test_a_change_of_the_input_is_named_with_a_wrong_result_of_no_name():
    def double(x):
        x -= 0.125
        return x * 5 + x**3

    assert said(double).verdict == "argument changed in place"


def test_changes_inside_a_tuple_or_a_network_are_found():
    def of_tuple(pair):
        pair[1][0] = 7
        return 2 * pair[0]

    given = {"inputs": lambda: [{"pair": (np.ones(2), np.ones(2))}], "solution": lambda pair: 2 * pair[0]}
    assert said(of_tuple, **given, mistakes=()).verdict == "argument changed in place"
    assert "pair = ([1., 1.], [1., 1.])" in said(lambda pair: pair[0] + [1, 2], **given, mistakes=()).message

    def of_network(net):
        torch.nn.init.ones_(net[0].weight)
        return 1

    given = {
        "inputs": lambda: [{"net": torch.nn.Sequential(torch.nn.Linear(1, 1))}],
        "solution": lambda net: 1,
    }
    assert said(of_network, **given, mistakes=()).verdict == "argument changed in place"
    assert "net = a network of 1 parts" in said(lambda net: {2}, **given, mistakes=()).message


def test_single_numbers_and_settings_are_shown():
    given = {"inputs": lambda: [{"shape": (4,), "norm": "batch"}], "solution": lambda shape, norm: 2.0}
    result = said(lambda shape, norm: 3.5, **given, mistakes=())
    assert result.verdict == "constant factor"
    assert result.message.splitlines()[1:] == [
        "  shape = (4,)",
        "  norm = 'batch'",
        "y",
        "  expected 2",
        "  got      3.5",
    ]
    assert (
        "expected a single number, got an array"
        in said(lambda shape, norm: [2], **given, mistakes=()).message
    )
    two = {**given, "inputs": lambda: [{"shape": 1, "norm": 1}, {"shape": 2, "norm": 2}]}
    assert said(lambda shape, norm: shape, **two, mistakes=()).verdict == "wrong result"


def test_an_array_of_four_dimensions_is_shown_without_empty_lines():
    result = said(lambda x: 3 * x + 1, inputs=lambda: [{"x": np.ones((2, 1, 2, 2))}])
    assert (
        "  x = [[[[1., 1.],\n         [1., 1.]]],\n       [[[1., 1.],\n         [1., 1.]]]]\n"
        in result.message
    )


def test_a_crash_shows_the_readers_own_line_and_the_input():
    def double(x):
        y = 2 * x
        return np.linalg.inv(y)  # NumPy's own lines are not shown

    result = said(double)
    assert result.verdict == "crash: LinAlgError"
    assert "Line" in result.message
    assert "of your code: return np.linalg.inv(y)" in result.message
    assert "x = [1.]" in result.message
    assert "Traceback" not in result.message
    assert "_engine" not in result.message


def test_a_crash_on_every_input_has_no_other_name():
    crashing = (Mistake("divides by zero", "Do not.", lambda x: 1 // 0),)
    assert said(lambda x: [][0], mistakes=crashing).verdict == "crash: IndexError"
    assert said(lambda x: 5 % 0, mistakes=crashing).verdict == "crash: ZeroDivisionError"


def test_rounding_is_allowed_in_proportion_to_the_values():
    assert said(lambda x: 2e9 * x + 1, solution=lambda x: 2e9 * x, mistakes=()).passed
    assert not said(lambda x: 2e-9 * x + 1e-11, solution=lambda x: 2e-9 * x, mistakes=()).passed


def test_a_crash_on_a_later_input_alone_is_a_crash():
    result = said(lambda x: 2 * x if x.size < 6 else 1 / 0)
    assert result.verdict == "crash: ZeroDivisionError"
    assert "x = [1., 2., 3., 4., 5., 6.]" in result.message


def test_wrong_arguments_say_how_it_is_called():
    result = said(lambda x, eps: 2 * x)
    assert result.verdict == "crash: TypeError"
    assert "could not be called as double(x)" in result.message


def test_exit_does_not_end_the_notebook():
    assert said(lambda x: exit(0)).verdict == "crash: SystemExit"


def test_an_interrupt_by_the_reader_goes_through():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        said(interrupted)


def test_an_endless_loop_is_stopped_and_its_head_named():
    def double(x):
        while True:
            for _ in range(3):
                x = x + 1

    before = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    result = said(double, seconds=0.2)
    assert time.monotonic() - start < 5
    assert result.verdict == "timed out"
    assert "had not ended after 0.2 s" in result.message
    assert "of your code: while True:" in result.message
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_an_alarm_that_was_not_needed_is_switched_off():
    assert said(lambda x: 2 * x, seconds=60).passed
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_loop_that_waits_in_another_function_is_named_by_its_own_head():
    def pause():
        for _ in range(5):
            time.sleep(1)

    def double(x):
        while x.size:
            pause()

    assert "of your code: while x.size:" in said(double, seconds=0.2).message


def test_a_loop_around_the_function_is_not_the_one_that_does_not_end():
    for _ in range(1):

        def double(x):
            while x.size:
                time.sleep(1)

        assert "of your code: while x.size:" in said(double, seconds=0.2).message


def test_except_exception_does_not_swallow_the_alarm():
    def double(x):
        while True:
            try:
                time.sleep(0.05)  # the alarm goes off in here
            except Exception:
                continue

    assert said(double, seconds=0.2).verdict == "timed out"


def test_waiting_without_a_loop_is_stopped_too():
    result = said(lambda x: time.sleep(60), seconds=0.2)
    assert result.verdict == "timed out"
    assert "said(lambda x: time.sleep(60), seconds=0.2)" in result.message


def test_code_without_source_is_stopped_without_a_line():
    space = {}
    exec("def double(x):\n    while True: pass", space)
    result = said(space["double"], seconds=0.2)
    assert result.message.endswith("without an end?")


def test_there_is_no_limit_in_other_threads():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(said(lambda x: time.sleep(0.1) or 2 * x, seconds=0.05))
    )
    thread.start()
    thread.join()
    assert found[0].passed


def test_there_is_no_limit_without_alarms(monkeypatch):
    monkeypatch.delattr(signal, "setitimer")
    assert said(lambda x: time.sleep(0.1) or 2 * x, seconds=0.05).passed


def test_what_the_function_prints_is_left_out(capsys):
    def double(x):
        print("x is", x)
        return 2 * x

    result = said(double)
    assert result.passed
    assert result.message.endswith("(What your function printed was left out.)")
    assert capsys.readouterr().out == ""


def test_the_readers_random_numbers_and_warnings_are_left_alone(recwarn):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert said(
        lambda x: 2 * x + 0 * torch.rand(1).numpy() + 0 * np.log(x - x - 1) if False else 2 * x
    ).passed
    assert said(lambda x: np.log(x - 2)).verdict == "not a number"
    said(lambda x: torch.rand(x.size))
    assert torch.equal(torch.get_rng_state(), state)
    assert not recwarn.list


# --------------------------------------------------------------------------- grading

RIGHT = "def bound(m):\n    return (m - 1) ** 0.5\n\n\ncheck('batch_norm.4', bound)"
WRONG = "check('batch_norm.4', lambda m: m - 1)"
ON_PAPER = "check('batch_norm.1', [1, 2, 3, 4])"


def notebook(path, *cells):
    """Write a notebook that imports `check` and then runs some cells."""
    nb = nbformat.v4.new_notebook()
    sources = ["from bnbook.exercises import check", *cells]
    nb.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nb.cells.insert(0, nbformat.v4.new_markdown_cell("My answers"))
    nbformat.write(nb, path)
    return path


def results(report):
    return report.verdicts, report.stopped


def test_a_class_is_graded_and_a_bad_notebook_costs_only_itself(tmp_path, capsys, monkeypatch):
    loop = (
        "def what_stays(p, q):\n    while True:\n        p = p + 1\n\ncheck('covariate_shift.1', what_stays)"
    )
    crash = "check('inference.4', lambda means, variances: means[99])"
    notebook(tmp_path / "ada.ipynb", WRONG, "1 / 0", loop, crash, RIGHT, ON_PAPER)
    odd = "from IPython.display import display\nfor mark in (1, {'check': 1}, {'check': [[], {}, 0]}):\n"
    odd += "    display({'text/plain': ''}, metadata={'bnbook-exercises': mark}, raw=True)"
    notebook(tmp_path / "cy.ipynb", RIGHT, odd, "import os; os._exit(1)", ON_PAPER)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("while True: pass")])
    nbformat.write(nb, tmp_path / "bob.ipynb")
    (tmp_path / "eve.ipynb").write_text("not a notebook")
    (tmp_path / "readme.txt").write_text("not a notebook")
    table = tmp_path / "table.csv"
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.ipynb")}
    # A kernel takes long to import PyTorch on a busy machine: only the one that hangs gets little time.
    one = grading.grade_notebook
    monkeypatch.setattr(grading, "grade_notebook", lambda path, s: one(path, 3 if path.stem == "bob" else s))
    assert grading.main([str(tmp_path), "--csv", str(table)]) == 0
    of_ada = ["timed out", "wrong result", "passed", "crash: IndexError"]
    ids = ["covariate_shift.1", "batch_norm.1", "batch_norm.4", "inference.4"]
    none = ["not attempted"] * 4
    expected = [
        ["name", "exercise", "result", "remark"],
        *(["ada", name, result, ""] for name, result in zip(ids, of_ada, strict=True)),
        *(["bob", name, result, "stopped after 3 s"] for name, result in zip(ids, none, strict=True)),
        *(["cy", name, "passed" if name == ids[2] else none[0], "kernel died"] for name in ids),
        *(["eve", name, none[0], "no notebook: NotJSONError"] for name in ids),
    ]
    with table.open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == expected
    printed = capsys.readouterr().out.splitlines()
    assert [re.split(r"  +", line) for line in printed] == [[e for e in row if e] for row in expected]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.ipynb")} == before


def test_printed_text_saved_and_forged_marks_and_another_check_do_not_count(tmp_path):
    shown = "{'text/plain': 'passed'}, raw=True, metadata={'bnbook-exercises': "
    forged = shown + "{'check': ['batch_norm.4', 'passed']}}"
    again = shown + "{'checked_again': {'batch_norm.2': 'passed'}}}"
    path = notebook(
        tmp_path / "a.ipynb",
        WRONG,
        "print('batch_norm.4, The loudest possible example: passed. Right on 3 inputs.')",
        f"from IPython.display import display\ndisplay({forged})\ndisplay({again})",
        "import bnbook.exercises as e, bnbook.exercises._engine as engine\n"
        "e.batch_norm.EXERCISES[4] = e.batch_norm.EXERCISES[1]\n"
        "engine._verdict = engine.judge = lambda *_: ('passed', [''], False)\n"
        "def check(*_): print('passed')\n"
        "check('backward.2', None)",
    )
    nb = nbformat.read(path, as_version=4)
    saved = {"bnbook-exercises": {"checked_again": {"batch_norm.4": "passed"}}}
    nb.cells[-1].outputs = [nbformat.v4.new_output("display_data", {"text/plain": ""}, metadata=saved)]
    nbformat.write(nb, path)
    assert results(grading.grade_notebook(path, 120)) == ({"batch_norm.4": "square of the bound"}, "")


def test_what_cannot_be_checked_again_is_marked(tmp_path):
    hidden = "import sys; sys.modules['bnbook.exercises.grading'] = None; sys.meta_path.insert(0, None)"
    report = grading.grade_notebook(notebook(tmp_path / "a.ipynb", RIGHT, hidden), 120)
    assert results(report) == ({"batch_norm.4": "passed"}, "could not be checked again")


def test_check_again_reads_the_checks_from_their_files(monkeypatch):
    shown = []
    kept = {name: module for name, module in sys.modules.items() if name.startswith("bnbook.exercises")}
    monkeypatch.setattr(grading, "display", lambda *bundle, **options: shown.append(options["metadata"]))
    monkeypatch.setattr(_engine, "judge", None)
    grading.check_again({"batch_norm.4": lambda m: m - 1, "nowhere.1": 1})
    sys.modules.update(kept)
    assert shown == [{"bnbook-exercises": {"checked_again": {"batch_norm.4": "square of the bound"}}}]


def test_the_exercises_that_were_set_can_be_named(tmp_path, monkeypatch):
    notebook(tmp_path / "a.ipynb")
    report = grading.Report({"backward.2": "passed"}, "")
    monkeypatch.setattr(grading, "grade_notebook", lambda path, seconds: report)
    rows = grading.grade(tmp_path, ["backward.3", "backward.2"])
    assert [row[1:3] for row in rows] == [("backward.3", "not attempted"), ("backward.2", "passed")]
    monkeypatch.setattr(grading, "grade_notebook", lambda path, seconds: grading.Report({}, ""))
    assert grading.grade(tmp_path) == [("a", "-", "not attempted", "")]
    assert grading.main([str(tmp_path)]) == 0


def test_a_folder_without_notebooks_and_unknown_ids_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="folder: there is no notebook"):
        grading.grade(tmp_path)
    with pytest.raises(ValueError, match=r"exercises: got 'nine', allowed are sgd\.1"):
        grading.grade(tmp_path, ["nine"])
    with pytest.raises(SystemExit):
        grading.main([str(tmp_path)])
    assert "there is no notebook" in capsys.readouterr().err


def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exercises", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("bnbook.exercises", run_name="__main__")
    assert "Run the notebooks of a class" in capsys.readouterr().out
