"""Units that are saved while they train end with the bits of units to which nothing happened."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from test_training_sweep import EXAMPLES, TARGETS, keys_of, make_spec, make_task

from datamodels.design import Bernoulli
from training.arm import Arm
from training.checkpoints import UnitCheckpoints, delete_finished
from training.errors import UserError
from training.models import ModelConfig, build_model
from training.parallel import local_layout
from training.stepped import SteppedSweeper
from training.store import Store
from training.sweep import Sweeper, sweep

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def optax_promotes():
    """Its adamw adds integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


UNIT = 20
"""Members of a unit: two launches of 16, the second not full."""


class Dropout(nnx.Module):
    """Its state has keys, which are no plain numbers."""

    def __init__(self, shape, classes, *, rngs):
        self.hidden = nnx.Linear(36, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.output = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, inputs):
        hidden = nnx.relu(self.hidden(inputs.reshape(inputs.shape[0], -1)))
        return self.output(self.dropout(hidden))


def task_of(kind):
    match kind:
        case "sgd":
            return make_task()
        case "adamw":
            recipe = make_task().recipe
            return make_task()._replace(
                recipe=replace(recipe, optim=replace(recipe.optim, name="adamw"))
            )
        case "augmented":
            return make_task("cnn", augment="flip_crop")
        case "dropout":
            config = ModelConfig(factory=f"{__name__}:Dropout")
            return make_task()._replace(model=build_model(config, (6, 6, 1), 4))
    raise ValueError(kind)


def stepped(task, every, width=8):
    return SteppedSweeper(task, local_layout(width, 2), every)


def make_arm(folder, members=UNIT, unit=UNIT):
    return Arm(Store(folder), make_spec(Bernoulli(0.5), members, unit), [TARGETS])


def masks_of(count):
    return np.random.default_rng(0).random((count, EXAMPLES)) < 0.5


def never():
    return False


class After:
    """Says stop once it was asked some times."""

    def __init__(self, times):
        self.left = times

    def __call__(self):
        self.left -= 1
        return self.left < 0


def train(sweeper, arm, stop=never, unit=0):
    return sweeper.start_unit(arm, unit, keys_of(UNIT), masks_of(UNIT), stop)


def assert_same(launched, expected):
    jax.tree.map(np.testing.assert_array_equal, launched.fetch(), expected.fetch())


@pytest.mark.parametrize("kind", ["sgd", "adamw", "augmented", "dropout"])
def test_it_trains_the_members_of_a_plain_sweep(kind):
    task = task_of(kind)
    sweepers = Sweeper(task, local_layout(8, 2)), stepped(task, 7)
    plain, found = (
        sweeper.start(keys_of(UNIT), masks_of(UNIT)).fetch().reports[0] for sweeper in sweepers
    )
    np.testing.assert_allclose(found.outputs, plain.outputs, atol=1e-4)
    np.testing.assert_array_equal(found.status, plain.status)


@pytest.mark.parametrize("width", [1, 8])
def test_the_bits_do_not_depend_on_how_many_steps_are_made_at_a_time(width):
    results = [
        stepped(make_task(), every, width).start(keys_of(6), masks_of(6)) for every in (1, 7, 100)
    ]
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("kind", ["sgd", "adamw", "augmented", "dropout"])
def test_stopped_again_and_again_and_gone_on_it_ends_with_the_same_bits(tmp_path, kind):
    task, arm = task_of(kind), make_arm(tmp_path)
    expected = stepped(task, 6).start(keys_of(UNIT), masks_of(UNIT))
    # 20 steps in four turns, twice: the last turn of all does not ask.
    turns = 0
    while (launched := train(stepped(task, 6), arm, After(1))) is None:
        turns += 1
    assert turns == 3
    assert_same(launched, expected)


def test_it_goes_on_where_it_was_and_not_from_the_beginning(tmp_path, monkeypatch):
    task, arm = make_task(), make_arm(tmp_path)
    assert train(stepped(task, 6), arm, After(5)) is None
    sweeper, seen = stepped(task, 6), []
    run = sweeper._training.run

    def watched(own, first, last):
        seen.append((first, last))
        return run(own, first, last)

    monkeypatch.setattr(sweeper._training, "run", watched)
    assert train(sweeper, arm) is not None
    assert seen == [(12, 18), (18, 20)]


# Where it cannot read, orbax leaves tasks behind that nobody waits for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_never_gone_on_from(tmp_path, damage):
    task = make_task()
    expected = stepped(task, 6).start(keys_of(UNIT), masks_of(UNIT))
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    assert train(stepped(task, 6), make_arm(whole), After(1)) is None
    files = [path for path in whole.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    sweeper = stepped(task, 20)
    for file in files:
        shutil.copytree(whole, copy)
        hit = copy / file.relative_to(whole)
        content = bytearray(hit.read_bytes())
        match damage:
            case "flip":
                content[len(content) // 2] ^= 1
                hit.write_bytes(content)
            case "cut":
                hit.write_bytes(content[:-1])
            case "gone":
                hit.unlink()
        arm = make_arm(copy)
        assert_same(train(sweeper, arm), expected)
        # Waits for what is being written.
        sweeper.finish_unit(arm, 0)
        shutil.rmtree(copy)


def test_a_save_that_was_cut_short_is_cleaned_and_not_read(tmp_path):
    task, arm = make_task(), make_arm(tmp_path)
    expected = stepped(task, 6).start(keys_of(UNIT), masks_of(UNIT))
    assert train(stepped(task, 6), arm, After(1)) is None
    (own,) = (tmp_path / "checkpoints" / "000000").iterdir()
    # As a kill leaves it: a folder that was never renamed.
    half = own / "12.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "arrays").mkdir()
    assert_same(train(stepped(task, 6), arm), expected)


def test_checkpoints_of_another_process_are_gone_on_from_and_deleted(tmp_path):
    task, arm, design = make_task(), make_arm(tmp_path), Bernoulli(0.5)
    sweep(stepped(task, 6), arm, design, [0], stop=After(3))
    (own,) = (tmp_path / "checkpoints" / "000000").iterdir()
    own.rename(own.with_name("another-host-17"))
    sweep(stepped(task, 6), arm, design, [0])
    assert list((tmp_path / "checkpoints").iterdir()) == []
    plain = make_arm(tmp_path / "plain")
    sweep(stepped(task, 100), plain, design, [0])
    np.testing.assert_array_equal(arm.read().outputs, plain.read().outputs)


def test_what_a_process_went_on_from_is_deleted_once_it_is_further(tmp_path):
    task, arm = make_task(), make_arm(tmp_path)
    for name in ("first", "second"):
        assert train(stepped(task, 2), arm, After(1)) is None
        (own,) = (tmp_path / "checkpoints" / "000000").glob("*-[0-9]*")
        own.rename(own.with_name(name))
    assert train(stepped(task, 2), arm, After(6)) is None
    (left,) = (tmp_path / "checkpoints" / "000000").iterdir()
    assert left.name not in ("first", "second")


def test_checkpoints_of_other_members_or_layouts_are_not_gone_on_from(tmp_path):
    task, arm = make_task(), make_arm(tmp_path)
    assert train(stepped(task, 6), arm, After(1)) is None
    masks = ~masks_of(UNIT)
    found = stepped(task, 6).start_unit(arm, 0, keys_of(UNIT), masks, never)
    assert_same(found, stepped(task, 6).start(keys_of(UNIT), masks))
    found = train(stepped(task, 6, width=1), arm)
    assert_same(found, stepped(task, 6, width=1).start(keys_of(UNIT), masks_of(UNIT)))


def test_checkpoints_of_finished_units_are_deleted(tmp_path):
    task, arm = make_task(), make_arm(tmp_path, members=2 * UNIT)
    for unit in (0, 1):
        assert train(stepped(task, 6), arm, After(0), unit) is None
    sweep(Sweeper(task, local_layout(8, 2)), arm, Bernoulli(0.5), [0])
    delete_finished(arm)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000001"]


def test_a_stopped_sweep_begins_no_other_unit(tmp_path):
    task, arm = make_task(), make_arm(tmp_path, members=3 * UNIT)
    sweep(stepped(task, 6), arm, Bernoulli(0.5), range(3), stop=After(3))
    assert arm.missing_units() == [0, 1, 2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000"]


def test_a_checkpoint_that_cannot_be_written_stops_nothing_and_is_logged(tmp_path, caplog):
    task, arm = make_task(), make_arm(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    assert train(stepped(task, 6), arm) is not None
    said = [one.getMessage() for one in caplog.records if one.name == "training.checkpoints"]
    assert len(said) == 1
    assert f"no checkpoint in {tmp_path}/checkpoints/000000/" in said[0]


def test_checkpoints_need_a_folder_or_google(tmp_path):
    arm = Arm(Store("s3://bucket/x"), make_spec(Bernoulli(0.5)), [TARGETS])
    with pytest.raises(UserError, match="in a folder or in gs://, not in s3://bucket/x"):
        train(stepped(make_task(), 6), arm)


def test_nothing_is_found_where_nothing_was_saved(tmp_path):
    assert UnitCheckpoints(Store(tmp_path), 3, "").newest([np.zeros(2)]) is None


def test_memory_is_told_beforehand():
    assert stepped(make_task(), 6).require_memory().needed > 0
