"""The engine of the exercises: what it says about right and wrong answers, and what readers' code may do."""

import random
import signal
import threading
import time

import numpy as np
import pytest
import torch

from bnbook.exercises import Exercise, catalogue
from bnbook.exercises._engine import judge

CATALOGUE = {name: catalogue()[name] for name in ("backward.my_backward", "saturation.disguised")}


def doubling(**settings):
    """A small exercise: twice x, on inputs of one, three and six values."""
    given = {
        "title": "Double",
        "asks": "double(x)",
        "inputs": lambda: [{"x": np.arange(1.0, n + 1)} for n in (1, 3, 6)],
        "solution": "def double(x):\n    return 2 * x",
        "returns": ("y",),
        "slips": """
squared: Multiply by two.
    2 * x => x**2
only small arrays: Larger ones, too.
    2 * x => 2 * x + (np.zeros((2, 2)) if x.size == 6 else 0)
""",
    }
    return Exercise(**{**given, **settings})


def double_of(arguments, result):
    """Source of another solution."""
    return f"def double({arguments}):\n    return {result}"


def said(answer, **settings):
    return judge("toy.double", doubling(**settings), answer)


# --------------------------------------------------------------------------- verdicts


def test_two_mistakes_in_two_parts_are_both_named():
    exercise = CATALOGUE["backward.my_backward"]
    both = {slip.name: exercise.wrong(slip) for slip in exercise.parsed_slips}

    def my_backward(dy, x, gamma, eps):
        dx, dgamma, _ = both["lost 1/m"](dy, x, gamma, eps)
        return dx, dgamma, both["dbeta averaged"](dy, x, gamma, eps)[2]

    result = judge("backward.my_backward", CATALOGUE["backward.my_backward"], my_backward)
    assert result.verdict == "lost 1/m + dbeta averaged"
    assert "dx: lost 1/m. Both corrections" in result.message
    assert "dgamma:" not in result.message


def test_a_part_with_a_name_is_named_beside_one_without():
    exercise = CATALOGUE["backward.my_backward"]
    wrong = {slip.name: exercise.wrong(slip) for slip in exercise.parsed_slips}["lost 1/m"]
    result = judge(
        "backward.my_backward",
        CATALOGUE["backward.my_backward"],
        lambda *g: (*wrong(*g)[:2], wrong(*g)[2] + 1),
    )
    assert result.verdict == "lost 1/m + wrong result"
    assert "dx: lost 1/m. Both" in result.message
    assert "dbeta\n  expected [" in result.message
    assert "dx\n" not in result.message


def test_a_part_without_a_name_is_shown_on_the_smallest_input():
    right = CATALOGUE["backward.my_backward"].right
    result = judge(
        "backward.my_backward",
        CATALOGUE["backward.my_backward"],
        lambda *given: (right(*given)[0] + 1, *right(*given)[1:]),
    )
    assert result.verdict == "wrong result"
    assert "dgamma and dbeta are right." in result.message
    assert "dx should sum to zero in each channel, and does not." in result.message
    assert "dx, 8 of 8 values differ, the first at [0, 0, 0, 0]" in result.message
    assert "expected dgamma" not in result.message


def test_an_unknown_mistake_shows_input_expected_and_got():
    result = said(lambda x: 2 * x + (x.size > 1))
    assert result.verdict == "wrong result"
    assert str(result).splitlines() == [
        "toy.double, Double: not yet. The check knows no mistake that gives this.",
        "The smallest input on which it shows:",
        "  x = [1., 2., 3.]",
        "y",
        "  expected [2., 4., 6.]",
        "  got      [3., 5., 7.]",
    ]


def test_a_large_array_shows_the_first_value_that_differs():
    result = said(lambda x: 2 * x + (x == 15), inputs=lambda: [{"x": np.arange(20.0).reshape(2, 10)}])
    assert "x = array of shape (2, 10), float64" in result.message
    assert "y, 1 of 20 values differ, the first at [1, 5]\n  expected 30\n  got      31" in result.message


def test_a_mistake_that_crashes_on_some_inputs_is_still_named():
    assert said(lambda x: np.zeros((3, 3)) + x if x.size > 3 else 2 * x).verdict == "only small arrays"


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (lambda x: -2 * x, "sign flipped", "Y: the sign is wrong everywhere."),
        (lambda x: 3 * x, "slip at 3", "3 is wrong in its place."),
        (lambda x: 5 * x, "constant factor", "2.5 times what is right"),
        (lambda x: 2 * x * x.size, "factor", "off by a factor, on the inputs by 1, 3, 6."),
        (lambda x: x.sort(), "returned nothing", "is there a `return`?"),
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
        (7, "wrong type", "Expected a function double(x) that returns an array; got an int."),
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
    exercise = doubling(inputs=None, solution="[1, 2.5]", returns=("first", "second"), asks="both", slips="")
    assert judge("toy.double", exercise, (1, 2.5)).message == "toy.double, Double: passed. That is right."
    result = judge("toy.double", exercise, [1, 4])
    assert result.message.splitlines() == [
        "toy.double, Double: not yet. first is right.",
        "4 is not right for second, and the check knows no mistake that gives it.",
    ]
    assert "2.5" not in result.message
    assert judge("toy.double", exercise, [1]).verdict == "wrong number of values"
    assert "got a float." in judge("toy.double", exercise, 1.0).message
    assert "Expected a value, both; got a function." in judge("toy.double", exercise, len).message.replace(
        "builtin_", ""
    )
    column = doubling(inputs=None, solution="[1, 2]", slips="")
    assert judge("toy.double", column, np.array([[1.0], [2.0]])).passed
    assert "Expected double(x); got a list of 3 numbers." in judge("toy.double", column, [1, 2, 3]).message


def test_sets_and_tensors_are_compared():
    exercise = doubling(solution=double_of("x", "{'a'}"), slips="b: No.\n    'a' => 'b'")
    assert judge("toy.double", exercise, lambda x: {"a"}).passed
    assert judge("toy.double", exercise, lambda x: {"b"}).verdict == "b"
    result = judge("toy.double", exercise, lambda x: {"c", "a"})
    assert "expected {'a'}\n  got      {'a', 'c'}" in result.message
    assert (
        "y: expected a set, got an array of shape (1,)." in judge("toy.double", exercise, lambda x: x).message
    )
    tensors = doubling(inputs=lambda: [{"x": torch.ones(2)}])
    assert judge("toy.double", tensors, lambda x: 2 * x).passed
    assert "x = [1., 1.]" in judge("toy.double", tensors, lambda x: x + torch.arange(2)).message
    result = judge("toy.double", tensors, lambda x: (2 * x).numpy())
    assert "you returned an array; a tensor is wanted" in result.message


def test_an_empty_answer_is_not_answered_yet_and_no_failure():
    def empty(x): ...

    def described(x):
        """Twice x."""

    for answer in (empty, described, lambda x: ..., ..., None):
        result = said(answer)
        assert result.verdict == "not answered"
        assert (
            result.message
            == "toy.double, Double: not answered yet. Write your answer where the `...` stands."
        )
    pair = doubling(inputs=None, solution="[1, 2]", slips="")
    assert judge("toy.double", pair, [1, ...]).verdict == "not answered"
    assert said(lambda x: x).verdict != "not answered"
    assert said(lambda x: 3).verdict != "not answered"


def test_values_that_look_alike_are_shown_with_as_many_digits_as_tell_them_apart():
    result = said(lambda x: 2 * x * (1 + 1e-6 * (x == 1)))
    assert "expected [2.]\n  got      [2.000002]" in result.message


def test_lost_float32_is_noticed_where_it_matters():
    given = {"inputs": lambda: [{"x": np.ones(3, np.float32)}]}
    assert said(lambda x: 2 * x.astype(float), **given).passed
    assert said(lambda x: 2 * x.astype(float), **given, keeps_dtype=True).verdict == "dtype lost"
    assert said(lambda x: 2 * x, **given, keeps_dtype=True).passed


def test_something_else_than_a_network_is_refused():
    exercise = CATALOGUE["saturation.disguised"]
    result = judge("saturation.disguised", exercise, lambda net: 3)
    assert result.verdict == "wrong type"
    assert "What your function returned, an int, cannot be used: expected a network" in result.message
    assert "it still has a tanh" in judge("saturation.disguised", exercise, lambda net: net).message


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

    given = {
        "inputs": lambda: [{"pair": (np.ones(2), np.ones(2))}],
        "solution": double_of("pair", "2 * pair[0]"),
    }
    assert said(of_tuple, **given, slips="").verdict == "argument changed in place"
    assert "pair = ([1., 1.], [1., 1.])" in said(lambda pair: pair[0] + [1, 2], **given, slips="").message

    def of_network(net):
        torch.nn.init.ones_(net[0].weight)
        return 1

    given = {
        "inputs": lambda: [{"net": torch.nn.Sequential(torch.nn.Linear(1, 1))}],
        "solution": double_of("net", "1"),
    }
    assert said(of_network, **given, slips="").verdict == "argument changed in place"
    assert "net = a network of 1 parts" in said(lambda net: {2}, **given, slips="").message


def test_single_numbers_and_settings_are_shown():
    given = {
        "inputs": lambda: [{"shape": (4,), "norm": "batch"}],
        "solution": double_of("shape, norm", "2.0"),
    }
    result = said(lambda shape, norm: 3.5, **given, slips="")
    assert result.verdict == "constant factor"
    assert result.message.splitlines()[2:] == [
        "  shape = (4,)",
        "  norm = 'batch'",
        "y",
        "  expected 2",
        "  got      3.5",
    ]
    assert (
        "expected a single number, got an array" in said(lambda shape, norm: [2], **given, slips="").message
    )
    two = {**given, "inputs": lambda: [{"shape": 1, "norm": 1}, {"shape": 2, "norm": 2}]}
    assert said(lambda shape, norm: shape, **two, slips="").verdict == "wrong result"


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
    crashing = "divides by zero: Do not.\n    2 * x => 1 // 0"
    assert said(lambda x: [][0], slips=crashing).verdict == "crash: IndexError"
    assert said(lambda x: 5 % 0, slips=crashing).verdict == "crash: ZeroDivisionError"


def test_rounding_is_allowed_in_proportion_to_the_values():
    assert said(lambda x: 2e9 * x + 1, solution="def double(x):\n    return 2e9 * x", slips="").passed
    assert not said(
        lambda x: 2e-9 * x + 1e-11, solution="def double(x):\n    return 2e-9 * x", slips=""
    ).passed


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


def test_what_observe_runs_is_limited_too():
    class Network:
        def __call__(self, x):
            while True:
                time.sleep(0.01)

    observed = {"observe": lambda net, inputs: net(inputs["x"]), "slips": "", "seconds": 0.2}
    solution = "def double(x):\n    return lambda x: 2 * x"
    assert said(lambda x: Network(), solution=solution, **observed).verdict == "timed out"


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


def test_random_states_default_dtype_and_warnings_are_left_alone(recwarn):
    def double(x):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
        return np.log(x - 2)

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    assert said(double).verdict == "not a number"
    assert states() == before
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not recwarn.list


def test_inputs_do_not_depend_on_the_readers_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        dtypes = []
        said(lambda x: dtypes.append(torch.get_default_dtype()))
        assert set(dtypes) == {torch.float32}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
