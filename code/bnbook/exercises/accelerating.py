"""Checked exercises of the chapter on accelerating batch-normalized networks."""

from bnbook.exercises._exercise import Exercise

EXERCISES = {
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
    "shares": Exercise(
        title="One factor, two shares",
        asks="the two shares of batch normalization",
        returns=("the share if it comes first", "the share if it comes last"),
        rtol=0.01,
        hints=(
            "First in line it takes the network from 240 steps to 120, last from 150 to 40.",
            "A share is the logarithm of the part's factor over the logarithm of the whole factor, 6.",
        ),
        solution="""
plain, normed, changed, both = 240, 120, 150, 40
whole = np.log(plain / both)
shares = [np.log(plain / normed) / whole, np.log(changed / both) / whole]
""",
        slips="""
without logarithms: Factors multiply; take logarithms, so that the parts add up.
    = [2 / 6, 3.75 / 6]
the share of the changes: These are the shares of the other changes in the same two orders.
    = [np.log(3) / np.log(6), np.log(1.6) / np.log(6)]
the wrong way round: Batch normalization comes first in the first number.
    = [np.log(3.75) / np.log(6), np.log(2) / np.log(6)]
steps saved: Compare factors, not numbers of steps saved.
    = [120 / 200, 110 / 200]
""",
    ),
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
}
