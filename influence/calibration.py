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
SET = (-4.3, 8.4, 4.6, 5.1)
"""Intercept; slopes by `set_features`."""
SURE = 0.01
"""Shares nearer to 0, or to 1, are taken for this near."""


def of_example(margin: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """From the margin; NaN where it is not known."""
    return expit(EXAMPLE[0] + EXAMPLE[1] * margin)


def set_features(transfer: float, sameness: float, disputed: float) -> Float[np.ndarray, "3"]:
    """What the probability of a set goes by.

    Args:
        transfer: what its pattern does, a share; its log-odds count.
        sameness: how equal the pattern is in all of its examples, from 0 to 1; its log-odds, which
            are the log ratio of signal to noise, count.
        disputed: the share of its examples that models which did not see them contradict. Those
            of a cleanly labelled attack are not.
    """
    shares = np.clip(np.array([transfer, sameness]), SURE, 1 - SURE)
    return np.append(np.log(shares / (1 - shares)), disputed)


def of_set(transfer: float, sameness: float, disputed: float) -> float:
    """From the same."""
    slopes = np.array(SET[1:])
    return float(expit(SET[0] + slopes @ set_features(transfer, sameness, disputed)))
