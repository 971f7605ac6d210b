"""The catalogue of exercises: every solution passes, every slip has its name, and the book agrees."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from bnbook import exercises, norms
from bnbook.exercises import CHAPTERS, _running, _slips, catalogue, check, grading, solution
from bnbook.exercises._comparing import untouched
from bnbook.exercises._engine import judge
from bnbook.exercises._running import words_of
from bookbuild import results

BOOK = Path(__file__).parents[1] / "book"
CATALOGUE = catalogue()
ALL = list(CATALOGUE)


@pytest.mark.parametrize("name", ALL)
def test_the_solution_passes(name):
    exercise = CATALOGUE[name]
    for source in (exercise.solution, *exercise.also):
        result = judge(name, exercise, exercise.run(source))
        assert result.passed, result


def rounded(part):
    """Numbers as one writes them by hand, with three digits, in lists."""
    if np.ndim(part):
        return [rounded(one) for one in part]
    return part if isinstance(part, int | np.integer) else float(f"{part:.3g}")


ON_PAPER = [
    name for name in ALL if CATALOGUE[name].inputs is None and not isinstance(CATALOGUE[name].right, int)
]


@pytest.mark.parametrize("name", ON_PAPER)
def test_on_paper_three_digits_in_a_list_are_enough(name):
    right = CATALOGUE[name].right
    assert judge(name, CATALOGUE[name], rounded(right)).passed


@pytest.mark.parametrize("name", ALL)
def test_every_slip_is_called_by_its_own_name_and_no_other(name):
    exercise = CATALOGUE[name]
    known = _slips.known(exercise)
    names = [slip.name for slip in known]
    assert len(set(names)) == len(names) >= 2
    assert not any(mark in slip for slip in names for mark in (": ", " + ", "\n"))
    for slip in exercise.parsed_slips:
        assert slip.advice.endswith((".", "?"))
        assert bool(slip.swaps) != bool(slip.whole)
        result = judge(name, exercise, exercise.wrong(slip))
        assert result.verdict == slip.name
        assert slip.advice in result.message
    for slip in known:
        assert [other.name for other in known if other.explains(exercise, slip.gives)] == [slip.name]


@pytest.mark.parametrize("name", ALL)
def test_the_solution_keeps_its_own_rules(name):
    exercise = CATALOGUE[name]
    at = [{**_running.inputs_of(exercise, k), **o.parts} for k, o in enumerate(_slips.solution_of(exercise))]
    for sentence, rest in exercise.invariants.items():
        assert " should " in sentence
        assert max(np.abs(rest(parts)).max() for parts in at) < 1e-4
    words = {word for words in exercise.forbids.values() for word in words}
    assert not words or not words_of(exercise.right) & words


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_the_same_whenever_they_are_made(name):
    make = CATALOGUE[name].inputs
    if make is not None:
        torch.manual_seed(1)
        first = _running._made.__wrapped__(make)
        torch.manual_seed(2)
        second = _running._made.__wrapped__(make)
        for one, other in zip(first, second, strict=True):
            assert list(one) == list(other)
            assert all(untouched(one[key], other[key]) for key in one)


# --------------------------------------------------------------------------- the book


def parts_of(chapter):
    """Title, text and solution of each exercise of a chapter and of its deeper pages."""
    page = results.BOOK / f"{chapter}.md"
    text = "\n".join(one.read_text("utf-8") for one in (page, *results.deeper_pages(page)))
    pieces = re.split(r"^`{3,}\{exercise\} ", text, flags=re.M)[1:]
    return [(piece.partition("\n")[0], *piece.split("{solution-start}", 1)) for piece in pieces]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_exercises_stand_in_the_order_of_the_book_and_have_its_titles(chapter):
    titles = [title for title, _, _ in parts_of(chapter)]
    known = exercises.of_chapter(chapter)
    assert len(known) == len(titles)
    for title, exercise in zip(titles, known.values(), strict=True):
        assert exercise is None or exercise.title == title


@pytest.mark.parametrize("name", ALL)
def test_the_book_says_how_to_check_and_its_solution_does(name):
    chapter, rest = name.split(".")
    exercise = CATALOGUE[name]
    _, asked, solved = parts_of(chapter)[list(exercises.of_chapter(chapter)).index(rest)]
    assert f'check("{name}",' in asked
    assert f'check("{name}",' in solved
    if exercise.inputs is not None:
        called = exercise.asks.split("(")[0]
        assert called == rest
        assert f"`{called}(" in asked
        assert f'check("{name}", {called})' in asked
        assert f'{called} = solution("{name}")' in solved or f"\ndef {called}(" in solved


def test_every_check_in_the_book_is_in_the_catalogue_and_the_other_way_round():
    used = {
        name
        for page in BOOK.rglob("*.md")
        for name in re.findall(r'(?<!\.)check\("([^"]+)"', page.read_text("utf-8"))
    }
    assert used == set(CATALOGUE)


def test_the_exercises_that_the_page_for_teachers_grades_exist():
    page = (BOOK / "teaching.md").read_text("utf-8")
    named = set(re.findall(rf"\b(?:{'|'.join(CHAPTERS)})\.\w+", page))
    assert len(named) > 10
    assert named <= set(CATALOGUE)


def test_the_chapters_stand_in_the_order_of_the_table_of_contents():
    files = re.findall(r"file: book/(\w+)", (BOOK.parent / "_toc.yml").read_text("utf-8"))
    assert tuple(name for name in files if name in CHAPTERS) == CHAPTERS


# --------------------------------------------------------------------------- check


def test_the_check_of_one_chapter_imports_no_other_chapter():
    script = """
import sys
from bnbook.exercises import check, CHAPTERS

def loaded():
    chapters = [name for name in CHAPTERS if f"bnbook.exercises.{name}" in sys.modules]
    heavy = [n for n in ("torch", "scipy", "sklearn", "mlxtend", "pandas", "joblib") if n in sys.modules]
    print("loaded", *chapters, *heavy)

loaded()
check("sgd.batch_size", 1)
loaded()
check("batch_norm.my_batch_norm", lambda x, gamma, beta, eps: x)
loaded()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("loaded")]
    assert lines == ["loaded", "loaded sgd", "loaded sgd batch_norm"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("1.1", "Did you mean 'sgd.iterations'?"),
        ("7.2", "Did you mean 'backward.my_backward'?"),
        ("19.1", "Did you mean 'beyond."),
        ("backward.2", "Did you mean 'backward.my_backward'?"),
        ("Backward.2", "Did you mean 'backward.my_backward'?"),
        ("backward.my_backward ", "Did you mean 'backward.my_backward'?"),
        ("backward.mybackward", "Did you mean 'backward.my_backward'?"),
        ("my_backward", "Did you mean 'backward.my_backward'?"),
        ("y_by_hand", "Did you mean 'batch_norm.y_by_hand' or 'group_norm.y_by_hand'?"),
        ("bakward.my_backward", "Did you mean 'backward.my_backward'?"),
        ("backward.3", "This exercise has no automatic check"),
        ("backward.9", "Allowed are backward.dx_by_hand, backward.my_backward, "),
        ("", "Allowed are start.x_hat, start.fold, sgd.iterations, "),
    ],
)
def test_a_name_that_nearly_fits_is_answered_with_the_right_one(name, sentence):
    with pytest.raises(ValueError, match=re.escape(f"exercise: got {name!r}. {sentence}")):
        check(name, 1)


def test_check_prints_in_a_script_and_returns_the_result(capsys):
    result = check("batch_norm.bound", lambda m: (m - 1) ** 0.5)
    assert result.passed
    assert capsys.readouterr().out == repr(result) + "\n"
    assert repr(result) == "batch_norm.bound, The loudest possible example: passed. Right on 3 inputs."


def test_check_in_a_notebook_shows_the_message_once_with_its_verdict_as_metadata(monkeypatch):
    shown = []
    monkeypatch.setattr(InteractiveShell, "initialized", lambda: True)
    monkeypatch.setattr(exercises, "display", lambda *bundle, **options: shown.append((bundle, options)))
    result = check("batch_norm.bound", lambda m: m - 1)
    result._ipython_display_()
    ((bundle,), options), *more = shown
    assert not more
    assert bundle == {"text/plain": result.message}
    verdict = ["batch_norm.bound", "square of the bound"]
    assert options["metadata"] == {"bnbook-exercises": {"check": verdict}}


def test_check_keeps_the_last_answer_for_the_grading_but_no_empty_one():
    check("batch_norm.y_by_hand", [1, 2, 3, 4])
    check("batch_norm.y_by_hand", [0, 0, 0, 0])
    check("batch_norm.y_by_hand", ...)
    assert exercises.ATTEMPTS["batch_norm.y_by_hand"] == [0, 0, 0, 0]


def test_hints_come_one_by_one(capsys):
    exercise = CATALOGUE["batch_norm.bound"]
    for hint in range(4):
        check("batch_norm.bound", ..., hint=hint)
        told = capsys.readouterr().out
        assert [text in told for text in exercise.hints] == [hint > 0, hint > 1]
        assert ("no more hints" in told) == (hint > 2)
    with pytest.raises(ValueError, match="hint: got -1, allowed are 0, 1, 2"):
        check("batch_norm.bound", ..., hint=-1)


def test_every_exercise_has_a_hint_and_none_holds_the_solution():
    for exercise in CATALOGUE.values():
        assert exercise.hints
        last = ast.unparse(ast.parse(exercise.solution).body[-1]).partition("\n    return ")[2]
        assert len(last) < 12 or all(last not in hint for hint in exercise.hints)


@pytest.mark.parametrize("module", [exercises, grading])
def test_the_examples_in_the_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert tried > 3
    assert not failed


def test_the_solution_is_shown_and_returned(monkeypatch):
    shown = []
    monkeypatch.setattr(InteractiveShell, "initialized", lambda: True)
    monkeypatch.setattr(exercises, "display", lambda thing: shown.append(thing.data))
    bound = solution("batch_norm.bound")
    assert shown == ["```python\ndef bound(m):\n    return np.sqrt(m - 1)\n```"]
    assert bound(5) == 2
    with pytest.raises(ValueError, match="asks for y, four numbers and not for a function"):
        solution("batch_norm.y_by_hand")


# --------------------------------------------------------------------------- answers of another kind


def said(name, answer):
    return judge(name, CATALOGUE[name], answer)


def six_equations(dy, x, gamma, eps, *, half=0.5, power=-1.5, two=2.0, sign=1.0):
    """The gradient as the paper writes it, perhaps with a slip in one of its terms."""
    axes, m = (0, 2, 3), x.size // x.shape[1]
    mean = x.mean(axes, keepdims=True)
    var = x.var(axes, keepdims=True)
    dx_hat = dy * gamma.reshape((1, -1, 1, 1))
    dvar = (dx_hat * (x - mean) * -half * (var + eps) ** power).sum(axes, keepdims=True)
    dmean = (-dx_hat / np.sqrt(var + eps)).sum(axes, keepdims=True)
    dx = dx_hat / np.sqrt(var + eps) + dvar * two * (x - mean) / m + sign * dmean / m
    return dx, (dy * (x - mean) / np.sqrt(var + eps)).sum(axes), dy.sum(axes)


def test_the_six_equations_of_the_paper_pass():
    assert said("backward.my_backward", six_equations).passed


@pytest.mark.parametrize(
    ("slip", "name"),
    [
        ({"half": 1.0}, "factor 1/2 of the root lost"),
        ({"half": -1.0}, "factor -1/2 of the root lost"),
        ({"half": -0.5}, "sign of the variance term"),
        ({"power": -0.5}, "power -1/2 instead of -3/2"),
        ({"two": 1.0}, "factor 2 of the square lost"),
        ({"sign": -1.0}, "sign of the mean term"),
        ({"sign": 0.0}, "mean taken as a constant"),
        ({"two": 0.0}, "variance taken as a constant"),
        ({"half": 1.0, "sign": -1.0}, "sign of the mean term + factor 1/2 of the root lost"),
    ],
)
def test_each_term_of_the_six_equations_is_named(slip, name):
    result = said("backward.my_backward", lambda dy, x, gamma, eps: six_equations(dy, x, gamma, eps, **slip))
    assert result.verdict == name


def bn(x, gamma, beta, eps, *, axes=(0, 2, 3), ddof=0, root=lambda var, eps: np.sqrt(var + eps)):
    """Batch norm in another spelling than the solution's."""
    wide = (1, -1, 1, 1)
    deviations = x - x.mean(axes, keepdims=True)
    var = (deviations**2).sum(axes, keepdims=True) / (x[:, 0].size - ddof)
    return gamma.reshape(wide) * deviations / root(var, eps) + beta.reshape(wide)


def bare(x, gamma, beta, eps):
    """Without keepdims, and gamma and beta as they are."""
    return gamma * (x - x.mean((0, 2, 3))) / np.sqrt(x.var((0, 2, 3)) + eps) + beta


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda x, gamma, beta, eps: bn(x, beta, gamma, eps), "gamma and beta exchanged"),
        (bare, "gamma and beta along the last axis + keepdims forgotten"),
        (
            lambda *given: bn(*given, root=lambda var, eps: np.sqrt(np.sqrt(var) + eps)),
            "root of the standard deviation",
        ),
        (
            lambda *given: bn(*given, ddof=1, root=lambda var, eps: np.sqrt(var) + eps),
            "unbiased variance + eps outside the root",
        ),
        (lambda *given: bn(*given).astype("float32"), "dtype lost"),
        (lambda *given: bn(*given).astype("float64"), "dtype lost"),
        (lambda *given: bn(*given).tolist(), "list returned"),
    ],
)
def test_the_slips_of_batch_norm_are_named_in_another_spelling(answer, name):
    assert said("batch_norm.my_batch_norm", answer).verdict == name


def test_the_message_says_which_way_the_dtype_went():
    given = lambda dtype: lambda *arguments: bn(*arguments).astype(dtype)  # noqa: E731
    text = said("batch_norm.my_batch_norm", given("float32")).message
    assert "float64 came in and float32 went out" in text
    text = said("batch_norm.my_batch_norm", given("float64")).message
    assert "float32 came in and float64 went out" in text


def test_right_parts_and_a_broken_invariant_are_told_with_one_value():
    def my_backward(dy, x, gamma, eps):
        dx, dgamma, dbeta = six_equations(dy, x, gamma, eps)
        return dx + 0.1 * np.abs(x), dgamma, dbeta

    result = said("backward.my_backward", my_backward)
    assert result.verdict == "wrong result"
    assert "dgamma and dbeta are right." in result.message
    assert "dx should sum to zero in each channel, and does not." in result.message
    value = "dx, 8 of 8 values differ, the first at [0, 0, 0, 0]\n  expected -0.4561\n  got      -0.3441\n"
    assert result.message.endswith(f"{value}(`hint=1` in the call of check gives a hint.)")


def with_loop(x, gamma, beta, eps=1e-5):
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        y[:, c] = gamma[c] * (x[:, c] - x[:, c].mean()) / (x[:, c].var() + eps) ** 0.5 + beta[c]
    return y


def with_comprehension(x, gamma, beta, eps):
    parts = [x[:, c] for c in range(x.shape[1])]
    y = [g * (v - v.mean()) / np.sqrt(v.var() + eps) + b for v, g, b in zip(parts, gamma, beta, strict=True)]
    return np.stack(y, 1)


def with_torch(x, gamma, beta, eps):
    y = torch.nn.functional.batch_norm(*map(torch.tensor, (x,)), None, None, training=True, eps=eps)
    return gamma.reshape(1, -1, 1, 1) * y.numpy() + beta.reshape(1, -1, 1, 1)


def layer_norm_dx(dy, x, eps):
    dx, centred = dy - dy.mean(1, keepdims=True), x - x.mean(1, keepdims=True)
    var = (centred**2).mean(1, keepdims=True) + eps
    return (dx - centred * (dy * centred).mean(1, keepdims=True) / var) / np.sqrt(var)


def with_statistics(x, num_groups, gamma, beta):
    sets = x.reshape(x.shape[0] * num_groups, -1)
    x_hat = (sets - sets.mean(1, True)) / (sets.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return gamma[:, None, None] * x_hat.reshape(x.shape) + beta[:, None, None]


@pytest.mark.parametrize(
    ("name", "answer", "thing"),
    [
        ("batch_norm.my_batch_norm", with_loop, "a loop"),
        ("batch_norm.my_batch_norm", lambda *given: with_loop(*given), "a loop"),
        ("batch_norm.my_batch_norm", with_comprehension, "a loop"),
        ("batch_norm.my_batch_norm", with_torch, "torch"),
        ("backward.layer_norm_dx", layer_norm_dx, "a formula of its own"),
        ("group_norm.group_norm_by_reshape", with_statistics, "another mean or variance"),
    ],
)
def test_a_rule_of_the_text_is_checked(name, answer, thing):
    result = said(name, answer)
    assert result.verdict == f"uses {thing}", result
    assert "Right numbers, but" in result.message


def test_a_rule_is_not_checked_without_source():
    space = {}
    exec("def double(m):\n    for _ in [1]: pass\n    return (m - 1) ** 0.5", space)
    assert words_of(space["double"]) == set()
    assert said("batch_norm.bound", space["double"]).passed


@pytest.mark.parametrize(
    ("name", "answer", "sentence"),
    [
        ("whitening.A_by_hand", [1.0, 0, 0, 1], "a matrix of 2 x 2 numbers; got a list of 4 numbers."),
        ("whitening.A_by_hand", 3, "a matrix of 2 x 2 numbers; got a single number."),
        (
            "covariate_shift.what_stays",
            [1, 2],
            "Expected a function what_stays(p, q) that returns a set; got a list.",
        ),
        ("backward.my_backward", 1, "that returns 3 values, dx, dgamma and dbeta; got an int."),
        (
            "covariate_shift.what_stays",
            lambda p, q: [1],
            "The set: expected a set, got an array of shape (1,).",
        ),
        ("batch_norm.bound", lambda m: int((m - 1) ** 0.5), "rounded"),
    ],
)
def test_what_is_wanted_is_said(name, answer, sentence):
    result = said(name, answer)
    assert not result.passed
    assert sentence in result.message


def test_the_formula_with_eps_is_the_length_of_the_gradient():
    exercise = CATALOGUE["landscape.squared_length"]
    for case in exercise.inputs():
        x = case["x_hat"] * np.sqrt(case["sigma"] ** 2 + case["eps"])
        _, cache = norms.batch_norm(x[:, None], np.full(1, case["gamma"]), np.zeros(1), case["eps"])
        dx, _, _ = norms.batch_norm_backward(case["dy"][:, None], cache)
        assert np.isclose((dx**2).sum(), exercise.right(**case), rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["batch_norm.my_batch_norm", "backward.my_backward", "backward.layer_norm_dx"]
)
def test_the_solution_is_what_the_package_computes(name):
    exercise = CATALOGUE[name]
    for case in exercise.inputs():
        if "beta" in case:
            expected = norms.batch_norm(**case)[:1]
        elif "gamma" in case:
            _, cache = norms.batch_norm(case["x"], case["gamma"], 0 * case["gamma"], case["eps"])
            expected = norms.batch_norm_backward(case["dy"], cache)
        else:
            ones = np.ones(case["x"].shape[1])
            _, cache = norms.layer_norm(case["x"], ones, 0 * ones, case["eps"])
            expected = norms.layer_norm_backward(case["dy"], cache)[:1]
        got = exercise.right(**case)
        for want, have in zip(expected, got if isinstance(got, tuple) else (got,), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
