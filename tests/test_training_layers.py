from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from training.layers import Convolution, mean_pool, patches

WINDOWS = [1, 2, 3, 5]
SIZES = [(6, 6), (7, 4), (1, 5)]


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution_equals_lax(window, size):
    kernel, bias = normal(0, window, window, 3, 4), normal(1, 4)
    images = normal(2, 2, *size, 3)
    close(ours(kernel, bias, images), reference(kernel, bias, images))


@pytest.mark.parametrize("window", WINDOWS)
def test_gradients_of_convolution_equal_lax(window):
    kernel, bias = normal(0, window, window, 2, 3), normal(1, 3)
    images, weights = normal(2, 2, 6, 4, 2), normal(3, 2, 6, 4, 3)

    def gradients(convolve):
        weighted = jax.grad(lambda *args: (weights * convolve(*args)).sum(), (0, 1, 2))
        return jax.jit(weighted)(kernel, bias, images)

    for mine, theirs in zip(gradients(ours), gradients(reference), strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("window", WINDOWS)
def test_vmap_over_kernels_equals_lax_one_by_one(window):
    kernels, biases = normal(0, 3, window, window, 2, 4), normal(1, 3, 4)
    images, weights = normal(2, 2, 5, 6, 2), normal(3, 2, 5, 6, 4)

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


def test_vmap_over_kernels_has_no_convolution():
    kernels, biases = normal(0, 3, 3, 3, 2, 4), normal(1, 3, 4)
    program = str(
        jax.make_jaxpr(jax.vmap(ours, (0, 0, None)))(kernels, biases, normal(2, 2, 5, 5, 2))
    )
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
