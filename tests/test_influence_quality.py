"""The fit of a bank and how good it is: what is left out, what is told, what is refused."""

import dataclasses

import numpy as np
import pytest
from members_in_memory import fitted, make_bank, members_of, regression_of

from datamodels.bootstrap import resample_together
from influence import attribution, quality
from influence.arms import Arms
from influence.caveats import caveats
from influence.config import FitConfig
from influence.experiment import Targets
from influence.regression import divide
from training.arm import Status
from training.errors import UserError
from training.examples import Examples

SOUND = {
    "fit": {
        "not_finite": 0,
        "r2": 0.5,
        "ceiling": 0.8,
        "certified": 1.0,
        "largest_relative_gap": 1e-6,
        "seeds": "independent",
    },
    "verdict": {"not_finite": 0, "not_judged": 0},
    "verify": {"not_finite": 0, "accuracy": {"before": [0.9, 0.8, 1.0]}, "majority": 0.3},
}


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("fit", {"not_finite": 3}, "3 members diverged"),
        ("verdict", {"not_finite": 4}, "4 members diverged"),
        ("verify", {"not_finite": 2}, "2 members diverged"),
        ("fit", {"r2": -0.1}, "no better than their mean"),
        ("fit", {"r2": None}, "no better than their mean"),
        ("fit", {"certified": 0.9}, "10.0% of the targets are not solved"),
        ("fit", {"seeds": "common", "ceiling": None}, "All members share one training key"),
        ("fit", {"ceiling": None}, "No mask was retrained with several seeds"),
        ("verify", {"majority": 0.95}, "always naming the commonest class"),
        ("verdict", {"not_judged": 5}, "5 flagged examples were not judged: more than half of"),
    ],
)
def test_a_reader_is_warned_of_figures_that_mean_nothing(section, change, said):
    assert caveats(SOUND) == []
    (caveat,) = caveats(SOUND | {section: SOUND[section] | change})
    assert said in caveat


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
