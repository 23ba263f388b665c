"""Strict JAX for every test, four fake CPU devices, and one finished run for those that look at
one."""

import os
import shutil

# Before anything imports JAX or datasets.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jaxtyping
import pytest
from hypothesis import settings
from smoke import SMOKE

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Examples are drawn the same way each time, and a first call may have to compile.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs():
    """Every compiled program takes some of the memory mappings that Linux allows a process (65,530
    by default). XLA crashes where none is left, which the programs of all tests together reach."""
    yield
    jax.clear_caches()


@pytest.fixture
def unchecked(monkeypatch):
    """The package's own checks, without those that jaxtyping adds in tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True, scope="session")
def private_caches(tmp_path_factory):
    """What is cached goes to folders of the test run, never to the user's home."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["ACCOMPLICE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    # Many tests compile the same program, in this process, in those it starts and beside it.
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    programs = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(shared / "programs"))
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """A finished smoke run; never changed by a test, which is looked at in the end."""
    from influence.cli import main

    run = tmp_path_factory.mktemp("runs") / "smoke"
    assert main(["run", SMOKE, "--out", str(run)]) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    yield run
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.fixture
def smoke_copy(smoke_run, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(smoke_run, tmp_path / "smoke")
