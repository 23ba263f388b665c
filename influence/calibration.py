"""How probable it is that something is planted, given what retraining shows of it.

Logistic regressions on examples and sets of runs with planted poison, which `benchmarks/verdict.py`
makes and judges on others.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import expit

EVEN = 0.5
"""Probability from which on something is rather planted than not."""
EXAMPLE = (-4.35, -3.6)
"""Intercept; slope by the margin of an example in models that never saw it, in units of the clean
targets' median margin, so that it means the same whatever the model and how long it was trained."""
SET = (-18.1, 14.8, 15.2)
"""Intercept; slopes by the transfer of a set and the sameness of its pattern, both from 0 to 1."""


def of_example(margin: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """From the margin; NaN where it is not known."""
    return expit(EXAMPLE[0] + EXAMPLE[1] * margin)


def of_set(transfer: float, sameness: float) -> float:
    """From what a set's pattern does, and how equal it is in all of its examples."""
    return float(expit(SET[0] + SET[1] * transfer + SET[2] * sameness))
