"""Real processes that are killed, stopped, started twice or out of disk lose and change nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fault_injection.py"


@pytest.fixture(scope="module")
def results():
    """Three kills, and every other scenario, small."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    # Before Python can handle a signal, it ends the process as the system would.
    ("name", "codes"),
    [("SIGKILL", {-9}), ("SIGTERM", {143, -15}), ("SIGINT", {130, -2})],
)
def test_stopped_at_random_moments_a_sweep_loses_nothing(results, name, codes):
    found = results[name]
    assert found["stopped"] >= 2
    assert found["units_lost"] == 0
    assert found["identical"]
    assert set(found["exit_codes"]) <= codes


def test_killed_while_it_saves_checkpoints_a_sweep_changes_no_bit(results):
    found = results["checkpoints"]
    assert found["stopped"] == 3
    assert found["identical"]
    assert found["exit_codes"] == [-9]


def test_who_reads_a_bank_on_the_way_sees_what_will_stay(results):
    found = results["read_while_written"]
    assert found["units_read"] > 0
    assert found["differ"] == 0
    assert found["identical"]


def test_a_run_that_may_not_be_written_is_read_or_refused_in_one_line(results):
    found = results["read_only"]
    if found is None:
        pytest.skip("this user may not mount a file system")
    codes = {name: call["exit_code"] for name, call in found.items()}
    assert codes == {
        "status": 0, "export": 0, "sweep of a complete bank": 0, "sweep": 2, "fit": 2,
    }  # fmt: skip
    for name in ("sweep", "fit"):
        assert "cannot write" in found[name]["said"]
        assert "Read-only file system" in found[name]["said"]


def test_what_dead_shards_left_is_made_by_one_call(results):
    assert results["dead_shards"]["units_left"] > 0
    assert results["dead_shards"]["identical"]


def test_two_processes_on_the_same_shard_do_no_damage(results):
    assert results["same_shard_twice"]["identical"]


def test_a_cluster_that_loses_a_node_on_the_way_makes_the_same_bank(results):
    assert results["lost_node"]["units_before"] < 12
    assert results["lost_node"]["units_lost"] == 0
    assert results["lost_node"]["identical"]


def test_a_full_disk_is_a_clear_error_and_no_loss(results):
    found = results["full_disk"]
    if found is None:
        pytest.skip("this user may not mount a file system")
    assert found["exit_code"] == 2
    assert "No space left on device" in found["said"]
    assert "finished units are kept" in found["said"]
    assert found["units_lost"] == 0
    assert found["identical"]


def test_damage_is_refused_when_read_and_mended_by_a_sweep(results):
    found = results["damage"]
    assert found["files"] == found["identical_after_sweep"]
