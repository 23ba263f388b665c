"""The job templates, as far as they run without a cluster."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from influence.cli import main
from influence.config import Config
from training.bank import Bank

ROOT = Path(__file__).parent.parent
SLURM = ROOT / "configs" / "jobs" / "slurm.sh"
JOBS = list(yaml.safe_load_all((ROOT / "configs" / "jobs" / "kubernetes.yaml").read_text()))
SMALL = ["--sweep.members", "40", "--sweep.unit", "8", "--optim.steps", "10"]


@pytest.fixture
def environment(tmp_path):
    """One in which the command `accomplice` is this checkout's."""
    command = tmp_path / "bin" / "accomplice"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m influence.cli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "JAX_NUM_CPU_DEVICES": "1"}


def run(words, environment):
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_slurm_script_is_bash():
    run(["bash", "-n", str(SLURM)], os.environ)


@pytest.mark.slow
def test_a_task_of_the_slurm_array_makes_its_part(tmp_path, environment):
    # As sbatch sets them for task 2 of --array=0-2.
    array = {
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "2",
        "SLURM_ARRAY_TASK_STEP": "1",
        "SLURM_ARRAY_TASK_COUNT": "3",
        "CONFIG": "configs/smoke.toml",
        "OUT": str(tmp_path / "run"),
    }
    done = run(["bash", str(SLURM), *SMALL], environment | array)
    assert "Shard 2/3, from SLURM_ARRAY_TASK_ID" in done.stderr
    assert Bank.open(tmp_path / "run").arm("main").missing_units() == [0, 1, 3, 4]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_the_kubernetes_jobs_match_the_schema(job, version):
    kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_a_pod_of_the_kubernetes_jobs_finds_its_part(tmp_path, environment, job):
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert variables["ACCOMPLICE_SHARDS"] == str(spec["completions"])
    # As the job gives it to the pod, with a folder in place of the bucket.
    words = [word.replace("gs://BUCKET", str(tmp_path)) for word in container["command"]]
    variables["JOB_COMPLETION_INDEX"] = "15"
    done = run([*words, "--sweep.width", "1", "--dry-run"], environment | variables)
    assert "Shard 15/16, from JOB_COMPLETION_INDEX and ACCOMPLICE_SHARDS" in done.stderr
    assert "left to train by shard 15/16" in done.stdout


def test_the_ray_cluster_matches_the_schema_that_ray_ships():
    (schema,) = Path(ray.__file__).parent.rglob("ray-schema.json")
    cluster = yaml.safe_load((ROOT / "configs" / "jobs" / "ray.yaml").read_text())
    jsonschema.validate(cluster, json.loads(schema.read_text()))


def test_without_a_cluster_ray_is_refused_in_one_line(tmp_path, capsys):
    words = ["sweep", str(ROOT / "configs" / "smoke.toml"), "--out", str(tmp_path / "run")]
    assert main([*words, "--engine", "ray", "--ray.address", "127.0.0.1:1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'no Ray cluster at ray.address = "127.0.0.1:1"' in said
    assert 'start one with "ray start --head"' in said
    assert main([*words, "--engine", "slurm"]) == 2
    assert "--engine slurm is unknown; choose local or ray" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sweep_ends_before_kubernetes_and_slurm_kill_it():
    for job in JOBS:
        grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert Config().sweep.grace < grace
    assert "--signal=B:TERM@60" in SLURM.read_text()
