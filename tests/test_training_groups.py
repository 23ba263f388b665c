"""Groups of training examples: from a column, a file, or clusters; and a sweep over them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.design import Bernoulli
from training import data
from training.arm import Arm, ArmSpec
from training.bank import Bank, Manifest, Panel
from training.data import DataConfig
from training.errors import UserError
from training.examples import Examples, fit_normaliser
from training.groups import (
    NPY,
    GroupsConfig,
    _shares,
    clusters,
    from_file,
    from_values,
    single,
    split,
)
from training.models import ModelConfig, build_model
from training.optim import OptimConfig
from training.outputs import margin
from training.parallel import local_layout
from training.seeds import root_key, training_keys
from training.store import Store
from training.sweep import Sweeper, Task, sweep
from training.train import Recipe


def made_of(count, name="mlp", seed=0):
    """Two classes, each of three clouds; the cloud of each example, and what trains on them."""
    rng = np.random.default_rng(seed)
    cloud = rng.permutation(np.arange(count) % 6)
    centres = 8 * np.random.default_rng(1).standard_normal((6, 5))
    inputs = (centres[cloud] + rng.standard_normal((count, 5))).astype(np.float32)
    examples = Examples(inputs, (cloud % 2).astype(np.int32))
    recipe = Recipe(OptimConfig(steps=60, batch_size=10), fit_normaliser(inputs))
    return cloud, examples, build_model(ModelConfig(name=name, width=16), (5,), 2), recipe


def same_parts(one, other):
    """Whether two groupings put the same examples together."""
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


@pytest.mark.parametrize("features", ["inputs", "model"])
def test_clusters_are_the_clouds_that_are_there(features):
    cloud, *made = made_of(120)
    found = clusters(GroupsConfig(by="cluster", count=6, features=features), *made)
    # What a model's last layer reads need not keep clouds of one class apart; the inputs do.
    if features == "inputs":
        assert same_parts(found.of.tolist(), cloud.tolist())
    labels = np.asarray(made[0].labels)
    assert all(len(np.unique(labels[found.of == group])) == 1 for group in range(6))
    assert sorted(np.unique(found.of)) == list(range(len(found.names)))
    assert found.names[0] == "cluster 0 of class 0"
    again = clusters(GroupsConfig(by="cluster", count=6, features=features), *made)
    np.testing.assert_array_equal(again.of, found.of)


def test_groups_are_split_into_parts_of_similar_examples():
    cloud, *made = made_of(120)
    config = GroupsConfig(by="cluster", count=6)
    whole = clusters(GroupsConfig(by="cluster", count=2), *made)
    of = split(whole, [1], 3, config, *made)
    # The first class stays whole, the second falls into its three clouds.
    assert same_parts(of.tolist(), np.where(whole.of == 1, 1 + cloud, 0).tolist())
    assert sorted(set(of.tolist())) == [0, 1, 2, 3]
    assert (of[whole.of == 0] == 0).all()


def test_small_groups_are_split_into_single_examples():
    _, *made = made_of(18)
    groups = clusters(GroupsConfig(by="cluster", count=6), *made)
    sizes = np.bincount(groups.of)
    of = split(groups, range(6), int(sizes.max()), GroupsConfig(by="cluster"), *made)
    assert sorted(of.tolist()) == list(range(18))


def test_groups_of_copies_are_split_too():
    _, examples, model, recipe = made_of(60)
    copies = Examples(np.tile(np.asarray(examples.inputs)[:1], (60, 1)), examples.labels)
    groups = single(np.arange(2))._replace(of=np.repeat([0, 1], 30))
    of = split(groups, [1], 4, GroupsConfig(by="cluster"), copies, model, recipe)
    assert np.bincount(of).tolist() == [30, 8, 8, 7, 7]


def test_clusters_found_before_are_taken_as_they_are():
    _, *made = made_of(60)
    config = GroupsConfig(by="cluster", count=6)
    before = np.arange(60) % 4
    np.testing.assert_array_equal(clusters(config, *made, before).of, before)


def test_equal_examples_leave_fewer_clusters_without_a_word():
    _, examples, model, recipe = made_of(40)
    same = Examples(np.zeros_like(examples.inputs), examples.labels)
    found = clusters(GroupsConfig(by="cluster", count=10), same, model, recipe)
    assert found.of.max() + 1 == len(found.names) == 2


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_features_are_what_the_last_layer_reads(name):
    _, examples, model, _ = made_of(20, name)
    parameters, rest = model.init(root_key(0, 0))
    inputs = jnp.asarray(examples.inputs)
    features = np.asarray(model.features(parameters, rest, inputs))
    output = parameters["output"]
    logits = features @ np.asarray(output["kernel"][...]) + np.asarray(output["bias"][...])
    np.testing.assert_allclose(model.apply(parameters, rest, inputs), logits, atol=1e-5)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8).map(np.array),
    share=st.floats(0, 1),
)
def test_clusters_are_shared_among_classes_in_proportion(sizes, share):
    count = len(sizes) + round(share * (sizes.sum() - len(sizes)))
    found = np.array(_shares(sizes, count))
    assert found.sum() == count
    assert (found >= 1).all()
    assert (found <= sizes).all()
    larger = sizes[:, None] > sizes
    assert (found[:, None] >= found - 1)[larger].all()


def test_a_column_and_a_file_give_groups_in_the_order_of_the_examples(tmp_path):
    config = GroupsConfig(by="column", column="author")
    found = from_values(("ann", "bob", "ann", "cid", "bob"), config)
    assert found.of.tolist() == [0, 1, 0, 2, 1]
    assert found.names == ("ann", "bob", "cid")
    for values in (np.array([7, -1, 7]), np.array(["x", "y", "x"])):
        np.save(tmp_path / "groups.npy", values)
        read = from_file(GroupsConfig(by="file", file=str(tmp_path / "groups.npy")), 3)
        assert read.of.tolist() == [0, 1, 0]
        assert read.names == tuple(map(str, values[:2]))


def test_a_column_that_groups_is_no_input(tmp_path):
    rows = [f"{i},{i % 3},author{i % 4},{i % 2}" for i in range(30)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,who,label", *rows]))
    config = DataConfig(source=str(tmp_path / "a.csv"), target_count=5)
    split = data.load(config, group_column="who")
    assert split.train.examples.inputs.shape == (25, 2)
    assert split.group_values == tuple(f"author{row % 4}" for row in split.train.ids)
    with pytest.raises(UserError, match=r'groups\.column = "wo": .*"who"'):
        data.load(config, group_column="wo")


def refused(say, call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert say in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_that_cannot_be_made_are_refused(tmp_path):
    column = GroupsConfig(by="column", column="c")
    refused(
        'groups.column = "c" holds None for training example 1', from_values, ("a", None), column
    )
    refused("holds [1, 2] for training example 0", from_values, ([1, 2], "a"), column)
    refused("gives all examples one group", from_values, ("a", "a"), column)
    path = tmp_path / "g.npy"
    file = GroupsConfig(by="file", file=str(path))
    refused("cannot be read as a .npy array: No such file", from_file, file, 3)
    path.write_text("example,group\n0,1\n")
    refused("is no .npy file; write one number or name for each", from_file, file, 3)
    path.write_bytes(NPY + b"\x01")
    refused("cannot be read as a .npy array", from_file, file, 3)
    np.save(path, np.zeros(4, int))
    refused("has shape (4,); it must hold one value for each of the 3", from_file, file, 3)
    np.save(path, np.array([0.5, 1, 2]))
    refused("holds float64; it must hold whole numbers or names", from_file, file, 3)
    _, *made = made_of(30)
    for count in (1, 31):
        config = GroupsConfig(by="cluster", count=count)
        refused(f"groups.count = {count} must be from 2", clusters, config, *made)


def test_texts_and_models_without_features_are_refused():
    _, examples, model, recipe = made_of(30)
    texts = Examples(np.ones((30, 4), np.int32), examples.labels)
    config = GroupsConfig(by="cluster", count=4)
    refused("cannot cluster texts", clusters, config, texts, model, recipe)
    bare = build_model(ModelConfig(factory="test_training_groups:without_features"), (5,), 2)
    config = GroupsConfig(by="cluster", count=4, features="model")
    refused("needs a module with a method features", clusters, config, examples, bare, recipe)


def without_features(shape, classes, *, rngs):
    from flax import nnx

    return nnx.Linear(shape[0], classes, rngs=rngs)


def test_every_example_is_its_own_group_by_default():
    found = single(np.array([5, 9, 2]))
    assert found.is_single
    assert found.of.tolist() == [0, 1, 2]
    assert found.names == ("5", "9", "2")


def test_a_sweep_over_groups_trains_on_all_examples_of_the_kept_ones(tmp_path):
    cloud, examples, model, recipe = made_of(48)
    task = Task(recipe, model, examples, examples.take(slice(0, 9)), margin)
    design, sweeper = Bernoulli(0.5), Sweeper(task, local_layout(4, 2))
    of = tuple(cloud.tolist())
    spec = ArmSpec("main", 20, 6, 8, 3, 0, design.describe(), group_of=of, grouping={"by": "x"})
    arm = Arm(Store(tmp_path / "bank" / "main"), spec, [9])
    sweep(sweeper, arm, design, range(spec.units))
    rows = arm.read()
    root, everyone = root_key(3, 0), np.arange(20)
    masks = design.masks(root, everyone, 6)
    np.testing.assert_array_equal(rows.masks, masks)
    keys = training_keys(root, everyone, np.zeros(20, int))
    expected = sweeper.start(keys, masks[:, cloud]).fetch().reports[0]
    np.testing.assert_array_equal(rows.outputs, expected.outputs)
    # Made again where it is damaged, and read by whoever opens the bank.
    manifest = Manifest("i", {}, {"main": spec}, tuple(range(48)), tuple("abcdefghi"),
                        (Panel(9, "c"),), {})  # fmt: skip
    Bank.create(tmp_path, manifest)
    opened = Bank.open(tmp_path).arm("main")
    assert opened.spec == spec
    np.testing.assert_array_equal(opened.spec.examples(masks), masks[:, cloud])
