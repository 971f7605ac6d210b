"""Checked exercises of the chapter on internal covariate shift."""

from __future__ import annotations

from bnbook.exercises._exercise import Exercise

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
    "warning_in_time": None,
}
