"""The sweep: equal to a plain loop, and to itself however it is cut, placed or interrupted."""

import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from datamodels.design import Bernoulli, Listed
from training.arm import Arm, ArmSpec, Status
from training.errors import UserError
from training.examples import Examples, fit_normaliser
from training.models import ModelConfig, build_model
from training.optim import OptimConfig
from training.outputs import margin
from training.parallel import local_layout
from training.seeds import root_key, training_key, training_keys
from training.store import Store
from training.sweep import Sweeper, Task, sweep
from training.train import Recipe, make_evaluate, make_train

EXAMPLES, TARGETS, CLASSES = 40, 15, 4


def make_task(name="mlp", **optim):
    rng = np.random.default_rng(0)
    centres = 60 * rng.standard_normal((CLASSES, 6, 6, 1)) + 128

    def draw(count):
        labels = rng.integers(0, CLASSES, count).astype(np.int32)
        noise = 40 * rng.standard_normal((count, 6, 6, 1))
        return Examples(np.clip(centres[labels] + noise, 0, 255).astype(np.uint8), labels)

    examples, targets = draw(EXAMPLES), draw(TARGETS)
    optim = OptimConfig(**{"steps": 20, "batch_size": 8, "learning_rate": 0.05, **optim})
    recipe = Recipe(optim, fit_normaliser(examples.inputs))
    model = build_model(ModelConfig(name=name, width=8), (6, 6, 1), CLASSES)
    return Task(recipe, model, examples, targets, margin)


def make_spec(design, members=70, unit=32, stream=0):
    return ArmSpec("main", members, EXAMPLES, unit, 5, stream, design.describe())


def keys_of(count):
    return training_keys(root_key(0, 0), np.arange(count), np.zeros(count, int))


@pytest.fixture(scope="module")
def sweeper():
    return Sweeper(make_task(), local_layout(8, 2))


def run_sweep(sweeper, folder, design, spec, on_unit=lambda unit, rows: None):
    arm = Arm(Store(folder), spec, [TARGETS])
    sweep(sweeper, arm, design, arm.unfinished_units(), on_unit)
    return arm.read()


@pytest.mark.parametrize(("name", "width"), [("linear", 4), ("mlp", 4), ("cnn", 4), ("cnn", 1)])
def test_a_sweep_equals_a_plain_loop_of_single_trainings(name, width, tmp_path):
    task, design = make_task(name), Bernoulli(0.5, replicates=2)
    sweeper = Sweeper(task, local_layout(width, 2))
    rows = run_sweep(sweeper, tmp_path, design, make_spec(design, 11))
    root = root_key(5, 0)
    train = jax.jit(make_train(task.recipe, task.model, task.examples))
    evaluate = jax.jit(make_evaluate(task.recipe, task.model, task.targets, task.output))
    for member in range(11):
        mask = design.masks(root, np.array([member]), EXAMPLES)[0]
        np.testing.assert_array_equal(rows.masks[member], mask)
        state = train(training_key(root, member // 2, member % 2), mask)
        np.testing.assert_allclose(rows.outputs[member], evaluate(state), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 8])
def test_the_bits_do_not_depend_on_the_unit_size(width, tmp_path):
    design, sweeper = Bernoulli(0.5), Sweeper(make_task(), local_layout(width, 2))
    results = [
        run_sweep(sweeper, tmp_path / str(unit), design, make_spec(design, unit=unit))
        for unit in (8, 32, 64)
    ]
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_device_counts_agree_within_1e_4(tmp_path):
    design = Bernoulli(0.5)
    results = [
        run_sweep(
            Sweeper(make_task(), local_layout(8, count)),
            tmp_path / str(count),
            design,
            make_spec(design),
        )
        for count in (1, 2, 4)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].masks, other.masks)
        np.testing.assert_allclose(results[0].outputs, other.outputs, atol=1e-4)


class Stop(Exception):
    pass


def test_interrupted_and_resumed_equals_uninterrupted(sweeper, tmp_path):
    design, spec = Bernoulli(0.5), make_spec(Bernoulli(0.5), unit=16)
    whole = run_sweep(sweeper, tmp_path / "whole", design, spec)

    def stop_after_two(unit, rows):
        if unit == 1:
            raise Stop

    with pytest.raises(Stop):
        run_sweep(sweeper, tmp_path / "cut", design, spec, stop_after_two)
    arm = Arm(Store(tmp_path / "cut"), spec, [TARGETS])
    assert arm.missing_units() == [2, 3, 4]
    made = []
    resumed = run_sweep(
        sweeper, tmp_path / "cut", design, spec, lambda unit, rows: made.append(unit)
    )
    assert made == [2, 3, 4]
    for first, second in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(first, second)


def test_asked_to_stop_it_finishes_what_is_in_training_and_begins_nothing(sweeper, tmp_path):
    design, spec = Bernoulli(0.5), make_spec(Bernoulli(0.5), unit=16)
    arm, made = Arm(Store(tmp_path), spec, [TARGETS]), []
    sweep(
        sweeper,
        arm,
        design,
        range(spec.units),
        lambda unit, rows: made.append(unit),
        stop=lambda: bool(made),
    )
    # The second was in training when the first was committed.
    assert made in ([0, 1], [0, 1, 2])
    assert arm.missing_units() == [unit for unit in range(5) if unit not in made]


def test_a_unit_that_another_process_finished_meanwhile_is_left_alone(sweeper, tmp_path):
    design, spec = Bernoulli(0.5), make_spec(Bernoulli(0.5), unit=16)
    ours, theirs = (Arm(Store(tmp_path), spec, [TARGETS]) for _ in range(2))
    made = []

    def others_finish_the_rest(unit, rows):
        made.append(unit)
        if unit == 0:
            sweep(sweeper, theirs, design, [2, 3, 4])

    sweep(sweeper, ours, design, range(5), others_finish_the_rest)
    assert set(made) <= {0, 1, 2}
    assert ours.unfinished_units() == []


def test_a_damaged_unit_is_made_again_with_the_same_bits(sweeper, tmp_path):
    design, spec = Bernoulli(0.5), make_spec(Bernoulli(0.5), unit=16)
    before = run_sweep(sweeper, tmp_path, design, spec)
    shard = tmp_path / "0" / "outputs" / "c" / "3" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    made = []
    after = run_sweep(sweeper, tmp_path, design, spec, lambda unit, rows: made.append(unit))
    assert made == [3]
    np.testing.assert_array_equal(before.outputs, after.outputs)


def test_a_lost_unit_is_made_again_with_the_same_bits(sweeper, tmp_path):
    design, spec = Bernoulli(0.5), make_spec(Bernoulli(0.5), unit=16)
    before = run_sweep(sweeper, tmp_path, design, spec)
    (tmp_path / "0" / "done" / "000001.json").unlink()
    made = []
    after = run_sweep(sweeper, tmp_path, design, spec, lambda unit, rows: made.append(unit))
    assert made == [1]
    np.testing.assert_array_equal(before.outputs, after.outputs)


def test_one_trace_serves_every_unit_arm_and_ragged_end(tmp_path):
    traces = []
    task = make_task()

    def counting(logits, labels):
        traces.append(1)
        return margin(logits, labels)

    counted = Sweeper(task._replace(output=counting), local_layout(8, 2))
    for stream, design in enumerate([Bernoulli(0.5), Bernoulli(0.2, replicates=3)]):
        spec = make_spec(design, members=37, unit=16, stream=stream)
        run_sweep(counted, tmp_path / str(stream), design, spec)
    assert len(traces) == 1


def test_replicates_share_masks_and_differ_in_outputs(sweeper, tmp_path):
    design = Bernoulli(0.5, replicates=3)
    rows = run_sweep(sweeper, tmp_path, design, make_spec(design, 6))
    np.testing.assert_array_equal(rows.masks[0], rows.masks[2])
    assert (rows.masks[0] != rows.masks[3]).any()
    assert np.abs(rows.outputs[0] - rows.outputs[1]).max() > 1e-3


def test_members_that_are_not_finite_or_empty_are_marked(tmp_path):
    task = make_task(learning_rate=1e4, schedule="constant")
    design = Listed(np.array([[True] * EXAMPLES, [False] * EXAMPLES]), np.array([0, 1]))
    rows = run_sweep(Sweeper(task, local_layout(2, 1)), tmp_path, design, make_spec(design, 2))
    assert rows.status.tolist() == [Status.NOT_FINITE, Status.EMPTY_MASK]
    assert rows.usable.tolist() == [False, True]


def test_no_data_moves_between_devices_while_members_train(sweeper):
    masks, keys = np.ones((20, EXAMPLES), bool), keys_of(20)
    sweeper.start(keys, masks).fetch()
    # What goes in and comes out is moved explicitly; nothing else may move.
    with jax.transfer_guard("disallow"):
        sweeper.start(keys, masks).fetch()


def test_a_unit_is_written_while_the_next_one_trains(sweeper, tmp_path, monkeypatch):
    """Writing a unit here waits for the next to begin: one after the other, it would not end."""
    begun = [threading.Event() for _ in range(5)]
    start, started = sweeper.start, []

    def start_and_tell(keys, masks, *, keep):
        launched = start(keys, masks, keep=keep)
        begun[len(started)].set()
        started.append(len(keys))
        return launched

    def wait_for_the_next(unit, rows):
        if unit < 4:
            assert begun[unit + 1].wait(timeout=60)

    monkeypatch.setattr(sweeper, "start", start_and_tell)
    design = Bernoulli(0.5)
    run_sweep(sweeper, tmp_path, design, make_spec(design, unit=16), wait_for_the_next)
    assert started == [16, 16, 16, 16, 6]


def test_with_a_common_seed_outputs_depend_on_the_mask_alone(sweeper, tmp_path):
    masks = np.random.default_rng(0).random((2, EXAMPLES)) < 0.5
    design = Listed(masks[[0, 1, 0]], np.array([0, 0, 1]))
    spec = make_spec(design, 3)
    own = run_sweep(sweeper, tmp_path / "own", design, spec)
    common = replace(spec, common_seed=True)
    shared = run_sweep(sweeper, tmp_path / "common", design, common)
    np.testing.assert_array_equal(shared.outputs[0], shared.outputs[2])
    assert (own.outputs[0] != own.outputs[2]).any()
    train = make_train(make_task().recipe, make_task().model, make_task().examples)
    evaluate = make_evaluate(*make_task()[:2], make_task().targets, margin)
    expected = evaluate(jax.jit(train)(training_key(root_key(5, 0), 0, 0), masks[1]))
    np.testing.assert_allclose(shared.outputs[1], expected, atol=2e-5)


def test_a_batch_in_pieces_trains_the_same_member(sweeper):
    masks, keys = np.random.default_rng(0).random((6, EXAMPLES)) < 0.5, keys_of(6)
    cut = Sweeper(make_task(), local_layout(8, 2, microbatch=2))
    whole, pieces = (one.start(keys, masks).fetch().reports[0] for one in (sweeper, cut))
    np.testing.assert_allclose(whole.outputs, pieces.outputs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("microbatch", [0, 1000])
def test_too_little_memory_is_refused_before_anything_runs(microbatch):
    task = make_task("cnn", batch_size=50_000_000)
    huge = Sweeper(task, local_layout(1, 2, microbatch=microbatch))
    with pytest.raises(UserError) as caught:
        huge.require_memory()
    assert "training 1 member(s) at a time on each of 2 cpu device(s) needs " in str(caught.value)
    assert "GB is free; lower optim.batch_size, model.width or sweep.width" in str(caught.value)


@pytest.mark.slow
def test_memory_grows_with_the_members_side_by_side_and_shrinks_with_the_pieces():
    def needed(width, microbatch):
        task = make_task("cnn", batch_size=512)
        return Sweeper(task, local_layout(width, 2, microbatch)).require_memory().needed

    assert needed(4, 0) > 2 * needed(1, 0)
    assert needed(1, 64) < 0.5 * needed(1, 0)
