"""Checked exercises of the chapter on whitening."""

from __future__ import annotations

from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _units() -> list[Inputs]:
    cases = []
    for k, (m, lr, steps) in enumerate([(2, 0.5, 1), (4, 0.1, 3), (5, 0.01, 8)]):
        u = numbers(160 + k, m)
        u -= u.mean()
        cases.append({"u": u, "t": numbers(170 + k, m) + 2 * u, "lr": lr, "steps": steps})
    return cases


EXERCISES = {
    "A_by_hand": Exercise(
        title="By hand",
        asks="A_ZCA, a matrix of 2 x 2 numbers",
        returns=("A_ZCA",),
        rtol=0.005,
        hints=(
            "The axes are (1, 1) and (1, -1), over the root of 2; multiply the covariance by each.",
            "A_ZCA divides along each axis by the root of its eigenvalue, and turns nothing.",
        ),
        solution="""
axes, eigenvalues = np.array([[1, 1], [1, -1]]) / np.sqrt(2), np.array([9, 1])
A = axes.T @ np.diag(1 / np.sqrt(eigenvalues)) @ axes
""",
        slips="""
PCA instead of ZCA: This is A_PCA; ZCA turns the result back with the transposed axes.
    axes.T @ =>
inverse without the root: This is the inverse of the covariance; whitening needs the inverse of its root.
    np.sqrt(eigenvalues) => eigenvalues
root without the inverse: This is the root of the covariance; invert it.
    1 / np.sqrt(eigenvalues) => np.sqrt(eigenvalues)
factor 1/3 forgotten: The eigenvalues of A_ZCA are 1/3 and 1.
    = [[2, -1], [-1, 2]]
axes exchanged: The larger variance, 9, is along (1, 1); that direction is divided by 3.
    [9, 1] => [1, 9]
standardized, not whitened: This gives each input unit variance; they are still correlated.
    = np.eye(2) / np.sqrt(5)
""",
    ),
    "train_scale": Exercise(
        title="The width that runs away",
        asks="train_scale(u, t, lr, steps)",
        inputs=_units,
        returns=("the path of w",),
        hints=(
            "For w > 0 the output y = u / std(u) does not change at all; only the gradient moves w.",
            "With sigma constant the derivative of y by w is y / w.",
        ),
        solution="""
def train_scale(u, t, lr, steps):
    y, w, path = u / u.std(), 1.0, []
    for _ in range(steps):
        w -= lr * np.mean((y - t) * y) / w
        path.append(w)
    return np.array(path)
""",
        slips="""
true gradient: Through sigma as well, the gradient is zero. Here sigma is taken for a constant.
    w -= lr => w -= 0
sign flipped: A step goes against the gradient.
    w -= lr => w += lr
1/w forgotten: sigma contains |w|, so the derivative of y by w is y / w if sigma is a constant.
    * y) / w => * y)
sum instead of mean: The loss has a factor 1 / (2m).
    np.mean => np.sum
factor 2: The loss has a factor 1/2, which the derivative of the square takes away.
    lr * np => 2 * lr * np
half of the gradient: The factor 1/2 of the loss and the 2 of the square cancel.
    lr * np => lr / 2 * np
width kept at its start: sigma is a constant in the gradient only; in the forward pass it follows w.
    (y - t) * y) / w => (w * y - t) * y)
multiplied by the input: The derivative of y by w is u / sigma, not u.
    * y) / w => * u)
path begins with the start: The path holds w *after* each step: its first value is not 1.
    np.array(path) => np.array([1.0, *path[:-1]])
path holds the start, too: The path has one value for each step.
    np.array(path) => np.array([1.0, *path])
last value alone: Return w after each step, an array of `steps` values.
    np.array(path) => w
""",
    ),
    "one_width_for_all": None,
    "without_eigenvectors": None,
}
