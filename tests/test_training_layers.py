from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from training.layers import (
    Attention,
    Convolution,
    Dense,
    GroupNorm,
    LayerNorm,
    max_pool,
    mean_pool,
    patches,
)

WINDOWS = [1, 2, 3, 5]
SIZES = [(6, 6), (7, 4), (1, 5)]
CHANNELS = [3, 9]
"""Few: as patches. Enough for Winograd's algorithm, where the window is 3."""


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@jax.jit
def reference(kernel, bias, images):
    """The convolution that XLA computes; its kernel is (rows, columns, in, out)."""
    convolved = jax.lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return convolved + bias.reshape(1, 1, 1, -1)


def batch_last(images):
    """(b, h, w, c) to the layers' (c, h, w, b), and back."""
    return jnp.swapaxes(images, 0, 3)


@jax.jit
def ours(kernel, bias, images):
    """The same through the layer."""
    window, _, channels_in, channels_out = kernel.shape
    layer = Convolution(channels_in, channels_out, window, rngs=nnx.Rngs(0))
    layer.kernel[...] = kernel.reshape(-1, channels_out)
    layer.bias[...] = bias
    return batch_last(layer(batch_last(images)))


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution_equals_lax(window, size, channels):
    kernel, bias = normal(0, window, window, channels, 4), normal(1, 4)
    images = normal(2, 2, *size, channels)
    close(ours(kernel, bias, images), reference(kernel, bias, images))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("window", WINDOWS)
def test_gradients_of_convolution_equal_lax(window, channels):
    kernel, bias = normal(0, window, window, channels, 3), normal(1, 3)
    images, weights = normal(2, 2, 6, 4, channels), normal(3, 2, 6, 4, 3)

    def gradients(convolve):
        weighted = jax.grad(lambda *args: (weights * convolve(*args)).sum(), (0, 1, 2))
        return jax.jit(weighted)(kernel, bias, images)

    for one, other in zip(gradients(ours), gradients(reference), strict=True):
        close(one, other)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("window", WINDOWS)
def test_vmap_over_kernels_equals_lax_one_by_one(window, channels):
    kernels, biases = normal(0, 3, window, window, channels, 4), normal(1, 3, 4)
    images, weights = normal(2, 2, 5, 6, channels), normal(3, 2, 5, 6, 4)

    def both(convolve, kernel, bias):
        def weighted(kernel, bias):
            outputs = convolve(kernel, bias, images)
            return (weights * outputs).sum(), outputs

        return jax.grad(weighted, has_aux=True)(kernel, bias)

    together = jax.jit(jax.vmap(partial(both, ours)))(kernels, biases)
    one_by_one = jax.jit(partial(both, reference))
    for member in range(3):
        for mine, theirs in zip(together, one_by_one(kernels[member], biases[member]), strict=True):
            close(mine[member], theirs)


@pytest.mark.parametrize("channels", CHANNELS)
def test_vmap_over_kernels_has_no_convolution(channels):
    kernels, biases = normal(0, 3, 3, 3, channels, 4), normal(1, 3, 4)
    convolve = jax.vmap(ours, (0, 0, None))
    program = str(jax.make_jaxpr(convolve)(kernels, biases, normal(2, 2, 5, 5, channels)))
    assert "dot_general" in program
    assert "conv_general_dilated" not in program


@pytest.mark.parametrize("window", WINDOWS)
def test_patches_are_the_neighbourhood_of_each_pixel(window):
    images = normal(0, 2, 4, 6, 3)
    result = np.asarray(batch_last(patches(batch_last(images), window)))
    before = (window - 1) // 2
    expected = np.zeros((2, 4, 6, window, window, 3), np.float32)
    for row, column, down, right in np.ndindex(4, 6, window, window):
        y, x = row + down - before, column + right - before
        if 0 <= y < 4 and 0 <= x < 6:
            expected[:, row, column, down, right] = images[:, y, x]
    np.testing.assert_array_equal(result, expected.reshape(2, 4, 6, -1))


def test_convolution_starts_with_he_normal_kernel_and_no_bias():
    layer = Convolution(16, 200, 3, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...])
    assert kernel.shape == (3 * 3 * 16, 200)
    assert abs(kernel.mean()) < 0.003
    assert kernel.std() == pytest.approx((2 / (3 * 3 * 16)) ** 0.5, rel=0.02)
    assert not layer.bias[...].any()


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 4), (5, 5), (6, 9), (7, 4), (3, 3)])
def test_mean_pool_equals_flax(size, window):
    images = normal(0, 2, *size, 3)
    # flax divides floats by an integer, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        expected = nnx.avg_pool(jnp.asarray(images), (window, window), (window, window), "VALID")
    pooled = batch_last(mean_pool(batch_last(images), window))
    assert pooled.shape == (2, size[0] // window, size[1] // window, 3)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_mean_pool_spreads_evenly():
    gradient = jax.grad(lambda images: mean_pool(images, 2).sum())(jnp.ones((3, 5, 4, 2)))
    expected = np.full((3, 5, 4, 2), 0.25)
    expected[:, 4] = 0  # the odd last row belongs to no window
    np.testing.assert_array_equal(gradient, expected)


def flax_mean_pool(images, window, strides):
    return nnx.pool(images, 0.0, jax.lax.add, window, strides, "VALID") / float(np.prod(window))


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
@pytest.mark.parametrize("mine, theirs", [(max_pool, nnx.max_pool), (mean_pool, flax_mean_pool)])
def test_pools_equal_flax_forward_and_backward(mine, theirs, size, window):
    images = normal(0, 2, *size, 3)
    weights = normal(1, 2, size[0] // window, size[1] // window, 3)

    def ours(images):
        return batch_last(mine(batch_last(images), window))

    def flax(images):
        return theirs(images, (window, window), (window, window))

    same_with_gradient(ours, flax, weights, images)


def test_tied_pixels_share_the_gradient_of_max_pool():
    gradient = jax.grad(lambda images: max_pool(images, 2).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_allclose(gradient, 0.25 * np.ones((1, 2, 2, 1)))


def same_with_gradient(mine, theirs, weights, *arguments):
    """The same values and the same derivatives of a weighted sum, with respect to everything."""

    def both(function):
        def weighted(*arguments):
            values = function(*arguments)
            return (weights * values).sum(), values

        gradient = jax.grad(weighted, tuple(range(len(arguments))), has_aux=True)
        return jax.jit(gradient)(*arguments)

    jax.tree.map(close, both(mine), both(theirs))


def with_parameters(layer, *values):
    """The layer with its parameters set, in the order they are named."""
    for name, value in zip(("kernel", "scale", "bias"), values, strict=False):
        if value is not None:
            getattr(layer, name)[...] = value
    return layer


@pytest.mark.parametrize("channels, groups", [(4, 1), (6, 3), (4, 4)])
def test_group_norm_equals_flax(channels, groups):
    images = 3 * normal(0, 2, 5, 3, channels) + 1
    scale, bias, weights = normal(1, channels), normal(2, channels), normal(3, *images.shape)

    def ours(images, scale, bias):
        layer = with_parameters(GroupNorm(channels, groups), None, scale, bias)
        return batch_last(layer(batch_last(images)))

    def flax(images, scale, bias):
        layer = nnx.GroupNorm(channels, num_groups=groups, rngs=nnx.Rngs(0))
        return with_parameters(layer, None, scale, bias)(images)

    same_with_gradient(ours, flax, weights, images, scale, bias)


def test_group_norm_over_members_equals_one_by_one():
    images, scale, bias = normal(0, 3, 4, 5, 2, 2), normal(1, 3, 4), normal(2, 3, 4)
    weights = normal(3, *images.shape)

    def one(images, scale, bias):
        return with_parameters(GroupNorm(4, 2), None, scale, bias)(images)

    def one_by_one(*arguments):
        return jnp.stack([one(*(part[i] for part in arguments)) for i in range(3)])

    same_with_gradient(jax.vmap(one), one_by_one, weights, images, scale, bias)


def test_layer_norm_equals_flax():
    columns, scale, bias = 2 * normal(0, 5, 3, 4) + 1, normal(1, 5), normal(2, 5)

    def ours(columns, scale, bias):
        return with_parameters(LayerNorm(5), None, scale, bias)(columns)

    def flax(columns, scale, bias):
        layer = with_parameters(nnx.LayerNorm(5, rngs=nnx.Rngs(0)), None, scale, bias)
        return jnp.moveaxis(layer(jnp.moveaxis(columns, 0, -1)), -1, 0)

    same_with_gradient(ours, flax, normal(3, 5, 3, 4), columns, scale, bias)


def test_dense_equals_flax():
    columns, kernel, bias = normal(0, 5, 3, 4), normal(1, 5, 2), normal(2, 2)

    def ours(columns, kernel, bias):
        layer = Dense(5, 2, rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = kernel, bias
        return layer(columns)

    def flax(columns, kernel, bias):
        layer = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = kernel, bias
        return jnp.moveaxis(layer(jnp.moveaxis(columns, 0, -1)), -1, 0)

    same_with_gradient(ours, flax, normal(3, 2, 3, 4), columns, kernel, bias)


LENGTHS = jnp.array([5, 1, 3])
VALID = jnp.arange(5)[None] < LENGTHS[:, None]


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "some"])
def test_attention_equals_flax(valid):
    """flax keeps four kernels (in, heads, features of a head); ours are one, in that order."""
    sequences = normal(0, 8, 3, 5)
    inward, outward = normal(1, 3, 8, 2, 4), normal(2, 2, 4, 8)
    mask = None if valid is None else valid[:, None, None]

    def ours(sequences, inward, outward):
        layer = Attention(8, 2, rngs=nnx.Rngs(0))
        layer.inward.kernel[...] = jnp.moveaxis(inward, 0, 1).reshape(8, 24)
        layer.outward.kernel[...] = outward.reshape(8, 8)
        return layer(sequences, valid)

    def flax(sequences, inward, outward):
        layer = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)
        for part, kernel in zip((layer.query, layer.key, layer.value), inward, strict=True):
            part.kernel[...] = kernel
        layer.out.kernel[...] = outward
        return jnp.moveaxis(layer(jnp.moveaxis(sequences, 0, -1), mask=mask), -1, 0)

    same_with_gradient(ours, flax, normal(3, 8, 3, 5), sequences, inward, outward)


def test_a_sequence_without_valid_positions_is_finite():
    layer = Attention(4, 2, rngs=nnx.Rngs(0))
    assert jnp.isfinite(layer(jnp.ones((4, 2, 3)), jnp.zeros((2, 3), bool))).all()
