"""Checked exercises of the chapter on distributed training."""

from __future__ import annotations

from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _units() -> list[Inputs]:
    cases = []
    for k, (m, K) in enumerate([(4, 2), (6, 1), (9, 3)]):
        dy, x = numbers(310 + k, 2, m)
        x_hat, std = (x - x.mean()) / x.std(), float(x.std())
        cases.append({"dy": dy, "x_hat": x_hat, "std": std, "K": K})
    return cases


EXERCISES = {
    "merged": Exercise(
        title="Merge by hand",
        asks="mean and variance of all five values",
        returns=("the mean of all five", "the variance of all five"),
        rtol=0.002,
        hints=(
            "The mean of all weighs each device's mean with its number of values.",
            "Add the squares within the devices to those of their means around the common mean, then divide "
            "by 5.",
        ),
        solution="""
counts, means, squares = np.array([3, 2]), np.array([2, 8]), np.array([2, 2])
mean = (counts * means).sum() / 5
between = (counts * (means - mean) ** 2).sum()
merged = [mean, (squares.sum() + between) / 5]
""",
        slips="""
variances averaged: The distance between the two means contributes as well.
    (squares.sum() + between) / 5 => (squares / counts).mean()
variances averaged by count: The distance between the two means contributes as well.
    + between =>
mean of means: Device 0 has three values, device 1 two.
    (counts * means).sum() / 5 => means.mean()
unbiased variance: Divide the sum of the squares by 5, not by 4.
    between) / 5 => between) / 4
sum of the squares: Divide by the number of values.
    between) / 5 => between)
squares within the devices forgotten: Add the squares that each device sent.
    squares.sum() + =>
standard deviation instead of variance: The variance is its square.
    (squares.sum() + between) / 5 => np.sqrt((squares.sum() + between) / 5)
""",
    ),
    "weights": Exercise(
        title="A mean of means",
        asks="weights(sizes)",
        inputs=lambda: [{"sizes": [1, 2]}, {"sizes": [3, 13]}, {"sizes": [2, 2, 6]}],
        returns=("the weights",),
        hints=(
            "An averaged gradient weighs an example of device k by 1 / (K N_k); it should be 1 / N.",
            "Which factor turns the one into the other?",
        ),
        solution="""
def weights(sizes):
    return [len(sizes) * size / sum(sizes) for size in sizes]
""",
        slips="""
number of devices forgotten: The averaging divides by the number of devices: make up for it.
    len(sizes) * =>
inverse weights: An example of the *large* part counts too little: its loss gets the larger weight.
    len(sizes) * size / sum(sizes) => sum(sizes) / (len(sizes) * size)
no weights: Parts of different size need different weights.
    len(sizes) * size / sum(sizes) => 1.0
sum instead of mean: This gives the gradient of a sum over the examples; divide by their number.
    / sum(sizes) =>
sizes: This is K times too small and N times too large: both means have to be undone.
    len(sizes) * size / sum(sizes) => size
root of the sizes: A mean is linear in its parts: no root.
    len(sizes) * size / sum(sizes) => (len(sizes) * size / sum(sizes)) ** 0.5
""",
    ),
    "half_synced": Exercise(
        title="Half a synchronization",
        asks="half_synced(dy, x_hat, std, K)",
        inputs=_units,
        returns=("dx",),
        hints=(
            "`np.split(dy, K)` gives what each device has.",
            "On each device: dy minus its own mean, minus x_hat times the mean of dy x_hat of that device.",
        ),
        solution="""
def half_synced(dy, x_hat, std, K):
    parts = zip(np.split(dy, K), np.split(x_hat, K), strict=True)
    dx = [(d - d.mean() - z * (d * z).mean()) / std for d, z in parts]
    return np.concatenate(dx)
""",
        slips="""
fully synchronized: This is the right gradient; the exercise wants that of somebody who forgot to synchronize.
    d.mean() => dy.mean()
    (d * z).mean() => (dy * x_hat).mean()
nothing synchronized: The forward pass was synchronized: x_hat and std are given, and stay as they are.
    std for d, z in parts => (std * s) for d, z, s in
        ((d, (z - z.mean()) / z.std(), z.std()) for d, z in parts)
lost 1/m: Each device divides its sums by its own number of examples.
    .mean() => .sum()
divided by the number of all examples: Each device divides its own sums by its *own* number of examples.
    .mean() => .sum() / len(dy)
mean over all, projection over the part: Both means are those of the part.
    d.mean() => dy.mean()
width of the part: The forward pass was synchronized: divide by the given standard deviation.
    / std => / (std * z.std())
not divided by the standard deviation: dx has a factor 1 / std.
    / std =>
statistics taken as constants: Both corrections belong to the gradient, with the means of the part.
    - d.mean() - z * (d * z).mean() =>
interleaved parts: Device 0 has the first m / K examples, not every K-th.
    np.split(dy, K), np.split(x_hat, K) => dy.reshape(-1, K).T, x_hat.reshape(-1, K).T
    np.concatenate(dx) => np.array(dx).T.ravel()
""",
    ),
}
