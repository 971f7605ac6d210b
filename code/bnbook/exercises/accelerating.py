"""Checked exercises of the chapter on accelerating batch-normalized networks."""

from bnbook.exercises._exercise import Exercise

EXERCISES = {
    "seeds_needed": Exercise(
        title="What does a small effect cost?",
        asks="seeds_needed(effect, s)",
        inputs=lambda: [{"effect": e, "s": s} for e, s in ((1.5, 1.0), (2.0, 0.7), (0.2, 3.0))],
        returns=("the number of pairs",),
        rtol=0.005,
        hints=(
            "The smallest effect that is resolved is the sum of both quantiles times s / sqrt(n).",
            "Solve it for n: everything is squared.",
        ),
        solution="""
def seeds_needed(effect, s):
    return (1.96 + 0.84) ** 2 * (s / effect) ** 2
""",
        slips="""
not squared: The uncertainty falls with the root of n: half the effect needs four times the seeds.
    ** 2 =>
quantiles not squared: The sum of the quantiles is squared as well.
    0.84) ** 2 => 0.84)
inverted: A smaller effect needs more seeds.
    s / effect => effect / s
power forgotten: 1.96 alone resolves the effect in half of the cases; add 0.84 for 80 %.
    1.96 + 0.84 => 1.96
squares of the quantiles added: Add the quantiles, then square.
    (1.96 + 0.84) ** 2 => (1.96**2 + 0.84**2)
unpaired runs: s is that of the differences: there is no second variance, so no factor 2.
    return => return 2 *
variance taken for the standard deviation: s is a standard deviation: square it.
    (s / effect) ** 2 => s / effect**2
""",
    ),
    "dropout_factors": Exercise(
        title="Dropout behind a sigmoid",
        asks="the factors of sigmoid and tanh",
        returns=("the factor of the sigmoid", "that of tanh"),
        rtol=0.005,
        hints=(
            "tanh has the mean 0 and the sigmoid one half; the mean enters the shift squared.",
            "Compute mean and variance of each by a quadrature, and put them into the shift with p = 0.5.",
        ),
        solution="""
z, weight = np.polynomial.hermite_e.hermegauss(80)
weight = weight / weight.sum()
factors = []
for a in (1 / (1 + np.exp(-z)), np.tanh(z)):
    mean = weight @ a
    var = weight @ a**2 - mean**2
    factors.append(1 + (mean**2 + var) / var)
factors
""",
        slips="""
mean forgotten: Dropout acts on the mean as well: c^2 belongs into the factor.
    = [2.0, 2.0]
inference over training: The variance in training is the larger one.
    1 + (mean**2 + var) / var => 1 / (1 + (mean**2 + var) / var)
standard deviations: This is the ratio of the widths; square it.
    1 + (mean**2 + var) / var => np.sqrt(1 + (mean**2 + var) / var)
only the added variance: Add the 1 for the variance that is there anyway.
    1 + (mean =>  (mean
""",
    ),
    "two_classes": None,
    "length_factor": Exercise(
        title="How long is a weight in balance?",
        asks="the factor between the two lengths",
        returns=("the factor",),
        rtol=0.01,
        hints=(
            "In balance the fourth power of the length is the rate times G^2, over twice the decay.",
            "Divide the two ratios of rate and decay, and take the fourth root.",
        ),
        solution="""
one, other = 0.8 / 0.01, 0.05 / 0.16
factor = (one / other) ** (1 / 4)
""",
        slips="""
fourth root forgotten: The fourth power of the length is proportional to the ratio.
    ** (1 / 4) =>
square root: This is the ratio of the squared lengths.
    (1 / 4) => (1 / 2)
inverted: The larger rate and the smaller decay give the longer weights.
    one / other => other / one
product of rate and decay: The length depends on the ratio of rate and decay.
    = 1
rate alone: The decay differs as well.
    = 2
""",
    ),
}
