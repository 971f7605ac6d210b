"""Checked exercises of the chapter on the backward pass."""

from __future__ import annotations

from bnbook import norms
from bnbook.exercises._exercise import IMAGES, Exercise, Inputs, numbers


def _images() -> list[Inputs]:
    cases = []
    for k, (shape, eps, dtype) in enumerate(IMAGES):
        dy, x = numbers(30 + k, 2, *shape, dtype=dtype)
        gamma = numbers(40 + k, shape[1], dtype=dtype)
        x += 1
        cases.append({"dy": dy, "x": x, "gamma": gamma, "eps": eps})
    return cases


def _rows() -> list[Inputs]:
    cases = []
    for k, (shape, eps) in enumerate([((2, 3), 0.1), ((3, 3), 1e-5), ((4, 6), 0.5)]):
        dy, x = numbers(70 + k, 2, *shape)
        cases.append({"dy": dy, "x": x, "eps": eps})
    return cases


EXERCISES = {
    "dx_by_hand": Exercise(
        title="By hand",
        asks="dx for dy = (1, 0, 0), three numbers",
        returns=("dx",),
        rtol=0.005,
        invariants={"dx should sum to zero": lambda at: at["dx"].sum()},
        hints=(
            "The variance is 2/3, so x_hat = sqrt(3/2) (-1, 0, 1).",
            "Take two things off dy: its mean, and x_hat times the mean of dy x_hat.",
        ),
        solution="""
dy, x = np.array([1, 0, 0]), np.array([-1, 0, 1])
std = np.sqrt((x**2).mean())
x_hat = x / std
dx = (dy - dy.mean() - x_hat * (dy * x_hat).mean()) / std
""",
        slips="""
statistics taken as constants: Mean and variance depend on the inputs: two more terms belong into the bracket.
    - dy.mean() =>
    - x_hat * (dy * x_hat).mean() =>
variance taken as a constant: The term along x_hat is missing.
    - x_hat * (dy * x_hat).mean() =>
mean taken as a constant: The mean of dy has to be subtracted as well.
    - dy.mean() =>
lost 1/m: Both corrections are means over the three inputs, not sums.
    dy.mean() => dy.sum()
    (dy * x_hat).mean() => (dy * x_hat).sum()
not divided by the standard deviation: This is the bracket; it is multiplied by 1 / sqrt(variance).
    mean()) / std => mean())
unbiased variance: The variance is 2/3: divide by m = 3, not by 2.
    = np.array([1, 0, 0]) - 1 / 3 - np.array([-1, 0, 1]) * (-1 / 3)
answer for dy = (1, 2, 3): Check the other one first, for dy = (1, 0, 0).
    = [0, 0, 0]
""",
    ),
    "my_backward": Exercise(
        title="Four dimensions",
        asks="my_backward(dy, x, gamma, eps)",
        inputs=_images,
        returns=("dx", "dgamma", "dbeta"),
        keeps_dtype=True,
        forbids={"a loop": ("for", "while"), "torch": ("torch",)},
        invariants={"dx should sum to zero in each channel": lambda at: at["dx"].sum((0, 2, 3))},
        hints=(
            "Run the forward pass again: x_hat and 1 / sqrt(variance + eps) of each channel.",
            "dgamma and dbeta are sums over the axes 0, 2 and 3. Start dx from dx_hat = dy gamma.",
            "dx takes two parts off dx_hat: its mean, and x_hat times the mean of dx_hat x_hat.",
        ),
        solution="""
def my_backward(dy, x, gamma, eps=1e-5):
    axes = (0, 2, 3)
    centred = x - x.mean(axes, keepdims=True)
    inv_std = 1 / np.sqrt(np.square(centred).mean(axes, keepdims=True) + eps)
    x_hat = centred * inv_std
    dx_hat = dy * gamma.reshape(1, -1, 1, 1)
    along_one = dx_hat.mean(axes, keepdims=True)
    along_x_hat = (dx_hat * x_hat).mean(axes, keepdims=True)
    dx = inv_std * (dx_hat - along_one - x_hat * along_x_hat)
    return dx, (dy * x_hat).sum((0, 2, 3)), dy.sum((0, 2, 3))
""",
        also=(  # the six equations of the paper
            """
def my_backward(dy, x, gamma, eps):
    m = x.size / x.shape[1]
    deviations = x - x.mean((0, 2, 3), keepdims=True)
    std = np.sqrt(x.var((0, 2, 3), keepdims=True) + eps)
    dx_hat = dy * gamma[:, None, None]
    dvar = (dx_hat * deviations * -0.5 / std**3).sum((0, 2, 3), keepdims=True)
    dmean = (-dx_hat / std).sum((0, 2, 3), keepdims=True)
    dx = dx_hat / std + dvar * 2 * deviations / m + dmean / m
    return dx, (dy * deviations / std).sum((0, 2, 3)), dy.sum((0, 2, 3))
""",
        ),
        slips="""
statistics taken as constants: Mean and variance depend on every input: two more paths lead to x.
    - along_one - x_hat * along_x_hat =>
variance taken as a constant: The path through the variance is missing: its term is along x_hat.
    - x_hat * along_x_hat =>
mean taken as a constant: The path through the mean is missing: its term is the mean of the gradient of x_hat.
    - along_one =>
lost 1/m: Both corrections are means over the index set, not sums: divide by m.
    dx_hat.mean( => dx_hat.sum(
    (dx_hat * x_hat).mean( => (dx_hat * x_hat).sum(
lost 1/m in the mean term: The first correction is a mean of dx_hat, not a sum: divide by m.
    dx_hat.mean( => dx_hat.sum(
lost 1/m in the variance term: The second correction is a mean of dx_hat x_hat, not a sum: divide by m.
    (dx_hat * x_hat).mean( => (dx_hat * x_hat).sum(
m - 1 in the variance term: The variance divides by m, and so does its gradient.
    (dx_hat * x_hat).mean(axes => x[:, 0].size / (x[:, 0].size - 1) * (dx_hat * x_hat).mean(axes
divided by N instead of m: The sums run over all positions as well: m is N times H times W.
    x_hat * along_x_hat => x_hat * along_x_hat * x[0, 0].size
    - along_one => - along_one * x[0, 0].size
sign of the corrections: Both corrections are subtracted: they take the parts along 1 and along x_hat out.
    - along_one - x_hat * along_x_hat => + along_one + x_hat * along_x_hat
sign of the mean term: The mean of dx_hat is subtracted: x_hat holds minus the mean.
    - along_one => + along_one
sign of the variance term: The part along x_hat is subtracted: the power -1/2 brings a minus with it.
    - x_hat * along_x_hat => + x_hat * along_x_hat
factor 2 of the square lost: The derivative of (x - mean)^2 has a factor 2, which the 1/2 of the root cancels.
    x_hat * along_x_hat => x_hat * along_x_hat / 2
factor 1/2 of the root lost: The derivative of (variance + eps)^(-1/2) has a factor -1/2.
    x_hat * along_x_hat => 2 * x_hat * along_x_hat
factor -1/2 of the root lost: The derivative of (variance + eps)^(-1/2) has a factor -1/2.
    - x_hat * along_x_hat => + 2 * x_hat * along_x_hat
power -1/2 instead of -3/2: The derivative of (variance + eps)^(-1/2) has the power -3/2.
    x_hat * along_x_hat => x_hat * along_x_hat / inv_std**2
gamma twice: The gradient of x_hat holds gamma already; nothing is multiplied by it again.
    inv_std * (dx_hat => gamma.reshape(1, -1, 1, 1) * inv_std * (dx_hat
x for x - mean: The second correction needs the gradient times x_hat, which is centred, not times x.
    (dx_hat * x_hat).mean => (dx_hat * x * inv_std).mean
unbiased variance: The variance of the forward pass divides by m, not by m - 1.
    np.square(centred).mean(axes, keepdims=True) => x.var(axes, keepdims=True, ddof=1)
eps outside the root: The divisor is the root of (variance + eps), not the root of the variance plus eps.
    1 / np.sqrt(np.square(centred).mean(axes, keepdims=True) + eps) => 1 / (x.std(axes, keepdims=True) + eps)
eps forgotten: The forward pass adds eps to the variance; its gradient has to, too.
    keepdims=True) + eps => keepdims=True)
eps ignored: The function has an argument eps; use it instead of a fixed 1e-5.
    keepdims=True) + eps => keepdims=True) + 1e-5
divided by the variance: dx has one factor 1 / sqrt(variance + eps); x_hat holds the others.
    dx = inv_std * => dx = inv_std**2 *
not divided by the standard deviation: dx has a factor 1 / sqrt(variance + eps).
    dx = inv_std * => dx =
gamma forgotten: The gradient of x_hat is dy times gamma; start from it.
    dy * gamma.reshape(1, -1, 1, 1) => dy
gamma along the last axis: An array of shape (C,) broadcasts along the last axis: reshape it to (1, C, 1, 1).
    .reshape(1, -1, 1, 1) =>
means over the batch alone: In four dimensions the index set of a channel holds all positions, too.
    axes = (0, 2, 3) => axes = (0,)
means over all axes: Every channel has its own statistics: leave the channel axis out of the reduction.
    axes = (0, 2, 3) => axes = (0, 1, 2, 3)
means over the positions alone: This is the gradient of instance norm: the batch belongs to the set, too.
    axes = (0, 2, 3) => axes = (2, 3)
dgamma with x instead of x_hat: gamma multiplies x_hat, so its gradient is the sum of dy times x_hat.
    (dy * x_hat).sum => (dy * x).sum
dgamma holds gamma: y is linear in gamma: its derivative is x_hat, without gamma.
    (dy * x_hat).sum => gamma * (dy * x_hat).sum
dgamma averaged: gamma acts on every value of its channel, and these contributions are summed.
    (dy * x_hat).sum => (dy * x_hat).mean
dbeta averaged: beta acts on every value of its channel, and these contributions are summed.
    dy.sum => dy.mean
dbeta holds gamma: beta is added after gamma: its gradient is the sum of dy alone.
    dy.sum => gamma * dy.sum
dgamma and dbeta not summed over the positions: A channel has one gamma and one beta for all positions.
    .sum((0, 2, 3)) => .sum(0)
dgamma and dbeta summed over the channels, too: Each channel has its own gamma and beta.
    .sum((0, 2, 3)) => .sum()
""",
    ),
    "when_the_luck_runs_out": None,
    "layer_norm_dx": Exercise(
        title="Another index set",
        asks="layer_norm_dx(dy, x, eps)",
        inputs=_rows,
        uses={"norms": norms},
        returns=("dx",),
        forbids={"a formula of its own": ("arithmetic",)},
        invariants={"dx should sum to zero in each row": lambda at: at["dx"].sum(1)},
        hints=(
            "Batch norm normalizes columns. What makes columns of rows?",
            "Transpose x and dy, take gamma = 1 for each example, and transpose the result back.",
        ),
        solution="""
def layer_norm_dx(dy, x, eps=1e-5):
    examples = len(x)
    _, cache = norms.batch_norm(x.T, np.ones(examples), np.zeros(examples), eps)
    return norms.batch_norm_backward(dy.T, cache)[0].T
""",
        slips="""
gradient of batch norm: This normalizes the columns. Layer norm normalizes each row, which takes their place.
    examples = len(x) => examples = x.shape[1]
    .T =>
not transposed back: The result has the shape of the transposed input: transpose it back.
    [0].T => [0]
dy not transposed: x was transposed, and dy was not: it needs the shape of x.
    dy.T => dy
gradient of RMS norm: Layer norm subtracts the mean, so a second component is taken out.
    = lambda dy, x, eps: norms.rms_norm_backward(dy, norms.rms_norm(x, np.ones(x.shape[1]), eps)[1])[0]
eps ignored: Pass eps on to the forward pass.
    , eps) => )
statistics taken as constants: Each row's mean and standard deviation depend on the row.
    = lambda dy, x, eps: dy / np.sqrt(x.var(1, keepdims=True) + eps)
""",
    ),
}
