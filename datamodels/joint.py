"""Joint datamodels: how groups act together, of any order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control

from datamodels import terms as joint_terms
from datamodels.background import background, others
from datamodels.closed_form import Contexts, Fitted, average
from datamodels.crossfit import (
    SPLIT,
    Estimate,
    Refit,
    contexts_of,
    fitted,
    pooled,
    refit_halves,
    said_of,
    sides,
)
from datamodels.estimates import Effects
from datamodels.inputs import (
    as_masks,
    as_outputs,
    finite_rows,
    masks_of,
    require_choice,
    require_rows,
)
from datamodels.process import (
    Bank,
    Process,
    Settings,
    choose_settings,
    distinct,
    fit_process,
    predict,
)
from datamodels.scores import Alpha, sampling
from datamodels.terms import Term

FEWEST_RETRAINS = 30
"""Degrees of freedom of retrains of one mask from which they alone decide the noise."""
SHAPLEY_NODES = 16
"""Of the mean over all probabilities to be kept."""

Index = Literal["fourier", "moebius", "banzhaf", "shapley"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JointDiagnostics:
    """How the fit of each target went."""

    left_out_r2: Float[np.ndarray, " t"]
    """R2 of each mask's output predicted from all others: optimistic, as they were all used to
    learn the covariance. NaN for a constant output."""
    own_mains: Bool[np.ndarray, " t"]
    """Whether main effects have a variance each, as predicts better where few groups matter."""
    constant: Bool[np.ndarray, " t"]
    """Targets whose output never varies."""


class Rows(NamedTuple):
    """What a datamodel was fitted to, row by row."""

    masks: Bool[np.ndarray, "m g"]
    outputs: Float[np.ndarray, "m t"]
    alpha: Alpha
    replicate_of: Int[np.ndarray, " m"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JointDatamodel:
    """Predicts the outputs of any mask, and says which groups act together, in any order."""

    intercept: Float[np.ndarray, " t"]
    weights: Float[np.ndarray, "g t"]
    """The additive part, from dropped to kept, in output units: 0 where groups and masks are few
    enough for the process to have it all (`datamodels.background`)."""
    masks: Bool[np.ndarray, "d g"]
    """Distinct, which the process predicts from."""
    groups: Int[np.ndarray, "t k"]
    """Those that the process of each target is over."""
    process: Process
    """Of each target, stacked; for what the additive part leaves, over `scale`."""
    scale: Float[np.ndarray, " t"]
    """Standard deviation of what the additive part leaves of each target's outputs."""
    noise_variance: Float[np.ndarray, " t"]
    """Over seeds at a fixed mask, as known or as estimated; in squared output units."""
    settings: tuple[Settings, ...]
    """How each target's covariance was learned."""
    rows: Rows
    diagnostics: JointDiagnostics

    def predict(self, masks: Bool[np.ndarray, "k g"]) -> Float[np.ndarray, "k t"]:
        """Predicted outputs, float32.

        Raises:
            ValueError: masks that are not zeros and ones, or of other groups.
        """
        unseen = masks_of(self.masks.shape[1], masks)
        found = [
            predict(self._process(target), self.masks[:, own], unseen[:, own])
            for target, own in enumerate(self.groups)
        ]
        additive = unseen.astype(np.float32) @ self.weights + self.intercept
        return additive + self.scale * np.stack(found, axis=1)

    def terms(self, target: int | None = None, *, q: float = 0.1) -> list[Term]:
        """The sets of groups that act jointly, those that are found most surely first.

        Each half of the masks proposes sets, and the other half tests them and estimates their
        joint effect (`datamodels.crossfit`), so that no set is tested on what proposed it.
        A set is one term when one step ("any one is enough", "all are needed", "some are") is
        what its joint action is like: its subsets are then none.

        Args:
            target: of this one; None: of all targets, with one false discovery rate over them.
            q: false discovery rate (Benjamini & Hochberg 1995) of what is returned; 1 for all
                that was tested.

        Raises:
            ValueError: a target that is not there; masks that contradict alpha or independence; a
                rate that is none.
        """
        if not 0 < q <= 1:
            raise ValueError(f"q = {q} must be above 0 and at most 1")
        targets = self._targets() if target is None else [self._checked(target)]
        targets = [each for each in targets if not self.diagnostics.constant[each]]
        if not targets:
            return []
        refit = self._refitted(targets)
        # Groups of a half's own that all masks leave out cannot be described.
        assessed = {
            each: [
                one
                for one in joint_terms.assess(refit.halves(number))
                if set(one.groups) <= set(self.groups[each].tolist())
            ]
            for number, each in enumerate(targets)
        }
        every = [one for found in assessed.values() for one in found]
        if not every:
            return []
        q_values = false_discovery_control([one.p_value for one in every])
        q_value_of = {id(one): float(value) for one, value in zip(every, q_values, strict=True)}
        alpha = refit.sides[0].sampling.alpha
        contexts, listed = contexts_of(alpha, self.masks.shape[1]), []
        for each, found in assessed.items():
            averaged = average(self._fitted(each), contexts.of(self.groups[each]))
            rest = self._others(contexts, each)
            place = {group: at for at, group in enumerate(self.groups[each].tolist())}
            passed = [one for one in found if q_value_of[id(one)] <= q]
            for one in joint_terms.without_overlaps(passed):
                own = tuple(place[group] for group in one.groups)
                described = joint_terms.describe(averaged, own)
                listed.append(self._term(each, one, described, q_value_of[id(one)], rest))
        return sorted(listed, key=lambda term: (term.p_value, term.target, term.groups))

    def stability(
        self, terms: Sequence[Term], *, splits: int = 5, seed: int = 0
    ) -> Float[np.ndarray, " k"]:
        """How steadily each term would be proposed from half of the masks: a share of halves.

        The masks are split at random again and again, and each half proposes sets (Shah & Samworth
        2013, complementary pairs). Counted are halves with a set that shares more than half of
        the groups with the term.

        Args:
            terms: of this datamodel.
            splits: each has two halves, and costs a target about as much as its fit.
            seed: decides them.

        Raises:
            ValueError: no splits; a target that is not there.
        """
        if splits < 1:
            raise ValueError(f"splits = {splits} must be at least 1")
        targets = sorted({self._checked(term.target) for term in terms})
        if not targets:
            return np.zeros(0)
        counted = np.zeros(len(terms))
        for split in range(splits):
            refit = self._refit(targets, seed + split)
            for number, target in enumerate(targets):
                for half in refit.halves(number):
                    sets = [candidate.groups for candidate in joint_terms.proposed(half)]
                    counted += [
                        term.target == target
                        and any(joint_terms.mostly_same(term.groups, own) for own in sets)
                        for term in terms
                    ]
        return counted / (2 * splits)

    def effects(self, target: int, sets: Sequence[Sequence[int]]) -> Estimate:
        """The joint effects of sets that were named beforehand, with standard errors.

        The alternating sum of the output over the 2^k cells of a set kept or dropped, all other
        groups averaged as the masks were drawn; of an empty set the mean output. Unbiased at any
        order. Choosing sets by the same outputs makes the largest too large: `terms` does not.

        Args:
            target: which.
            sets: the groups of each.

        Raises:
            ValueError: as `terms`; groups that are not there, or twice in a set.
        """
        own = self._sets(sets)
        halves = self._refitted([self._checked(target)]).halves(0)
        parts = [half.estimate(own, np.eye(len(own))) for half in halves]
        return pooled(parts, [len(half.masks) for half in halves])

    def index(
        self, target: int, sets: Sequence[Sequence[int]], index: Index
    ) -> Float[np.ndarray, " s"]:
        """Interaction indices of the datamodel's prediction, in closed form, in output units.

        All are joint effects, and differ in what other groups are averaged over:

        - `moebius`: all others dropped, so that sums over subsets give the prediction of a set;
        - `banzhaf`: each kept with probability 1/2 (Grabisch & Roubens 1999);
        - `shapley`: each kept with one probability that is uniform over 0 to 1, which gives the
          Shapley interaction index (Grabisch & Roubens 1999; for one group the Shapley value, by
          Owen's 1972 multilinear extension);
        - `fourier`: the coefficient of the product of the set's signs (+1 kept, -1 dropped) under
          the uniform distribution of masks, banzhaf / 2^k.

        Args:
            target: which.
            sets: the groups of each.
            index: which.

        Raises:
            ValueError: a target or groups that are not there, or another index.
        """
        require_choice("index", index, Index)
        own = self._sets(sets)
        nodes, weights = np.polynomial.legendre.leggauss(SHAPLEY_NODES)
        averaged = {
            "fourier": ([0.5], [1.0]),
            "moebius": ([0.0], [1.0]),
            "banzhaf": ([0.5], [1.0]),
            "shapley": ((nodes + 1) / 2, weights / 2),
        }
        kept, share = (np.asarray(each) for each in averaged[index])
        contexts = Contexts(np.tile(kept[:, None], (1, self.masks.shape[1])), share)
        posterior = self._fitted(self._checked(target))
        averaged = average(posterior, contexts.of(self.groups[target]), order=own.shape[1])
        scale, weights = float(self.scale[target]), self.weights[:, target]
        found = said_of(averaged, self.groups[target], own, scale, weights)
        found += self._others(contexts, target) * (own < 0).all(1)
        return found / 2.0 ** (own >= 0).sum(1) if index == "fourier" else found

    def _targets(self) -> list[int]:
        return list(range(len(self.scale)))

    def _checked(self, target: int) -> int:
        if not 0 <= target < len(self.scale):
            raise ValueError(
                f"target {target} is not there; the datamodel has {len(self.scale)}, from 0"
            )
        return target

    def _process(self, target: int) -> Process:
        return jax.tree.map(lambda part: part[target], self.process)

    def _refitted(self, targets: list[int]) -> Refit:
        """As `_refit`, with the halves of `terms` and `effects`; that of the last call is kept."""
        key = tuple(targets)
        if key not in self._last_refit:
            self._last_refit.clear()
            self._last_refit[key] = self._refit(targets)
        return self._last_refit[key]

    @cached_property
    def _last_refit(self) -> dict[tuple[int, ...], Refit]:
        """By its targets: one of all targets may be as large as the masks."""
        return {}

    def _refit(self, targets: list[int], seed: int = SPLIT) -> Refit:
        """Learn some targets from each half of the draws: about as long as their fit."""
        drawn = sampling(
            self.rows.masks,
            self.rows.alpha,
            fixed_size=False,
            replicate_of=self.rows.replicate_of,
        )
        both = sides(drawn, self.rows.outputs[:, targets].astype(np.float64), seed=seed)
        settings = [self.settings[each] for each in targets]
        return refit_halves(both, settings, self.scale[targets])

    def _fitted(self, target: int) -> Fitted:
        """What the datamodel says of the groups that its process is over, over `scale`."""
        own = self.groups[target]
        weights = self.weights[own, target] / self.scale[target]
        return fitted(self._process(target), self.masks[:, own], weights)

    def _others(self, contexts: Contexts, target: int) -> float:
        """What the constant and all other groups add to a mean output."""
        kept, weights = contexts.share @ contexts.kept, self.weights[:, target]
        return others(float(self.intercept[target]), weights, self.groups[target], kept)

    def _sets(self, sets: Sequence[Sequence[int]]) -> Int[np.ndarray, "s k"]:
        groups = self.masks.shape[1]
        for each in sets:
            if not isinstance(each, Sequence | np.ndarray):
                raise ValueError(
                    f"each set must be a sequence of groups, got {each!r}; for one set: [(3, 5)]"
                )
        padded = np.full((len(sets), max([1, *map(len, sets)])), -1)
        for row, each in enumerate(sets):
            if len(set(each)) < len(each) or not all(0 <= group < groups for group in each):
                raise ValueError(
                    f"set {tuple(each)} must hold different groups, from 0 to {groups - 1}"
                )
            padded[row, : len(each)] = each
        return padded

    def _term(
        self,
        target: int,
        assessed: joint_terms.Assessed,
        described: joint_terms.Described,
        q_value: float,
        rest: float,
    ) -> Term:
        response = rest + self.scale[target] * np.array(described.response)
        joint = assessed.joint
        low, high = Effects(joint.value[:, None], joint.standard_error[:, None]).interval()
        return Term(
            target=target,
            groups=assessed.groups,
            kind=described.kind,
            least=described.least,
            joint_effect=float(joint.value[0]),
            low=float(low[0, 0]),
            high=float(high[0, 0]),
            group_effect=float(response[-1] - response[0]),
            response=tuple(response.tolist()),
            p_value=assessed.p_value,
            q_value=q_value,
            halves=assessed.halves,
        )


def fit_joint(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    alpha: Alpha = None,
    noise_variance: Float[np.ndarray, " t"] | None = None,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> JointDatamodel:
    """Joint datamodels: each target with its own covariance (`datamodels.covariance`).

    The prediction is the posterior mean of a Gaussian process whose covariance is learned by
    marginal likelihood (`datamodels.evidence`). Pairs that stand out of what it leaves get a term
    of their own. Where groups or masks are many, an additive datamodel of all comes first, and the
    covariance is over some of both (`datamodels.background`), so that time and memory a target do
    not grow beyond.

    Args:
        masks: True = kept. Rows are members. Retrains of one mask count as one, of less noise.
        outputs: of the same members.
        alpha: as `effects` has it: the probability that a group is kept. Predictions do not need
            it; `terms` and `effects` of the datamodel do, and estimate it if it is None.
        noise_variance: of each target over seeds at a fixed mask, in squared output units
            (`metrics.noise_variance`). None: from retrains of one mask, where there are enough
            of them, else estimated with the covariance.
        replicate_of: rows with the same number are one draw, as `effects` has it.

    Raises:
        ValueError: as `fit`; a noise variance that is below 0, or not one a target; an alpha that
            the masks contradict.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    usable = finite_rows(masks, outputs)
    rows = _usable_rows(masks, outputs, alpha, replicate_of, usable)
    if alpha is not None:
        sampling(rows.masks, rows.alpha, fixed_size=False, replicate_of=rows.replicate_of)
    bank = distinct(rows.masks, rows.outputs)
    require_rows(len(bank.masks))
    known = _known_noise(bank, noise_variance)
    constant = (rows.outputs == rows.outputs[:1]).all(0)
    constant |= (bank.outputs == bank.outputs[:1]).all(0)
    parts = background(bank)
    scale = np.where(constant, 1, parts.left.std(0))
    settings, found = [], []
    for target in range(outputs.shape[1]):
        own = parts.of_target(bank, target)
        scaled = own.outputs[:, 0] / scale[target]
        noise = None if known is None else float(known[target] / scale[target] ** 2)
        settings.append(choose_settings(own, scaled, noise))
        found.append(fit_process(own, scaled, settings[-1]))
    process = jax.tree.map(lambda *parts: np.stack(parts), *found)
    left = np.square(process.left_out).mean(1) * scale**2
    spread = np.where(constant, 1, bank.outputs.var(0))
    diagnostics = JointDiagnostics(
        left_out_r2=np.where(constant, np.nan, 1 - left / spread),
        own_mains=np.array([each.own_mains for each in settings]),
        constant=constant,
    )
    return JointDatamodel(
        intercept=parts.intercept.astype(np.float32),
        weights=parts.weights,
        masks=bank.masks[parts.rows],
        groups=parts.groups,
        process=process,
        scale=scale.astype(np.float32),
        noise_variance=_learned_noise(process, settings, scale) if known is None else known,
        settings=tuple(settings),
        rows=rows,
        diagnostics=diagnostics,
    )


def _learned_noise(
    process: Process, settings: Sequence[Settings], scale: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """As learned, in squared output units, before it is raised to what predicts best."""
    factor = np.array([each.noise_factor for each in settings])
    return np.asarray(process.covariance.noise) / factor * scale**2


def _usable_rows(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    alpha: Alpha,
    replicate_of: Int[np.ndarray, " m"] | None,
    usable: Bool[np.ndarray, " m"],
) -> Rows:
    """Rows that the fit takes, with what belongs to them."""
    own = alpha
    if alpha is not None and np.shape(alpha)[:1] == (len(masks),):
        own = np.asarray(alpha)[usable]
    number = None if replicate_of is None else np.asarray(replicate_of)[usable]
    return Rows(masks[usable], outputs[usable], own, number)


def _known_noise(
    bank: Bank, given: Float[np.ndarray, " t"] | None
) -> Float[np.ndarray, " t"] | None:
    """The variance over seeds of each target; None: to be estimated.

    Raises:
        ValueError: one that was given and cannot be.
    """
    targets = bank.outputs.shape[1]
    if given is not None:
        given = np.asarray(given, np.float64)
        if given.shape != (targets,) or not (given >= 0).all():
            raise ValueError(
                f"noise_variance must be one number of at least 0 for each of the {targets} "
                f"targets, got {given}"
            )
        return given
    freedom = int((bank.members - 1).sum())
    return bank.within / freedom if freedom >= FEWEST_RETRAINS else None
