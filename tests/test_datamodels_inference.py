"""Effects with standard errors: what the intervals cover, and how many discoveries are false."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from datamodels import Bernoulli, Effects, FixedSize, Pairs, TwoLevel, effects, knockoffs
from datamodels.knockoffs import _stands_out
from datamodels.scores import scores

SEEDS = st.integers(0, 2**32 - 1)
SETTINGS = ["sparse", "dense", "interactions", "correlated noise", "nothing"]


def simulate(setting, seed, members=500, groups=60, targets=12, alpha=0.5):
    """Masks, outputs, and the average marginal effects behind them."""
    rng = np.random.default_rng(seed)
    masks = rng.random((members, groups)) < alpha
    weights = rng.standard_normal((groups, targets))
    if setting == "dense":
        weights *= 0.3
    else:
        weights *= rng.random((groups, targets)) < (0.0 if setting == "nothing" else 0.1)
    outputs, truth = masks @ weights, weights.copy()
    noise = rng.standard_normal((members, targets))
    if setting == "interactions":
        # Two that act together: each adds alpha on average. Two whose effects cancel out.
        outputs += 2 * (masks[:, :1] & masks[:, 1:2])
        truth[:2] += 2 * alpha
        outputs += 8 * (masks[:, 2:3] - alpha) * (masks[:, 3:4] - alpha)
    if setting == "correlated noise":
        noise = 0.5 * noise + rng.standard_normal((members, 1))
    return masks, outputs + noise, truth


def covered(found, truth):
    low, high = found.interval()
    return ((low <= truth) & (truth <= high)).mean()


@pytest.mark.parametrize("alpha", [0.5, 0.2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_intervals_cover_what_they_say(setting, alpha):
    shares = []
    for seed in range(8):
        masks, outputs, truth = simulate(setting, seed, alpha=alpha)
        shares.append(covered(effects(masks, outputs, alpha=alpha), truth))
    assert 0.93 <= np.mean(shares) <= 0.97


@pytest.mark.parametrize("members", [500, 50])
def test_intervals_by_ridge_cover_as_much_with_more_and_fewer_masks_than_groups(members):
    shares = []
    for seed in range(24):
        masks, outputs, truth = simulate("interactions", seed, members=members)
        shares.append(covered(effects(masks, outputs, alpha=0.5, penalty="ridge"), truth))
    assert 0.93 <= np.mean(shares) <= 0.97


def test_effects_by_ridge_are_those_of_a_loop_over_folds():
    masks, outputs, _ = simulate("dense", 3, members=40, targets=1)
    found = effects(masks, outputs, alpha=0.5, penalty="ridge", folds=4)
    own, fold = np.zeros(masks.shape), np.arange(40) % 4
    for number in range(4):
        chooser, others = fold == (number + 1) % 4, fold != number
        tried = masks[others & ~chooser].var(0).sum() / 40 * np.geomspace(30, 0.01, 16)
        inner = [ridge_regression(masks, outputs[:, 0], others & ~chooser, one) for one in tried]
        errors = [np.square(outputs[chooser, 0] - of(masks[chooser])).mean() for of, _ in inner]
        predicted, weights = ridge_regression(
            masks, outputs[:, 0], others, tried[np.argmin(errors)]
        )
        left = outputs[fold == number, 0] - predicted(masks[fold == number])
        own[fold == number] = weights + (masks[fold == number] - 0.5) * left[:, None] / 0.25
    np.testing.assert_allclose(found.estimate[:, 0], own.mean(0), atol=1e-4)


def ridge_regression(masks, outputs, rows, penalty):
    z, y_mean = masks[rows] - masks[rows].mean(0), outputs[rows].mean()
    y = outputs[rows] - y_mean
    weights = np.linalg.solve(z.T @ z / len(z) + penalty * np.eye(len(z.T)), z.T @ y / len(z))
    return lambda new: y_mean + (new - masks[rows].mean(0)) @ weights, weights


@pytest.mark.parametrize("setting", ["sparse", "interactions", "correlated noise"])
def test_a_tenth_of_the_discoveries_is_false_at_most(setting):
    false, power = [], []
    for seed in range(20):
        masks, outputs, truth = simulate(setting, seed)
        found = effects(masks, outputs, alpha=0.5).q_values() <= 0.1
        false.append(((found & (truth == 0)).sum(0) / np.maximum(found.sum(0), 1)).mean())
        power.append(found[np.abs(truth) > 0.5].mean())
    assert np.mean(false) < 0.12
    assert np.mean(power) > (0.6 if setting == "interactions" else 0.9)


def test_estimates_are_nearer_to_the_truth_than_differences_of_means():
    masks, outputs, truth = simulate("dense", 0)
    kept = np.where(masks[:, :, None], outputs[:, None], np.nan)
    dropped = np.where(masks[:, :, None], np.nan, outputs[:, None])
    naive = np.nanmean(kept, 0) - np.nanmean(dropped, 0)
    found = effects(masks, outputs, alpha=0.5)
    assert np.square(found.estimate - truth).mean() < 0.7 * np.square(naive - truth).mean()


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_retrains_of_a_mask_count_as_one_draw(alpha):
    """Taken for draws of their own, they would make the intervals too narrow."""
    right = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        masks, outputs, truth = simulate("interactions", seed, members=200, alpha=0.3)
        masks, outputs = np.repeat(masks, 4, axis=0), np.repeat(outputs, 4, axis=0)
        outputs += 0.3 * rng.standard_normal(outputs.shape)
        number = np.repeat(np.arange(200), 4)
        order = rng.permutation(800)
        masks, outputs, number = masks[order], outputs[order], number[order]
        right.append(covered(effects(masks, outputs, alpha=alpha, replicate_of=number), truth))
        with pytest.raises(ValueError, match="600 rows have a mask that is the same"):
            effects(masks, outputs, alpha=alpha)
    assert 0.93 <= np.mean(right) <= 0.97


def test_rows_of_several_alphas_are_weighed_by_their_own():
    shares = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        alpha = rng.choice([0.5, 0.2], 600)
        masks = rng.random((600, 60)) < alpha[:, None]
        truth = np.where(rng.random((60, 12)) < 0.1, rng.standard_normal((60, 12)), 0)
        found = effects(masks, masks @ truth + rng.standard_normal((600, 12)), alpha=alpha)
        shares.append(covered(found, truth))
    assert 0.93 <= np.mean(shares) <= 0.97


@given(seed=SEEDS, of=st.sampled_from(["all", "rows", "groups", "rows and groups"]))
def test_scores_equal_a_loop_over_draws(seed, of):
    rng = np.random.default_rng(seed)
    number = rng.integers(0, 9, 20)
    draw = np.unique(number, return_inverse=True)[1]
    count = draw.max() + 1
    masks = rng.random((count, 5)) < 0.4
    residual = rng.standard_normal((20, 3))
    alpha = {
        "all": np.full((1, 1), 0.4),
        "rows": rng.uniform(0.2, 0.8, (count, 1)),
        "groups": rng.uniform(0.2, 0.8, (1, 5)),
        "rows and groups": rng.choice([0.0, 0.3, 0.7], (count, 5)),
    }[of]
    added = np.stack([residual[draw == own].sum(0) for own in range(count)])
    found = scores(masks, added, np.bincount(draw), alpha)
    for group in range(5):
        of_draws, rows = [], 0
        for own in range(count):
            p = np.broadcast_to(alpha, masks.shape)[own, group]
            if p > 0:
                retrains = residual[draw == own]
                of_draws.append((masks[own, group] - p) / (p * (1 - p)) * retrains.sum(0))
                rows += len(retrains)
        assert found.rows[group, 0] == rows
        if not of_draws:
            assert (found.total[group] == 0).all()
            continue
        np.testing.assert_allclose(found.total[group], np.sum(of_draws, axis=0), atol=1e-11)
        expected = np.square(of_draws[0])
        if len(of_draws) > 1:
            expected = np.var(of_draws, axis=0, ddof=1) * len(of_draws)
        np.testing.assert_allclose(found.variance[group], expected, rtol=1e-9, atol=1e-10)


def test_a_fixed_size_gives_effects_of_one_group_in_place_of_another():
    """What all groups do alike cannot be seen; intervals cover what can."""
    shares = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        masks = FixedSize(0.3).masks(jax.random.key(seed), np.arange(500), 40)
        weights = 1 + np.where(rng.random((40, 12)) < 0.2, rng.standard_normal((40, 12)), 0)
        outputs = masks @ weights + rng.standard_normal((500, 12))
        others = (weights.sum(0) - weights) / 39
        found = effects(masks, outputs, fixed_size=True)
        shares.append(covered(found, weights - others))
    assert 0.93 <= np.mean(shares) <= 0.97


def test_pairs_leave_out_the_noise_of_interactions():
    """With pairs of groups that act together, complementary masks halve the error or better."""
    errors = {"pairs": [], "fair coins": []}
    for design, kind in ((Pairs(), "pairs"), (Bernoulli(0.5), "fair coins")):
        shares = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            members = np.arange(400)
            masks = design.masks(jax.random.key(seed), members, 40)
            weights = 0.5 * rng.standard_normal((40, 12))
            signs = 2.0 * masks - 1
            outputs = (
                masks @ weights
                + 3 * signs[:, :8] @ rng.choice([-1.0, 1.0], (8, 12)) * (signs[:, 20:21])
            )
            outputs += 0.5 * rng.standard_normal((400, 12))
            number = design.draws(members)
            found = effects(masks, outputs, alpha=0.5, replicate_of=number)
            shares.append(covered(found, weights))
            errors[kind].append(np.square(found.estimate - weights).mean())
        assert 0.93 <= np.mean(shares) <= 0.97
    assert np.mean(errors["pairs"]) < 0.5 * np.mean(errors["fair coins"])


def test_two_levels_give_effects_within_chosen_clusters_and_of_clusters():
    within, whole = [], []
    design = TwoLevel(0.5, 0.4, tuple(group // 5 for group in range(60)))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        root, members = jax.random.key(seed), np.arange(800)
        masks, chosen = design.masks(root, members, 60), design.chosen(root, members)
        weights = np.where(rng.random((60, 8)) < 0.2, rng.standard_normal((60, 8)), 0)
        outputs = masks @ weights + rng.standard_normal((800, 8))
        within.append(covered(effects(masks, outputs, alpha=0.4 * chosen), weights))
        found = effects(chosen[:, ::5], outputs, alpha=0.5)
        whole.append(covered(found, 0.4 * weights.reshape(12, 5, 8).sum(1)))
    assert 0.93 <= np.mean(within) <= 0.97
    assert 0.93 <= np.mean(whole) <= 0.97


def test_a_group_kept_where_its_alpha_is_zero_is_named():
    masks, outputs, _ = simulate("sparse", 0)
    alpha = np.full(masks.shape, 0.5)
    row, group = np.argwhere(masks)[7]
    alpha[row, group] = 0
    with pytest.raises(ValueError, match=f"row {row} keeps group {group}, whose alpha is 0"):
        effects(masks, outputs, alpha=alpha)


def test_masks_of_one_number_must_be_the_same_or_complementary():
    masks, outputs, _ = simulate("sparse", 0)
    masks[1], masks[3] = masks[0], ~masks[2]
    number = np.arange(len(masks))
    number[[1, 3]] = [0, 2]
    effects(masks, outputs, alpha=0.5, replicate_of=number)
    with pytest.raises(ValueError, match=r"takes alpha = 0\.5"):
        effects(masks, outputs, alpha=0.51, replicate_of=number)
    masks[3, 7] ^= True
    with pytest.raises(ValueError, match="rows 2 and 3 have the same number"):
        effects(masks, outputs, alpha=0.5, replicate_of=number)


def test_an_alpha_beside_a_fixed_size_and_another_shape_are_refused():
    masks, outputs, _ = simulate("sparse", 0)
    with pytest.raises(ValueError, match="follows from the masks"):
        effects(masks, outputs, alpha=0.5, fixed_size=True)
    with pytest.raises(ValueError, match=r"masks keep from .* groups; leave it out"):
        effects(masks, outputs, fixed_size=True)
    with pytest.raises(ValueError, match=r"got \(60,\)"):
        effects(masks, outputs, alpha=np.full(60, 0.5))


def test_few_masks_with_many_retrains_are_not_taken_for_another_design():
    """The check looks at masks, of which there are 40, not at their 800 retrains."""
    number = np.repeat(np.arange(40), 20)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        masks = (rng.random((40, 40)) < 0.5)[number]
        effects(masks, rng.standard_normal((800, 1)), alpha=0.5, replicate_of=number)


def test_a_group_that_never_varies_has_no_effect_and_no_interval():
    masks, outputs, _ = simulate("sparse", 0)
    masks[:, 3], masks[:, 5] = True, False
    with pytest.warns(UserWarning, match=r"2 groups \(first: 3\) are kept in every row or in none"):
        found = effects(masks, outputs)
    assert (found.estimate[[3, 5]] == 0).all()
    assert np.isnan(found.standard_error[[3, 5]]).all()
    assert (found.p_values()[[3, 5]] == 1).all()
    assert np.isfinite(found.standard_error[[0, 1, 2, 4]]).all()


def test_effects_follow_the_unit_and_the_sign_of_the_outputs():
    masks, outputs, _ = simulate("sparse", 1)
    found, turned = effects(masks, outputs), effects(masks, 1000 - 8 * outputs)
    np.testing.assert_allclose(turned.estimate, -8 * found.estimate, atol=0.02)
    np.testing.assert_allclose(turned.standard_error, 8 * found.standard_error, rtol=0.01)


@pytest.mark.parametrize("alpha", [0.4, 0.6])
def test_an_alpha_that_the_masks_contradict_is_named(alpha):
    masks, outputs, _ = simulate("sparse", 2)
    with pytest.raises(ValueError, match=rf"alpha = {alpha}, but the masks keep 0\.(49|5)"):
        effects(masks, outputs, alpha=alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_an_alpha_that_is_no_probability_is_refused(alpha):
    masks, outputs, _ = simulate("sparse", 2)
    with pytest.raises(ValueError, match="must lie strictly between 0 and 1"):
        effects(masks, outputs, alpha=alpha)


def test_masks_whose_groups_are_not_independent_are_refused():
    masks, outputs, _ = simulate("sparse", 3)
    fixed = np.argsort(np.random.default_rng(3).random(masks.shape), axis=1) < 30
    with pytest.raises(ValueError, match="varies 0 times as much"):
        effects(fixed, outputs)
    with pytest.raises(ValueError, match="kept independently"):
        effects(np.repeat(masks[:, :30], 2, axis=1), outputs)
    mixed = np.concatenate([masks[:250], simulate("sparse", 4, alpha=0.2)[0][:250]])
    with pytest.raises(ValueError, match="masks of several alphas need one alpha a row"):
        effects(mixed, outputs)


def test_too_few_folds_masks_and_finite_rows_are_named():
    masks, outputs, _ = simulate("sparse", 5, members=60)
    with pytest.raises(ValueError, match=r"at least 3 folds, .* here are 2, of 60"):
        effects(masks, outputs, folds=2)
    with pytest.raises(ValueError, match="here are 2, of 5 distinct masks"):
        repeated = np.arange(60) % 5
        effects(masks[repeated], outputs, replicate_of=repeated)
    outputs[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"not finite \(first: nan in row 3, target 0\)"):
        effects(masks, outputs)


def some_effects(z):
    return Effects(np.asarray(z, float), np.ones_like(z, float))


def test_q_values_are_those_of_benjamini_and_hochberg():
    found = some_effects([[3.0, 0.0], [2.5, 0.1], [0.5, -4.0], [-0.2, 0.3]])
    for target in range(2):
        p = found.p_values()[:, target]
        for q in (0.01, 0.05, 0.1, 0.5):
            order = np.sort(p)
            below = np.flatnonzero(order <= q * np.arange(1, 5) / 4)
            expected = p <= (order[below[-1]] if below.size else -1)
            np.testing.assert_array_equal(found.q_values()[:, target] <= q, expected)


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_e_values_have_a_mean_of_one_where_there_is_no_effect(spread):
    mean = quad(lambda z: norm.pdf(z) * some_effects([[z]]).e_values(spread)[0, 0], -40, 40)[0]
    assert mean == pytest.approx(1, rel=1e-6)


def test_pooled_discoveries_are_the_largest_set_of_enough_evidence():
    found = some_effects(np.array([[5.0, 0.0, 4.2], [0.3, -6.0, 3.0], [0.1, 0.2, 0.4]]))
    evidence = found.e_values()
    expected = np.zeros((3, 3), bool)
    for count in range(1, 10):
        least = np.sort(evidence.ravel())[-count]
        if least * count >= 9 / 0.1:
            expected = evidence >= least
    assert 0 < expected.sum() < 9
    np.testing.assert_array_equal(found.found_pooled(0.1), expected)
    assert not some_effects(np.zeros((4, 2))).found_pooled().any()


def test_pooled_discoveries_hold_over_targets_that_share_their_noise():
    false = []
    for seed in range(10):
        masks, outputs, truth = simulate("correlated noise", seed)
        found = effects(masks, outputs, alpha=0.5).found_pooled(0.1)
        false.append((found & (truth == 0)).sum() / max(found.sum(), 1))
        assert found[np.abs(truth) > 0.8].mean() > 0.8
    assert np.mean(false) < 0.1


def test_knockoffs_find_groups_that_matter_and_few_others():
    false, power = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        masks = rng.random((500, 60)) < 0.5
        weights = np.where(rng.random((60, 3)) < 0.25, rng.choice([-1.0, 1.0], (60, 3)), 0)
        pair = 3 * (masks[:, 2:3] - 0.5) * (masks[:, 3:4] - 0.5)
        outputs = masks @ weights + pair + rng.standard_normal((500, 3))
        null = weights == 0
        null[2:4] = False  # These matter, if not on average.
        found = knockoffs(masks, outputs, seed=seed, alpha=0.5, q=0.2)
        false.append((found & null).sum(0) / np.maximum(found.sum(0), 1))
        power.append(found[weights != 0].mean())
    assert np.mean(false) < 0.2
    assert np.mean(power) > 0.8


def test_knockoffs_find_nothing_in_noise():
    masks, outputs, _ = simulate("nothing", 0)
    assert knockoffs(masks, outputs, seed=0, alpha=0.5).sum() <= 12 * 60 * 0.01


def test_the_filter_is_that_of_its_definition():
    lead = np.array([5.0, 4.0, 3.0, -2.5, 2.0, 1.0, -1.0, 0.0, 6.0, 7.0])
    np.testing.assert_array_equal(_stands_out(lead, 0.2), lead >= 3)  # (1 + 0) / 5
    np.testing.assert_array_equal(_stands_out(lead, 0.1), False)
    np.testing.assert_array_equal(_stands_out(lead, 0.34), lead >= 2)  # (1 + 1) / 6
    np.testing.assert_array_equal(_stands_out(np.zeros(4), 0.5), False)


def test_effects_are_a_pytree():
    found = jax.tree.map(lambda part: 2 * part, some_effects([[1.0]]))
    assert isinstance(found, Effects)
    assert found.z()[0, 0] == 1
