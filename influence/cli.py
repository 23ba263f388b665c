"""The command line: `accomplice COMMAND ...`.

Imports that take seconds come late, so that help and mistakes are quick and an interruption while
they load is met like any other.
"""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType

from training.errors import UserError

USAGE = """\
usage: accomplice COMMAND ...

Find the training examples that spoil a model, and prove it by retraining.

  run CONFIG.toml [--section.key VALUE ...] [--out RUN]    everything, then a report
  sweep CONFIG.toml|RUN [--section.key VALUE ...] [--out RUN] [--dry-run]
                                                           only retrain what is missing, or only
                                                           say what that takes
on a run directory RUN, each stage alone:
  fit RUN        datamodels from the bank
  audit RUN      scores, ranks and flags of the training examples
  verify RUN     retrain without what was flagged
  report RUN     write report.html

`accomplice run --help` lists every key of the config with its default.
Exit codes: 0 done, 2 a mistake in config, data or call, 130 or 143 interrupted.
"""

STAGES = ("fit", "audit", "verify", "report")
DRY_RUN = "--dry-run"
INTERRUPTED = (130, 143)
"""Exit codes of SIGINT and SIGTERM."""


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (141: nobody reads the output any more)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            return _dispatch(words)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"accomplice: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (KeyboardInterrupt, _Terminated) as stop:
        again = shlex.join(["accomplice", *words])
        print(f"Interrupted; what was finished is kept. To go on: {again}", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143


def entry_point() -> None:
    """Run one command as this process, and end it with its exit code."""
    code = main()
    if code in INTERRUPTED:
        # Members may still be in training, and taking the interpreter down under them can crash it.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    command, rest = words[0], words[1:]
    if command in ("run", "sweep"):
        return _run_or_sweep(command, rest)
    if command in STAGES:
        return _stage(command, rest)
    raise UserError(
        f'unknown command "{command}"; commands are run, sweep, {", ".join(STAGES)} '
        f"(accomplice --help)"
    )


def _run_or_sweep(command: str, rest: list[str]) -> int:
    from influence.config import Config, override, read_config

    prog = f"accomplice {command} CONFIG.toml" + (f" [{DRY_RUN}]" if command == "sweep" else "")
    if not rest or rest[0].startswith("-"):
        if {"-h", "--help"} & set(rest):
            override(Config(), ["--help"], prog)
        raise UserError(f"name a config: {prog} [--section.key VALUE ...] [--out RUN]")
    source, default_out = _config_path(Path(rest[0]))
    dry = DRY_RUN in rest
    if dry and command == "run":
        raise UserError(f"{DRY_RUN} belongs to accomplice sweep, which takes the same options")
    options = [word for word in rest[1:] if word != DRY_RUN]
    config, out = override(read_config(source), options, prog)
    pipeline = _start()
    out = out or default_out
    if command == "run":
        run = pipeline.run_all(config, out)
        print(f"Report: {run.report.resolve()}")
    elif dry:
        from influence.plan import plan

        print(plan(pipeline.prepare(config), out))
    else:
        pipeline.sweep_stage(pipeline.prepare(config), out)
        print(f"Bank complete: {out.resolve()}")
    return 0


def _config_path(path: Path) -> tuple[Path, Path]:
    """The config file that a path means, and the run directory it goes to by default."""
    if (path / "manifest.json").is_file():
        return path / "config.toml", path
    if (path.parent / "manifest.json").is_file() and path.name == "config.toml":
        return path, path.parent
    return path, Path("runs") / path.stem


def _stage(command: str, rest: list[str]) -> int:
    if {"-h", "--help"} & set(rest):
        print(f"usage: accomplice {command} RUN\n\nSee accomplice --help.")
        return 0
    if len(rest) != 1:
        raise UserError(f"accomplice {command} takes one run directory, got {len(rest)} words")
    pipeline = _start()
    run, experiment, bank = pipeline.load_experiment(Path(rest[0]))
    match command:
        case "fit":
            pipeline.fit_stage(run, experiment, bank)
        case "audit":
            pipeline.audit_stage(run, experiment, bank)
        case "verify":
            pipeline.verify_stage(run, experiment)
        case "report":
            pipeline.report_stage(run, experiment)
    print(f"{command}: done, see {run.path.resolve()}")
    return 0


def _start() -> ModuleType:
    """Set up the devices, then import what uses them."""
    from training.cache import OUT_OF_REACH, cache_folder
    from training.parallel import keep_compiled_programs, use_all_cores

    use_all_cores()
    with contextlib.suppress(*OUT_OF_REACH):
        keep_compiled_programs(cache_folder() / "compiled")
    from influence import pipeline

    return pipeline


if __name__ == "__main__":
    entry_point()
