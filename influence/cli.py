"""The command line: `accomplice COMMAND ...`.

Imports that take seconds come late, so that help and mistakes are quick and an interruption while
they load is met like any other.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from influence.interruption import Interrupted, end_at_once, last_words
from training.errors import UserError
from training.shards import WHOLE, Shard, find_shard, parse_shard

if TYPE_CHECKING:
    from influence.config import RayConfig
    from influence.engines import Engine

USAGE = """\
usage: accomplice COMMAND ...

Find the training examples that spoil a model, and prove it by retraining.

  run CONFIG.toml|RUN [--section.key VALUE ...] [--out RUN] [--retrain]
                                   everything, then a report
  sweep CONFIG.toml|RUN [--section.key VALUE ...] [--out RUN] [--shard i/k] [--engine local|ray]
        [--retrain] [--dry-run]    only retrain what is missing or damaged (of part i of k), here
                                   or on a Ray cluster; --retrain: again, for new targets;
                                   --dry-run: only say what that takes
on a run directory RUN, each stage alone:
  fit RUN                          datamodels from the bank
  audit RUN                        scores, ranks and flags of the training examples
  verify RUN [--joint]             judge what is suspicious by retraining, and retrain without what
                                   is confirmed; --joint: retrain with groups that act together
                                   kept, dropped, and in part
  refine RUN [--members N] [--dry-run]
                                   split the groups that act together, and retrain with the parts
                                   kept and dropped; --dry-run: only say which, and how often
  trace RUN --targets ID ...|FILE [--flip]
                                   which training examples made these bad predictions, and how few
                                   of the first have to go: found by bisection, each time retrained;
                                   --flip: of right predictions, how few until they are wrong
  report RUN                       write report.html
  clean RUN --out FILE.parquet     the data without the examples that retraining confirmed, and
                                   FILE_removed.csv: why each went
and its bank:
  status RUN [--json]              what is done, missing and damaged, how fast it goes
  export RUN --to npz|parquet|csv --out FILE [--like ARM]
                                   masks, outputs and ids for other tools; --like: of the arms over
                                   the groups of this one (main)
  merge RUN RUN --out RUN [--allow-mixed]
                                   two banks of one design, made in different places, as one;
                                   --allow-mixed: also of devices or versions that differ

`accomplice run --help` lists every key of the config with its default.
Exit codes: 0 done, 2 a mistake in config, data or call, or a place that cannot be read or written,
130 or 143 interrupted.
"""

STAGES = {
    "fit": "Fit datamodels on the bank's members, judge them on masks that no fit saw, and "
    "estimate effects: writes datamodel/, terms.parquet, and audit.json anew.",
    "audit": "Score and rank the training examples by what the bank and the datamodels show, and "
    "flag the most suspicious: writes scores.parquet, and audit.json without what was verified.",
    "verify": "Judge by retraining what is suspicious, alone and in sets, and retrain without what "
    "is confirmed: writes verification/, scores.parquet and audit.json.",
    "report": "Write report.html from what the other stages left.",
}
"""The stages of a run that take nothing but the run, and what each does."""
COMMANDS = ("run", "sweep", *STAGES, "refine", "trace", "clean", "status", "export", "merge")
DRY_RUN = "--dry-run"
RETRAIN = "--retrain"
SHARD = "--shard"
ENGINE = "--engine"
JOINT = "--joint"
ENGINES = ("local", "ray")
FEWEST_REFINED = 16
"""Members of a refined arm, which in complementary pairs are half as many draws."""
INTERRUPTED = (130, 143)
"""Exit codes of SIGINT and SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (141: nobody reads the output any more)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            with end_at_once():
                return _dispatch(words)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"accomplice: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(
            f"accomplice: no permission for {error.filename}; let this user read and write it, or "
            f"choose another place",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Interrupted as stop:
        print(last_words(words), file=sys.stderr)
        return stop.exit_code


def entry_point() -> None:
    """Run one command as this process, and end it with its exit code."""
    code = main()
    if code in INTERRUPTED:
        # Members may still be in training, and taking the interpreter down under them can crash it.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    command, rest = words[0], words[1:]
    if command in ("run", "sweep"):
        return _run_or_sweep(command, rest)
    if command in STAGES:
        return _stage(command, rest)
    if command in PARSED:
        return PARSED[command](rest)
    raise UserError(
        f'unknown command "{command}"; commands are {", ".join(COMMANDS)} (accomplice --help)'
    )


def _run_or_sweep(command: str, rest: list[str]) -> int:
    from influence.config import Config, override, read_config

    more = (
        f" [{SHARD} i/k] [{ENGINE} local|ray] [{RETRAIN}] [{DRY_RUN}]"
        if command == "sweep"
        else f" [{RETRAIN}]"
    )
    prog = f"accomplice {command} CONFIG.toml|RUN{more}"
    if not rest or rest[0].startswith("-"):
        if {"-h", "--help"} & set(rest):
            override(Config(), ["--help"], prog)
        raise UserError(f"name a config: {prog} [--section.key VALUE ...] [--out RUN]")
    source, default_out = _config_path(Path(rest[0]))
    rest = _split_values(rest)
    dry = DRY_RUN in rest
    for option in (DRY_RUN, SHARD, ENGINE):
        if command == "run" and option in rest:
            raise UserError(f"{option} belongs to accomplice sweep, which takes the same options")
    retrain = RETRAIN in rest
    options = [word for word in rest[1:] if word not in (DRY_RUN, RETRAIN)]
    shard, engine = WHOLE, "local"
    if command == "sweep":
        shard, options = _shard(options)
        engine, options = _engine(options)
    config, out = override(read_config(source), options, prog)
    _start()
    from influence.pipeline import run_all
    from influence.plan import plan
    from influence.sweeping import prepare_for, sweep_alone

    out = out or default_out
    # Ray starts processes, which JAX does not like once it runs.
    with _named_engine(engine, config.ray) as chosen:
        shard = _of_this_process(command, shard)
        if command == "run":
            run = run_all(config, out, retrain=retrain)
            print(f"Report: {run.report.resolve()}")
        elif dry:
            print(plan(prepare_for(config, out), out, shard, retrain=retrain))
        else:
            print(sweep_alone(config, out, shard, retrain=retrain, engine=chosen))
    return 0


def _split_values(words: list[str]) -> list[str]:
    """The words with a value that is given as --shard=0/16 apart, as that of a key may be."""
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in (DRY_RUN, RETRAIN) and equals:
            raise UserError(f"{name} takes no value, and {value} is given")
        found += [name, value] if name in (SHARD, ENGINE) and equals else [word]
    return found


def _taken(options: list[str], name: str, values: str) -> tuple[str | None, list[str]]:
    """The value of an option, if it is given, and the other words."""
    if name not in options:
        return None, options
    at = options.index(name)
    if at + 1 == len(options):
        raise UserError(f"{name} needs a value {values}")
    return options[at + 1], options[:at] + options[at + 2 :]


def _engine(options: list[str]) -> tuple[str, list[str]]:
    """What makes the units, by name; and other options."""
    name, options = _taken(options, ENGINE, " or ".join(ENGINES))
    if name is not None and name not in ENGINES:
        raise UserError(f"{ENGINE} {name} is unknown; choose {' or '.join(ENGINES)}")
    return name or ENGINES[0], options


@contextlib.contextmanager
def _named_engine(name: str, config: "RayConfig") -> "Iterator[Engine]":
    if name == "ray":
        from influence.ray_engine import RayEngine, cluster

        with cluster(config) as ray:
            yield RayEngine(ray, config)
    else:
        from influence.engines import LocalEngine

        yield LocalEngine()


def _shard(options: list[str]) -> tuple[Shard, list[str]]:
    """The part that this process makes: as `--shard` says, or a job system; and other options."""
    from influence.progress import say

    text, options = _taken(options, SHARD, "i/k, as in 0/16")
    if text is not None:
        return parse_shard(text), options
    shard, source = find_shard(os.environ)
    if source:
        say(f"Shard {shard}, from {source}")
    return shard, options


def _of_this_process(command: str, shard: Shard) -> Shard:
    """The part of a shard that is this process's, where several hosts are one JAX job."""
    from influence.progress import say
    from training.parallel import process_shard

    own = process_shard(shard)
    if own != shard and command == "run":
        raise UserError(
            "accomplice run is for one process, and here several are one JAX job; run accomplice "
            "sweep on all of them, then accomplice run on one machine"
        )
    if own != shard:
        say(f"Shard {own}, as one of {own.count // shard.count} processes of a JAX job")
    return own


def _config_path(path: Path) -> tuple[Path, Path]:
    """The config file that a path means, and the run directory it goes to by default."""
    if (path / "manifest.json").is_file():
        return path / "config.toml", path
    if (path.parent / "manifest.json").is_file() and path.name == "config.toml":
        return path, path.parent
    return path, Path("runs") / path.stem


class _Parser(argparse.ArgumentParser):
    """Raises mistakes as one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; usage: {' '.join(self.format_usage().split()[1:])}")


def _stage(command: str, words: list[str]) -> int:
    parser = _Parser(f"accomplice {command}", description=STAGES[command])
    parser.add_argument("run", metavar="RUN", type=Path)
    if command == "verify":
        parser.add_argument(
            JOINT,
            action="store_true",
            help="instead retrain with groups that act together kept, dropped, and in part: "
            "writes the measured effects into terms.parquet",
        )
    options = parser.parse_args(words)
    _start()
    from influence import joint_stages, pipeline
    from influence.sweeping import load_experiment

    run, experiment, bank = load_experiment(options.run)
    match command:
        case "fit":
            pipeline.fit_stage(run, experiment, bank)
        case "audit":
            pipeline.audit_stage(run, experiment, bank)
        case "verify" if options.joint:
            joint_stages.verify_joint_stage(run, experiment)
        case "verify":
            pipeline.verify_stage(run, experiment)
        case "report":
            pipeline.report_stage(run, experiment)
    print(f"{command}: done, see {run.path.resolve()}")
    return 0


def _status(words: list[str]) -> int:
    parser = _Parser("accomplice status", description="How far the sweep of a run is.")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(words)
    from influence.status import run_status

    status = run_status(options.run)
    print(json.dumps(status.as_json()) if options.json else status)
    return 0


def _export(words: list[str]) -> int:
    parser = _Parser("accomplice export", description="The finished members of a run as one file.")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--to", choices=("npz", "parquet", "csv"), required=True)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True)
    parser.add_argument(
        "--like",
        metavar="ARM",
        default="main",
        help="arms over the same groups as this one, as status names them (default: main)",
    )
    options = parser.parse_args(words)
    from influence.export import export_run

    missing = export_run(options.run, options.to, options.out, options.like)
    note = f"; {missing:,} members are not done yet and left out" if missing else ""
    print(f"Exported: {options.out.resolve()}{note}")
    return 0


def _merge(words: list[str]) -> int:
    parser = _Parser("accomplice merge", description="Two banks of one design as one.")
    parser.add_argument("first", metavar="RUN", type=Path)
    parser.add_argument("second", metavar="RUN", type=Path)
    parser.add_argument(
        "--out", metavar="RUN", type=Path, required=True, help="a new run directory"
    )
    parser.add_argument(
        "--allow-mixed",
        action="store_true",
        help="also of other devices, layouts or JAX versions: low bits may differ",
    )
    options = parser.parse_args(words)
    from influence.merge import merge

    merge(options.first, options.second, options.out, allow_mixed=options.allow_mixed)
    print(f"Merged: {options.out.resolve()}")
    return 0


def _refine(words: list[str]) -> int:
    parser = _Parser(
        "accomplice refine",
        description="Split the groups that act together into parts, retrain with the parts kept "
        "and dropped in one more arm of the bank, and find which parts act together.",
    )
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument(
        "--members", metavar="N", type=int, help="of the arm (default: as many as before)"
    )
    parser.add_argument(DRY_RUN, action="store_true", help="only say what would be made")
    options = parser.parse_args(words)
    if options.members is not None and options.members < FEWEST_REFINED:
        raise UserError(f"--members {options.members} must be at least {FEWEST_REFINED}")
    _start()
    from influence.joint_stages import refine_stage
    from influence.sweeping import load_experiment

    run, experiment, _ = load_experiment(options.run)
    print(refine_stage(run, experiment, options.members, dry_run=options.dry_run))
    return 0


def _trace(words: list[str]) -> int:
    parser = _Parser(
        "accomplice trace",
        usage="accomplice trace RUN --targets ID ...|FILE [--flip]",
        description="Rank the training examples by how far they are behind some bad predictions, "
        "and retrain without the first of them to find how few have to go. Needs a fitted run; "
        "sets count once it is audited and verified. Writes trace.parquet and trace.json.",
    )
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument(
        "--targets",
        metavar="ID",
        nargs="+",
        required=True,
        help="1 to 10 ids of clean or incident targets (incident:12, clean:750; all are in "
        "manifest.json), or a file of them, one a line",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="of clean targets, end the right predictions: how brittle they are",
    )
    options = parser.parse_args(words)
    _start()
    from influence.pipeline import trace_stage
    from influence.sweeping import load_experiment

    run, experiment, _ = load_experiment(options.run)
    print(trace_stage(run, experiment, options.targets, flip=options.flip))
    return 0


def _clean(words: list[str]) -> int:
    parser = _Parser(
        "accomplice clean",
        description="The split that was trained on, without the examples that retraining "
        "confirmed, and a list of those with the reasons.",
    )
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="a .parquet file")
    options = parser.parse_args(words)
    _start()
    from influence.pipeline import clean_stage
    from influence.sweeping import load_experiment

    run, experiment, _ = load_experiment(options.run)
    print(clean_stage(run, experiment, options.out))
    return 0


PARSED = {
    "refine": _refine,
    "trace": _trace,
    "clean": _clean,
    "status": _status,
    "export": _export,
    "merge": _merge,
}
"""Commands with options of their own."""


def _start() -> None:
    """Set up the devices, before what uses them is imported."""
    from influence.jax_setup import set_up_jax

    set_up_jax()


if __name__ == "__main__":
    entry_point()
