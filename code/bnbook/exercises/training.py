"""Checked exercises of the chapter on training."""

from bnbook.exercises._exercise import Exercise

EXERCISES = {
    "share": Exercise(
        title="What is in the 14?",
        asks="the share of batch normalization alone, on a logarithmic scale",
        returns=("the share",),
        rtol=0.02,
        hints=(
            "Two factors: of batch normalization alone, and the largest of the table.",
            "Factors multiply, so their logarithms add up: the share is a quotient of two logarithms.",
        ),
        solution="""
alone, largest = 31.0 / 13.3, 31.0 / 2.1
share = np.log(alone) / np.log(largest)
""",
        slips="""
share of the factors themselves: Factors multiply; only their logarithms add up.
    np.log(alone) / np.log(largest) => alone / largest
share of the rest: This is what remains for the larger rate and the other changes.
    np.log(alone) / np.log(largest) => 1 - np.log(alone) / np.log(largest)
compared with thirty times the rate: The largest factor is that of five times the rate, 2.1 million steps.
    2.1 => 2.7
share of the steps saved: This counts saved steps, 17.7 of 28.9 million, not factors.
    = (31.0 - 13.3) / (31.0 - 2.1)
percent: Give the share as a number from 0 to 1.
    = 31.2
""",
    ),
    "parameters": Exercise(
        title="How many parameters?",
        asks="three numbers of parameters",
        returns=("the number without batch normalization", "that with it", "that with it and with biases"),
        rtol=0,
        atol=0.5,
        hints=(
            "Four weight matrices, the first of 784 x 100. The output layer always has its 10 biases.",
            "A norm brings two numbers a unit, gamma and beta, and makes the bias before it idle.",
        ),
        solution="""
hidden, weights = 3 * 100, 784 * 100 + 2 * 100 * 100 + 100 * 10
plain = weights + 10 + hidden
counts = [plain, plain + hidden, plain + 2 * hidden]
""",
        slips="""
biases of the output layer forgotten: The last layer has 10.
    + 10 + hidden => + hidden
biases not dropped: With batch normalization the hidden biases go: the norm would subtract them.
    plain + hidden, => plain + 2 * hidden,
gamma or beta forgotten: Each unit has a gamma *and* a beta.
    = [99_710, 99_710, 100_010]
running statistics counted: Running means and variances are buffers: they are not trained.
    = [99_710, 100_610, 100_910]
biases of the plain network forgotten: It has 300 hidden biases.
    [plain, => [plain - hidden,
weights alone: Count biases, gamma and beta as well.
    = [99_400, 99_400, 99_400]
two hidden layers: Three hidden layers have two weight matrices of 100 x 100 between them.
    = [89_610, 89_810, 90_010]
""",
    ),
    "another_level": None,
}
