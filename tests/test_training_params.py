"""Kept parameters: new targets cost only their outputs, with the bits that training would give."""

import os
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_training_stepped import Dropout
from test_training_sweep import EXAMPLES, TARGETS, make_spec, make_task

from datamodels.design import Bernoulli
from training.arm import Arm
from training.errors import UserError
from training.models import ModelConfig, build_model
from training.parallel import local_layout
from training.params import KeptParams
from training.seeds import root_key, training_key
from training.stepped import SteppedSweeper
from training.store import Store
from training.sweep import Sweeper, param_bytes, sweep
from training.train import make_train
from training.variables import to_named

FIRST, ADDED = 9, TARGETS - 9
DESIGN = Bernoulli(0.5)
SPEC = make_spec(DESIGN, members=40, unit=16)


def task_of(kind, panels):
    task = make_task()
    if kind == "dropout":
        config = ModelConfig(factory=f"{Dropout.__module__}:Dropout")
        task = task._replace(model=build_model(config, (6, 6, 1), 4))
    return task._replace(targets=task.targets.take(slice(0, sum(panels))), panels=panels)


def sweeper_of(kind, panels):
    task, layout = task_of(kind, panels), local_layout(8, 2)
    return SteppedSweeper(task, layout, 7) if kind == "stepped" else Sweeper(task, layout)


def arm_of(folder, panels, spec=SPEC):
    return Arm(Store(folder), spec, panels)


def run(sweeper, arm, **options):
    sweep(sweeper, arm, DESIGN, arm.unfinished_units(), **options)
    return arm.read()


@pytest.fixture(scope="module")
def two_panels():
    return sweeper_of("plain", (FIRST, ADDED))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    run(sweeper_of("plain", (FIRST,)), arm_of(folder, (FIRST,)), keep_params=True)
    return folder


@pytest.fixture
def copied(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "copy")


@pytest.fixture(scope="module")
def trained(two_panels, tmp_path_factory):
    return run(two_panels, arm_of(tmp_path_factory.mktemp("trained"), (FIRST, ADDED)))


def without_training(sweeper, monkeypatch):
    def refuse(*words, **options):
        raise AssertionError("trained")

    monkeypatch.setattr(sweeper, "start", refuse)
    return sweeper


def flip_the_largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def assert_same(rows, expected):
    jax.tree.map(np.testing.assert_array_equal, rows, expected)


def test_new_targets_are_evaluated_with_the_bits_that_training_gives(
    copied, two_panels, trained, monkeypatch
):
    sweeper = without_training(two_panels, monkeypatch)
    assert_same(run(sweeper, arm_of(copied, (FIRST, ADDED))), trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dropout", "stepped"])
def test_whatever_is_trained_comes_back(kind, tmp_path, monkeypatch):
    whole = run(sweeper_of(kind, (FIRST, ADDED)), arm_of(tmp_path / "whole", (FIRST, ADDED)))
    first = sweeper_of(kind, (FIRST,))
    run(first, arm_of(tmp_path / "kept", (FIRST,)), keep_params=True)
    sweeper = without_training(sweeper_of(kind, (FIRST, ADDED)), monkeypatch)
    assert_same(run(sweeper, arm_of(tmp_path / "kept", (FIRST, ADDED))), whole)


def test_they_are_those_of_a_single_training_by_name(kept):
    task = make_task()
    train = jax.jit(make_train(task.recipe, task.model, task.examples))
    (mask,) = DESIGN.masks(root_key(5, 0), np.array([17]), EXAMPLES)
    expected = to_named(train(training_key(root_key(5, 0), 17, 0), mask))
    found = KeptParams(arm_of(kept, (FIRST,))).read(1)
    assert found is not None
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name][1], values, atol=1e-5)
    size = sum(values[0].nbytes for values in found.values())
    assert param_bytes(task.model) == size


def test_orbax_alone_reads_them(kept):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        arrays = ocp.args.StandardRestore()
        (folder,) = (kept / "params" / "000002").iterdir()
        found = reader.restore(folder, ocp.args.Composite(arrays=arrays))
    assert found["arrays"]["output.kernel"].shape[0] == 8


# Where it cannot read, orbax leaves tasks behind that nobody waits for.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_parameters_are_never_used(copied, damage):
    params = KeptParams(arm_of(copied, (FIRST,)))
    whole = params.read(1)
    assert whole is not None
    files = [path for path in (copied / "params" / "000001").rglob("*") if path.is_file()]
    lost = 0
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        match damage:
            case "flip" if content:
                flipped = bytes([content[middle] ^ 1])
                file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
            case "cut":
                file.write_bytes(content[:-1])
            case "gone":
                file.unlink()
        found = params.read(1)
        # Damage to what decides nothing, such as a time, is none.
        if found is None:
            lost += 1
        else:
            assert_same(found, whole)
        file.write_bytes(content)
    assert lost > 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["gone", "flip"])
def test_a_unit_without_parameters_is_trained_again(copied, two_panels, trained, damage):
    folder = copied / "params" / "000001"
    if damage == "gone":
        shutil.rmtree(folder)
    else:
        flip_the_largest(folder)
    arm = arm_of(copied, (FIRST, ADDED))
    assert_same(run(two_panels, arm, keep_params=True), trained)
    assert KeptParams(arm).read(1) is not None


def test_damaged_outputs_are_evaluated_again(copied, two_panels, trained, monkeypatch):
    run(two_panels, arm_of(copied, (FIRST, ADDED)))
    hit = copied / "0" / "outputs" / "c" / "2" / "0"
    hit.write_bytes(hit.read_bytes()[:-1])
    arm = arm_of(copied, (FIRST, ADDED))
    assert arm.unfinished_units() == [2]
    assert arm.lacking_panels(2) == [0]
    assert_same(run(without_training(two_panels, monkeypatch), arm), trained)


def test_a_unit_that_grew_is_trained_as_a_whole(copied, two_panels, tmp_path):
    more = replace(SPEC, members=45)
    grown = run(two_panels, arm_of(copied, (FIRST, ADDED), more))
    assert_same(grown, run(two_panels, arm_of(tmp_path / "fresh", (FIRST, ADDED), more)))


def test_a_unit_that_another_process_made_in_the_meantime_is_left_alone(copied):
    sweeper, arm, told = sweeper_of("plain", (FIRST,)), arm_of(copied, (FIRST,)), []
    before = arm.read()
    sweep(sweeper, arm, DESIGN, [0, 1], lambda unit, status: told.append(unit))
    assert not told
    assert_same(arm.read(), before)


def test_what_a_killed_process_left_is_never_read_and_cleaned_once_it_is_old(copied):
    params = KeptParams(arm_of(copied, (FIRST,)))
    folder = copied / "params" / "000000"
    (whole,) = folder.iterdir()
    left = [
        shutil.copytree(whole, folder / f"{host}-7.orbax-checkpoint-tmp") for host in ("old", "new")
    ]
    os.utime(left[0], (0, 0))
    params.clean()
    assert sorted(path.name for path in folder.iterdir()) == sorted([whole.name, left[1].name])
    shutil.rmtree(whole)
    assert params.read(0) is None


def test_two_processes_keep_a_folder_each_and_damaged_ones_go(copied):
    params = KeptParams(arm_of(copied, (FIRST,)))
    folder = copied / "params" / "000000"
    (whole,) = folder.iterdir()
    found = params.read(0)
    other = whole.rename(folder / "elsewhere-7")
    params.write(0, found)
    assert list(folder.iterdir()) == [other]  # it is kept already
    flip_the_largest(other)
    params.write(0, found)
    assert list(folder.iterdir()) == [whole]
    assert_same(params.read(0), found)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://bucket/bank", "in a folder or in gs://, not in s3://bucket/bank"),
        ("gs://bucket/bank", "in gs://bucket/bank need gcsfs, which is not installed"),
    ],
)
def test_parameters_are_not_kept_where_orbax_does_not_write(place, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    arm = Arm(Store(place), SPEC, (FIRST,))
    assert KeptParams(arm).read(0) is None
    with pytest.raises(UserError, match=said):
        KeptParams(arm).write(0, {"kernel": np.zeros((16, 2))})


def test_parameters_that_cannot_be_written_are_told(tmp_path, two_panels):
    arm = arm_of(tmp_path, (FIRST, ADDED))
    (tmp_path / "params").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the parameters of unit 0 to .*; free some"):
        run(two_panels, arm, keep_params=True)
    assert arm.missing_units() == [0, 1, 2]
