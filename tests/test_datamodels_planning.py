"""How many more members a question needs."""

import numpy as np
import pytest

from datamodels import Effects, effects, fit, how_many_more, learning_curve, members_for_width, r2
from datamodels.planning import _curve


def simulate(members, seed=0, groups=200, targets=8):
    rng = np.random.default_rng(seed)
    masks = rng.random((members, groups)) < 0.5
    weights = np.random.default_rng(99).standard_normal((groups, targets))
    weights *= np.random.default_rng(98).random((groups, targets)) < 0.3
    return masks, masks @ weights + 2 * rng.standard_normal((members, targets))


def test_intervals_have_the_width_asked_for_after_that_many_members():
    masks, outputs = simulate(400)
    width = 0.5
    more = how_many_more(masks, outputs, width=width, alpha=0.5)
    total = int(400 + more.max())
    found = effects(*simulate(total, seed=1), alpha=0.5)
    largest = np.argsort(-np.abs(found.estimate), axis=0)[:10]
    errors = np.take_along_axis(found.standard_error, largest, 0)
    assert 0.8 * width < 2 * 1.96 * np.max(errors) < 1.15 * width


def test_members_for_a_width_by_hand():
    error = np.array([[0.1, 0.3], [0.2, np.nan], [0.4, 0.1]])
    found = Effects(np.array([[5.0, 1.0], [-6.0, 9.0], [0.1, 2.0]]), error)
    # The two largest effects have errors of up to these; the 95 % interval is 3.92 of them.
    errors = np.array([0.2, 0.3])
    needed = members_for_width(found, 100, 0.392, top=2)
    np.testing.assert_array_equal(needed, np.ceil(100 * (3.919928 / 0.392 * errors) ** 2))
    with pytest.raises(ValueError, match=r"width = 0\.0 must be above 0"):
        members_for_width(found, 100, 0.0)


def test_a_curve_foretells_the_r2_of_more_members():
    curve = learning_curve(*simulate(800))
    unseen_masks, unseen = simulate(2000, seed=5)
    model = fit(*simulate(1600, seed=2))
    reached = r2(model.predict(unseen_masks), unseen)
    assert curve.members.tolist() == [160, 320, 640]
    assert abs(np.mean(curve.at(1600.0)) - reached.mean()) < 0.04
    # The last fit of the curve is well above the first, and below what is to come.
    assert curve.r2[0].mean() + 0.15 < curve.r2[-1].mean() < reached.mean() - 0.01


def test_a_share_that_is_never_reached_takes_infinitely_many():
    masks, outputs = simulate(300)
    more = how_many_more(masks, outputs, share=0.999, ceiling=1.0)
    assert np.isinf(more).all()
    assert (how_many_more(masks, outputs, share=0.1, ceiling=0.5) == 0).all()


@pytest.mark.parametrize("rate", [0.4, 0.5, 1.0])
def test_a_curve_goes_through_points_that_lie_on_one(rate):
    members = np.array([100, 200, 400])
    floor, slope = np.array([0.2, 0.35]), np.array([0.5, 0.1]) * 100**rate
    found = _curve(members, 1 - floor - slope / members[:, None] ** rate)
    assert found.rate == pytest.approx(rate)
    np.testing.assert_allclose(found.floor, floor, atol=1e-6)
    np.testing.assert_allclose(found.at(10_000.0), 1 - floor - slope / 10_000**rate)
    needed = found.members_for(0.6)
    np.testing.assert_allclose(found.at(needed), 0.6, atol=1e-3)


def test_a_target_without_r2_has_no_curve():
    found = _curve(np.array([10, 20, 40]), np.array([[0.1, np.nan], [0.2, np.nan], [0.3, np.nan]]))
    assert np.isnan(found.floor).tolist() == [False, True]
    assert np.isnan(found.members_for(0.3)).tolist() == [False, True]


def test_what_is_asked_must_be_one_thing_and_possible():
    masks, outputs = simulate(60)
    with pytest.raises(ValueError, match="either width, in output units, or share"):
        how_many_more(masks, outputs)
    with pytest.raises(ValueError, match="either width"):
        how_many_more(masks, outputs, width=1.0, share=0.9)
    with pytest.raises(ValueError, match="30 distinct masks are too few for a curve"):
        how_many_more(masks, outputs, share=0.5, replicate_of=np.arange(60) // 2)
