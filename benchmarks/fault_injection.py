"""Claim: nothing that a sweep finished is ever lost, changed or mixed, whatever happens to it.

Real processes of `accomplice sweep` are killed at random moments (also while they save
checkpoints), asked to stop, started twice, run as shards of which some die, lose a node of their
cluster, and run out of disk. Afterwards the bank must hold the bytes of one that nothing happened
to (done-records may differ in time and host). Whoever reads it on the way sees finished units, as
they will stay.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training.bank import Bank
from training.errors import UserError
from training.store import Damaged, unseal

CONFIG = """
[data]
source = "digits"
train_count = 300
target_count = 100
[model]
name = "mlp"
width = 32
[optim]
steps = {steps}
[sweep]
members = {members}
replicate_masks = 4
replicate_seeds = 2
width = 2
unit = 4
[fit]
held_out = 10
"""


class Trial:
    """A folder with a config, and runs of it."""

    def __init__(self, folder: Path, members: int, steps: int = 200):
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.config = folder / "trial.toml"
        self.config.write_text(CONFIG.format(members=members, steps=steps))

    def start(self, out: Path, *options: str) -> subprocess.Popen:
        words = [sys.executable, "-m", "influence.cli", "sweep", str(self.config)]
        environment = os.environ | {"ACCOMPLICE_CACHE": str(self.folder / "cache")}
        return subprocess.Popen(
            [*words, "--out", str(out), *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *words: str) -> dict[str, Any]:
        """Exit code and last line of any command."""
        done = subprocess.run(
            [sys.executable, "-m", "influence.cli", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        said = (done.stdout + done.stderr).strip().splitlines()
        return {"exit_code": done.returncode, "said": said[-1]}

    def finish(self, out: Path, *options: str) -> float:
        """Sweep to the end; seconds."""
        started = time.perf_counter()
        process = self.start(out, *options)
        _, said = process.communicate()
        assert process.returncode == 0, said
        return time.perf_counter() - started


def bank_bytes(out: Path) -> dict[str, Any]:
    """Every file of a bank; of done-records, all but when and where they were made."""
    files = sorted(path for path in (out / "bank").rglob("*") if path.is_file())
    return {str(path.relative_to(out)): _content(path) for path in files}


def _content(path: Path) -> Any:
    if path.parent.name != "done":
        return path.read_bytes()
    record = unseal(path.read_bytes())
    return {key: record[key] for key in record.keys() - {"time", "host"}}


def finished_units(out: Path) -> set[tuple[str, int]]:
    """Units that are done and whole; none before the bank exists."""
    bank = Bank.find(out)
    if bank is None:
        return set()
    return {
        (name, unit)
        for name, arm in bank.arms.items()
        for unit in set(range(arm.spec.units)) - set(arm.unfinished_units())
    }


def stop_at_random(
    trial: Trial,
    whole: Path,
    out: Path,
    times: int,
    number: signal.Signals,
    longest: float,
    *options: str,
) -> dict[str, Any]:
    """Signal the sweep at random moments, several times in a row, then let it finish."""
    rng = random.Random(0)
    lost, stopped, cut_saves, units, codes = 0, 0, 0, set(), set()
    while stopped < times:
        process = trial.start(out, *options)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, longest))
        process.send_signal(number)
        _, said = process.communicate()
        if process.returncode == 0:
            # It came to its end before: more damage needs more to do.
            shutil.rmtree(out)
            units = set()
            continue
        codes.add(process.returncode)
        assert process.returncode in (-number, 128 + number), said
        stopped += 1
        # What orbax had not renamed yet.
        cut_saves += any(out.rglob("*orbax-checkpoint-tmp*"))
        now = finished_units(out)
        lost += len(units - now)
        units = now
    resumed = trial.finish(out, *options)
    return {
        "stopped": stopped,
        "inside_a_save": cut_saves,
        "exit_codes": sorted(codes),
        "units_lost": lost,
        "identical": bank_bytes(out) == bank_bytes(whole),
        "seconds_of_the_last_call": resumed,
    }


def dead_shards(trial: Trial, whole: Path, out: Path) -> dict[str, Any]:
    """Four shards at once, two of them killed; one call makes what they left."""
    shards = [trial.start(out, "--shard", f"{index}/4") for index in range(4)]
    while not any(out.rglob("done/*.json")):
        time.sleep(0.05)
    for process in shards[1:3]:
        process.kill()
    for process in shards:
        process.communicate()
    left = sum(len(arm.missing_units()) for arm in Bank.open(out).arms.values())
    trial.finish(out)
    return {"units_left": left, "identical": bank_bytes(out) == bank_bytes(whole)}


def same_shard_twice(trial: Trial, whole: Path, out: Path) -> dict[str, Any]:
    """Two processes that think they are the only one."""
    processes = [trial.start(out) for _ in range(2)]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return {"identical": bank_bytes(out) == bank_bytes(whole)}


def lost_node(trial: Trial, whole: Path, out: Path) -> dict[str, Any] | None:
    """A Ray cluster of two nodes, one of which is lost on the way; None: Ray is not installed."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        return None
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        process = trial.start(out, "--engine", "ray", "--ray.address", str(cluster.address))
        while process.poll() is None and len(finished_units(out)) < 3:
            time.sleep(0.2)
        before = finished_units(out)
        cluster.remove_node(node, allow_graceful=False)
        _, said = process.communicate()
        assert process.returncode == 0, said
    finally:
        cluster.shutdown()
    return {
        "units_before": len(before),
        "units_lost": len(before - finished_units(out)),
        "identical": bank_bytes(out) == bank_bytes(whole),
    }


def read_while_written(trial: Trial, whole: Path, out: Path) -> dict[str, Any]:
    """Finished units of a sweep that goes on, read over and over, compared with the whole bank."""
    expected = {name: arm.read() for name, arm in Bank.open(whole).arms.items()}
    process = trial.start(out)
    reads, differ = 0, 0
    while process.poll() is None:
        for name, unit in sorted(finished_units(out)):
            arm = Bank.open(out).arm(name)
            cut = arm.spec.unit_slice(unit)
            found = arm.read(cut)
            reads += 1
            differ += any(
                (one != other[cut]).any() for one, other in zip(found, expected[name], strict=True)
            )
    _, said = process.communicate()
    assert process.returncode == 0, said
    return {
        "units_read": reads,
        "differ": differ,
        "identical": bank_bytes(out) == bank_bytes(whole),
    }


def read_only(trial: Trial, whole: Path, place: Path) -> dict[str, Any] | None:
    """Commands on a run directory that may not be written; None: not permitted."""
    if os.geteuid() != 0:
        return None
    with small_disk(place) as remount:
        remount("size=1g")
        complete, partial = (
            shutil.copytree(whole, place / name) for name in ("complete", "partial")
        )
        next(partial.rglob("done/*.json")).unlink()
        remount("ro")
        calls = {
            "status": ["status", str(complete)],
            "export": ["export", str(complete), "--to", "npz", "--out", str(trial.folder / "npz")],
            "sweep of a complete bank": ["sweep", str(complete)],
            "sweep": ["sweep", str(partial)],
            "fit": ["fit", str(complete)],
        }
        found = {name: trial.call(*words) for name, words in calls.items()}
        remount("rw")
        return found


def full_disk(trial: Trial, whole: Path, place: Path) -> dict[str, Any] | None:
    """A disk that fills up during the sweep, and is given more room; None: not permitted."""
    if os.geteuid() != 0:
        return None
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    with small_disk(place) as remount:
        # Enough by the sweep's own count, and too little for so many small files.
        remount(f"size={2 * needed}")
        out = place / "run"
        process = trial.start(out)
        _, said = process.communicate()
        before = finished_units(out)
        remount(f"size={100 * needed}")
        trial.finish(out)
        return {
            "exit_code": process.returncode,
            "said": said.strip().splitlines()[-1],
            "units_kept": len(before),
            "units_lost": len(before - finished_units(out)),
            "identical": bank_bytes(out) == bank_bytes(whole),
        }


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[str], Any]]:
    """A file system in memory that can be mounted anew; needs the right to mount one."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        yield lambda option: subprocess.run(
            ["mount", "-o", f"remount,{option}", str(place)], check=True
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def flipped_bits(trial: Trial, whole: Path, out: Path, most: int) -> dict[str, Any]:
    """A bit flipped in, and a byte cut off, files of a bank in turn; then a sweep."""
    rng = random.Random(0)
    expected = bank_bytes(whole)
    files = [path for path in whole.rglob("*") if path.is_file() and path.parent != whole]
    chosen = rng.sample(files, min(most, len(files)))
    found, mended = 0, 0
    for path in chosen:
        shutil.copytree(whole, out, dirs_exist_ok=True)
        hit = out / path.relative_to(whole)
        content = bytearray(hit.read_bytes())
        if rng.random() < 0.5:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            content.pop()
        hit.write_bytes(content)
        try:
            for arm in Bank.open(out).arms.values():
                arm.read()
        except (UserError, Damaged):
            found += 1
        trial.finish(out)
        mended += bank_bytes(out) == expected
        shutil.rmtree(out)
    return {"files": len(chosen), "refused_when_read": found, "identical_after_sweep": mended}


def overhead(trial: Trial, whole: Path, out: Path, repeats: int) -> dict[str, Any]:
    """Seconds of a call that finds nothing to do, against one that makes all of it."""
    shutil.copytree(whole, out)
    nothing = [trial.finish(out) for _ in range(repeats)]
    everything = []
    for _ in range(repeats):
        shutil.rmtree(out)
        everything.append(trial.finish(out))
    return {
        "seconds_with_nothing_to_do": statistics.median(nothing),
        "seconds_of_a_whole_sweep": statistics.median(everything),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="3 kills instead of 50, fewer files")
    options = parser.parse_args()
    times = 3 if options.quick else 50
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        trial = Trial(folder, members=40 if options.quick else 4000)
        whole = folder / "whole"
        sweep_seconds = trial.finish(whole)
        # A call with nothing to do shows how long it takes to get going.
        longest = trial.finish(whole) + 1.5
        print(
            f"An uninterrupted sweep of {len(finished_units(whole))} units: {sweep_seconds:.1f} s"
        )
        stop = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
        results: dict[str, Any] = {}
        for number, count in zip(
            stop, (times, max(2, times // 5), max(2, times // 5)), strict=True
        ):
            results[number.name] = stop_at_random(
                trial, whole, folder / number.name, count, number, longest
            )
            print(number.name, results[number.name], flush=True)
        steps = 500 if options.quick else 2000
        long, saved = Trial(folder / "long", members=16, steps=steps), folder / "saved"
        save = ("--checkpoint.every-steps", "10")
        long.finish(saved, *save)
        results["checkpoints"] = stop_at_random(
            long, saved, folder / "checkpoints", times, signal.SIGKILL, 2 * longest, *save
        )
        print("checkpoints", results["checkpoints"], flush=True)
        scenarios = {
            "read_while_written": lambda out: read_while_written(trial, whole, out),
            "read_only": lambda out: read_only(trial, whole, out),
            "dead_shards": lambda out: dead_shards(trial, whole, out),
            "same_shard_twice": lambda out: same_shard_twice(trial, whole, out),
            "lost_node": lambda out: lost_node(trial, whole, out),
            "full_disk": lambda out: full_disk(trial, whole, out),
            "damage": lambda out: flipped_bits(trial, whole, out, 4 if options.quick else 30),
            "overhead": lambda out: overhead(trial, whole, out, 1 if options.quick else 3),
        }
        for name, scenario in scenarios.items():
            results[name] = scenario(folder / name)
            print(name, results[name], flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
