import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from training.errors import UserError
from training.models import ModelConfig, build_model, import_function, module_source

KEY = jax.random.key(0)
BUILTIN = [("linear", (3,)), ("linear", (4, 5, 2)), ("mlp", (6,)), ("mlp", (4, 4, 1))]
BUILTIN += [("cnn", (4, 4, 1)), ("cnn", (9, 6, 3))]


def build(name, shape, classes=3, width=5):
    return build_model(ModelConfig(name=name, width=width), shape, classes)


def batch(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def shapes(tree):
    return jax.tree.map(lambda array: array.shape, nnx.to_pure_dict(tree))


def filled(model, seed=1):
    """Random parameters of the right shapes; cheaper than the model's own."""
    rng = np.random.default_rng(seed)
    parameters, rest = jax.eval_shape(model.init, KEY)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), parameters
    ), rest


def assert_trees_close(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(numbers(mine), numbers(theirs), **tolerance)


def numbers(array):
    return jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def fails(config, *phrases, shape=(3,), classes=3):
    with pytest.raises(UserError) as caught:
        build_model(config, shape, classes)
    message = str(caught.value)
    for phrase in phrases:
        assert phrase in message
    assert "\n" not in message


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """`user_module(text)` writes a module of the user's and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(text, name="users_own_model"):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("users_own"):
            del sys.modules[name]


# Built-in models.


@pytest.mark.parametrize(("name", "shape"), BUILTIN)
def test_builtin_models_give_float_logits(name, shape):
    model = build(name, shape)
    inputs = jax.ShapeDtypeStruct((7, *shape), jnp.float32)
    parameters, rest = jax.eval_shape(model.init, KEY)
    logits, after = jax.eval_shape(model.apply_train, parameters, rest, inputs)
    evaluated = jax.eval_shape(model.apply, parameters, rest, inputs)
    for result in (logits, evaluated):
        assert (result.shape, result.dtype) == ((7, 3), jnp.float32)
    assert jax.tree.leaves(rest) == jax.tree.leaves(after) == []
    assert (model.classes, model.source) == (3, "")


def test_shapes_of_linear_parameters():
    parameters, _ = jax.eval_shape(build("linear", (4, 5, 2)).init, KEY)
    assert shapes(parameters) == {"output": {"kernel": (40, 3), "bias": (3,)}}


def test_shapes_of_mlp_parameters():
    parameters, _ = jax.eval_shape(build("mlp", (4, 5), classes=7, width=11).init, KEY)
    assert shapes(parameters) == {
        "hidden": {"kernel": (20, 11), "bias": (11,)},
        "output": {"kernel": (11, 7), "bias": (7,)},
    }


def test_shapes_of_cnn_parameters():
    parameters, _ = jax.eval_shape(build("cnn", (9, 6, 3), width=5).init, KEY)
    assert shapes(parameters) == {
        "first": {"kernel": (3 * 3 * 3, 5), "bias": (5,)},
        "second": {"kernel": (3 * 3 * 5, 10), "bias": (10,)},
        "output": {"kernel": (2 * 1 * 10, 3), "bias": (3,)},
    }


def test_linear_is_logistic_regression():
    model, inputs = build("linear", (2, 3)), batch(4, 2, 3)
    parameters, rest = filled(model)
    layer = nnx.to_pure_dict(parameters)["output"]
    expected = inputs.reshape(4, 6) @ layer["kernel"] + layer["bias"][None]
    np.testing.assert_allclose(model.apply(parameters, rest, inputs), expected, rtol=1e-5)


def test_mlp_has_one_hidden_layer_of_rectified_units():
    model, inputs = build("mlp", (2, 3)), batch(4, 2, 3)
    parameters, rest = filled(model)
    layers = nnx.to_pure_dict(parameters)
    hidden = inputs.reshape(4, 6) @ layers["hidden"]["kernel"] + layers["hidden"]["bias"][None]
    expected = np.maximum(hidden, 0) @ layers["output"]["kernel"] + layers["output"]["bias"][None]
    np.testing.assert_allclose(model.apply(parameters, rest, inputs), expected, rtol=1e-5)


def test_cnn_convolves_and_halves_twice():
    model, inputs = build("cnn", (9, 6, 2)), batch(4, 9, 6, 2)
    parameters, rest = filled(model)
    layers = nnx.to_pure_dict(parameters)

    def convolve_and_halve(images, layer):
        kernel = layer["kernel"].reshape(3, 3, images.shape[-1], -1)
        order = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=order
        )
        images = nnx.relu(images + layer["bias"].reshape(1, 1, 1, -1))
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(images, 0.0, jax.lax.add, window, window, "VALID") / 4

    hidden = convolve_and_halve(convolve_and_halve(inputs, layers["first"]), layers["second"])
    # The network flattens channel by channel.
    hidden = hidden.transpose(0, 3, 1, 2).reshape(4, -1)
    expected = hidden @ layers["output"]["kernel"] + layers["output"]["bias"][None]
    logits = model.apply(parameters, rest, inputs)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), [("mlp", (6,)), ("cnn", (4, 4, 1))])
def test_init_depends_on_the_key_alone(name, shape):
    first, again = (build(name, shape).init(KEY) for _ in range(2))
    assert_trees_close(first, again, rtol=0, atol=0)
    other = build(name, shape).init(jax.random.key(1))
    kernels = [nnx.to_pure_dict(state[0])["output"]["kernel"] for state in (first, other)]
    assert (kernels[0] != kernels[1]).all()


def test_vmap_over_keys_equals_a_loop():
    model, inputs, keys = build("mlp", (6,)), batch(6, 6), jax.random.split(KEY, 3)
    states = jax.vmap(model.init)(keys)
    logits = jax.jit(jax.vmap(model.apply, (0, 0, None)))(*states, inputs)
    evaluate = jax.jit(model.apply)
    for i, key in enumerate(keys):
        state = model.init(key)
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], states), state, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(logits[i], evaluate(*state, inputs), rtol=1e-4, atol=1e-5)


def test_vmap_over_members_of_the_cnn_equals_a_loop():
    model, inputs = build("cnn", (5, 4, 2)), batch(6, 5, 4, 2)
    members = [filled(model, seed) for seed in range(3)]
    _, rest = members[0]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(member[0] for member in members))
    logits = jax.jit(jax.vmap(model.apply, (0, None, None)))(stacked, rest, inputs)
    evaluate = jax.jit(model.apply)
    for one, member in zip(logits, members, strict=True):
        np.testing.assert_allclose(one, evaluate(*member, inputs), rtol=1e-4, atol=1e-5)


# The user's own model.

OWN = '''
import jax.numpy as jnp
from flax import nnx


class Own(nnx.Module):
    """Dropout and batch statistics: variables that are no parameters."""

    def __init__(self, features, classes, *, rngs):
        self.hidden = nnx.Linear(features, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, inputs):
        return self.output(self.dropout(self.norm(self.hidden(inputs))))


def make(shape, classes, *, rngs):
    assert isinstance(shape, tuple) and isinstance(classes, int)
    return Own(*shape, classes, rngs=rngs)
'''


@pytest.fixture
def own(user_module):
    return build_model(ModelConfig(factory=f"{user_module(OWN)}:make"), (4,), 3)


def test_own_model_trains_with_fresh_noise_and_moving_statistics(own):
    parameters, rest = own.init(KEY)
    inputs, step = batch(8, 4), jax.jit(own.apply_train)
    first, after_one = step(parameters, rest, inputs)
    second, after_two = step(parameters, after_one, inputs)
    assert (first != second).any()
    states = (rest, after_one, after_two)
    batch_mean = (inputs @ nnx.to_pure_dict(parameters)["hidden"]["kernel"]).mean(0)
    for state, share in zip(states, (0, 0.5, 0.75), strict=True):
        mean = nnx.to_pure_dict(state.variables)["norm"]["mean"]
        np.testing.assert_allclose(mean, share * batch_mean, rtol=1e-4, atol=1e-6)


def test_own_model_called_twice_on_one_state_gives_the_same(own):
    parameters, rest = own.init(KEY)
    first, second = (own.apply_train(parameters, rest, batch(8, 4)) for _ in range(2))
    assert_trees_close(first, second, rtol=0, atol=0)


def test_training_call_leaves_the_given_state_alone(own):
    parameters, rest = own.init(KEY)
    before = jax.tree.map(lambda array: array.copy(), (parameters, rest))
    own.apply_train(parameters, rest, batch(8, 4))
    assert_trees_close((parameters, rest), before, rtol=0, atol=0)


def test_rest_of_own_model_can_be_carried_through_a_scan(own):
    parameters, rest = own.init(KEY)
    inputs = batch(8, 4)

    @jax.jit
    def step(rest, _):
        logits, rest = own.apply_train(parameters, rest, inputs)
        return rest, logits

    scanned, logits = jax.lax.scan(step, rest, length=3)
    for i in range(3):
        rest, expected = step(rest, None)
        np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-5)
    assert_trees_close(scanned, rest, rtol=1e-4, atol=1e-6)


def test_own_model_evaluates_without_noise_from_its_statistics(own):
    parameters, rest = own.init(KEY)
    inputs, evaluate = batch(8, 4), jax.jit(own.apply)
    _, trained = jax.jit(own.apply_train)(parameters, rest, inputs)
    whole = evaluate(parameters, trained, inputs)
    assert (evaluate(parameters, rest, inputs) != whole).any()
    # Other examples in the batch change nothing, as batch statistics would.
    np.testing.assert_allclose(evaluate(parameters, trained, inputs[:2]), whole[:2], rtol=1e-5)
    # Neither does the state of the noise: the statistics after the step, the noise before it.
    state = nnx.to_pure_dict(trained.variables)
    state["dropout"] = nnx.to_pure_dict(rest.variables)["dropout"]
    nnx.replace_by_pure_dict(trained.variables, state)
    np.testing.assert_array_equal(evaluate(parameters, trained, inputs), whole)


def test_own_model_has_only_params_to_optimise(own):
    parameters, rest = own.init(KEY)
    assert set(shapes(parameters)) == {"hidden", "norm", "output"}
    assert set(shapes(parameters)["norm"]) == {"scale", "bias"}
    assert set(shapes(rest.variables)) == {"norm", "dropout"}


def test_members_of_own_model_do_not_share_noise(own):
    keys = jax.random.split(KEY, 2)

    @jax.jit
    @jax.vmap
    def member(key):
        parameters, rest = own.init(key)
        ones = jax.tree.map(jnp.ones_like, parameters)
        return own.apply_train(ones, rest, batch(8, 4))[0]

    first, second = member(keys)
    assert (first != second).any()


def test_source_of_own_model_is_recorded(own):
    assert own.source == OWN


def test_source_of_a_package_module_is_recorded(user_module, tmp_path):
    (tmp_path / "users_own_package").mkdir()
    (tmp_path / "users_own_package" / "__init__.py").write_text("")
    (tmp_path / "users_own_package" / "nets.py").write_text(OWN)
    model = build_model(ModelConfig(factory="users_own_package.nets:make"), (4,), 3)
    assert model.source == OWN


def test_class_itself_may_be_the_factory(user_module):
    text = "from training.models import Linear\n\n\nclass Mine(Linear):\n    pass\n"
    model = build_model(ModelConfig(factory=f"{user_module(text)}:Mine"), (4, 2), 3)
    assert model.source == text
    parameters, rest = model.init(KEY)
    assert model.apply(parameters, rest, batch(5, 4, 2)).shape == (5, 3)


def test_source_of_a_partial_is_that_of_its_module(user_module):
    text = "from functools import partial\n\nfrom training.models import MLP\n\n"
    text += "make = partial(MLP, width=3)\n"
    model = build_model(ModelConfig(factory=f"{user_module(text)}:make"), (4,), 3)
    assert model.source == text


def test_name_is_not_read_beside_a_factory(user_module):
    config = ModelConfig(name="nonsense", factory=f"{user_module(OWN)}:make")
    assert build_model(config, (4,), 3).classes == 3


def test_import_function_returns_the_function(user_module):
    name = user_module("def seven():\n    return 7\n")
    function = import_function(f"{name}:seven", "some.key")
    assert function() == 7
    assert module_source(f"{name}:seven") == "def seven():\n    return 7\n"


def test_function_without_a_file_has_no_source():
    assert module_source("builtins:len") == ""


# Errors.


def test_unknown_model_is_named():
    expected = 'model.name = "vgg" is unknown; choose linear, mlp, cnn, resnet, transformer, bag'
    fails(ModelConfig(name="vgg"), expected)


@pytest.mark.parametrize("shape", [(30,), (8, 8), (3, 8, 1), (8, 3, 1)])
def test_cnn_needs_images(shape):
    fails(
        ModelConfig(name="cnn"),
        'model.name = "cnn" needs images of at least 4x4 pixels',
        f"one input has shape {shape}",
        'use "mlp" or "linear"',
        shape=shape,
    )


@pytest.mark.parametrize("path", ["make", "module.make", "module:", ":make"])
def test_factory_must_name_module_and_function(path):
    expected = f'model.factory = "{path}" must read "package.module:function"'
    fails(ModelConfig(factory=path), expected)


def test_module_that_does_not_exist_is_named():
    fails(
        ModelConfig(factory="users_own_nowhere:make"),
        'model.factory = "users_own_nowhere:make": cannot import users_own_nowhere',
        "No module named 'users_own_nowhere'",
        "is its folder on PYTHONPATH?",
    )


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("def make(:\n", "SyntaxError"),
        ("import users_own_missing\n", "No module named 'users_own_missing'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ('raise RuntimeError("first line\\nsecond line")\n', "RuntimeError: first line"),
    ],
)
def test_module_that_fails_to_import_is_named(user_module, text, seen):
    name = user_module(text)
    fails(
        ModelConfig(factory=f"{name}:make"),
        f'model.factory = "{name}:make": cannot import {name} (',
        seen,
    )


@pytest.mark.parametrize("text", ["", "make = 3\n", "def making():\n    pass\n"])
def test_missing_function_is_named(user_module, text):
    name = user_module(text)
    fails(
        ModelConfig(factory=f"{name}:make"),
        f'model.factory = "{name}:make": {name} has no function make',
    )


def factory(body):
    return f"import jax.numpy as jnp\n\n\ndef make(shape, classes, *, rngs):\n    {body}\n"


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ('raise ValueError("too wide")', "ValueError: too wide"),
        ('raise ValueError("too wide\\nby far")', "ValueError: too wide"),
        ("return jnp.zeros((2, 3)) @ jnp.zeros((2, 3))", "TypeError: dot_general"),
    ],
)
def test_factory_that_raises_is_named(user_module, body, seen):
    name = user_module(factory(body))
    fails(
        ModelConfig(factory=f"{name}:make"),
        f'model.factory = "{name}:make" failed for inputs of shape (3,) and 3 classes: ',
        seen,
    )


def test_factory_of_other_arguments_is_named(user_module):
    name = user_module("def make(shape):\n    return None\n")
    expected = f'model.factory = "{name}:make" failed for inputs of shape (3,) and 3 classes'
    fails(ModelConfig(factory=f"{name}:make"), expected, "TypeError", "unexpected keyword argument")


@pytest.mark.parametrize(
    ("body", "seen"),
    [("return None", "NoneType"), ('return {"w": jnp.zeros(3)}', "dict"), ("pass", "NoneType")],
)
def test_factory_must_return_a_module(user_module, body, seen):
    name = user_module(factory(body))
    fails(
        ModelConfig(factory=f"{name}:make"),
        f'model.factory = "{name}:make" returned {seen}; it must return an nnx.Module',
    )


@pytest.mark.parametrize("body", ["return lambda inputs: inputs", 'return "a module"'])
def test_factory_that_returns_no_variables_is_named(user_module, body):
    name = user_module(factory(body))
    fails(ModelConfig(factory=f"{name}:make"), f'model.factory = "{name}:make" ')


def module(*lines):
    """A module whose call runs `lines`; `self.linear(inputs)` are the right logits."""
    body = "\n        ".join(lines)
    return f"""
import jax.numpy as jnp
from flax import nnx


class Make(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        self.linear = nnx.Linear(*shape, classes, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        {body}
"""


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("return self.linear(inputs)[:, :2]", "(2, 2)"),
        ("return jnp.pad(self.linear(inputs), ((0, 0), (0, 1)))", "(2, 4)"),
    ],
)
def test_logits_of_another_shape_are_refused(user_module, line, seen):
    name = user_module(module(line))
    fails(
        ModelConfig(factory=f"{name}:Make"),
        f'model.factory = "{name}:Make" maps inputs (2, 3) to {seen}',
        "it must return logits of shape (2, 3)",
    )


@pytest.mark.parametrize(
    "result", ["logits[:1]", "logits.sum(1)", "logits[..., None]", "(logits, 1)", "None"]
)
def test_outputs_that_are_no_logits_are_refused(user_module, result):
    # The annotations of the package are checked in tests, which words these errors otherwise.
    name = user_module(module("logits = self.linear(inputs)", f"return {result}"))
    with pytest.raises(UserError, match=f'model.factory = "{name}:Make"'):
        build_model(ModelConfig(factory=f"{name}:Make"), (3,), 3)


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        (["return self.linear(inputs[:, :2])"], "TypeError: dot_general"),
        (["return self.missing(inputs)"], "AttributeError"),
        (["if inputs.sum() > 0:", "    inputs = -inputs", "return inputs"], "TracerBool"),
    ],
)
def test_module_that_raises_is_named(user_module, lines, seen):
    name = user_module(module(*lines))
    fails(
        ModelConfig(factory=f"{name}:Make"),
        f'model.factory = "{name}:Make" failed for inputs of shape (3,)',
        seen,
    )


def test_module_that_fails_only_in_evaluation_is_refused(user_module):
    name = user_module(
        module(
            "logits = self.dropout(self.linear(inputs))",
            "return logits[:, :1] if self.dropout.deterministic else logits",
        )
    )
    fails(ModelConfig(factory=f"{name}:Make"), f'model.factory = "{name}:Make"')


@pytest.mark.parametrize(
    "line",
    [
        "self.calls = nnx.Variable(jnp.ones(()))",
        "self.calls = getattr(self, 'calls', 0) + 1",
    ],
    ids=["new variable", "python attribute"],
)
def test_module_that_changes_itself_while_called_is_refused(user_module, line):
    name = user_module(module(line, "return self.linear(inputs)"))
    fails(
        ModelConfig(factory=f"{name}:Make"),
        f'model.factory = "{name}:Make" makes variables or changes Python attributes',
        "made in __init__",
    )


@pytest.mark.parametrize(
    "lines",
    [
        ["CALLS.append(0)", "return self.linear(inputs) * float(len(CALLS))"],
        ["import numpy", "return self.linear(inputs) + numpy.random.rand(2, 3).astype('f4')"],
    ],
    ids=["counter", "numpy's random numbers"],
)
def test_module_that_reads_python_state_is_refused(user_module, lines):
    name = user_module("CALLS = []\n" + module(*lines))
    fails(
        ModelConfig(factory=f"{name}:Make"),
        f'model.factory = "{name}:Make" computes something else each time it is made or called',
        "use nnx.Variable and nnx.Rngs",
    )


def test_module_that_starts_from_numpys_random_numbers_is_refused(user_module):
    body = """
import numpy
from flax import nnx


class Make(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        self.kernel = nnx.Param(numpy.random.rand(*shape, classes).astype("f4"))

    def __call__(self, inputs):
        return inputs @ self.kernel[...]
"""
    name = user_module(body)
    fails(ModelConfig(factory=f"{name}:Make"), "each time it is made or called", "nnx.Rngs")


@pytest.mark.parametrize(
    ("line", "by_example"),
    [
        ("return self.linear(inputs)", True),
        ("return self.linear(inputs[::-1])[::-1]", True),
        (
            "return self.linear(inputs - float(not self.deterministic) * inputs.mean(0)[None])",
            False,
        ),
    ],
    ids=["itself", "in another order", "less the mean of the batch"],
)
def test_whether_examples_are_treated_one_by_one_is_seen(user_module, line, by_example):
    body = module(line).replace("nnx.Dropout(0.5, rngs=rngs)", "None")
    body = body.replace("self.dropout = None", "self.deterministic = False")
    model = build_model(ModelConfig(factory=f"{user_module(body)}:Make"), (3,), 3)
    assert model.by_example == by_example


def test_a_model_with_dropout_is_not_cut_into_pieces(user_module):
    name = user_module(module("return self.dropout(self.linear(inputs))"))
    assert not build_model(ModelConfig(factory=f"{name}:Make"), (3,), 3).by_example


def test_text_models_of_ones_own_are_seen_to_treat_texts_one_by_one(user_module):
    body = """
from flax import nnx


class Make(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        self.table = nnx.Embed(50, classes, rngs=rngs)

    def __call__(self, tokens):
        return self.table(tokens).mean(1)
"""
    config = ModelConfig(factory=f"{user_module(body)}:Make")
    assert build_model(config, (4,), 3, vocabulary=50).by_example


def test_module_that_looks_at_others_in_evaluation_is_refused(user_module):
    name = user_module(
        module("return self.linear(inputs) - self.linear(inputs).mean(0, keepdims=True)")
    )
    fails(
        ModelConfig(factory=f"{name}:Make"),
        "lets the logits of an example depend on the others of its batch in evaluation",
    )


def test_batch_statistics_across_members_are_refused(user_module):
    body = """
from flax import nnx


class Make(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        self.linear = nnx.Linear(*shape, classes, rngs=rngs)
        self.norm = nnx.BatchNorm(classes, axis_name="members", rngs=rngs)

    def __call__(self, inputs):
        return self.norm(self.linear(inputs))
"""
    name = user_module(body)
    fails(ModelConfig(factory=f"{name}:Make"), "unbound axis name", "members")


def test_variable_that_changes_its_shape_is_refused(user_module):
    body = """
import jax.numpy as jnp
from flax import nnx


class Make(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        self.linear = nnx.Linear(*shape, classes, rngs=rngs)
        self.seen = nnx.Variable(jnp.zeros(1))

    def __call__(self, inputs):
        self.seen.set_value(jnp.concatenate([self.seen[...], jnp.ones(1)]))
        return self.linear(inputs)
"""
    name = user_module(body)
    fails(ModelConfig(factory=f"{name}:Make"), "changes the shape or dtype of a variable")
