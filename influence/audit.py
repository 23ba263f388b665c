"""The audit: a score and a rank of suspicion for every training example.

Nothing here sees the truth about planted poison.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control, norm, rankdata

import datamodels
from datamodels.estimates import Effects
from influence.experiment import Targets
from influence.likeness import mean_of_alike
from influence.members import Members, target_blocks

LISTED = 100
"""Examples that lower the clean targets, at most; all are in scores.parquet."""
REDUNDANT = 0.5
"""Share of the examples that are left out to see whether the others replace them."""


class Scores(NamedTuple):
    """What the bank says of each training example, in output units."""

    out_of_bag: Float[np.ndarray, " n"]
    """Mean output of the example over the members that did not train on it."""
    out_of_bag_error: Float[np.ndarray, " n"]
    """Standard error of `out_of_bag`."""
    alike: Float[np.ndarray, " n"]
    """Mean `out_of_bag` of the examples of its label that it is most like (`likeness`)."""
    memorisation: Float[np.ndarray, " n"]
    """Its mean output when trained on it minus when not."""
    memorisation_error: Float[np.ndarray, " n"]
    """Standard error of `memorisation`."""
    self_weight: Float[np.ndarray, " n"]
    """Its datamodel weight on itself as a target."""
    clean_weight: Float[np.ndarray, " n"]
    """Its mean datamodel weight on the clean targets; negative where keeping it lowers their
    outputs."""
    incident_weight: Float[np.ndarray, " n"]
    """Its mean datamodel weight on the bad predictions of the incident; positive where keeping
    it raises them. NaN without an incident."""
    clean_effect: Float[np.ndarray, " n"]
    """Effect of its group on the mean output of the clean targets, not shrunk as weights are."""
    clean_effect_error: Float[np.ndarray, " n"]
    """Standard error of `clean_effect`."""
    clean_q: Float[np.ndarray, " n"]
    """The smallest false discovery rate at which its group is found to affect them."""
    incident_effect: Float[np.ndarray, " n"]
    """The same on the mean output of the incident. NaN without one."""
    incident_effect_error: Float[np.ndarray, " n"]
    """Standard error of `incident_effect`."""
    incident_q: Float[np.ndarray, " n"]
    """The smallest false discovery rate at which its group is found to affect the incident."""
    hidden_support: Float[np.ndarray, " n"]
    """How much it and others support one another, and no clean target; 0 but in outstanding sets
    (`datamodels.hidden_support`). NaN where it was not searched."""


class Suspicion(NamedTuple):
    """The ranks of both protocols; 1 is the most suspicious example."""

    blind: Int[np.ndarray, " n"]
    """From what the training examples themselves show."""
    incident: Int[np.ndarray, " n"] | None
    """Also from the bad predictions; None when there are none."""

    def rank(self, protocol: str) -> Int[np.ndarray, " n"]:
        """The rank that a run of this protocol acts on."""
        if protocol == "incident":
            assert self.incident is not None
            return self.incident
        return self.blind


Weights = Callable[[slice], Float[np.ndarray, "g b"]]
"""Datamodel weights of all groups on some targets."""


def score(
    arms: Sequence[Members],
    weights: Weights,
    mean_effects: Effects,
    targets: Targets,
    group_of: Int[np.ndarray, " n"],
    hidden: datamodels.Hidden | None,
    higher_is_better: bool,
    vocabulary: int = 0,
) -> Scores:
    """All scores. What groups do is said of each of their examples.

    Args:
        arms: usable members of each main arm. What is compared is compared within an arm, and then
            averaged over them: members without an example are mostly of the smaller alpha.
        weights: datamodel weights of some targets.
        mean_effects: on the mean output of the clean targets, and of the incident.
        targets: which of them are training examples, clean targets and the incident.
        group_of: the mask's column of each training example.
        hidden: what a search for sets with a hidden support found; None where there was none.
        higher_is_better: False for an output such as the loss, which is then negated, so that
            every score reads as stated whatever the output.
        vocabulary: of texts: every token id is below it; 0 for other inputs.
    """
    sign, groups = 1.0 if higher_is_better else -1.0, arms[0].masks.shape[1]
    own = [
        _own_scores(arms, weights, targets.train, block, group_of, sign)
        for block in target_blocks(targets.train)
    ]
    out_of_bag, error, memorisation, memorisation_error, self_weight = (
        np.concatenate(parts) for parts in zip(*own, strict=True)
    )
    q_values = _q_values(mean_effects)
    examples = targets.examples.take(targets.train)
    inputs, labels = np.asarray(examples.inputs), np.asarray(examples.labels)
    return Scores(
        out_of_bag,
        error,
        mean_of_alike(out_of_bag, inputs, labels, vocabulary),
        memorisation,
        memorisation_error,
        self_weight,
        sign * _mean_weight(weights, targets.clean, groups)[group_of],
        sign * _mean_weight(weights, targets.incident, groups)[group_of],
        sign * mean_effects.estimate[group_of, 0],
        mean_effects.standard_error[group_of, 0],
        q_values[group_of, 0],
        sign * mean_effects.estimate[group_of, 1],
        mean_effects.standard_error[group_of, 1],
        q_values[group_of, 1],
        np.full(len(group_of), np.nan) if hidden is None else hidden.score[group_of],
    )


def _q_values(effects: Effects) -> Float[np.ndarray, "g t"]:
    """NaN for a block that has no targets."""
    return np.where(np.isnan(effects.estimate), np.nan, effects.q_values())


def _own_scores(
    arms: Sequence[Members],
    weights: Weights,
    train: slice,
    block: slice,
    group_of: Int[np.ndarray, " n"],
    sign: float,
) -> tuple[Float[np.ndarray, " b"], ...]:
    """The scores of some training examples that come from themselves as targets."""
    groups = group_of[block.start - train.start : block.stop - train.start]
    found = []
    for main in arms:
        alpha = main.alpha if main.alpha.shape[1] == 1 else main.alpha[:, groups]
        # Where it is 0, a cluster was left out as a whole.
        counted = np.asarray(alpha > 0)
        found.append(
            datamodels.marginal(main.masks[:, groups], sign * main.outputs(block), counted)
        )
    return (
        *_average([one.out_of_bag for one in found]),
        *_average([one.memorisation for one in found]),
        sign * weights(block)[groups, np.arange(len(groups))],
    )


def _average(estimates: Sequence[datamodels.Estimate]) -> datamodels.Estimate:
    """Over the arms that have a value, and its standard error."""
    values, errors = (np.stack(part) for part in zip(*estimates, strict=True))
    known = np.isfinite(values)
    count = np.where(known.any(0), known.sum(0), np.nan)
    squares = np.where(known, np.square(errors), 0).sum(0)
    return datamodels.Estimate(np.where(known, values, 0).sum(0) / count, np.sqrt(squares) / count)


def _mean_weight(weights: Weights, targets: slice, groups: int) -> Float[np.ndarray, " g"]:
    """Of every group, over some targets; NaN where there are none."""
    total = np.zeros(groups)
    for block in target_blocks(targets):
        total += weights(block).sum(1, dtype=np.float64)
    count = targets.stop - targets.start
    return total / count if count else np.full(groups, np.nan)


def suspect(scores: Scores) -> Suspicion:
    """Rank the examples by their most suspicious evidence in the bank.

    Blind evidence is a low out-of-bag output (the others contradict the label), the same added to
    that of its like (mistakes that were made in one way back one another), a high memorisation
    (nothing else supports it), and support by a few others, but by nothing that is clean. The
    incident adds a high weight on the bad predictions.
    """
    blind = [-scores.out_of_bag, -(scores.out_of_bag + scores.alike), scores.memorisation]
    if (scores.hidden_support > 0).any():
        blind.append(np.where(scores.hidden_support > 0, scores.hidden_support, np.nan))
    return Suspicion(best_rank(blind), _with_incident(blind, scores))


def suspect_judged(
    scores: Scores,
    support: Float[np.ndarray, " n"],
    unseen: Float[np.ndarray, " n"],
    alike: Float[np.ndarray, " n"],
    strange: Bool[np.ndarray, " n"],
) -> Suspicion:
    """Rank the examples by what retraining showed.

    Confirmed sets come first, with an incident as well: its few predictions show a set of many by
    small weights that are noisy. What is confirmed of a cluster among other labels follows, where
    most of it is: its examples speak for one another. The others are ranked by their output where
    they were not seen, lowered by what contradicts their like: one wrong label among right ones is
    no less suspicious for them.

    Args:
        scores: of the bank.
        support: what its set does for each example of a confirmed one; NaN for all others.
        unseen: by `unseen`.
        alike: the mean over the examples that each is most like (`likeness`) of what `unseen` is
            below 0.
        strange: by `mostly_confirmed`, of clusters among other labels.
    """
    confirmed = np.isfinite(support)
    place = np.where(confirmed, -support, np.inf)
    blind = rank_of(np.lexsort((unseen + alike, ~strange, place)))
    incident = _with_incident([-blind.astype(float)], scores)
    if incident is not None:
        incident = rank_of(np.lexsort((incident, ~confirmed)))
    return Suspicion(blind, incident)


def mostly_confirmed(
    confirmed: Bool[np.ndarray, " n"], clusters: Sequence[Int[np.ndarray, " _"]]
) -> Bool[np.ndarray, " n"]:
    """What is confirmed of clusters most of which is."""
    found = np.zeros_like(confirmed)
    for rows in clusters:
        found[rows] |= confirmed[rows].mean() > 0.5
    return found & confirmed


def unseen(
    out_of_bag: Float[np.ndarray, " n"], held_out: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Outputs in models that did not train on each example, from what is known of them.

    The mean of that out of bag, where half of what is like it is mostly there, and that without
    any suspect: what one of the two says alone may be by chance.

    Args:
        out_of_bag: of `Scores`.
        held_out: in models trained without any suspect; NaN where it is not known.
    """
    return np.where(np.isfinite(held_out), (out_of_bag + held_out) / 2, out_of_bag)


def _with_incident(
    blind: list[Float[np.ndarray, " n"]], scores: Scores
) -> Int[np.ndarray, " n"] | None:
    if np.isnan(scores.incident_weight).all():
        return None
    return best_rank([*blind, scores.incident_weight])


def best_rank(evidence: list[Float[np.ndarray, " n"]]) -> Int[np.ndarray, " n"]:
    """Rank by the best place that any evidence gives, ties by the sum of places, then by row.

    Ranks need no common scale of the evidence and no threshold. High evidence is suspicious;
    NaN is the least suspicious.
    """
    places = np.stack([_places(values) for values in evidence])
    return rank_of(np.lexsort((places.sum(0), places.min(0))))


def rank_of(order: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The rank of each, 1 for the first of the order."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def flag(
    scores: Scores, protocol: str, budget: float, *, with_sets: bool
) -> Bool[np.ndarray, " n"]:
    """The first `budget` (a share of all examples) of the rank; at least one, and never all.

    Args:
        scores: of the bank.
        protocol: whose rank.
        budget: from 0 to 1.
        with_sets: whether hidden support counts. Not where sets are judged as such, beside the
            flagged: natural kinds would take the places of what is suspicious by itself.
    """
    if not with_sets:
        scores = scores._replace(hidden_support=np.zeros_like(scores.hidden_support))
    rank = suspect(scores).rank(protocol)
    return rank <= np.clip(round(budget * len(rank)), 1, len(rank) - 1)


def _places(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 for the highest value, NaN last; equal values share the mean of their places."""
    return rankdata(np.where(np.isnan(values), np.inf, -values))


def lowering(
    scores: Scores,
    group_of: Int[np.ndarray, " n"],
    ids: Int[np.ndarray, " n"],
    false_discoveries: float,
) -> dict[str, Any]:
    """The `lowering` of audit.json: examples that are found to lower the clean targets' outputs.

    How many, at this false discovery rate, and the first `LISTED`, which lower them most. The rate
    is of groups, and of this direction alone: beside many that are rightly found to raise the
    outputs, a rate over both would let any few be called lowering.
    """
    _, first, group = np.unique(group_of, return_index=True, return_inverse=True)
    z = Effects(scores.clean_effect[first, None], scores.clean_effect_error[first, None]).z()[:, 0]
    q = false_discovery_control(np.where(np.isnan(z), 1, norm.cdf(z)))[group]
    rows = np.flatnonzero(q <= false_discoveries)
    rows = rows[np.argsort(scores.clean_effect[rows], kind="stable")]
    listed = [
        {
            "example": int(ids[row]),
            "effect": float(scores.clean_effect[row]),
            "error": float(scores.clean_effect_error[row]),
            "q": float(q[row]),
        }
        for row in rows[:LISTED].tolist()
    ]
    return {"found": len(rows), "examples": listed}


def redundant(scores: Scores, bad: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """The half of the examples that others replace best, so that it might be left out.

    Those that are memorised least: models that did not train on them do as well on them. None that
    is in an outstanding set, or one of `bad`, which are flagged or confirmed.
    """
    suspicious = bad | (scores.hidden_support > 0)
    memorised = np.where(suspicious | np.isnan(scores.memorisation), np.inf, scores.memorisation)
    first = np.argsort(memorised, kind="stable")[: round(REDUNDANT * len(memorised))]
    found = np.zeros(len(memorised), bool)
    found[first] = np.isfinite(memorised[first])
    return found
