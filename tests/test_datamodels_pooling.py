"""Targets that share noise: what pooling them finds."""

import numpy as np
import pytest

from datamodels import effects, stability, whitening


def noise(rng, *shape):
    """Half of six targets' variance is their own, of different units; the rest they share."""
    own, shared = rng.standard_normal((*shape, 6)), rng.standard_normal((*shape, 1))
    return (own + 1.5 * shared) * [1, 2, 1, 0.5, 1, 3]


def test_whitened_seed_noise_is_independent_and_of_variance_one():
    rng = np.random.default_rng(0)
    replicates = noise(rng, 200, 8) + rng.standard_normal((200, 1, 6))
    fresh = noise(rng, 20_000) @ whitening(replicates)
    np.testing.assert_allclose(np.cov(fresh.T), np.eye(6), atol=0.12)
    # Untouched, targets are all but the same.
    assert np.corrcoef(noise(rng, 20_000).T).min() > 0.5


def test_targets_stay_what_they_are_where_their_noise_is_their_own():
    rng = np.random.default_rng(1)
    scale = np.array([1.0, 10.0, 0.1])
    found = whitening(rng.standard_normal((300, 4, 3)) * scale)
    np.testing.assert_allclose(found * scale[:, None], np.eye(3), atol=0.06)


def test_more_targets_than_retrains_are_shrunk_not_inverted():
    found = whitening(np.random.default_rng(2).standard_normal((5, 2, 40)))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 10


def test_pooling_finds_more_once_the_shared_noise_is_out():
    power, false = {"whitened": [], "as they are": []}, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        masks = rng.random((400, 50)) < 0.5
        weights = np.zeros((50, 6))
        weights[:8] = 0.4 * rng.standard_normal((8, 6))
        outputs = masks @ weights + noise(rng, 400)
        whiten = whitening(noise(rng, 64, 8))
        for name, used in (("whitened", outputs @ whiten), ("as they are", outputs)):
            found = effects(masks, used, alpha=0.5).found_groups(0.1)
            power[name].append(found[:8].mean())
            false.append(found[8:].sum() / max(found.sum(), 1))
    assert np.mean(false) < 0.1
    assert np.mean(power["whitened"]) > np.mean(power["as they are"]) + 0.2


def test_replicates_without_noise_or_with_gaps_are_named():
    replicates = np.random.default_rng(3).standard_normal((4, 3, 2))
    with pytest.raises(ValueError, match="replicates of 4 masks and 1 seeds show no noise"):
        whitening(replicates[:, :1])
    replicates[..., 1] = 5.0
    with pytest.raises(ValueError, match="target 1 is the same with every seed"):
        whitening(replicates)
    replicates[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="not finite; leave their masks out"):
        whitening(replicates)


def test_strong_groups_are_found_in_every_draw_and_empty_ones_now_and_then():
    rng = np.random.default_rng(4)
    masks = rng.random((300, 30)) < 0.5
    weights = np.zeros((30, 2))
    weights[0], weights[1] = 3.0, -3.0
    found = stability(masks, masks @ weights + rng.standard_normal((300, 2)), draws=20)
    assert (found[0] == 1).all()
    assert (found[1] == -1).all()
    assert np.abs(found[2:]).mean() < 0.5


def test_retrains_of_a_mask_are_drawn_together():
    """Else the rest of a mask's retrains stays in every draw, and noise looks steady."""
    rng = np.random.default_rng(5)
    number = np.repeat(np.arange(60), 5)
    masks = (rng.random((60, 40)) < 0.5)[number]
    outputs = rng.standard_normal((60, 4))[number] + 0.1 * rng.standard_normal((300, 4))
    together = stability(masks, outputs, draws=10, replicate_of=number)
    apart = stability(masks, outputs, draws=10)
    assert np.abs(together).mean() < 0.6 * np.abs(apart).mean()
    np.testing.assert_array_equal(
        together, stability(masks, outputs, draws=10, replicate_of=number)
    )
