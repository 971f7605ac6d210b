"""Checked exercises of the chapter on internal covariate shift."""

from __future__ import annotations

from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _layers() -> list[Inputs]:
    cases = []
    for k, (units, inputs, images) in enumerate([(1, 1, 2), (2, 2, 2), (3, 2, 4)]):
        states = [
            (numbers(s, units, inputs), numbers(s + 1, units), numbers(s + 2, images, inputs) + 1)
            for s in (210 + 10 * k, 215 + 10 * k)
        ]
        cases.append({"old": states[0], "new": states[1]})
    W, b, X = cases[1]["old"]
    return [*cases, {"old": (W, b, X), "new": (W + 0.5, b, X)}, {"old": (W, b, X), "new": (W, b, X + 0.5)}]


EXERCISES = {
    "product": Exercise(
        title="A product of weights",
        asks="the new y for 0.1 and for -0.1, two numbers",
        returns=("y for 0.1", "y for -0.1"),
        rtol=0.002,
        hints=(
            "The derivative of J by each weight is G: all others are 1.",
            "Each of the ten weights becomes 1 minus the rate times G; y is their product.",
        ),
        solution="""
step = np.array([0.1, -0.1])
y = (1 - step) ** 10
""",
        slips="""
single steps added up: All weights move at once: their product changes.
    (1 - step) ** 10 => 1 - 10 * step
one weight moved: All ten weights take a step.
    ** 10 =>
change of y: This is the change; y itself started at 1.
    ** 10 => ** 10 - 1
nine layers: The product has ten factors.
    ** 10 => ** 9
""",
    ),
    "half": Exercise(
        title="The ratio in the game",
        asks="the rate at which R is 1/2 for seven people",
        returns=("the rate",),
        rtol=0.002,
        hints=(
            "One person alone turns e into (1 - rate) e, all together into (1 - 7 rate) e.",
            "Set (2 - 7 rate) / (2 - rate) to 1/2 and solve for the rate.",
        ),
        solution="""
L = 7
rate = 2 / (2 * L - 1)
""",
        slips="""
edge of divergence: At this rate R is 0.
    2 / (2 * L - 1) => 2 / L
one exact step: At this rate the joint step brings the error to 0, and R is more than 1/2.
    2 / (2 * L - 1) => 1 / L
""",
    ),
    "steps_back": Exercise(
        title="The way back",
        asks="the number of steps of the sigmoid",
        returns=("the number of steps",),
        rtol=0.01,
        hints=(
            "In one step z falls by 0.001 times the slope, so a unit of z takes 1000 over the slope steps.",
            "One over the slope is 2 + exp(z) + exp(-z). Integrate it from 0 to 3.",
        ),
        solution="""
z = 3
time = 2 * z + np.exp(z) - np.exp(-z)
steps = round(1000 * time)
""",
        slips="""
time instead of steps: A step is 0.001 of it.
    round(1000 * time) => time
unit of tanh: This is the number of tanh; check the sigmoid's.
    z = 3 => z = 6
    1000 * time => 125 * time
slope of the start throughout: The slope grows on the way back to 0: integrate one over it.
    2 * z + np.exp(z) - np.exp(-z) => z * (2 + np.exp(z) + np.exp(-z))
slope at zero throughout: Only near 0 the slope is 1/4; at 3 it is far smaller.
    = 12_000
sigmoid instead of its slope: A step is 0.001 times the *derivative* of the sigmoid.
    2 * z + np.exp(z) - np.exp(-z) => z + 1 - np.exp(-z)
term 2z forgotten: One over the slope is 2 + exp(z) + exp(-z).
    2 * z + =>
""",
    ),
    "below_share": Exercise(
        title="All images instead of their mean",
        asks="below_share(old, new)",
        inputs=_layers,
        returns=("the share",),
        hints=(
            "From below comes the movement of X, times the mean of the old and the new weights.",
            "The whole movement of u = X W^T + b holds the bias, too.",
            "Multiply both movements, sum over images and units, and divide once, by the sum of squares.",
        ),
        solution="""
def below_share(old, new):
    (W0, b0, X0), (W1, b1, X1) = old, new
    below = (X1 - X0) @ ((W0 + W1) / 2).T
    whole = X1 @ W1.T + b1 - (X0 @ W0.T + b0)
    return (below * whole).sum() / (whole**2).sum()
""",
        slips="""
old weights for the inputs: The split is symmetric: the inputs' movement meets the mean of both weights.
    ((W0 + W1) / 2).T => W0.T
new weights for the inputs: The split is symmetric: the inputs' movement meets the mean of both weights.
    ((W0 + W1) / 2).T => W1.T
sum of the weights: Take the mean of both weights: half of their sum.
    ((W0 + W1) / 2).T => (W0 + W1).T
share of the squares: The two parts are not orthogonal: multiply the part from below by the whole movement.
    below * whole => below**2
share of the lengths: The two parts are not orthogonal: multiply the part from below by the whole movement.
    (below * whole).sum() / (whole**2).sum() => np.sqrt((below**2).sum() / (whole**2).sum())
cosine: Divide by the squared length of the whole movement, not by both lengths.
    (whole**2).sum() => np.sqrt((below**2).sum() * (whole**2).sum())
share from the layer itself: This is the share of the layer's own weights and biases, 1 minus what is asked.
    return => return 1 -
bias forgotten: The bias moves u as well: it belongs to the whole movement.
    + b1 =>
    + b0 =>
movement of the mean: Sum over the images, instead of taking their mean first.
    (below * whole) => (below.mean(0) * whole.mean(0))
    (whole**2) => (whole.mean(0) ** 2)
mean of quotients: Sum over images and units in numerator and denominator, then divide once.
    (below * whole).sum() / (whole**2).sum() => (below / whole).mean()
one share a unit: Sum over the units as well: a single number.
    .sum() => .sum(0)
""",
    ),
    "warning_in_time": None,
}
