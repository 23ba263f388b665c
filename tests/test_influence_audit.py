"""Scores, ranks and flags of training examples."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from members_in_memory import fitted, make_bank, members_of, regression_of
from scipy.stats import norm

from datamodels import Effects
from influence import attribution, hidden_support, members, quality
from influence.audit import (
    Scores,
    best_rank,
    flag,
    lowering,
    mostly_confirmed,
    redundant,
    score,
    suspect,
    suspect_judged,
    unseen,
)
from influence.experiment import Targets
from training.examples import Examples


@given(seed=st.integers(0, 1000))
def test_rank_is_a_permutation_led_by_the_best_place_in_any_evidence(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, 30))
    rank = best_rank([first, second])
    assert sorted(rank) == list(range(1, 31))
    assert {int(np.argmax(first)), int(np.argmax(second))} <= set(np.flatnonzero(rank <= 2))


def test_evidence_without_a_value_is_least_suspicious():
    assert best_rank([np.array([np.nan, 0.0, 1.0])]).tolist() == [3, 2, 1]


def test_a_common_scale_of_the_evidence_does_not_matter():
    first, second = np.random.default_rng(0).standard_normal((2, 30))
    np.testing.assert_array_equal(
        best_rank([first, second]), best_rank([np.exp(first), 1000 * second - 5])
    )


def make_scores(incident, examples=20):
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((len(Scores._fields), examples))
    scores = Scores(*columns)
    return scores._replace(incident_weight=scores.incident_weight if incident else
                           np.full(examples, np.nan))  # fmt: skip


@pytest.mark.parametrize("protocol", ["blind", "incident"])
@pytest.mark.parametrize(("budget", "count"), [(0.06, 6), (0.001, 1), (0.999, 99)])
def test_the_budget_decides_how_many_are_flagged_and_sets_take_no_places(budget, count, protocol):
    scores = make_scores(True, 100)
    flagged = flag(scores, protocol, budget, with_sets=False)
    assert flagged.sum() == count
    alone = scores._replace(hidden_support=np.zeros(100))
    assert suspect(alone).rank(protocol)[flagged].max() == count
    np.testing.assert_array_equal(flag(alone, protocol, budget, with_sets=True), flagged)
    with_sets = flag(scores, protocol, budget, with_sets=True)
    assert suspect(scores).rank(protocol)[with_sets].max() == with_sets.sum() == count


def test_the_blind_rank_never_sees_the_incident():
    with_incident, without = suspect(make_scores(True)), suspect(make_scores(False))
    np.testing.assert_array_equal(with_incident.blind, without.blind)
    assert without.incident is None
    assert (with_incident.incident != with_incident.blind).any()
    assert with_incident.rank("incident") is with_incident.incident
    assert with_incident.rank("blind") is with_incident.blind


def test_every_kind_of_evidence_is_suspicious_by_itself():
    quiet = Scores(*np.zeros((len(Scores._fields), 5)))
    for field, value in [
        ("out_of_bag", -1.0),
        ("alike", -1.0),
        ("memorisation", 1.0),
        ("hidden_support", 1.0),
        ("incident_weight", 1.0),
    ]:
        column = np.zeros(5)
        column[3] = value
        scores = quiet._replace(**{field: column})
        assert suspect(scores).rank("incident")[3] == 1


def test_what_retraining_showed_ranks_sets_first_then_strangers_and_then_by_unseen_outputs():
    scores = make_scores(True)
    support, held_out = np.full(20, np.nan), np.full(20, np.nan)
    support[[4, 7]] = 1.0, 2.5
    held_out[[2, 9]] = -30.0, 30.0
    outputs = unseen(scores.out_of_bag, held_out)
    assert outputs[2] == (scores.out_of_bag[2] - 30) / 2
    assert outputs[3] == scores.out_of_bag[3]
    nothing, strange = np.zeros(20, bool), np.isin(np.arange(20), [4, 9, 11])
    found = suspect_judged(scores, support, outputs, scores.alike, nothing)
    assert found.blind[[7, 4]].tolist() == [1, 2]
    assert found.blind[2] == 3  # what is alone with a low output is next
    others = [row for row in range(20) if row not in (4, 7)]
    by_rank = sorted(others, key=lambda row: found.blind[row])
    assert by_rank == sorted(others, key=lambda row: outputs[row] + scores.alike[row])
    assert found.blind[9] == 20
    # The same sets, and then what either is first by.
    either = best_rank([-found.blind.astype(float), scores.incident_weight])
    assert set(np.flatnonzero(found.incident <= 2)) == {4, 7}
    others = [row for row in np.argsort(found.incident) if row not in (4, 7)]
    assert others == [row for row in np.argsort(either) if row not in (4, 7)]
    without = suspect_judged(make_scores(False), support, outputs, scores.alike, nothing)
    np.testing.assert_array_equal(without.blind, found.blind)
    assert without.incident is None
    # Those of a cluster among other labels are next, whatever their outputs.
    beside = suspect_judged(scores, support, outputs, scores.alike, strange).blind
    assert beside[[7, 4, 11, 9]].tolist() == [1, 2, 3, 4]
    others = [row for row in np.argsort(beside) if row not in (4, 7, 9, 11)]
    assert others == [row for row in np.argsort(found.blind) if row not in (4, 7, 9, 11)]


def test_of_clusters_most_of_which_is_confirmed_what_is_confirmed_stands_out():
    confirmed = np.isin(np.arange(12), [0, 1, 2, 5, 8, 9])
    clusters = [np.arange(4), np.arange(4, 7), np.array([7, 8])]
    assert np.flatnonzero(mostly_confirmed(confirmed, clusters)).tolist() == [0, 1, 2]
    assert not mostly_confirmed(confirmed, []).any()


def test_redundant_are_the_least_memorised_that_are_not_flagged():
    memorisation = np.array([5.0, 0.1, np.nan, 0.2, 3.0, 0.3, 0.0, 0.4])
    scores = Scores(*np.zeros((len(Scores._fields), 8)))._replace(memorisation=memorisation)
    flagged = np.arange(8) == 6
    assert np.flatnonzero(redundant(scores, flagged)).tolist() == [1, 3, 5, 7]
    # Examples of a set that stands out replace one another.
    in_set = scores._replace(hidden_support=np.where(np.arange(8) == 1, 2.0, np.nan))
    assert np.flatnonzero(redundant(in_set, flagged)).tolist() == [3, 4, 5, 7]
    # Where too few are known, fewer.
    few = scores._replace(memorisation=np.where(np.arange(8) < 2, memorisation, np.nan))
    assert np.flatnonzero(redundant(few, flagged)).tolist() == [0, 1]


def test_what_lowers_clean_targets_is_found_and_negative_the_worst_first():
    effect = np.array([-1.0, -3.0, 2.0, -2.0, np.nan])
    found = lowering(
        effects_on_clean(effect, np.array([0.5, 0.5, 0.1, 9, 0.1])),
        np.arange(5), np.arange(10, 15), 0.1,
    )  # fmt: skip
    assert found["found"] == 2
    assert [one["example"] for one in found["examples"]] == [11, 10]
    assert [one["effect"] for one in found["examples"]] == [-3, -1]
    # The second of five, one-sided.
    np.testing.assert_allclose(found["examples"][1]["q"], norm.cdf(-2) * 5 / 2)


def effects_on_clean(effect, error):
    blank = Scores(*np.zeros((len(Scores._fields), len(effect))))
    return blank._replace(clean_effect=effect, clean_effect_error=error)


def test_what_raises_the_outputs_lets_nothing_be_called_lowering():
    rng, counts = np.random.default_rng(0), []
    for _ in range(20):
        z = rng.standard_normal(1000) + 5 * (np.arange(1000) < 500)
        found = lowering(effects_on_clean(z, np.ones(1000)), np.arange(1000), np.arange(1000), 0.1)
        counts.append(found["found"])
    assert np.mean(counts) < 0.5


def test_a_group_of_many_is_one_discovery():
    rng = np.random.default_rng(1)
    z = rng.standard_normal(50) - 4 * (np.arange(50) < 5)
    alone = lowering(effects_on_clean(z, np.ones(50)), np.arange(50), np.arange(50), 0.1)
    size = np.where(np.arange(50) < 5, 20, 1)
    of = np.repeat(np.arange(50), size)
    grouped = lowering(effects_on_clean(z[of], np.ones(len(of))), of, np.arange(len(of)), 0.1)
    assert alone["found"] >= 4
    assert grouped["found"] == sum(size[one["example"]] for one in alone["examples"])


def test_a_loss_is_negated_so_that_scores_read_the_same():
    rng = np.random.default_rng(0)
    masks, outputs = rng.random((40, 6)) < 0.5, rng.standard_normal((40, 9)).astype(np.float32)
    weights = rng.standard_normal((6, 9)).astype(np.float32)
    effect = rng.standard_normal((6, 2))
    blank = Examples(np.zeros((9, 2), np.float32), np.zeros(9, np.int32))
    targets = Targets(blank, ("",) * 9, slice(0, 6), slice(6, 8), slice(8, 9))
    raised, lowered = (
        score(
            [members_of(masks, sign * outputs)],
            lambda block, sign=sign: sign * weights[:, block],
            Effects(sign * effect, np.abs(effect)),
            targets,
            np.arange(6),
            None,
            higher_is_better=sign > 0,
        )
        for sign in (1, -1)
    )
    for first, second in zip(raised, lowered, strict=True):
        np.testing.assert_allclose(first, second)


def test_where_nothing_was_searched_the_rest_of_the_evidence_ranks():
    quiet, missing = (
        suspect(make_scores(False)._replace(hidden_support=np.full(20, support))).blind
        for support in (0.0, np.nan)
    )
    scores = make_scores(False)
    np.testing.assert_array_equal(quiet, missing)
    with_its_like = -(scores.out_of_bag + scores.alike)
    np.testing.assert_array_equal(
        missing, best_rank([-scores.out_of_bag, with_its_like, scores.memorisation])
    )


def test_groups_give_their_examples_what_is_known_of_them():
    masks, outputs = make_bank(200, groups=3, targets=7)
    blank = Examples(np.zeros((7, 2), np.float32), np.zeros(7, np.int32))
    targets = Targets(blank, ("",) * 7, slice(0, 5), slice(5, 7), slice(7, 7))
    group_of, weights = np.array([0, 0, 1, 2, 1]), np.arange(21.0).reshape(3, 7)
    effects = Effects(np.arange(6.0).reshape(3, 2), np.ones((3, 2)))
    found = score(
        [members_of(masks, outputs)],
        lambda block: weights[:, block],
        effects,
        targets,
        group_of,
        None,
        True,
    )
    assert found.self_weight.tolist() == [0, 1, 9, 17, 11]
    assert found.clean_effect.tolist() == [0, 0, 2, 4, 2]
    for example, group in enumerate(group_of):
        dropped = outputs[~masks[:, group], example]
        assert found.out_of_bag[example] == pytest.approx(dropped.mean(), abs=1e-5)


def test_hidden_support_is_searched_among_groups_whatever_the_output_and_the_blocks(monkeypatch):
    """Groups of two examples: what a group does to another is what it does to its examples."""
    rng = np.random.default_rng(0)
    group_of = rng.permutation(np.repeat(np.arange(60), 2))
    labels = np.concatenate([group_of % 3, np.zeros(30, int)]).astype(np.int32)
    blank = Examples(np.zeros((150, 2), np.float32), labels)
    targets = Targets(blank, ("",) * 150, slice(0, 120), slice(120, 150), slice(150, 150))
    weights = 0.01 * rng.standard_normal((60, 150)).astype(np.float32)
    planted = np.arange(0, 18, 3)
    weights[np.ix_(planted, np.flatnonzero(np.isin(group_of, planted)))] += 0.7
    raised = hidden_support.search(lambda block: weights[:, block], targets, group_of, True)
    assert sorted(raised.sets[0].groups) == planted.tolist()
    # A planted group supports itself, too, which does not count.
    assert raised.sets[0].support == pytest.approx(0.7 * (len(planted) - 1), abs=0.1)
    monkeypatch.setattr(members, "TARGET_BLOCK", 7)
    lowered = hidden_support.search(lambda block: -weights[:, block], targets, group_of, False)
    assert lowered.sets[0].groups == raised.sets[0].groups
    np.testing.assert_allclose(lowered.score, raised.score, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(hidden_support, "MOST_SEARCHED", 59)
    assert hidden_support.search(lambda block: weights[:, block], targets, group_of, True) is None


def test_blocks_of_targets_give_what_all_targets_give_at_once(monkeypatch):
    """Fit, quality, scores and the weights on disk."""
    rng = np.random.default_rng(0)
    # So many groups that no two held-out masks have all that have a weight in common: equal
    # predictions would be ranked by how they were rounded.
    masks, outputs = make_bank(200, groups=20, targets=25)
    outputs += rng.standard_normal(outputs.shape).astype(np.float32)
    main = members_of(masks, outputs)
    blank = Examples(np.zeros((25, 2), np.float32), np.zeros(25, np.int32))
    targets = Targets(blank, ("",) * 25, slice(0, 10), slice(10, 22), slice(22, 25))

    def everything():
        model, judged = fitted(main, targets=25)
        regression, blocks = regression_of(main), (targets.clean, targets.incident)
        prepared = attribution.prepare_effects(regression, fixed_size=False)
        mean = attribution.mean_effects(regression, prepared, blocks)
        parts = list(attribution.effects(regression, prepared, slice(10, 25)))
        effects = jax.tree.map(lambda *values: np.concatenate(values, axis=1), *parts)
        summary = quality.draws(
            regression, 0, lambda masks, block: model.predict(masks)[:, block], targets.clean
        )
        found = score(
            [main], lambda block: model.weights[:, block], mean, targets, np.arange(10), None, True
        )
        return model.weights, judged, found, effects.estimate, effects.standard_error, summary

    whole = everything()
    monkeypatch.setattr(members, "TARGET_BLOCK", 7)
    asked = []
    read = main.outputs
    main = dataclasses.replace(main, outputs=lambda block: asked.append(block) or read(block))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), everything(), whole)
    assert max(block.stop - block.start for block in asked) == 7


def test_alphas_do_not_pass_for_memorisation():
    """Members without an example are mostly of the smaller alpha, and lack others, too."""
    rng = np.random.default_rng(4)
    blank = Examples(np.zeros((5, 2), np.float32), np.zeros(5, np.int32))
    targets = Targets(blank, ("",) * 5, slice(0, 4), slice(4, 5), slice(5, 5))
    arms = []
    for alpha in (0.5, 0.1):
        masks = rng.random((4000, 4)) < alpha
        outputs = 5 * alpha + 0.3 * masks[:, :1] + 0.1 * rng.standard_normal((4000, 5))
        main = members_of(masks, outputs.astype(np.float32))
        arms.append(dataclasses.replace(main, alpha=np.full((1, 1), alpha)))
    weights, effects = np.zeros((4, 5)), Effects(np.zeros((4, 2)), np.ones((4, 2)))

    def found(arms):
        return score(
            arms, lambda block: weights[:, block], effects, targets, np.arange(4), None, True
        )

    both = found(arms)
    expected = [0.3, 0, 0, 0]
    assert (np.abs(both.memorisation - expected) < 4 * both.memorisation_error).all()
    single = [found([arm]) for arm in arms]
    np.testing.assert_allclose(both.out_of_bag, np.mean([one.out_of_bag for one in single], 0))
    squares = [np.square(one.memorisation_error) for one in single]
    np.testing.assert_allclose(both.memorisation_error, np.sqrt(np.sum(squares, axis=0)) / 2)


def test_a_dropped_cluster_does_not_count_as_a_dropped_example():
    rng = np.random.default_rng(5)
    chosen = np.repeat(rng.random((4000, 2)) < 0.5, 2, axis=1)
    masks = chosen & (rng.random((4000, 4)) < 0.5)
    outputs = 9.0 * chosen[:, :1] + masks[:, :1] + np.zeros((1, 5))
    main = members_of(masks, outputs.astype(np.float32))
    main = dataclasses.replace(main, alpha=0.5 * chosen)
    blank = Examples(np.zeros((5, 2), np.float32), np.zeros(5, np.int32))
    targets = Targets(blank, ("",) * 5, slice(0, 1), slice(4, 5), slice(5, 5))
    effects = Effects(np.zeros((4, 2)), np.ones((4, 2)))
    found = score(
        [main], lambda block: np.zeros((4, block.stop - block.start)), effects, targets,
        np.arange(1), None, True,
    )  # fmt: skip
    assert found.memorisation[0] == pytest.approx(1.0)
    assert found.out_of_bag[0] == pytest.approx(9.0)
