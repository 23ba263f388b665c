"""An arm on disk: what was committed comes back, and nothing else does."""

import json
import shutil
from dataclasses import replace

import commits
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import arm as arm_module
from training.arm import Arm, ArmSpec, Made, Rows, Status
from training.errors import UserError
from training.store import Store, seal


def make_spec(**changes):
    fields = {
        "name": "main",
        "members": 10,
        "groups": 13,
        "unit": 4,
        "seed": 0,
        "stream": 0,
        "design": {"kind": "bernoulli", "alpha": 0.5, "replicates": 1},
    }
    return ArmSpec(**{**fields, **changes})


def make_rows(spec, targets=5):
    rng = np.random.default_rng(0)
    return Rows(
        rng.random((spec.members, spec.groups)) < 0.5,
        rng.standard_normal((spec.members, targets)).astype(np.float32),
        rng.integers(0, 3, spec.members).astype(np.uint8),
    )


def make_arm(folder, spec=None, panels=(5,)):
    return Arm(Store(folder), spec or make_spec(), panels)


def commit(arm, rows, unit):
    commits.commit(arm, unit, rows, Made({"device_kind": "cpu"}))


def fill(arm, rows):
    for unit in arm.missing_units():
        commit(arm, rows, unit)


def filled(folder, spec=None, panels=(5,)):
    arm = make_arm(folder, spec, panels)
    rows = make_rows(arm.spec, arm.targets)
    fill(arm, rows)
    return rows


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@given(
    members=st.integers(1, 20),
    groups=st.integers(1, 40),
    panels=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    unit=st.integers(1, 8),
)
def test_what_was_committed_comes_back(tmp_path_factory, members, groups, panels, unit):
    spec = make_spec(members=members, groups=groups, unit=unit)
    folder = tmp_path_factory.mktemp("bank")
    rows = filled(folder, spec, panels)
    assert_same(make_arm(folder, spec, panels).read(), rows)


BLOCK = arm_module.TARGET_BLOCK


@given(
    members=st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda s: s[0] < s[1]),
    targets=st.tuples(st.integers(0, 2 * BLOCK), st.integers(1, BLOCK)),
)
def test_any_rows_and_targets_alone_are_those_of_the_whole(wide, members, targets):
    folder, spec, panels, rows = wide
    cut = slice(members[0], members[1])
    columns = slice(targets[0], min(targets[0] + targets[1], sum(panels)))
    arm = make_arm(folder, spec, panels)
    np.testing.assert_array_equal(arm.read_outputs(columns, cut), rows.outputs[cut, columns])
    np.testing.assert_array_equal(arm.read_masks(cut), rows.masks[cut])
    np.testing.assert_array_equal(arm.read_status(cut), rows.status[cut])


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """More targets than one inner chunk, in two panels."""
    folder, spec, panels = (
        tmp_path_factory.mktemp("wide"),
        make_spec(members=12),
        (BLOCK + 3, BLOCK),
    )
    return folder, spec, panels, filled(folder, spec, panels)


def test_only_the_blocks_of_targets_that_are_asked_for_are_read(wide, tmp_path):
    folder, spec, panels, rows = wide
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "1" / "outputs")
    arm = make_arm(copy, spec, panels)
    np.testing.assert_array_equal(arm.read_outputs(slice(0, 10)), rows.outputs[:, :10])
    with pytest.raises(UserError, match="1/outputs is damaged"):
        arm.read_outputs(slice(0, BLOCK + 4))


def test_values_that_are_not_finite_survive(tmp_path):
    rows, arm = make_rows(make_spec()), make_arm(tmp_path)
    rows.outputs[3] = np.nan
    rows.outputs[4] = -np.inf
    fill(arm, rows)
    np.testing.assert_array_equal(arm.read().outputs, rows.outputs)


def test_a_unit_of_nothing_but_zeros_is_data(tmp_path):
    spec, arm = make_spec(), make_arm(tmp_path)
    empty = Rows(np.zeros((10, 13), bool), np.zeros((10, 5), np.float32), np.full(10, 2, np.uint8))
    fill(arm, empty)
    assert_same(make_arm(tmp_path, spec).read(), empty)


def test_rows_not_yet_run_are_never_read(tmp_path):
    rows, arm = make_rows(make_spec()), make_arm(tmp_path)
    commit(arm, rows, 1)
    assert arm.missing_units() == [0, 2]
    assert [arm.is_done(unit) for unit in range(3)] == [False, True, False]
    with pytest.raises(UserError, match=r"lacks 2 of 3 units \(first: 0\)"):
        arm.read()
    with pytest.raises(UserError, match=r"lacks 1 of 3 units \(first: 0\)"):
        arm.read_masks(slice(3, 8))
    np.testing.assert_array_equal(arm.read_masks(slice(4, 8)), rows.masks[4:8])


def test_nothing_is_written_before_the_first_commit(tmp_path):
    arm = make_arm(tmp_path / "arm")
    assert arm.missing_units() == [0, 1, 2]
    assert not (tmp_path / "arm").exists()


def test_a_unit_counts_only_with_its_record(tmp_path, monkeypatch):
    arm = make_arm(tmp_path)

    def crash(self, name, content):
        raise OSError("disk pulled out")

    monkeypatch.setattr(Store, "write", crash)
    with pytest.raises(UserError, match=r"cannot write unit 0 .*disk pulled out"):
        commit(arm, make_rows(arm.spec), 0)
    assert arm.missing_units() == [0, 1, 2]


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flipped(content, rng):
    position = rng.integers(len(content))
    return (
        content[:position]
        + bytes([content[position] ^ (1 << int(rng.integers(8)))])
        + content[position + 1 :]
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damage_to_any_file_is_repaired_or_refused_and_never_read(tmp_path, damage):
    """Every file in turn; what is read is what was written, and a sweep mends all of it."""
    rng = np.random.default_rng(0)
    rows = filled(tmp_path / "whole", panels=(3, 2))
    files = files_of(tmp_path / "whole")
    # Three arrays of 3 chunks, twice two of them, their descriptions, and the records.
    assert len(files) == 3 + 4 * 3 + 5 + 6
    for file in files:
        for _ in range(2 if damage == "flip" else 1):
            folder = shutil.copytree(tmp_path / "whole", tmp_path / "copy", dirs_exist_ok=True)
            hit = folder / file.relative_to(tmp_path / "whole")
            content = hit.read_bytes()
            match damage:
                case "flip":
                    hit.write_bytes(flipped(content, rng))
                case "cut":
                    hit.write_bytes(content[:-1])
                case "empty":
                    hit.write_bytes(b"")
                case "gone":
                    hit.unlink()
            try:
                assert_same(make_arm(folder, panels=(3, 2)).read(), rows)
            except UserError as error:
                assert "is damaged" in str(error) or "lacks 1 of 3 units" in str(error)
            arm = make_arm(folder, panels=(3, 2))
            for unit in arm.unfinished_units():
                commit(arm, rows, unit)
            assert_same(make_arm(folder, panels=(3, 2)).read(), rows)
            assert arm.unfinished_units() == []


def test_damage_is_named(tmp_path):
    filled(tmp_path)
    shard = next(path for path in (tmp_path / "0" / "outputs").rglob("c/*/*") if path.is_file())
    shard.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"0/outputs is damaged .* sweep again"):
        make_arm(tmp_path).read()
    assert make_arm(tmp_path).damaged_units() == [int(shard.parent.name)]


def test_the_record_says_where_and_when_a_unit_was_made(tmp_path):
    arm = make_arm(tmp_path)
    commit(arm, make_rows(arm.spec), 2)
    record = json.loads((tmp_path / "0" / "done" / "000002.json").read_text())
    assert record["members"] == [8, 10]
    assert record["made_on"] == {"device_kind": "cpu"}
    assert record["time"] > 0
    assert record["host"]


def test_a_record_of_another_unit_does_not_count(tmp_path):
    arm = make_arm(tmp_path)
    commit(arm, make_rows(arm.spec), 0)
    done = tmp_path / "0" / "done"
    (done / "000000.json").rename(done / "000001.json")
    assert arm.missing_units() == [0, 1, 2]


def test_an_arm_grows_and_keeps_what_it_has(tmp_path):
    small, large = make_spec(members=10), make_spec(members=17)
    rows = make_rows(large)
    fill(make_arm(tmp_path, small), Rows(*(part[:10] for part in rows)))
    arm = make_arm(tmp_path, large)
    # Unit 2 had two of its four members.
    assert arm.missing_units() == [2, 3, 4]
    np.testing.assert_array_equal(arm.read_outputs(members=slice(0, 8)), rows.outputs[:8])
    fill(arm, rows)
    assert_same(make_arm(tmp_path, large).read(), rows)


def test_targets_are_added_as_a_panel_of_their_own(tmp_path):
    rows = make_rows(make_spec(), 7)
    fill(make_arm(tmp_path, panels=(5,)), rows._replace(outputs=rows.outputs[:, :5]))
    arm = make_arm(tmp_path, panels=(5, 2))
    assert arm.missing_units() == [0, 1, 2]
    assert make_arm(tmp_path, panels=(5,)).missing_units() == []
    fill(arm, rows)
    assert_same(make_arm(tmp_path, panels=(5, 2)).read(), rows)


def test_a_member_is_not_finite_where_any_panel_says_so(tmp_path):
    spec, arm = make_spec(), make_arm(tmp_path, panels=(3, 2))
    rows = make_rows(spec)._replace(status=np.zeros(10, np.uint8))
    fill(arm, rows)
    status = arm.store.open_array("1/status", arm._schema("1/status"))
    status[4].write(Status.NOT_FINITE).result()
    done = tmp_path / "1" / "done" / "000001.json"
    record = json.loads(done.read_text())
    del record["checksum"]
    part = np.array([Status.NOT_FINITE, 0, 0, 0], np.uint8)
    record["sha256"]["1/status"] = arm_module._digests(part)
    done.write_bytes(seal(record))
    assert make_arm(tmp_path, panels=(3, 2)).read_status().tolist() == [0] * 4 + [1] + [0] * 5


def test_other_bits_than_before_are_refused_unless_allowed(tmp_path):
    arm, spec = make_arm(tmp_path), make_spec()
    rows = filled(tmp_path, spec)
    commit(arm, rows, 1)  # the same again
    rows.outputs[5, 0] += 1
    with pytest.raises(UserError, match="unit 1 came out with other bits than before"):
        commit(arm, rows, 1)
    commits.commit(arm, 1, rows, allow_mixed=True)
    assert_same(make_arm(tmp_path, spec).read(), rows)


def test_units_made_elsewhere_are_refused(tmp_path):
    arm = make_arm(tmp_path)
    arm.check_made_on({"device_kind": "TPU v5 lite"})
    commit(arm, make_rows(arm.spec), 0)
    arm.check_made_on({"device_kind": "cpu"})
    with pytest.raises(UserError, match=r"begun with device_kind = cpu, and here it is TPU"):
        arm.check_made_on({"device_kind": "TPU v5 lite"})


def test_members_that_are_not_finite_are_not_usable():
    status = np.array([Status.OK, Status.NOT_FINITE, Status.EMPTY_MASK], np.uint8)
    rows = Rows(np.zeros((3, 2), bool), np.zeros((3, 1), np.float32), status)
    assert rows.usable.tolist() == [True, False, True]


def test_two_writers_of_one_unit_do_no_damage(tmp_path):
    spec = make_spec()
    rows, first, second = make_rows(spec), make_arm(tmp_path), make_arm(tmp_path)
    for unit in range(spec.units):
        commit(first, rows, unit)
        commit(second, rows, unit)
    assert_same(make_arm(tmp_path, replace(spec, unit=4)).read(), rows)
