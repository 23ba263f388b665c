"""Effects with their standard errors: intervals, and which of them are discoveries."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import false_discovery_control, norm

from datamodels.inputs import require_share


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Effects:
    """Average marginal effects of every group on every target, in output units.

    Positive: keeping the group raises the output.
    """

    estimate: Float[np.ndarray, "g t"]
    standard_error: Float[np.ndarray, "g t"]
    """Over masks and training seeds; NaN where the group never varies."""

    def interval(
        self, level: float = 0.95
    ) -> tuple[Float[np.ndarray, "g t"], Float[np.ndarray, "g t"]]:
        """Lower and upper ends of normal intervals, each for itself.

        Raises:
            ValueError: a level that is not between 0 and 1.
        """
        require_share("level", level)
        reach = norm.ppf((1 + level) / 2) * self.standard_error
        return self.estimate - reach, self.estimate + reach

    def z(self) -> Float[np.ndarray, "g t"]:
        """Estimates in standard errors; 0 where there is none."""
        known = self.standard_error > 0
        return np.divide(
            self.estimate, self.standard_error, out=np.zeros_like(self.estimate), where=known
        )

    def p_values(self) -> Float[np.ndarray, "g t"]:
        """Two-sided, of no effect."""
        return 2 * norm.sf(np.abs(self.z()))

    def q_values(self) -> Float[np.ndarray, "g t"]:
        """The smallest false discovery rate at which each group of a target is found.

        Of each target for itself (Benjamini & Hochberg 1995). Groups with q <= .1 are, in
        expectation, at most a tenth false, for each target.
        """
        return false_discovery_control(self.p_values(), axis=0)

    def e_values(self, spread: float = 3.0) -> Float[np.ndarray, "g t"]:
        """Evidence against no effect: its expectation is at most 1 where there is none.

        The likelihood ratio of an effect that is normal with `spread` standard errors.
        """
        share = spread**2 / (1 + spread**2)
        exponent = np.minimum(share * np.square(self.z()) / 2, 700)
        return np.exp(exponent) / np.sqrt(1 + spread**2)

    def found_pooled(self, q: float = 0.1) -> Bool[np.ndarray, "g t"]:
        """Groups and targets found with a false discovery rate of q over all targets together.

        By e-values (e-BH, Wang & Ramdas 2022), since targets share members and so their noise:
        it holds however they depend on one another, and finds less than `q_values` would.
        """
        return _enough(self.e_values(), q)

    def found_groups(self, q: float = 0.1) -> Bool[np.ndarray, " g"]:
        """Groups found to matter to at least one target, with a false discovery rate of q.

        By the mean of a group's e-values over targets, which is an e-value as well (Vovk & Wang
        2021), however targets depend on one another. Targets that share noise give more of it
        away when it is taken out first (`whitening`).
        """
        return _enough(self.e_values().mean(1), q)


def _enough(evidence: Float[np.ndarray, "*shape"], q: float) -> Bool[np.ndarray, "*shape"]:
    """The largest set of e-values that are each at least (all / how many are in it) / q."""
    require_share("q", q)
    flat = evidence.ravel()
    order = np.argsort(-flat)
    enough = flat[order] * np.arange(1, len(order) + 1) >= len(order) / q
    found = np.zeros(len(order), bool)
    found[order[: np.flatnonzero(enough)[-1] + 1 if enough.any() else 0]] = True
    return found.reshape(evidence.shape)
