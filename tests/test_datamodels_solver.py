"""The lasso solver and its certificate."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import elastic_net_by_sklearn, lasso_by_sklearn, lasso_relative_gap

from datamodels import descent, solver
from datamodels.moments import Factored, moments, regressors, step_size
from datamodels.solver import largest_lam, relative_gap, solve, solve_path

TIGHT = 1e-7
SEEDS = st.integers(0, 2**32 - 1)


def problem_of(masks, outputs):
    return moments(masks, regressors(masks), outputs)


def bank(seed=0, members=120, groups=30, targets=3, kept=0.5):
    """Masks, and outputs that a few groups drive."""
    rng = np.random.default_rng(seed)
    masks = rng.random((members, groups)) < kept
    weights = rng.standard_normal((groups, targets)) * (rng.random((groups, targets)) < 0.2)
    noise = 0.5 * rng.standard_normal((members, targets))
    return masks, (3 + masks @ weights + noise).astype(np.float32)


def solved(masks, outputs, lam, **options):
    problem = problem_of(masks, outputs)
    solution = solve(problem, lam, **{"tolerance": TIGHT, **options})
    return solution, problem.mean_output - problem.masks.mean_mask @ solution.weights


def slopes(masks, outputs, weights):
    """Z'(y - Z w) / m, from the raw data."""
    z = masks - masks.mean(0)
    y = outputs - outputs.mean(0, dtype=np.float64)
    return z.T @ (y - z @ weights) / len(masks)


@pytest.mark.parametrize(("members", "groups"), [(300, 20), (60, 90)])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_weights_and_intercepts_equal_sklearn(members, groups, kept):
    masks, outputs = bank(1, members, groups, targets=4, kept=kept)
    lam = np.array([0.7, 0.3, 0.1, 0.05]) * largest_lam(problem_of(masks, outputs))
    solution, intercepts = solved(masks, outputs, lam)
    weights, expected_intercepts = lasso_by_sklearn(masks, outputs, lam)
    np.testing.assert_allclose(solution.weights, weights, atol=1e-4 * np.abs(weights).max())
    np.testing.assert_allclose(intercepts, expected_intercepts, atol=3e-3)
    assert (np.abs(weights) > 0.01).any(0).all()


def test_moments_equal_the_covariances_of_the_raw_data():
    masks, outputs = bank(2, members=50, groups=6)
    problem = problem_of(masks, outputs)
    both = np.cov(np.hstack([masks, outputs]).astype(np.float64).T, ddof=0)
    np.testing.assert_allclose(problem.masks.gram, both[:6, :6], atol=1e-14)
    np.testing.assert_allclose(problem.correlation, both[:6, 6:], atol=1e-14)
    np.testing.assert_allclose(problem.energy, np.diag(both)[6:], rtol=1e-12)
    np.testing.assert_allclose(problem.masks.mean_mask, masks.sum(0) / 50)
    np.testing.assert_allclose(problem.mean_output, outputs.astype(np.float64).sum(0) / 50)


def test_moments_survive_a_large_common_output():
    masks, outputs = bank(3)
    lifted = (outputs + 2.0**12).astype(np.float32)
    left, right = problem_of(masks, lifted), problem_of(masks, lifted.astype(np.float64) - 2.0**12)
    np.testing.assert_allclose(left.correlation, right.correlation, atol=1e-10)
    np.testing.assert_allclose(left.energy, right.energy, rtol=1e-9)


@given(
    seed=SEEDS,
    size=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 30.0]),
    share=st.floats(0.01, 1.5),
    wide=st.booleans(),
    l1_ratio=st.sampled_from([1.0, 0.5, 0.01]),
)
def test_gap_of_any_weights_equals_primal_minus_dual(seed, size, share, wide, l1_ratio):
    masks, outputs = bank(seed, members=20 if wide else 60, groups=30)
    rng = np.random.default_rng(seed)
    weights = (size * rng.standard_normal((30, 3))).astype(np.float32)
    problem = problem_of(masks, outputs)
    lam = share * largest_lam(problem, l1_ratio)
    expected = lasso_relative_gap(masks, outputs, weights, lam, l1_ratio)
    actual = relative_gap(weights, problem, lam, l1_ratio=l1_ratio)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-10)
    assert (actual >= -1e-12).all()


@given(seed=SEEDS, share=st.floats(0.05, 0.95))
def test_gap_of_a_solution_is_small_and_never_negative(seed, share):
    masks, outputs = bank(seed)
    problem = problem_of(masks, outputs)
    solution = solve(problem, share * largest_lam(problem))
    assert (solution.relative_gap >= -1e-12).all()
    assert (solution.relative_gap < 1.5e-5).all()  # 1e-5 was reached in float32


@given(seed=SEEDS, group=st.integers(0, 29), shift=st.sampled_from([-0.1, 0.1]))
def test_gap_of_a_perturbed_solution_is_above_the_tolerance(seed, group, shift):
    masks, outputs = bank(seed)
    problem = problem_of(masks, outputs)
    lam = 0.2 * largest_lam(problem)
    weights = solve(problem, lam, tolerance=1e-5).weights.copy()
    weights[group] += np.float32(shift) * np.sqrt(problem.energy).astype(np.float32)
    assert (relative_gap(weights, problem, lam) > 1e-4).all()


def test_gap_bounds_the_distance_to_the_best_objective():
    masks, outputs = bank(4)
    problem = problem_of(masks, outputs)
    lam = 0.1 * largest_lam(problem)

    def objective(weights):
        residual = outputs - outputs.mean(0) - (masks - masks.mean(0)) @ weights
        return np.square(residual).mean(0) / 2 + lam * np.abs(weights).sum(0)

    best = objective(lasso_by_sklearn(masks, outputs, lam)[0])
    for iterations in (1, 3):
        rough = solve(problem, lam, tolerance=TIGHT, max_iterations=iterations)
        assert rough.iterations == iterations
        excess = (objective(rough.weights) - best) / (problem.energy / 2)
        assert (excess <= rough.relative_gap + 1e-6).all()
        assert (rough.relative_gap > 1e-5).any()


@pytest.mark.parametrize(("members", "groups"), [(200, 30), (40, 60)])
def test_optimality_conditions_hold(members, groups):
    masks, outputs = bank(5, members, groups)
    lam = 0.15 * largest_lam(problem_of(masks, outputs))
    weights = solved(masks, outputs, lam)[0].weights
    slope = slopes(masks, outputs, weights)
    active = weights != 0
    np.testing.assert_allclose(slope[active], (lam * np.sign(weights))[active], atol=2e-4)
    assert (np.abs(slope) <= lam + 2e-4).all()
    assert active.any(0).all()
    assert not active.all(0).any()


def test_every_weight_is_exactly_zero_from_the_largest_lam_on():
    masks, outputs = bank(6, targets=4)
    problem = problem_of(masks, outputs)
    # The last target is far from solved at the start, so that the others iterate along.
    lam = np.array([1.0, 1.0001, 3.0, 0.05]) * largest_lam(problem)
    weights = solve(problem, lam, tolerance=TIGHT).weights
    assert (weights[:, :3] == 0).all()
    assert (weights[:, 3] != 0).any()


def test_just_below_the_largest_lam_only_the_steepest_group_has_weight():
    masks, outputs = bank(7)
    problem = problem_of(masks, outputs)
    weights = solve(problem, 0.995 * largest_lam(problem), tolerance=1e-8).weights
    steepest = np.abs(problem.correlation).argmax(0)
    assert (np.abs(weights).argmax(0) == steepest).all()
    for target, group in enumerate(steepest):
        assert np.sign(weights[group, target]) == np.sign(problem.correlation[group, target])


def test_duplicated_groups_share_the_weight_of_one():
    masks, outputs = bank(8, groups=10)
    lam = 0.1 * largest_lam(problem_of(masks, outputs))
    single, _ = solved(masks, outputs, lam)
    double, _ = solved(np.hstack([masks, masks]), outputs, lam)
    np.testing.assert_allclose(double.weights[:10] + double.weights[10:], single.weights, atol=1e-3)
    assert (double.weights[:10] * double.weights[10:] >= 0).all()
    assert (double.relative_gap < 1e-5).all()


def test_strongly_correlated_groups_are_still_solved():
    rng = np.random.default_rng(9)
    common = rng.random((200, 1)) < 0.5
    masks = common ^ (rng.random((200, 25)) < 0.03)  # every pair agrees on 94 % of the members
    outputs = masks[:, :2] @ np.array([[1.0, 0.5], [-0.5, 1.0]]) + rng.standard_normal((200, 2))
    lam = 0.02 * largest_lam(problem_of(masks, outputs))
    solution, _ = solved(masks, outputs, lam, tolerance=1e-6)
    np.testing.assert_allclose(
        solution.weights, lasso_by_sklearn(masks, outputs, lam)[0], atol=5e-3
    )
    assert (solution.relative_gap < 1e-5).all()


def test_a_group_that_never_varies_has_no_weight_and_changes_nothing():
    masks, outputs = bank(10, groups=12)
    lam = 0.1 * largest_lam(problem_of(masks, outputs))
    without, intercepts = solved(masks, outputs, lam)
    widened = np.hstack([masks, np.ones((120, 1), bool), np.zeros((120, 1), bool)])
    with_both, widened_intercepts = solved(widened, outputs, lam)
    assert (with_both.weights[12:] == 0).all()
    np.testing.assert_allclose(with_both.weights[:12], without.weights, atol=1e-4)
    np.testing.assert_allclose(widened_intercepts, intercepts, atol=1e-4)


def test_masks_that_never_vary_have_no_weights():
    _, outputs = bank(11, members=20)
    problem = problem_of(np.ones((20, 5), bool), outputs)
    solution = solve(problem, largest_lam(problem))
    assert (solution.weights == 0).all()


def test_a_constant_output_has_no_weights_and_leaves_the_others_alone():
    masks, outputs = bank(12, targets=3)
    outputs[:, 1] = 0.1
    lam = 0.2 * largest_lam(problem_of(masks, outputs))
    assert lam[1] == 0
    solution, intercepts = solved(masks, outputs, lam)
    assert (solution.weights[:, 1] == 0).all()
    assert solution.relative_gap[1] == 0
    assert intercepts[1] == np.float32(0.1)
    others = lasso_by_sklearn(masks, outputs[:, [0, 2]], lam[[0, 2]])[0]
    np.testing.assert_allclose(solution.weights[:, [0, 2]], others, atol=1e-3)


def test_each_target_is_solved_as_if_it_were_alone():
    masks, outputs = bank(13, targets=4)
    lam = np.array([0.5, 0.02, 0.9, 0.1]) * largest_lam(problem_of(masks, outputs))
    together, _ = solved(masks, outputs, lam)
    for target in range(4):
        alone, _ = solved(masks, outputs[:, [target]], lam[[target]])
        np.testing.assert_allclose(together.weights[:, [target]], alone.weights, atol=1e-3)


def test_warm_and_cold_starts_reach_the_same_solution():
    masks, outputs = bank(14)
    problem = problem_of(masks, outputs)
    lam = 0.1 * largest_lam(problem)
    cold = solve(problem, lam, tolerance=1e-6)
    rng = np.random.default_rng(14)
    for start in (
        solve(problem, 2 * lam).weights,
        rng.standard_normal(cold.weights.shape).astype(np.float32),
    ):
        warm = solve(problem, lam, start=start, tolerance=1e-6)
        np.testing.assert_allclose(warm.weights, cold.weights, atol=3e-3)


def test_a_start_at_the_solution_is_returned_as_it_is():
    masks, outputs = bank(15)
    problem = problem_of(masks, outputs)
    lam = 0.1 * largest_lam(problem)
    first = solve(problem, lam, tolerance=1e-6)
    again = solve(problem, lam, start=first.weights, tolerance=1e-5)
    assert first.iterations > 0
    assert again.iterations == 0
    np.testing.assert_array_equal(again.weights, first.weights)


@pytest.mark.parametrize("power", [-20, 20])
def test_weights_scale_with_the_outputs(power):
    masks, outputs = bank(16)
    problem = problem_of(masks, outputs)
    lam = 0.1 * largest_lam(problem)
    unit = solve(problem, lam)
    scaled = solve(problem_of(masks, outputs * np.float32(2.0**power)), lam * 2.0**power)
    np.testing.assert_array_equal(scaled.weights, unit.weights * np.float32(2.0**power))
    np.testing.assert_allclose(scaled.relative_gap, unit.relative_gap, atol=1e-10)


def test_the_certificate_of_tiny_outputs_is_honest():
    masks, outputs = bank(17)
    outputs = outputs.astype(np.float64) * 1e-20
    problem = problem_of(masks, outputs)
    lam = 0.1 * largest_lam(problem)
    weights = np.zeros((30, 3), np.float32)
    expected = lasso_relative_gap(masks, outputs, weights, lam)
    assert (expected > 0.1).all()
    np.testing.assert_allclose(relative_gap(weights, problem, lam), expected, rtol=1e-6)


@given(seed=SEEDS, groups=st.integers(1, 12), members=st.integers(2, 40))
def test_step_is_just_below_one_over_the_largest_eigenvalue(seed, groups, members):
    rng = np.random.default_rng(seed)
    masks = rng.random((members, groups)) < rng.uniform(0.1, 0.9)
    masks[0], masks[1] = True, False  # every group varies
    own = problem_of(masks, np.zeros((members, 1))).masks
    bound = 1 / np.linalg.eigvalsh(own.gram @ np.eye(groups))[-1]
    assert 0.95 * bound < own.step <= bound


@pytest.mark.parametrize("gram", [0.25 * np.eye(6), np.full((6, 6), 0.25), np.diag([3.0, 3, 1])])
def test_step_is_safe_where_eigenvalues_coincide(gram):
    bound = 1 / np.linalg.eigvalsh(gram)[-1]
    assert 0.95 * bound < step_size(gram) <= bound


def test_a_factored_gram_matrix_gives_the_same_solution():
    rng = np.random.default_rng(0)
    masks = rng.random((30, 80)) < 0.5
    outputs = masks[:, :5] @ rng.standard_normal((5, 4)) + 0.1 * rng.standard_normal((30, 4))
    factored = problem_of(masks, outputs)
    assert isinstance(factored.masks.gram, Factored)
    rows = factored.masks.gram.centred_rows()
    gram = rows.T @ rows
    own = factored.masks._replace(gram=gram, device_gram=jnp.asarray(gram, jnp.float32))
    written = factored._replace(masks=own)
    assert factored.masks.step == pytest.approx(step_size(gram), rel=2e-3)
    lam = 0.2 * largest_lam(factored)
    first, second = solve(factored, lam, tolerance=1e-6), solve(written, lam, tolerance=1e-6)
    np.testing.assert_allclose(first.weights, second.weights, atol=2e-3)
    np.testing.assert_allclose(
        relative_gap(first.weights, factored, lam), relative_gap(first.weights, written, lam)
    )


def test_blocks_of_targets_give_the_same_solution(monkeypatch):
    rng = np.random.default_rng(0)
    masks = rng.random((60, 10)) < 0.5
    problem = problem_of(masks, masks @ rng.standard_normal((10, 7)))
    lam = 0.1 * largest_lam(problem)
    whole = solve(problem, lam)
    monkeypatch.setattr(solver, "TARGET_BLOCK", 3)
    np.testing.assert_allclose(solve(problem, lam).weights, whole.weights, atol=1e-3)


@pytest.mark.parametrize(("bound", "value"), [("EASY", 5), ("LARGE", 0)])
def test_targets_that_are_solved_early_leave_and_the_slow_ones_are_solved_still(
    bound, value, monkeypatch
):
    masks, outputs = bank(8, members=40, groups=60, targets=23)
    problem = problem_of(masks, outputs)
    lam = np.geomspace(0.9, 0.01, 23) * largest_lam(problem)
    together = solve(problem, lam, tolerance=1e-6)
    monkeypatch.setattr(descent, "NARROW", 2)
    monkeypatch.setattr(descent, "NARROWEST", 1)
    monkeypatch.setattr(descent, bound, value)
    widths = []
    advance = descent._advance

    def counted(iterate, gram, task, state, *rest):
        widths.append(len(task.l1))
        return advance(iterate, gram, task, state, *rest)

    monkeypatch.setattr(descent, "_advance", counted)
    apart = solve(problem, lam, tolerance=1e-6)
    assert widths[0] == 23
    assert widths[-1] <= 2
    assert widths == sorted(widths, reverse=True)
    assert (apart.relative_gap < 2e-6).all()
    np.testing.assert_allclose(apart.weights, together.weights, atol=3e-3)
    assert apart.iterations == pytest.approx(together.iterations, rel=0.2)


@pytest.mark.parametrize(("members", "groups"), [(300, 20), (60, 90)])
@pytest.mark.parametrize("l1_ratio", [0.9, 0.3])
def test_elastic_nets_equal_sklearn(members, groups, l1_ratio):
    masks, outputs = bank(1, members, groups, targets=4)
    problem = problem_of(masks, outputs)
    lam = np.array([0.7, 0.3, 0.1, 0.05]) * largest_lam(problem, l1_ratio)
    solution = solve(problem, lam, l1_ratio=l1_ratio, tolerance=TIGHT)
    expected = elastic_net_by_sklearn(masks, outputs, lam, l1_ratio)
    np.testing.assert_allclose(solution.weights, expected, atol=1e-3)
    assert (np.abs(expected) > 0.01).any(0).all()


def test_duplicated_groups_share_the_weight_of_an_elastic_net_evenly():
    masks, outputs = bank(8, groups=10)
    problem = problem_of(np.hstack([masks, masks]), outputs)
    lam = 0.1 * largest_lam(problem, 0.5)
    weights = solve(problem, lam, l1_ratio=0.5, tolerance=TIGHT).weights
    np.testing.assert_allclose(weights[:10], weights[10:], atol=1e-3)


@pytest.mark.parametrize("l1_ratio", [0.0, -0.5, 1.5])
def test_shares_of_the_lasso_that_are_none_are_refused(l1_ratio):
    problem = problem_of(*bank())
    with pytest.raises(ValueError, match=f"l1_ratio = {l1_ratio} must be above 0"):
        solve(problem, largest_lam(problem), l1_ratio=l1_ratio)


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_a_path_has_the_solutions_of_every_penalty(l1_ratio, monkeypatch):
    monkeypatch.setattr(solver, "TARGET_BLOCK", 3)
    masks, outputs = bank(9, targets=5)
    problem = problem_of(masks, outputs)
    lams = np.geomspace(1, 0.03, 12)[:, None] * largest_lam(problem, l1_ratio)
    found = solve_path(problem, lams, l1_ratio=l1_ratio, tolerance=1e-6)
    for solution, lam in zip(found, lams, strict=True):
        alone = solve(problem, lam, l1_ratio=l1_ratio, tolerance=1e-6)
        np.testing.assert_allclose(solution.weights, alone.weights, atol=2e-3)
        assert (solution.relative_gap < 2e-6).all()
    assert found[-1].iterations <= alone.iterations


def test_spectral_steps_that_do_not_end_are_followed_by_safe_ones(monkeypatch):
    rng = np.random.default_rng(9)
    common = rng.random((200, 1)) < 0.5
    masks = common ^ (rng.random((200, 25)) < 0.03)
    outputs = masks[:, :2] @ np.array([[1.0, 0.5], [-0.5, 1.0]]) + rng.standard_normal((200, 2))
    problem = problem_of(masks, outputs)
    lam = 0.02 * largest_lam(problem)
    for spectral in (0, 3):
        monkeypatch.setattr(descent, "SPECTRAL", spectral)
        solution = solve(problem, lam)
        assert solution.iterations > spectral + descent.EASY
        assert (solution.relative_gap < 1.5e-5).all()


@given(seed=SEEDS, spectral=st.integers(1, 30))
def test_no_step_ends_above_the_start(seed, spectral):
    """Also where the curvature along one step says nothing of the next."""
    rng = np.random.default_rng(seed)
    masks = (rng.random((40, 1)) < 0.5) ^ (rng.random((40, 12)) < 0.1)
    outputs = rng.standard_normal((40, 3))
    problem = problem_of(masks, outputs)
    lam = 0.05 * largest_lam(problem)
    start = rng.standard_normal((12, 3)).astype(np.float32)

    def objective(weights):
        residual = outputs - outputs.mean(0) - (masks - masks.mean(0)) @ weights
        return np.square(residual).mean(0) / 2 + lam * np.abs(weights).sum(0)

    found = solve(problem, lam, start=start, tolerance=TIGHT, max_iterations=spectral)
    assert (objective(found.weights) <= objective(start) + 1e-5 * problem.energy).all()
