"""Ranks, flags, detection metrics, the verification's plan: the parts without training."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from datamodels import Effects
from datamodels.bootstrap import resample_together
from influence import attribution, counterfactual, hidden_support, members, quality
from influence.arms import Arms
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
from influence.caveats import caveats
from influence.config import FitConfig
from influence.counterfactual import cell_names, context_cells
from influence.detection import detection_metrics
from influence.detection import summary as detection_summary
from influence.experiment import Targets
from influence.members import Members
from influence.regression import divide
from training.arm import Status
from training.data import Table
from training.errors import UserError
from training.examples import Examples
from training.poison import Attack


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
    scores = Scores(*np.zeros((len(Scores._fields), 5)))._replace(
        clean_effect=effect, clean_effect_error=np.full(5, 0.1),
        clean_q=np.array([0.01, 0.02, 0.0, 0.5, np.nan]),
    )  # fmt: skip
    found = lowering(scores, np.arange(10, 15), 0.1)
    assert found["found"] == 2
    assert found["examples"] == [
        {"example": 11, "effect": -3.0, "error": 0.1, "q": 0.02},
        {"example": 10, "effect": -1.0, "error": 0.1, "q": 0.01},
    ]


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


@given(seed=st.integers(0, 1000))
def test_detection_metrics_equal_scikit_learn_on_this_attack_and_clean_examples(seed):
    rng = np.random.default_rng(seed)
    rank = rng.permutation(200) + 1
    planted, other = np.zeros((2, 200), bool)
    planted[:10], other[10:25] = True, True
    metrics = detection_metrics(rank, planted, other)
    kept = ~other
    assert metrics["auroc"] == pytest.approx(roc_auc_score(planted[kept], -rank[kept]))
    assert metrics["average_precision"] == pytest.approx(
        average_precision_score(planted[kept], -rank[kept])
    )
    order = np.argsort(rank[kept])
    assert metrics["recall_10"] == pytest.approx(planted[kept][order[:18]].mean() * 18 / 10)
    assert metrics["precision_at_k"] == pytest.approx(planted[kept][order[:10]].mean())


@pytest.mark.parametrize(("before", "scored"), [(0.49, False), (0.5, True)])
def test_a_backdoor_that_failed_is_never_scored(before, scored):
    planted = np.array(["backdoor"] * 3 + [""] * 17, dtype=object)
    scores = {
        "planted": planted,
        "rank_blind": np.arange(20) + 1,
        "rank_incident": 20 - np.arange(20),
    }
    blank = Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))
    incident = Table(blank, np.arange(3))
    attack = Attack("backdoor", np.arange(3), np.zeros(3, np.int32), blank, incident)
    found = detection_summary([attack], scores, {"backdoor": {"before": (before, 0.0, 1.0)}})
    assert {name: entry["auroc"] is not None for name, entry in found.items()} == {
        "backdoor": scored,
        "backdoor_blind": scored,
    }
    if scored:
        assert found["backdoor_blind"]["auroc"] == 1.0
        assert found["backdoor"]["auroc"] == 0.0


def test_of_two_triggers_the_incident_is_the_first_ones_alone():
    planted = np.array(["backdoor"] * 3 + ["blend"] * 3 + [""] * 14, dtype=object)
    rank = np.arange(20) + 1
    scores = {"planted": planted, "rank_blind": rank, "rank_incident": rank}
    blank = Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))
    attacks = [
        Attack(name, np.flatnonzero(planted == name), np.zeros(3, np.int32), blank,
               Table(blank, np.arange(3)))
        for name in ("backdoor", "blend")
    ]  # fmt: skip
    success = {"backdoor": {"before": (0.9, 0.0, 1.0)}, "blend": {"before": (0.4, 0.0, 1.0)}}
    found = detection_summary(attacks, scores, success)
    assert {name: entry["protocol"] for name, entry in found.items()} == {
        "backdoor": "incident",
        "backdoor_blind": "blind",
        "blend": "blind",
    }
    assert found["blend"]["auroc"] is None  # it failed


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


def test_a_label_flip_is_scored_whether_or_not_the_model_learned_it():
    scores = {"planted": np.array(["label_flip", "", ""], dtype=object), "rank_blind": [1, 2, 3]}
    scores["rank_blind"] = np.array(scores["rank_blind"])
    blank = Examples(np.zeros((1, 2), np.float32), np.zeros(1, np.int32))
    attack = Attack("label_flip", np.array([0]), np.zeros(1, np.int32), blank, None)
    found = detection_summary([attack], scores, {"label_flip": {"before": (0.0, 0.0, 0.0)}})
    assert found["label_flip"]["auroc"] == 1.0


def test_the_interval_of_a_share_stays_within_0_and_1_and_keeps_a_width():
    mean, low, high = counterfactual.share_interval(np.zeros(8), inputs=200)
    assert (mean, low) == (0.0, 0.0)
    # Wilson's upper limit at 0 of n is z^2 / (n + z^2).
    assert high == pytest.approx(1.96**2 / (200 + 1.96**2), rel=1e-3)
    spread = counterfactual.share_interval(np.array([0.0, 0.5, 1.0, 1.0]), inputs=10)
    assert (spread[1], spread[2]) == (0.0, 1.0)


def some_contexts(seeds):
    rng = np.random.default_rng(0)
    return {f"alpha {alpha}": rng.random((seeds, 50)) < alpha for alpha in (0.3, 0.6)}


def test_more_seeds_leave_the_masks_of_the_first_as_they_are():
    labels, confirmed, flagged = np.arange(50) % 3, np.arange(50) < 3, np.arange(50) < 5
    contexts = some_contexts(6)
    few, many = (
        counterfactual.by_cell(
            counterfactual.plan(
                labels,
                confirmed,
                np.arange(50) >= 25,
                flagged,
                {name: kept[:seeds] for name, kept in contexts.items()},
                seed=0,
            ).listed,
            list(contexts),
        )
        for seeds in (3, 6)
    )
    for cell in cell_names(list(contexts)):
        np.testing.assert_array_equal(few[cell], many[cell][:3])


def test_the_plan_pairs_the_cells_seed_by_seed():
    labels, confirmed, flagged = np.arange(50) % 3, np.arange(50) < 3, np.arange(50) < 5
    contexts = some_contexts(4)
    redundant = np.arange(50) >= 30
    design = counterfactual.plan(labels, confirmed, redundant, flagged, contexts, seed=0)
    cells = counterfactual.by_cell(design.listed, list(contexts))
    assert cells["before"].all()
    assert (cells["after"] == ~confirmed).all()
    assert (cells[counterfactual.WITHOUT_FLAGGED] == ~flagged).all()
    for row in ~cells["after_random"]:
        np.testing.assert_array_equal(np.bincount(labels[row]), np.bincount(labels[confirmed]))
    assert len(np.unique(cells["after_random"], axis=0)) == 4
    assert (cells["thinned"] == ~redundant).all()
    for row in ~cells["thinned_random"]:
        np.testing.assert_array_equal(np.bincount(labels[row]), np.bincount(labels[redundant]))
        assert not row[redundant].any()
    for name, others in contexts.items():
        kept, dropped = (cells[cell] for cell in context_cells(name))
        np.testing.assert_array_equal(kept[:, 5:], others[:, 5:])
        np.testing.assert_array_equal(dropped[:, 5:], others[:, 5:])
        assert kept[:, :5].all()
        assert not dropped[:, :5].any()
    members = np.arange(4 * len(cells))
    np.testing.assert_array_equal(design.rows(members).reshape(-1, 4), [[0, 1, 2, 3]] * len(cells))


def test_the_change_is_that_between_the_cells_of_each_context():
    rng = np.random.default_rng(1)
    contexts = list(some_contexts(4))
    cells = {name: rng.standard_normal((4, 3)) for name in cell_names(contexts)}
    change = counterfactual.change(cells, np.arange(3.0), contexts)
    for name in contexts:
        kept, dropped = (cells[cell] for cell in context_cells(name))
        np.testing.assert_array_equal(change.contexts[name], dropped - kept)
    without = cells[counterfactual.WITHOUT_FLAGGED]
    np.testing.assert_array_equal(change.all_kept, without - cells["before"])


def test_an_interval_is_students_and_leaves_out_lost_members():
    values = np.array([1.0, 2.0, np.nan, 4.0])
    mean, low, high = counterfactual.interval(values)
    expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((7 / 3, expected.low, expected.high))


SOUND = {
    "fit": {
        "not_finite": 0,
        "r2": 0.5,
        "ceiling": 0.8,
        "certified": 1.0,
        "largest_relative_gap": 1e-6,
        "seeds": "independent",
    },
    "verify": {"not_finite": 0, "accuracy": {"before": [0.9, 0.8, 1.0]}, "majority": 0.3},
}


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("fit", {"not_finite": 3}, "3 members diverged"),
        ("verify", {"not_finite": 2}, "2 members diverged"),
        ("fit", {"r2": -0.1}, "no better than their mean"),
        ("fit", {"r2": None}, "no better than their mean"),
        ("fit", {"certified": 0.9}, "10.0% of the targets are not solved"),
        ("fit", {"seeds": "common", "ceiling": None}, "All members share one training key"),
        ("fit", {"ceiling": None}, "No mask was retrained with several seeds"),
        ("verify", {"majority": 0.95}, "always naming the commonest class"),
    ],
)
def test_a_reader_is_warned_of_figures_that_mean_nothing(section, change, said):
    assert caveats(SOUND) == []
    (caveat,) = caveats(SOUND | {section: SOUND[section] | change})
    assert said in caveat


def members_of(masks, outputs, status=None):
    status = np.zeros(len(masks), np.uint8) if status is None else status
    half, draws = np.full((1, 1), 0.5), np.arange(len(masks))
    return Members(masks, status, lambda targets: outputs[:, targets], half, draws)


def regression_of(main, replicates=None, seeds=2):
    return divide([Arms("main", 0.5, main, replicates)], FitConfig(held_out=20), seeds)


def make_bank(rows=60, groups=8, targets=3, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.random((rows, groups)) < 0.5
    outputs = masks @ rng.standard_normal((groups, targets))
    return masks, outputs.astype(np.float32)


def fitted(main, replicates=None, seeds=2, targets=3):
    parts = list(attribution.fit(regression_of(main, replicates, seeds), targets))
    model = jax.tree.map(
        lambda *values: np.concatenate(values, axis=-1), *(model for model, _ in parts)
    )
    joined = zip(*(found for _, found in parts), strict=True)
    return model, quality.Quality(*(np.concatenate(part, axis=1) for part in joined))


def test_held_out_members_never_reach_the_fit():
    masks, outputs = make_bank()
    spoiled = outputs.copy()
    spoiled[:20] += 1000
    model, _ = fitted(members_of(masks, outputs))
    again, _ = fitted(members_of(masks, spoiled))
    np.testing.assert_array_equal(again.weights, model.weights)


def test_members_that_are_not_finite_are_left_out_and_counted():
    masks, outputs = make_bank()
    status = np.zeros(60, np.uint8)
    for member in (3, 30, 31):
        status[member] = Status.NOT_FINITE
        outputs[member] = np.nan
    main = members_of(masks, outputs, status)
    repeated = members_of(*(np.repeat(part, 2, axis=0) for part in make_bank(5, seed=1)))
    regression = regression_of(main, repeated)
    assert (len(regression.held_out[0].masks), len(regression.fitted.masks)) == (19, 38)
    model, found = fitted(main, repeated)
    blank = Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))
    targets = Targets(blank, ("a", "b", "c"), slice(0, 2), slice(2, 3), slice(3, 3))

    def predict(masks, block):
        return model.predict(masks)[:, block]

    summary = quality.summary(regression, model.diagnostics, found, predict, targets)
    assert summary["not_finite"] == 3
    assert summary["r2"] > 0.95
    assert summary["ceiling"] == pytest.approx(1.0)
    by_targets = summary["by_arm"]["main"]["by_targets"]
    assert "intervals" not in by_targets["train"]
    value, low, high = by_targets["clean"]["intervals"]["r2"]
    assert low < value == by_targets["clean"]["r2"] < high


def test_a_bank_of_diverged_members_is_refused():
    main = members_of(*make_bank(), np.full(60, Status.NOT_FINITE, np.uint8))
    with pytest.raises(UserError, match=r"60 of 60 members are not finite.*learning_rate"):
        regression_of(main)


def test_an_arm_of_diverged_members_is_refused_beside_a_sound_one():
    lost = members_of(*make_bank(), np.full(60, Status.NOT_FINITE, np.uint8))
    arms = [Arms("main", 0.5, members_of(*make_bank(100)), None), Arms("x", 0.2, lost, None)]
    with pytest.raises(UserError, match="60 of 160 members are not finite"):
        divide(arms, FitConfig(held_out=20), 2)


def test_lost_replicates_do_not_reach_the_ceiling():
    masks, outputs = (np.repeat(part, 3, axis=0) for part in make_bank(5, seed=1))
    status = np.zeros(15, np.uint8)
    status[:5] = Status.NOT_FINITE
    outputs[:5] = np.inf
    repeated = members_of(masks, outputs, status)
    _, found = fitted(members_of(*make_bank()), repeated, seeds=3)
    np.testing.assert_allclose(found.ceiling, 1.0)


def test_arms_of_several_alphas_are_fitted_together_and_judged_apart():
    rng = np.random.default_rng(2)
    weights, arms = rng.standard_normal((8, 3)), []
    for number, alpha in enumerate((0.5, 0.2)):
        masks = rng.random((90, 8)) < alpha
        noise = (1 + 2 * number) * rng.standard_normal((90, 3))
        main = members_of(masks, (masks @ weights + noise).astype(np.float32))
        arms.append(
            Arms(
                f"arm {number}",
                alpha,
                dataclasses.replace(main, alpha=np.full((1, 1), alpha)),
                None,
            )
        )
    regression = divide(arms, FitConfig(held_out=20), 2)
    assert len(regression.fitted.masks) == 140
    np.testing.assert_array_equal(regression.fitted.alpha[[0, 69, 70], 0], [0.5, 0.5, 0.2])
    assert len(np.unique(regression.fitted.draws)) == 140
    ((_, found),) = attribution.fit(regression, 3)
    # The second arm is noisier and varies less.
    assert (found.r2[0] > found.r2[1]).all()
    prepared = attribution.prepare_effects(regression, fixed_size=False)
    (effects,) = attribution.effects(regression, prepared, slice(0, 3))
    low, high = effects.interval(0.999)
    assert ((low < weights) & (weights < high)).all()


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
    masks, outputs = make_bank(80, groups=10, targets=25)
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


def test_masks_whose_retrains_were_lost_leave_no_ceiling_and_no_error():
    masks, outputs = (np.repeat(part, 2, axis=0) for part in make_bank(5, seed=1))
    status = np.zeros(10, np.uint8)
    status[::2] = Status.NOT_FINITE
    model, found = fitted(members_of(*make_bank()), members_of(masks, outputs, status))
    assert np.isnan(found.ceiling).all()
    regression = regression_of(members_of(*make_bank()), members_of(masks, outputs, status))
    drawn = quality.draws(regression, 0, lambda m, block: model.predict(m)[:, block], slice(0, 3))
    assert np.isnan(drawn.measures()["ceiling"]).all()


def test_members_lost_by_what_they_kept_are_told_as_such():
    rng = np.random.default_rng(6)
    masks = rng.random((2000, 10)) < 0.5
    status = np.where(masks[:, 0] & (rng.random(2000) < 0.95), Status.NOT_FINITE, 0)
    main = members_of(masks, rng.standard_normal((2000, 3)).astype(np.float32),
                      status.astype(np.uint8))  # fmt: skip
    with pytest.raises(UserError, match="lost depending on what they kept"):
        attribution.prepare_effects(regression_of(main), fixed_size=False)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (FitConfig(held_out=20, folds=2), "fit.folds = 2 must be at least 3"),
        (FitConfig(held_out=56), "fit.held_out = 56 leaves fewer than 6 masks"),
    ],
)
def test_fits_of_older_configs_are_refused_with_the_key(config, said):
    with pytest.raises(UserError, match=said):
        divide([Arms("main", 0.5, members_of(*make_bank()), None)], config, 2)


def test_complementary_masks_are_drawn_again_together():
    counts = resample_together(np.array([4, 4, 7, 7, 9]))
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
    np.testing.assert_array_equal(counts[:, 2], counts[:, 3])
    assert (counts[:, [0, 2, 4]].sum(1) == 3).all()
