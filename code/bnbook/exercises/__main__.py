"""``python -m bnbook.exercises FOLDER`` and ``--handout FOLDER``, see :mod:`bnbook.exercises.grading`."""

import sys

from bnbook.exercises.grading import main

sys.exit(main())
