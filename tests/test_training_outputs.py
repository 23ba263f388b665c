import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from training.errors import UserError
from training.outputs import BUILTIN, both, lead, loss, margin, output_function, probability

ALL = {**BUILTIN, "lead": lead}
EXTREME = [
    [100.0, -100.0, 0.0],
    [-100.0, 100.0, 0.0],
    [0.0, 0.0, 0.0],
    [1e4, 1e4, -1e4],
    [1e30, 0.0, -1e30],
    [-1e4, -1e4, -1e4],
    [80.0, 80.0, 80.0],
]


def plain(name, logits, label):
    """The formulas in double precision, one row at a time."""
    logits = np.asarray(logits, np.float64)
    others = np.delete(logits, label)
    return {
        "margin": logits[label] - logsumexp(others),
        "loss": -log_softmax(logits)[label],
        "probability": np.exp(log_softmax(logits)[label]),
        "lead": logits[label] - others.max(),
    }[name]


def arrays(logits, labels):
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)


def fails(name, *phrases, classes=3):
    with pytest.raises(UserError) as caught:
        output_function(name, classes)
    message = str(caught.value)
    for phrase in phrases:
        assert phrase in message
    assert "\n" not in message


@pytest.fixture
def user_output(tmp_path, monkeypatch):
    """`user_output(text)` writes a module of the user's and returns the path of its `output`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "users_output.py").write_text("import jax.numpy as jnp\n\n\n" + text)
        return "users_output:output"

    yield write
    sys.modules.pop("users_output", None)


# Built-in outputs.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_outputs_equal_plain_formulas(name, classes):
    rng = np.random.default_rng(classes)
    logits, labels = 3 * rng.standard_normal((50, classes)), rng.integers(0, classes, 50)
    expected = [plain(name, row, label) for row, label in zip(logits, labels, strict=True)]
    output = ALL[name](*arrays(logits, labels))
    assert output.shape == (50,)
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_outputs_of_extreme_logits_are_right(name, label):
    outputs = ALL[name](*arrays(EXTREME, [label] * len(EXTREME)))
    for row, output in zip(EXTREME, outputs, strict=True):
        # Float32 holds logits, and so their sums and differences, to a relative 6e-8.
        rounding = 2e-7 * max(1.0, *np.abs(row))
        expected = plain(name, row, label)
        np.testing.assert_allclose(output, expected, rtol=1e-6, atol=rounding)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_gradients_of_extreme_logits_are_finite(name, label):
    logits, labels = arrays(EXTREME, [label] * len(EXTREME))
    gradient = jax.grad(lambda logits: ALL[name](logits, labels).sum())(logits)
    assert np.isfinite(gradient).all()


@given(st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4), st.integers(0, 3))
def test_margin_is_the_log_odds_of_the_label(row, label):
    share = np.exp(log_softmax(np.array(row, np.float64)))[label]
    (output,) = margin(*arrays([row], [label]))
    np.testing.assert_allclose(output, np.log(share / (1 - share)), rtol=1e-4, atol=1e-4)


def test_gradient_of_margin_is_one_for_the_label_and_a_softmax_for_the_others():
    logits, labels = arrays([[0.3, -1.0, 2.0, 0.5]], [2])
    (gradient,) = jax.grad(lambda logits: margin(logits, labels).sum())(logits)
    weights = np.exp(log_softmax([0.3, -1.0, 0.5]))
    expected = [-weights[0], -weights[1], 1.0, -weights[2]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_gradient_of_loss_is_softmax_minus_label():
    logits, labels = arrays([[0.3, -1.0, 2.0], [5.0, 0.0, 1.0]], [2, 1])
    gradient = jax.grad(lambda logits: loss(logits, labels).sum())(logits)
    expected = np.exp(log_softmax(np.asarray(logits), axis=1)) - np.eye(3)[[2, 1]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_margin_is_positive_only_above_half_of_the_probability():
    logits, labels = arrays([[2.0, 1.5, 1.5], [2.0, 0.0, 0.0]], [0, 0])
    assert (lead(logits, labels) > 0).all()
    np.testing.assert_array_equal(margin(logits, labels) > 0, [False, True])
    np.testing.assert_array_equal(probability(logits, labels) > 0.5, [False, True])


def test_outputs_work_under_jit_and_vmap():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 5, 3)), rng.integers(0, 3, 5)
    for name, function in ALL.items():
        together = jax.jit(jax.vmap(function, (0, None)))(*arrays(logits, labels))
        expected = [
            [plain(name, row, label) for row, label in zip(rows, labels, strict=True)]
            for rows in logits
        ]
        np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5)


def test_both_gives_two_outputs_side_by_side():
    logits, labels = arrays([[0.3, -1.0, 2.0], [5.0, 0.0, 1.0]], [2, 1])
    outputs = both(margin, lead)(logits, labels)
    assert outputs.shape == (2, 2)
    np.testing.assert_array_equal(outputs[:, 0], margin(logits, labels))
    np.testing.assert_array_equal(outputs[:, 1], lead(logits, labels))


@pytest.mark.parametrize(
    ("name", "function"), [("margin", margin), ("loss", loss), ("probability", probability)]
)
def test_builtin_outputs_go_by_name(name, function):
    assert output_function(name, 3) is function


# The user's own output.


def test_own_output_is_used(user_output):
    path = user_output("def output(logits, labels):\n    return logits.max(1) - logits.min(1)\n")
    logits, labels = arrays([[0.0, 3.0, 1.0], [-1.0, -1.0, 4.0]], [0, 1])
    np.testing.assert_array_equal(output_function(path, 3)(logits, labels), [3.0, 5.0])


def test_own_output_sees_the_number_of_classes_and_integer_labels(user_output):
    path = user_output(
        "def output(logits, labels):\n"
        "    assert logits.shape == (3, 7) and logits.dtype == jnp.float32\n"
        "    assert labels.shape == (3,) and labels.dtype == jnp.int32\n"
        "    return logits[:, 6]\n"
    )
    assert callable(output_function(path, 7))


def test_own_output_goes_with_another_in_both(user_output):
    path = user_output("def output(logits, labels):\n    return logits[:, 0]\n")
    logits, labels = arrays([[0.5, 3.0]], [0])
    outputs = both(output_function(path, 2), lead)(logits, labels)
    np.testing.assert_array_equal(outputs, [[0.5, -2.5]])


@pytest.mark.parametrize("name", ["margins", "", "lead"])
def test_unknown_output_is_named(name):
    fails(
        name,
        f'sweep.output = "{name}" is unknown; choose margin, loss, probability or name your own',
        '"package.module:function"',
    )


@pytest.mark.parametrize("path", ["module:", ":function"])
def test_output_must_name_module_and_function(path):
    fails(path, f'sweep.output = "{path}" must read "package.module:function"')


def test_missing_module_is_named():
    fails(
        "users_nowhere:output",
        'sweep.output = "users_nowhere:output": cannot import users_nowhere',
        "No module named 'users_nowhere'",
        "is its folder on PYTHONPATH?",
    )


def test_missing_function_is_named(user_output):
    path = user_output("def outputs(logits, labels):\n    return labels\n")
    fails(path, f'sweep.output = "{path}": users_output has no function output')


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ('raise ValueError("no such thing")', "ValueError: no such thing"),
        ('raise ValueError("no such\\nthing")', "ValueError: no such"),
        ("return logits @ logits", "TypeError: dot_general"),
        ("return logits[:, 0] if logits[0, 0] > 0 else logits[:, 1]", "TracerBool"),
    ],
)
def test_output_that_raises_is_named(user_output, body, seen):
    path = user_output(f"def output(logits, labels):\n    {body}\n")
    fails(path, f'sweep.output = "{path}" failed on logits (3, 5): ', seen, classes=5)


def test_output_of_other_arguments_is_named(user_output):
    path = user_output("def output(logits):\n    return logits[:, 0]\n")
    fails(path, f'sweep.output = "{path}" failed on logits (3, 3): TypeError')


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        ("logits", "(3, 5)"),
        ("logits.sum()", "()"),
        ("logits[:2, 0]", "(2,)"),
        ("logits[:, :1]", "(3, 1)"),
        ("(logits[:, 0], labels)", "None"),
        ("None", "None"),
    ],
)
def test_output_of_another_shape_is_refused(user_output, result, seen):
    path = user_output(f"def output(logits, labels):\n    return {result}\n")
    fails(
        path,
        f'sweep.output = "{path}" maps logits (3, 5) to shape {seen}',
        "it must return one number a target, shape (3,)",
        classes=5,
    )
