"""The bank on disk: what was committed comes back, and nothing else does."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import bank
from training.bank import ArmSpec, Rows, Status, create_arms
from training.errors import UserError


def make_spec(**changes):
    fields = {
        "name": "main",
        "members": 10,
        "groups": 13,
        "targets": 5,
        "unit": 4,
        "seed": 0,
        "stream": 0,
        "design": {"kind": "bernoulli", "alpha": 0.5, "replicates": 1},
    }
    return ArmSpec(**{**fields, **changes})


def make_rows(spec, seed=0):
    rng = np.random.default_rng(seed)
    return Rows(
        rng.random((spec.members, spec.groups)) < 0.5,
        rng.standard_normal((spec.members, spec.targets)).astype(np.float32),
        rng.integers(0, 3, spec.members).astype(np.uint8),
    )


def open_arm(folder, spec):
    """The arm in a folder of its name, created first where it does not exist."""
    create_arms(folder, [spec])
    return bank.open_arm(folder / spec.name, spec)


def commit(arm, rows, unit):
    members = arm.spec.unit_rows(unit)
    arm.commit(unit, Rows(*(part[members] for part in rows)), {"device_kind": "cpu"})


def fill(arm, rows):
    for unit in arm.missing_units():
        commit(arm, rows, unit)


@given(
    members=st.integers(1, 20),
    groups=st.integers(1, 40),
    targets=st.integers(1, 7),
    unit=st.integers(1, 8),
)
def test_what_was_committed_comes_back(tmp_path_factory, members, groups, targets, unit):
    spec = make_spec(members=members, groups=groups, targets=targets, unit=unit)
    folder, rows = tmp_path_factory.mktemp("bank") / "arm", make_rows(spec)
    fill(open_arm(folder, spec), rows)
    for stored, written in zip(open_arm(folder, spec).read(), rows, strict=True):
        np.testing.assert_array_equal(stored, written)


def test_more_targets_than_one_inner_chunk(tmp_path):
    spec = make_spec(targets=bank.TARGET_BLOCK + 3)
    rows = make_rows(spec)
    arm = open_arm(tmp_path, spec)
    fill(arm, rows)
    np.testing.assert_array_equal(arm.read().outputs, rows.outputs)


def test_values_that_are_not_finite_survive(tmp_path):
    spec = make_spec()
    rows = make_rows(spec)
    rows.outputs[3] = np.nan
    rows.outputs[4] = -np.inf
    arm = open_arm(tmp_path, spec)
    fill(arm, rows)
    np.testing.assert_array_equal(arm.read().outputs, rows.outputs)


def test_rows_not_yet_run_are_never_read(tmp_path):
    spec = make_spec()
    arm = open_arm(tmp_path, spec)
    commit(arm, make_rows(spec), 1)
    assert arm.missing_units() == [0, 2]
    with pytest.raises(UserError, match=r"lacks 2 of 3 units \(first: 0\)"):
        arm.read()


def test_a_unit_counts_only_with_its_record(tmp_path, monkeypatch):
    spec = make_spec()
    arm = open_arm(tmp_path, spec)

    def crash(path, text):
        raise OSError("disk pulled out")

    monkeypatch.setattr(bank, "write_atomically", crash)
    with pytest.raises(OSError, match="disk pulled out"):
        commit(arm, make_rows(spec), 0)
    assert arm.missing_units() == [0, 1, 2]


@pytest.mark.parametrize("name", ["masks", "outputs", "status"])
def test_a_changed_unit_is_found_by_its_checksum(tmp_path, name):
    spec = make_spec()
    arm = open_arm(tmp_path, spec)
    fill(arm, make_rows(spec))
    array = arm._arrays[name]
    array[9].write(array[9].read().result() + 1).result()
    with pytest.raises(UserError, match="unit 2 does not match its checksum"):
        arm.read()


def test_the_record_says_where_a_unit_was_made(tmp_path):
    spec = make_spec()
    arm = open_arm(tmp_path, spec)
    commit(arm, make_rows(spec), 2)
    record = json.loads((tmp_path / "main" / "done" / "000002.json").read_text())
    assert record["members"] == [8, 10]
    assert record["made_on"] == {"device_kind": "cpu"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("members", 11), ("groups", 14), ("targets", 6), ("seed", 1), ("stream", 1)],
)
def test_another_arm_is_refused_naming_the_field_and_both_values(tmp_path, field, value):
    spec = make_spec()
    open_arm(tmp_path, spec)
    with pytest.raises(UserError, match=rf"its {field} is {getattr(spec, field)}, not {value}"):
        open_arm(tmp_path, make_spec(**{field: value}))


def test_another_design_is_refused(tmp_path):
    open_arm(tmp_path, make_spec())
    with pytest.raises(UserError, match="its design is"):
        open_arm(tmp_path, make_spec(design={"kind": "bernoulli", "alpha": 0.2, "replicates": 1}))


def test_another_unit_size_keeps_the_stored_one(tmp_path):
    open_arm(tmp_path, make_spec(unit=4))
    assert open_arm(tmp_path, make_spec(unit=5)).spec.unit == 4


def test_too_little_disk_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "bank"
    half = shutil.disk_usage(tmp_path).free * 6 // 10 // 4
    specs = [make_spec(name=name, members=half, targets=1, groups=0) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"needs \d*\.\d GB .* GB free; choose another --out"):
        create_arms(folder, specs)
    assert not folder.exists()


def test_a_missing_arm_is_named_and_not_created(tmp_path):
    with pytest.raises(UserError, match="holds no retrained members yet"):
        bank.open_arm(tmp_path / "main", make_spec())
    assert not (tmp_path / "main").exists()


def test_a_shard_that_cannot_be_decoded_is_named(tmp_path):
    spec = make_spec()
    arm = open_arm(tmp_path, spec)
    fill(arm, make_rows(spec))
    shard = next(path for path in (arm.folder / "outputs").rglob("c/*/*") if path.is_file())
    shard.write_bytes(b"garbage")
    with pytest.raises(UserError, match="is damaged"):
        open_arm(tmp_path, spec).read()


def test_units_made_elsewhere_are_refused(tmp_path):
    spec = make_spec()
    arm = open_arm(tmp_path, spec)
    arm.check_made_on({"device_kind": "TPU v5 lite"})
    commit(arm, make_rows(spec), 0)
    arm.check_made_on({"device_kind": "cpu"})
    with pytest.raises(UserError, match=r"begun with device_kind = cpu, and here it is TPU"):
        arm.check_made_on({"device_kind": "TPU v5 lite"})


def test_members_that_are_not_finite_are_not_usable():
    status = np.array([Status.OK, Status.NOT_FINITE, Status.EMPTY_MASK], np.uint8)
    rows = Rows(np.zeros((3, 2), bool), np.zeros((3, 1), np.float32), status)
    assert rows.usable.tolist() == [True, False, True]
