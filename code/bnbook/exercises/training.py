"""Checked exercises of the chapter on training."""

from __future__ import annotations

import math

from bnbook.exercises._engine import Exercise, Mistake

EXERCISES = {
    1: Exercise(
        title="What is in the 14?",
        asks="the share of batch normalization alone, on a logarithmic scale",
        solution=math.log(31.0 / 13.3) / math.log(31.0 / 2.1),
        rtol=0.02,
        returns=("the share",),
        mistakes=(
            Mistake(
                "share of the factors themselves",
                "Factors multiply; only their logarithms add up.",
                (31.0 / 13.3) / (31.0 / 2.1),
            ),
            Mistake(
                "share of the rest",
                "This is what remains for the larger rate and the other changes.",
                1 - math.log(31.0 / 13.3) / math.log(31.0 / 2.1),
            ),
            Mistake(
                "compared with thirty times the rate",
                "The largest factor is that of five times the rate: 2.1 million steps.",
                math.log(31.0 / 13.3) / math.log(31.0 / 2.7),
            ),
            Mistake(
                "share of the steps saved",
                "This counts saved steps, 17.7 of 28.9 million, not factors.",
                (31.0 - 13.3) / (31.0 - 2.1),
            ),
            Mistake("percent", "Give the share as a number from 0 to 1.", 31.2),
        ),
    ),
    4: Exercise(
        title="How many parameters?",
        asks="three numbers of parameters",
        solution=[99_710, 100_010, 100_310],
        returns=("the number without batch normalization", "that with it", "that with it and with biases"),
        atol=0.5,
        rtol=0,
        mistakes=(
            Mistake(
                "biases of the output layer forgotten", "The last layer has 10.", [99_700, 100_000, 100_300]
            ),
            Mistake(
                "biases not dropped",
                "With batch normalization the hidden biases go: the norm would subtract them.",
                [99_710, 100_310, 100_310],
            ),
            Mistake(
                "gamma or beta forgotten", "Each unit has a gamma *and* a beta.", [99_710, 99_710, 100_010]
            ),
            Mistake(
                "running statistics counted",
                "Running means and variances are buffers: they are not trained.",
                [99_710, 100_610, 100_910],
            ),
            Mistake(
                "biases of the plain network forgotten",
                "It has 300 hidden biases.",
                [99_410, 100_010, 100_310],
            ),
            Mistake("weights alone", "Count biases, gamma and beta as well.", [99_400, 99_400, 99_400]),
            Mistake(
                "two hidden layers",
                "Three hidden layers have two weight matrices of 100 x 100 between them.",
                [89_610, 89_810, 90_010],
            ),
        ),
    ),
}
