"""The built-in networks: what they read, and that no example sees another one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.cost import program_flops
from training.errors import UserError
from training.examples import PADDING
from training.models import ModelConfig, build_model
from training.networks import token_shares

KEY = jax.random.key(0)
CLASSES = 3
VOCABULARY = 11

IMAGE_MODELS = ["linear", "mlp", "cnn", "resnet", "transformer"]
TEXT_MODELS = ["transformer", "bag"]


def images(count, side=8):
    return jax.random.normal(jax.random.key(1), (count, side, side, 1))


def texts(count, length=6):
    return jax.random.randint(jax.random.key(1), (count, length), 1, VOCABULARY)


def built(config, inputs):
    vocabulary = VOCABULARY if jnp.issubdtype(inputs.dtype, jnp.integer) else 0
    model = build_model(config, inputs.shape[1:], CLASSES, vocabulary)
    return model, jax.jit(model.init)(KEY)


def logits_of(name, inputs, **config):
    model, state = built(ModelConfig(name=name, **config), inputs)
    return jax.jit(model.apply)(*state, inputs)


@pytest.mark.parametrize(
    ("name", "batch", "value"),
    [(name, images, 7.0) for name in IMAGE_MODELS]
    + [(name, texts, PADDING) for name in TEXT_MODELS],
)
def test_no_example_sees_another(name, batch, value):
    batch = batch(4)
    changed = batch.at[2].set(value)
    before, after = logits_of(name, batch), logits_of(name, changed)
    others = np.array([0, 1, 3])
    np.testing.assert_allclose(before[others], after[others], atol=1e-6)
    assert float(jnp.abs(before[2] - after[2]).max()) > 1e-3


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_what_the_padded_positions_hold_does_not_matter(name):
    """A text cut to its tokens has the same logits: padding is never looked at."""
    short = texts(2, length=4)
    padded = jnp.pad(short, ((0, 0), (0, 3)), constant_values=PADDING)
    model, (parameters, rest) = built(ModelConfig(name=name), padded)
    long = model.apply(parameters, rest, padded)
    if name == "transformer":  # the positions that are left
        positions = parameters["encoder"]["positions"]
        positions.set_value(positions[...][:, :4])
        model, _ = built(ModelConfig(name=name), short)
    np.testing.assert_allclose(model.apply(parameters, rest, short), long, atol=1e-5)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_without_tokens_has_finite_logits_and_gradients(name):
    empty = jnp.full((2, 6), PADDING, jnp.int32)
    model, (parameters, rest) = built(ModelConfig(name=name), empty)
    gradient = jax.jit(jax.grad(lambda p: model.apply(p, rest, empty).sum()))(parameters)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_bag_does_not_read_the_order():
    batch = texts(3)
    np.testing.assert_allclose(logits_of("bag", batch), logits_of("bag", batch[:, ::-1]), atol=1e-5)


def test_transformer_reads_the_order():
    batch = texts(3)
    reversed_ = logits_of("transformer", batch[:, ::-1])
    assert float(jnp.abs(logits_of("transformer", batch) - reversed_).max()) > 1e-3


def test_token_shares_are_counts_over_all_tokens():
    tokens = jnp.array([[3, 3, 1, PADDING], [PADDING] * 4])
    expected = np.zeros((2, 5), np.float32)
    expected[0, 3], expected[0, 1] = 2 / 3, 1 / 3
    np.testing.assert_allclose(token_shares(tokens, 5, jnp.float32), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_bfloat16_is_near_float32_and_leaves_the_parameters_alone(name):
    batch = images(4)
    coarse = logits_of(name, batch, precision="bfloat16")
    fine = logits_of(name, batch)
    assert coarse.dtype == jnp.float32
    scale = float(jnp.abs(fine).max())
    assert 0 < float(jnp.abs(coarse - fine).max()) < 0.1 * scale
    model, (parameters, rest) = built(ModelConfig(name=name, precision="bfloat16"), batch)
    gradient = jax.jit(jax.grad(lambda p: model.apply(p, rest, batch).sum()))(parameters)
    for tree in (parameters, gradient):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


def test_default_resnet_stays_below_60_mflop_an_image():
    model = build_model(ModelConfig(name="resnet"), (28, 28, 1), 10)
    state = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    flops = program_flops(jax.make_jaxpr(model.apply)(*state, image))
    assert 30e6 < flops < 60e6


@pytest.mark.parametrize("side", [28, 32, 9])
def test_resnet_takes_these_sizes(side):
    assert logits_of("resnet", images(2, side), width=4).shape == (2, CLASSES)


@pytest.mark.parametrize("side, patch, length", [(8, 0, 16), (16, 0, 16), (28, 0, 49), (9, 3, 9)])
def test_transformer_cuts_images_into_patches(side, patch, length):
    _, (parameters, _) = built(ModelConfig(name="transformer", patch=patch), images(1, side))
    assert parameters["encoder"]["positions"].shape == (64, length)


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "resnet"])
def test_these_models_cannot_read_text(name):
    with pytest.raises(UserError, match=f'"{name}" cannot read text; choose transformer or bag'):
        build_model(ModelConfig(name=name), (6,), CLASSES, VOCABULARY)


def test_bag_reads_text_only():
    with pytest.raises(UserError, match='"bag" reads text only; choose mlp or linear for numbers'):
        build_model(ModelConfig(name="bag"), (6,), CLASSES)
    with pytest.raises(UserError, match=r'"bag" reads text only; choose cnn, .* for images'):
        build_model(ModelConfig(name="bag"), (6, 6, 1), CLASSES)


@pytest.mark.parametrize(
    "name, shape, side", [("cnn", (3, 8, 1), 4), ("resnet", (7, 7, 1), 8), ("transformer", (5,), 2)]
)
def test_models_of_images_say_the_smallest(name, shape, side):
    with pytest.raises(UserError, match=f'"{name}" needs images of at least {side}x{side} pixels'):
        build_model(ModelConfig(name=name), shape, CLASSES)


def test_patch_must_divide_the_image():
    expected = "model.patch = 3 does not divide images of 8x8 pixels; choose a common divisor"
    with pytest.raises(UserError, match=expected):
        build_model(ModelConfig(name="transformer", patch=3), (8, 8, 1), CLASSES)
