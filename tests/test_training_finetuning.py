"""Members that start from a checkpoint, with parts that are frozen or start anew."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from test_training_sweep import EXAMPLES, TARGETS, keys_of, make_task

from training.errors import UserError
from training.models import ModelConfig, build_model
from training.parallel import local_layout
from training.seeds import root_key, training_key
from training.stepped import SteppedSweeper
from training.sweep import Sweeper, param_bytes
from training.train import make_evaluate, make_train
from training.variables import to_named

SHAPE, CLASSES = (6, 6, 1), 4


class Net(nnx.Module):
    """Parameters, batch statistics and dropout keys."""

    def __init__(self, shape, classes, *, rngs):
        self.body = nnx.List([nnx.Linear(36, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, inputs):
        hidden = inputs.reshape(inputs.shape[0], -1)
        for layer in self.body:
            hidden = nnx.relu(layer(hidden))
        return self.head(self.dropout(self.norm(hidden)))


@pytest.fixture(scope="module")
def module():
    net = Net(SHAPE, CLASSES, rngs=nnx.Rngs(jax.random.key(3)))
    net.train()
    for _ in range(3):
        net(jax.random.normal(jax.random.key(1), (32, *SHAPE)))
    return net


FORMS = {
    "state": nnx.state,
    "parameters and statistics": lambda net: nnx.state(net, (nnx.Param, nnx.BatchStat)),
    "plain": lambda net: nnx.to_pure_dict(nnx.state(net, (nnx.Param, nnx.BatchStat))),
}


def save(folder, tree):
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder, tree)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(module, tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoints") / "net", nnx.state(module))


def model_of(checkpoint, **config):
    config = {"factory": f"{__name__}:Net", "init_from": checkpoint, **config}
    return build_model(ModelConfig(**config), SHAPE, CLASSES)


def variables_of(module):
    return to_named(nnx.state(module))


def initial_of(model, seed):
    return to_named(model.init(jax.random.key(seed)))


def is_own(name):
    return name.startswith("dropout")


@pytest.mark.parametrize("form", FORMS)
def test_members_start_where_the_checkpoint_is(module, tmp_path, form):
    model = model_of(save(tmp_path / "net", FORMS[form](module)))
    expected = variables_of(module)
    found = initial_of(model, 0)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        if not is_own(name):
            np.testing.assert_array_equal(values, expected[name])
    # Random keys are each member's own, with or without a checkpoint.
    assert (found["dropout.rngs.key"] != initial_of(model, 1)["dropout.rngs.key"]).any()


def test_a_step_of_a_manager_is_read(module, tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(7, args=ocp.args.StandardSave(nnx.state(module)))
    found = initial_of(model_of(str(tmp_path / "7" / "default")), 0)
    np.testing.assert_array_equal(found["head.kernel"], module.head.kernel[...])


def test_fresh_parts_are_drawn_anew_for_every_member(checkpoint, module):
    model = model_of(checkpoint, fresh=("head",))
    one, other = initial_of(model, 0), initial_of(model, 1)
    assert (one["head.kernel"] != other["head.kernel"]).any()
    np.testing.assert_array_equal(one["body.0.kernel"], module.body[0].kernel[...])


def test_fresh_parts_may_have_another_shape(checkpoint):
    config = ModelConfig(factory=f"{__name__}:Net", init_from=checkpoint, fresh=("head",))
    assert build_model(config, SHAPE, 7).classes == 7


def task_of(model, **optim):
    return make_task(**optim)._replace(model=model)


def trained(task, keys, masks, sweeper=Sweeper):
    sweeper = sweeper(task, local_layout(4, 2))
    return sweeper.start(keys, masks, keep=True).fetch()


MASKS = np.random.default_rng(0).random((6, EXAMPLES)) < 0.5


def stepped(task, layout):
    return SteppedSweeper(task, layout, 7)


@pytest.mark.parametrize("sweeper", [Sweeper, stepped])
@pytest.mark.parametrize("frozen", [(), ("body",), ("body.1", "norm")])
def test_a_sweep_equals_a_plain_loop_of_single_trainings(checkpoint, frozen, sweeper):
    task = task_of(model_of(checkpoint, fresh=("head",), frozen=frozen))
    found = trained(task, keys_of(6), MASKS, sweeper)
    train = jax.jit(make_train(task.recipe, task.model, task.examples))
    evaluate = jax.jit(make_evaluate(task.recipe, task.model, task.targets, task.output))
    for member in range(6):
        state = train(training_key(root_key(0, 0), member, 0), MASKS[member])
        np.testing.assert_allclose(found.reports[0].outputs[member], evaluate(state), atol=2e-5)


def test_frozen_parameters_do_not_move_and_others_do(checkpoint, module):
    model = model_of(checkpoint, frozen=("body.0", "norm"))
    task = task_of(model)
    state = jax.jit(make_train(task.recipe, model, task.examples))(jax.random.key(5), MASKS[0])
    found, before = to_named(state), variables_of(module)
    moved = {name for name, values in found.items() if (values != before[name]).any()}
    # Batch statistics are no parameters.
    assert {name for name in moved if not is_own(name)} == {
        "body.1.kernel", "body.1.bias", "head.kernel", "head.bias", "norm.mean", "norm.var",
    }  # fmt: skip


def test_without_a_checkpoint_frozen_parts_stay_as_each_member_drew_them():
    model = build_model(ModelConfig(name="mlp", width=8, frozen=("hidden",)), SHAPE, CLASSES)
    task = task_of(model)
    found = trained(task, keys_of(2), MASKS[:2])
    for member in range(2):
        key = training_key(root_key(0, 0), member, 0)
        train = jax.jit(make_train(task.recipe, model, task.examples))
        start, end = to_named(train(key, np.zeros(EXAMPLES, bool))), found.params
        np.testing.assert_allclose(end["hidden.kernel"][member], start["hidden.kernel"], rtol=1e-6)
        assert np.abs(end["output.kernel"][member] - start["output.kernel"]).max() > 1e-3


def test_what_all_members_share_is_kept_once(checkpoint):
    model = model_of(checkpoint, frozen=("body",))
    kept = trained(task_of(model), keys_of(3), MASKS[:3]).params
    assert not any(name.startswith("body") for name in kept)
    assert param_bytes(model) < param_bytes(model_of(checkpoint)) - 4 * 36 * 16
    assert trained(task_of(model), keys_of(3), MASKS[:3]).reports[0].outputs.shape == (3, TARGETS)


def test_bfloat16_reaches_frozen_parameters():
    config = ModelConfig(name="mlp", width=8, frozen=("hidden",))
    models = [
        build_model(dataclasses.replace(config, precision=precision), SHAPE, CLASSES)
        for precision in ("float32", "bfloat16")
    ]
    exact, rounded = (
        trained(task_of(model), keys_of(2), MASKS[:2]).reports[0].outputs for model in models
    )
    np.testing.assert_allclose(rounded, exact, atol=0.5)
    assert (rounded != exact).any()


def fails(phrase, checkpoint, shape=SHAPE, classes=CLASSES, **config):
    config = {"factory": f"{__name__}:Net", "init_from": checkpoint, **config}
    with pytest.raises(UserError, match=phrase):
        build_model(ModelConfig(**config), shape, classes)


def test_what_does_not_fit_is_refused_by_name(checkpoint, module, tmp_path):
    fails(r"head\.(bias|kernel) of shape .* needs .*model\.fresh", checkpoint, classes=7)
    fails(r'model\.frozen names "boby".*did you mean "body"\?', checkpoint, frozen=("boby",))
    fails(r'model\.fresh names "tail", which the model does not have', checkpoint, fresh=("tail",))
    fails("nothing to train", checkpoint, frozen=("body", "head", "norm"))
    partial = save(tmp_path / "partial", nnx.to_pure_dict(nnx.state(module.head, nnx.Param)))
    fails(r"has no body\.0\.bias", partial)
    fails("is no checkpoint that orbax can read", str(tmp_path))
    fails("is no checkpoint that orbax can read", str(tmp_path / "nowhere"))


def test_dropped_examples_cannot_reach_a_member(checkpoint):
    """The contract of training holds with frozen parts, too."""
    task = task_of(model_of(checkpoint, frozen=("body",)))
    spoiled = dataclasses.replace(task.examples, inputs=np.array(task.examples.inputs))
    mask = MASKS[0]
    spoiled.inputs[~mask] = 255
    runs = [
        jax.jit(make_train(task.recipe, task.model, examples))(jax.random.key(0), mask)
        for examples in (task.examples, spoiled)
    ]
    jax.tree.map(np.testing.assert_array_equal, *map(to_named, runs))
