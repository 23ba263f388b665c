"""What the report shows of single targets: what helps and harms each, and what was foretold."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datamodels.estimates import Effects
from influence.arms import group_name, masks_groups
from influence.artifacts import StoredDatamodel
from influence.counterfactual import Change, Interval, interval
from influence.experiment import Experiment
from influence.looks import Looks
from influence.quality import FALSE_DISCOVERIES, Quality, known_mean
from influence.term_parts import Graph, TermPart, graph

SHOWN = 10
"""Targets of an incident; as many clean ones, and all that sets were found of."""
SHOWN_EFFECTS = 5
"""Of each sign."""
SHOWN_TERMS = 6
"""Sets in a target's graph, the surest."""


class EffectPart(NamedTuple):
    """What keeping a group does to a target's output."""

    name: str
    picture: str
    text: str
    effect: Interval
    q: float


class TargetPart(NamedTuple):
    """A target and what acts on it."""

    id: str
    label: str
    picture: str
    text: str
    r2: float
    """Of its datamodel, in the mean over arms."""
    ceiling: float
    found: int
    """Groups that are found to have an effect."""
    raising: list[EffectPart]
    """The largest first."""
    lowering: list[EffectPart]
    predicted: float
    """Change of its output without the flagged examples."""
    measured: Interval
    terms: list[TermPart]
    graph: Graph


def target_parts(
    experiment: Experiment,
    looks: Looks,
    model: StoredDatamodel,
    change: Change,
    terms: Sequence[TermPart],
) -> list[TargetPart]:
    """The first targets of an incident, the clean ones that change most, and those with terms.

    Args:
        experiment: of the run.
        looks: of the targets.
        model: the datamodels and effects.
        change: of the clean and the incident targets.
        terms: the sets that are shown.
    """
    targets = experiment.targets
    own: dict[str, list[TermPart]] = defaultdict(list)
    for term in terms:
        own[term.row.target].append(term)
    first = targets.clean.start
    clean = slice(0, targets.clean.stop - first)
    by_change = first + np.argsort(-np.abs(change.predicted[clean]), kind="stable")[:SHOWN]
    with_terms = [at for at, id in enumerate(targets.ids) if id in own]
    chosen = dict.fromkeys([*experiment.bad_targets[:SHOWN], *with_terms, *by_change.tolist()])
    places = [at - first for at in chosen]
    effects = model.effects.take(places), model.effect_errors.take(places)
    found = (Effects(*(part[:, [n]] for part in effects)) for n in range(len(places)))
    return [
        _part(experiment, looks, model.quality, change, one, at, own[targets.ids[at]])
        for at, one in zip(chosen, found, strict=True)
    ]


def _part(
    experiment: Experiment,
    looks: Looks,
    quality: Quality,
    change: Change,
    found: Effects,
    at: int,
    terms: list[TermPart],
) -> TargetPart:
    targets, place = experiment.targets, at - experiment.targets.clean.start
    low, high = found.interval()
    q_values = found.q_values()[:, 0]
    size = np.where(np.isnan(found.standard_error), 0, found.estimate)[:, 0]
    order = np.argsort(-size, kind="stable")

    def part(group: int) -> EffectPart:
        row = None if masks_groups(experiment) else group
        return EffectPart(
            group_name(experiment, group),
            "" if row is None else looks.picture(row),
            "" if row is None else looks.text(row),
            (float(size[group]), float(low[group, 0]), float(high[group, 0])),
            float(q_values[group]),
        )

    return TargetPart(
        id=targets.ids[at],
        label=experiment.class_names[int(np.asarray(targets.examples.labels)[at])],
        picture=looks.picture(at),
        text=looks.text(at),
        r2=known_mean(quality.r2[:, at]),
        ceiling=known_mean(quality.ceiling[:, at]),
        found=int((q_values <= FALSE_DISCOVERIES).sum()),
        raising=[part(group) for group in order[:SHOWN_EFFECTS].tolist() if size[group] > 0],
        lowering=[part(group) for group in order[::-1][:SHOWN_EFFECTS].tolist() if size[group] < 0],
        predicted=float(change.predicted[place]),
        measured=interval(change.all_kept[:, place]),
        terms=terms[:SHOWN_TERMS],
        graph=graph(terms[:SHOWN_TERMS]),
    )
