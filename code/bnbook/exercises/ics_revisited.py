"""Checked exercises of the second chapter on internal covariate shift."""

from bnbook.exercises._exercise import Exercise

EXERCISES = {
    "changes": Exercise(
        title="One step on a bowl",
        asks="changes(lr, curvature)",
        inputs=lambda: [{"lr": lr, "curvature": c} for lr, c in ((0.25, 1.5), (0.1, 2.0), (1.5, 4.0))],
        returns=("the relative shift of layer 2", "the relative change of the whole gradient"),
        hints=(
            "With e = w1 + w2 both gradients are lambda e. What is e after the step of one layer?",
            "After the step of one layer the gradient has the factor 1 - lr curvature. And after both?",
        ),
        solution="""
def changes(lr, curvature):
    return lr * curvature, 2 * lr * curvature
""",
        slips="""
both layers moved for the shift: The shift of layer 2 compares its gradient before and after the step of
    layer 1 alone.
    return lr => return 2 * lr
one layer moved for the whole change: The whole step moves both layers.
    2 * lr => lr
what is left of the gradient: This is the factor of the gradient; its change is 1 minus that.
    return lr * curvature, 2 * lr => return 1 - lr * curvature, 1 - 2 * lr
not relative: Divide by the length of the gradient: the curvature stays once.
    lr * curvature => lr * curvature**2
curvature forgotten: The gradient's change grows with the curvature.
    lr * curvature => lr
""",
    ),
    "unnoticed_noise": None,
}
