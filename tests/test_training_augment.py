"""Augmentation: pure, per image, and nothing but moves and mirrors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.augment import MARGIN, augment, check_augmentation, crop, flip
from training.errors import UserError
from training.examples import Examples, fit_normaliser
from training.models import ModelConfig, build_model
from training.optim import OptimConfig
from training.train import Recipe, make_train

KEYS = jax.random.split(jax.random.key(0), 200)
IMAGE = jnp.arange(1, 6 * 5 * 2 + 1, dtype=jnp.uint8).reshape(6, 5, 2)


def moved(image, down, right):
    """Slow and plain: pixel by pixel, zero where nothing was."""
    result = np.zeros_like(image)
    height, width, _ = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                result[row, column] = image[row + down, column + right]
    return result


def test_a_flip_mirrors_about_half_of_the_images():
    flipped = np.asarray(jax.vmap(flip, (0, None))(KEYS, IMAGE))
    is_mirrored = [np.array_equal(one, IMAGE[:, ::-1]) for one in flipped]
    is_same = [np.array_equal(one, IMAGE) for one in flipped]
    assert all(a != b for a, b in zip(is_mirrored, is_same, strict=True))
    assert 70 < sum(is_mirrored) < 130


def test_a_crop_moves_the_image_by_every_distance():
    cropped = np.asarray(jax.vmap(crop, (0, None))(KEYS, IMAGE))
    steps = range(-MARGIN, MARGIN + 1)
    all_moves = {
        (down, right): moved(np.asarray(IMAGE), down, right) for down in steps for right in steps
    }
    seen = set()
    for one in cropped:
        found = [move for move, image in all_moves.items() if np.array_equal(image, one)]
        assert found
        seen.update(found)
    assert {down for down, _ in seen} == {right for _, right in seen} == set(steps)


@pytest.mark.parametrize("name", ["flip", "crop", "flip_crop"])
def test_each_image_depends_on_its_own_key_and_keeps_its_dtype(name):
    images = jnp.stack([IMAGE] * 8)
    whole = augment(name, KEYS[:8], images)
    assert whole.dtype == images.dtype
    np.testing.assert_array_equal(whole[3:5], augment(name, KEYS[3:5], images[3:5]))
    np.testing.assert_array_equal(whole, augment(name, KEYS[:8], images))
    assert len({one.tobytes() for one in np.asarray(whole)}) > 1


def test_none_changes_nothing():
    images = jnp.stack([IMAGE] * 8)
    np.testing.assert_array_equal(augment("none", KEYS[:8], images), images)


@pytest.mark.parametrize("shape", [(30,), (8, 8)])
def test_only_images_are_augmented(shape):
    with pytest.raises(UserError, match=r'optim\.augment = "flip" needs images, but one'):
        check_augmentation("flip", shape)
    check_augmentation("none", shape)


def trained(augmentation, microbatch=0, seed=0):
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (30, 6, 6, 1)).astype(np.uint8)
    examples = Examples(inputs, rng.integers(0, 3, 30).astype(np.int32))
    optim = OptimConfig(steps=10, batch_size=8, augment=augmentation, learning_rate=0.01)
    model = build_model(ModelConfig(name="mlp", width=4), (6, 6, 1), 3)
    train = make_train(Recipe(optim, fit_normaliser(inputs)), model, examples, microbatch)
    state = jax.jit(train)(jax.random.key(seed), jnp.arange(30) < 15)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.parameters)])


def test_augmented_training_is_a_function_of_the_key():
    first = trained("flip_crop")
    np.testing.assert_array_equal(first, trained("flip_crop"))
    assert np.abs(first - trained("none")).max() > 1e-3


def test_a_batch_in_pieces_is_augmented_in_the_same_way():
    np.testing.assert_allclose(trained("flip_crop", 2), trained("flip_crop"), atol=1e-5)
