"""Which part of a sweep a process makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import UserError
from training.shards import WHOLE, Shard, find_shard, parse_shard


@given(units=st.integers(0, 100), count=st.integers(1, 20))
def test_every_unit_is_of_exactly_one_shard(units, count):
    shards = [Shard(index, count) for index in range(count)]
    owners = [sum(shard.owns(unit) for shard in shards) for unit in range(units)]
    assert owners == [1] * units
    sizes = [sum(shard.owns(unit) for unit in range(units)) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_is_read_as_it_is_written():
    assert parse_shard("3/16") == Shard(3, 16)
    assert parse_shard(str(Shard(0, 1))) == WHOLE


@pytest.mark.parametrize("text", ["", "3", "a/b", "-1/4", "1/4/8", " 1/4", "1.5/4"])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="must read i/k, as in 0/16"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["4/4", "0/0", "9/3"])
def test_indices_beyond_the_last_are_refused(text):
    with pytest.raises(UserError, match="gives shard"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("environment", "shard", "source"),
    [
        ({}, WHOLE, ""),
        # sbatch --array=1-16
        (
            {
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "16",
                "SLURM_ARRAY_TASK_STEP": "1",
                "SLURM_ARRAY_TASK_COUNT": "16",
            },
            Shard(2, 16),
            "SLURM_ARRAY_TASK_ID",
        ),
        # sbatch --array=0-30:10
        (
            {
                "SLURM_ARRAY_TASK_ID": "20",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "10",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            Shard(2, 4),
            "SLURM_ARRAY_TASK_ID",
        ),
        (
            {"JOB_COMPLETION_INDEX": "7", "ACCOMPLICE_SHARDS": "8"},
            Shard(7, 8),
            "JOB_COMPLETION_INDEX and ACCOMPLICE_SHARDS",
        ),
        (
            {"SKYPILOT_JOB_RANK": "1", "SKYPILOT_NUM_JOBS": "2"},
            Shard(1, 2),
            "SKYPILOT_JOB_RANK and SKYPILOT_NUM_JOBS",
        ),
        # A topology variable of TPU machines says nothing of a sweep's parts.
        ({"CLOUD_TPU_TASK_ID": "3"}, WHOLE, ""),
    ],
)
def test_job_systems_say_which_shard_a_process_is(environment, shard, source):
    assert find_shard(environment) == (shard, source)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JOB_COMPLETION_INDEX": "7"}, "ACCOMPLICE_SHARDS = None must be a number"),
        ({"SKYPILOT_JOB_RANK": "1"}, "SKYPILOT_NUM_JOBS = None must be a number"),
        ({"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"}, "SLURM_ARRAY_TASK_ID = x"),
        # sbatch --array=1,9: two tasks whose numbers do not follow each other.
        (
            {
                "SLURM_ARRAY_TASK_ID": "9",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
            },
            "SLURM_ARRAY_TASK_ID gives shard 8 of 2; .* give --shard i/k yourself",
        ),
    ],
)
def test_variables_that_do_not_fit_are_named(environment, message):
    with pytest.raises(UserError, match=message):
        find_shard(environment)
