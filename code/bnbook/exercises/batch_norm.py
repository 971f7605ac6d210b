"""Checked exercises of the chapter on the algorithm."""

from __future__ import annotations

from bnbook.exercises._exercise import IMAGES, Exercise, Inputs, numbers


def _images() -> list[Inputs]:
    cases = []
    for k, (shape, eps, dtype) in enumerate(IMAGES):
        x = numbers(10 + k, *shape, dtype=dtype)
        x += 3
        gamma, beta = numbers(20 + k, 2, shape[1], dtype=dtype)
        cases.append({"x": x, "gamma": gamma, "beta": beta, "eps": eps})
    return cases


EXERCISES = {
    "y_by_hand": Exercise(
        title="By hand",
        asks="y, four numbers",
        returns=("y",),
        rtol=0.002,
        hints=(
            "First the mean, then the mean of the squared distances from it: that is the variance.",
            "The distances are -2, 0, 0 and 2. Divide by the root of the variance, then scale and shift.",
        ),
        solution="""
x, gamma, beta = np.array([2, 4, 4, 6]), 3, 1
centred = x - x.mean()
var = (centred**2).mean()
y = gamma * centred / np.sqrt(var) + beta
""",
        slips="""
unbiased variance: The variance divides the sum of the squares by m = 4, not by 3.
    (centred**2).mean() => (centred**2).sum() / 3
variance instead of standard deviation: Divide by the root of the variance.
    np.sqrt(var) => var
gamma and beta forgotten: This is x_hat. Multiply it by gamma and add beta.
    gamma * =>
    + beta =>
gamma forgotten: Multiply x_hat by gamma = 3.
    gamma * =>
beta forgotten: Add beta = 1.
    + beta =>
beta inside the product: gamma multiplies x_hat alone.
    gamma * centred / np.sqrt(var) + beta => gamma * (centred / np.sqrt(var) + beta)
not scaled: This is x minus its mean; divide by the standard deviation.
    / np.sqrt(var) =>
""",
    ),
    "my_batch_norm": Exercise(
        title="Four dimensions",
        asks="my_batch_norm(x, gamma, beta, eps)",
        inputs=_images,
        returns=("y",),
        keeps_dtype=True,
        forbids={"a loop": ("for", "while"), "torch": ("torch",)},
        invariants={
            "(y - beta) / gamma should have the mean zero in each channel": lambda at: (
                at["y"].mean((0, 2, 3)) - at["beta"]
            )
        },
        hints=(
            "A channel has one mean: over which axes of (N, C, H, W) does it run?",
            "keepdims=True leaves the mean with four axes, so that it broadcasts against x.",
            "gamma has the shape (C,); as (1, C, 1, 1) it broadcasts along the channels.",
        ),
        solution="""
def my_batch_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean((0, 2, 3), keepdims=True)
    var = x.var((0, 2, 3), keepdims=True)
    x_hat = (x - mean) / np.sqrt(var + eps)
    return gamma.reshape(1, -1, 1, 1) * x_hat + beta.reshape(1, -1, 1, 1)
""",
        also=(
            """
def my_batch_norm(x, gamma, beta, eps):
    m = x.size / x.shape[1]
    deviations = x - x.sum((0, 2, 3), keepdims=True) / m
    variance = (deviations**2).sum((0, 2, 3), keepdims=True) / m
    scaled = deviations * (variance + eps) ** -0.5
    return gamma[:, None, None] * scaled + beta[:, None, None]
""",
        ),
        slips="""
mean over the batch alone: All positions of a channel belong to its index set: reduce their axes, too.
    (0, 2, 3) => (0,)
mean over the positions alone: This is instance norm: the batch belongs to the index set, too.
    (0, 2, 3) => (2, 3)
mean over all axes: Every channel has a mean and a variance of its own: do not reduce the channel axis.
    (0, 2, 3) => (0, 1, 2, 3)
mean over the channels: This is layer norm: each example by itself. Batch norm has one mean for each channel.
    (0, 2, 3) => (1, 2, 3)
channels taken from the last axis: The images have the shape (N, C, H, W): the channels are axis 1.
    (0, 2, 3) => (0, 1, 2)
    .reshape(1, -1, 1, 1) =>
unbiased variance: The variance that normalizes a training batch divides by m, not by m - 1.
    x.var((0, 2, 3) => x.var((0, 2, 3), ddof=1
eps outside the root: The divisor is the root of (variance + eps), not the root of the variance plus eps.
    np.sqrt(var + eps) => (np.sqrt(var) + eps)
eps forgotten: Add eps to the variance: a channel whose values are all equal would be divided by zero.
    var + eps => var
eps ignored: The function has an argument eps; use it instead of a fixed 1e-5.
    var + eps => var + 1e-5
variance instead of standard deviation: Divide by the root of the variance: only then is the variance 1.
    np.sqrt(var + eps) => (var + eps)
root of the standard deviation: `std` is a root already, and one is enough: take the root of `var` plus eps.
    np.sqrt(var + eps) => np.sqrt(np.sqrt(var) + eps)
mean not subtracted: The mean enters the variance, but the numerator is x - mean as well.
    x_hat = (x - mean) => x_hat = x
gamma and beta forgotten: Scale and shift come last: y = gamma * x_hat + beta.
    gamma.reshape(1, -1, 1, 1) * =>
    + beta.reshape(1, -1, 1, 1) =>
gamma forgotten: Multiply x_hat by the gamma of its channel.
    gamma.reshape(1, -1, 1, 1) * =>
beta forgotten: Add the beta of the channel at the end.
    + beta.reshape(1, -1, 1, 1) =>
beta inside the product: gamma multiplies x_hat alone, not x_hat + beta.
    x_hat + beta.reshape(1, -1, 1, 1) => (x_hat + beta.reshape(1, -1, 1, 1))
gamma and beta along the last axis: An array of shape (C,) broadcasts along the last axis: give it the shape
    (1, C, 1, 1).
    .reshape(1, -1, 1, 1) =>
""",
    ),
    "bound": Exercise(
        title="The loudest possible example",
        asks="bound(m)",
        inputs=lambda: [{"m": m} for m in (3, 8, 20)],  # m - 1 is no square, and neither is m
        returns=("the bound",),
        hints=(
            "All x_hat sum to zero, and their squares sum to m at most.",
            "If one of them is t, the others sum to -t: how small can the sum of their squares be?",
        ),
        solution="""
def bound(m):
    return np.sqrt(m - 1)
""",
        slips="""
bound not sharp, sqrt(m): All squares sum to m, but the others cannot all be zero: they sum to -t.
    m - 1 => m
square of the bound: This bounds the square of x_hat; take the root.
    np.sqrt(m - 1) => m - 1
unbiased variance: This is the bound if the variance divides by m - 1; here it divides by m.
    np.sqrt(m - 1) => (m - 1) / np.sqrt(m)
rounded: The bound is no whole number: return it as it is.
    np.sqrt(m - 1) => int(np.sqrt(m - 1))
no bound found: There is one: all squares of x_hat sum to m at most.
    np.sqrt(m - 1) => np.inf
bound of a Gaussian: Nothing is said about the distribution: the bound has to hold for any inputs.
    np.sqrt(m - 1) => 3
""",
    ),
    "start_of_gamma": None,
}
