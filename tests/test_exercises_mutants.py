"""Wrong answers that nobody wrote down: solutions with one thing changed. None passes, most are named.

Operators, operands, axes, keywords such as `keepdims` and `ddof`, functions and the order of arguments are
changed, and statements left out; more than the changes by which the checker itself looks for slips anywhere.
"""

import ast
import copy
import random
import re

import numpy as np
import pytest
import torch

from bnbook.exercises import _running, catalogue
from bnbook.exercises._comparing import agree, outcome_of
from bnbook.exercises._engine import judge

CATALOGUE = {name: exercise for name, exercise in catalogue().items() if not exercise.slow}
EACH = 9  # mutants of an exercise
# Right answers in another spelling.
OTHERS = {
    "inference.pooled_variance": """
def pooled_variance(means, variances):
    second = (variances + means**2).mean(0)
    return second - means.mean(0) ** 2
""",
    "inference.fold_forward": """
def fold_forward(weight, bias, mean, var, gamma, beta, eps):
    std = np.sqrt(var + eps)
    shift = beta - gamma * mean / std
    return weight * (gamma / std), (weight * shift).sum(1) + bias
""",
    "adaptation.heap_variance": """
def heap_variance(mean_s, var_s, mean_B, var_B, w):
    mean = w * mean_s + (1 - w) * mean_B
    return w * (var_s + mean_s**2) + (1 - w) * (var_B + mean_B**2) - mean**2
""",
    "landscape.squared_length": """
def squared_length(dy, x_hat, sigma, gamma, eps):
    var, m = sigma**2, len(dy)
    left = np.sum(dy**2) - np.sum(dy) ** 2 / m - (2 - var / (var + eps)) * np.sum(x_hat * dy) ** 2 / m
    return gamma**2 * left / (var + eps)
""",
}

UNNAMED = {"wrong result", "factor", "constant factor", "sign flipped", "not a number", "dtype lost"}

OPERATORS = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.Sub),
    ast.Pow: (ast.Mult,),
}
FUNCTIONS = {
    "mean": ("sum",),
    "sum": ("mean",),
    "var": ("std",),
    "std": ("var",),
    "sqrt": ("square", "abs"),
    "square": ("abs",),
    "log": ("log10", "log1p"),
    "log1p": ("log",),
    "exp": ("expm1",),
    "floor": ("ceil",),
    "ceil": ("floor",),
}


def changed(node):
    """What may stand in the place of a node."""
    match node:
        case ast.BinOp(left, operator, right):
            for other in OPERATORS.get(type(operator), ()):
                yield ast.BinOp(left, other(), right)
            yield from (left, right, ast.BinOp(right, operator, left))
        case ast.UnaryOp(ast.USub(), operand):
            yield operand
        case ast.Call(function, arguments, keywords):
            if isinstance(function, ast.Attribute):
                for other in FUNCTIONS.get(function.attr, ()):
                    yield ast.Call(ast.Attribute(function.value, other, ast.Load()), arguments, keywords)
                if function.attr in ("var", "std"):
                    yield ast.Call(function, arguments, [*keywords, ast.keyword("ddof", ast.Constant(1))])
                if function.attr == "sqrt":
                    yield arguments[0]
            for keyword in keywords:
                yield ast.Call(function, arguments, [other for other in keywords if other is not keyword])
            if len(arguments) > 1:
                yield ast.Call(function, arguments[::-1], keywords)
        case ast.Tuple(elements, ast.Load()) if len(elements) > 1:
            yield ast.Tuple(elements[::-1], ast.Load())
            yield from (ast.Tuple([e for e in elements if e is not left], ast.Load()) for left in elements)
            if all(isinstance(element, ast.Constant) for element in elements):
                yield ast.Tuple([ast.Constant(1), *elements], ast.Load())
        case ast.Constant(0 | 1 as axis) if axis is not True:
            yield ast.Constant(1 - axis)
        case ast.arguments(args=arguments):
            for i in range(len(arguments) - 1):
                swapped = [*arguments[:i], arguments[i + 1], arguments[i], *arguments[i + 2 :]]
                other = copy.copy(node)
                other.args = swapped
                yield other


def mutants(source):
    """Each source in which one node is changed or one statement is left out."""
    count = len(list(ast.walk(ast.parse(source))))
    for k in range(count):
        for j in range(20):
            tree = ast.parse(source)
            node = list(ast.walk(tree))[k]
            options = list(changed(node))
            if j >= len(options):
                break
            yield ast.unparse(ast.fix_missing_locations(_Replace(node, options[j]).visit(tree)))
        tree = ast.parse(source)
        node = list(ast.walk(tree))[k]
        if isinstance(node, ast.AugAssign | ast.Expr):
            yield ast.unparse(ast.fix_missing_locations(_Replace(node, ast.Pass()).visit(tree)))


class _Replace(ast.NodeTransformer):
    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


def moved(value, rng):
    """Other numbers of the same kind: whoever passes by chance on the given inputs, fails on these."""
    if isinstance(value, torch.nn.Module):
        for parameter in value.parameters():
            parameter.data *= 1 + 0.2 * torch.from_numpy(rng.uniform(size=parameter.shape)).to(parameter)
        return value
    if isinstance(value, torch.Tensor):
        new = value.detach() * (1 + 0.2 * torch.from_numpy(rng.uniform(size=value.shape)).to(value))
        return new.requires_grad_(value.requires_grad)
    if isinstance(value, tuple) and any(isinstance(item, np.ndarray) for item in value):
        return tuple(moved(item, rng) for item in value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return (value * (1 + 0.2 * rng.uniform(size=value.shape))).astype(value.dtype)
    return value * (1 + 0.2 * rng.uniform()) if isinstance(value, float) else value


def gives(exercise, answer):
    """What an answer gives on moved inputs."""
    if exercise.inputs is None:
        return [outcome_of(exercise, answer, {})]
    found = []
    with _running.guarded():
        for k in range(len(_running._made(exercise.inputs))):
            inputs = {
                name: moved(v, np.random.default_rng(k))
                for name, v in _running.inputs_of(exercise, k).items()
            }
            by_name = {name: inputs[name] for name in exercise.keywords}
            try:
                value = answer(*(inputs[name] for name in inputs if name not in by_name), **by_name)
                found.append(outcome_of(exercise, value, inputs))
            except Exception as error:
                found.append(outcome_of(exercise, {str(error)}, inputs))
    return found


def wrong_answers(exercise, name, solution):
    """Mutants of a solution that change its result, a few of them."""
    sources = sorted(set(mutants(solution)))
    random.Random(name).shuffle(sources)
    right, found = gives(exercise, exercise.right), []
    for source in sources:
        try:
            with _running.guarded():
                answer = exercise.run(source)
        except Exception:
            continue
        if not all(agree(exercise, *pair) for pair in zip(right, gives(exercise, answer), strict=True)):
            found.append((source, answer))
        if len(found) == EACH:
            break
    return found


def contradictions(result):
    """What a message says and denies."""
    text, found = result.message, []
    if ("passed" in text.partition(". ")[0]) != result.passed:
        found.append("verdict and head differ")
    if "has a name" in text and "knows no mistake" in text.partition("Two mistakes")[0]:
        found.append("named and not named")
    for want, have in re.findall(r"expected (.*?)\n +got +(.*?)(?:\n|$)", text):
        found += ["expected what it got"] if want == have else []
    for want, have in re.findall(r"[Ee]xpected (an? [^.;]*?)[,;] got (an? .*?)\.", text):
        found += ["expected what it got"] if want == have else []
    for parts in re.findall(r"^(?:.*not yet\. )?(.*) (?:are|is) right\.$", text, re.M):
        names = re.split(", | and ", parts)
        found += [
            f"{name} is right and wrong"
            for name in names
            if re.search(rf"^{re.escape(name)}[:,\n]", text, re.M)
        ]
    return found


@pytest.fixture(scope="module")
def judged():
    return {
        name: [
            (source, judge(name, exercise, answer))
            for source, answer in wrong_answers(exercise, name, exercise.solution)
        ]
        for name, exercise in CATALOGUE.items()
    }


@pytest.fixture(scope="module")
def judged_others():
    return {
        name: [
            (source, judge(name, CATALOGUE[name], answer))
            for source, answer in wrong_answers(CATALOGUE[name], name, solution)
        ]
        for name, solution in OTHERS.items()
    }


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_spellings_pass(name):
    assert judge(name, CATALOGUE[name], CATALOGUE[name].run(OTHERS[name])).passed


def test_no_mutant_passes(judged, judged_others):
    results = [*judged.items(), *judged_others.items()]
    assert not [(name, source) for name, found in results for source, r in found if r.passed]


def test_no_message_contradicts_itself(judged, judged_others):
    results = [r for found in (*judged.values(), *judged_others.values()) for _, r in found]
    assert not [(r.message, c) for r in results if (c := contradictions(r))]


def share_named(judged):
    """Named ones and all that return numbers of the right shape: a crash or a wrong shape is described."""
    verdicts = [r.verdict for results in judged.values() for _, r in results]
    described = ("crash", "wrong shape", "wrong type", "wrong number", "returned nothing", "timed out")
    counted = [verdict for verdict in verdicts if not verdict.startswith(described)]
    named = [verdict for verdict in counted if not UNNAMED & set(verdict.split(" + "))]
    return len(named), len(counted)


def test_four_of_five_mutants_are_named(judged):
    named, counted = share_named(judged)
    assert counted > 300
    assert named >= 0.8 * counted, f"{named} of {counted} are named"
