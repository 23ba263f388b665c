"""The command line: every mistake is one clear line and exit code 2, never a traceback."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from influence import cli
from influence.cli import main
from influence.config import Config


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def config_for(folder, data, **sections):
    lines = [f"[data]\n{data}"]
    lines += [f"[{name}]\n{text}" for name, text in sections.items()]
    return write(folder, "mine.toml", "\n".join(lines))


def csv_of(folder, change=lambda row, values: values):
    rng = np.random.default_rng(0)
    lines = ["a,b,label"]
    for row in range(40):
        values = [f"{rng.normal():.3f}", f"{rng.normal():.3f}", str(row % 2)]
        lines.append(",".join(change(row, values)))
    return write(folder, "mine.csv", "\n".join(lines))


def refused(capsys, *words):
    """The one line that a refused call prints."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("accomplice: ")
    return lines[0]


def test_help_goes_to_stdout_and_succeeds(capsys):
    assert main(["--help"]) == 0
    assert "run CONFIG.toml" in capsys.readouterr().out


def test_no_command_shows_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage: accomplice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum", "x.toml"], 'unknown command "rum"'),
        (["run"], "name a config: accomplice run"),
        (["run", "nowhere.toml"], "cannot read the config nowhere.toml"),
        (["fit", "nowhere"], "nowhere is no run directory"),
        (["fit"], "the following arguments are required: RUN; usage: accomplice fit"),
        (["report", "a", "b"], "unrecognized arguments: b; usage: accomplice report"),
    ],
)
def test_a_wrong_call(capsys, words, message):
    assert message in refused(capsys, *words)


DIGITS = 'source = "digits"\ntrain_count = 100\ntarget_count = 20'


@pytest.mark.parametrize(
    ("data", "sections", "message"),
    [
        ('source = "no.csv"', {}, '/no.csv" matches no file'),
        ('source = "digits"\nlabel = "lable"', {}, 'did you mean "label"?'),
        ('source = "digits"\ninput = ["pixels"]', {}, "the data has no such column"),
        ('source = "digits"\ntarget_fraction = 0', {}, "0 targets asked for"),
        ('source = "digits"\nfolder = 3', {}, "must be of type str"),
        ('source = "digits"\nsuorce = "x"', {}, 'data.suorce is unknown (did you mean "source"?)'),
        (DIGITS, {"model": "classes = 9"}, "the labels run from 0 to 9, which does not fit"),
        (DIGITS, {"model": 'name = "mlpp"'}, 'model.name = "mlpp" is unknown'),
        (DIGITS, {"model": 'factory = "nowhere:make"'}, "cannot import nowhere"),
        (DIGITS, {"model": 'factory = "math:sqrtt"'}, "math has no function sqrtt"),
        (DIGITS, {"model": 'factory = "builtins:dict"'}, "failed for inputs of shape (8, 8, 1)"),
        (DIGITS, {"model": 'factory = "plain"'}, 'must read "package.module:function"'),
        (DIGITS, {"sweep": 'output = "marginn"'}, 'sweep.output = "marginn" is unknown'),
        (DIGITS, {"sweep": "alpha = 1.0"}, "sweep.alpha = 1.0 must be above 0 and below 1"),
        (DIGITS, {"sweep": "alpha = 1e-9"}, "sweep.alpha = 1e-09 keeps 1e-07 of the 100 groups"),
        (DIGITS, {"sweep": "members = 50", "fit": "held_out = 60"}, "fit.held_out = 60 must be"),
        (DIGITS, {"poison": "backdoor_fraction = 0.7"}, "poison.backdoor_fraction = 0.7"),
    ],
)
def test_a_mistake_in_config_or_data(tmp_path, capsys, data, sections, message):
    config = config_for(tmp_path, data, **sections)
    assert message in refused(capsys, "run", config, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row, v: [v[0], "nan", v[2]] if row == 7 else v, 'column "b" holds nan in row 7'),
        (lambda row, v: ["inf", *v[1:]] if row == 3 else v, 'column "a" holds inf in row 3'),
        (lambda row, v: [*v[:2], "1.5"] if row == 9 else v, "labels must be names of"),
        (lambda row, v: [*v[:2], "-1"] if row == 9 else v, "holds -1 in row 9"),
        (lambda row, v: [*v[:2], "yes"] if row == 9 else v, "holds 'yes' in row 9"),
        (lambda row, v: [*v[:2], "yes"], "holds yes alone; at least two classes are needed"),
        (lambda row, v: ["word", *v[1:]], 'column "a" is not numbers'),
        (lambda row, v: [*v[:2], "0"], "holds 0 alone; at least two classes are needed"),
        (lambda row, v: [*v[:2], "1"], "holds 1 alone; at least two classes are needed"),
    ],
)
def test_a_mistake_in_a_table(tmp_path, capsys, change, message):
    config = config_for(tmp_path, f'source = "{csv_of(tmp_path, change)}"')
    words = ["run", config, "--out", str(tmp_path / "run"), "--model.name", "linear"]
    assert message in refused(capsys, *words)


def test_labels_that_are_ids_are_refused(tmp_path, capsys):
    source = csv_of(tmp_path, lambda row, v: [*v[:2], str(10**6 + row)])
    config = config_for(tmp_path, f'source = "{source}"')
    assert "40 different labels up to 1000039" in refused(capsys, "run", config)


def test_a_factory_that_exits_is_refused(tmp_path, capsys, monkeypatch):
    write(tmp_path, "leaves_at_once.py", "import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    config = config_for(tmp_path, DIGITS, model='factory = "leaves_at_once:make"')
    assert "cannot import leaves_at_once" in refused(capsys, "run", config)


def test_too_little_disk(tmp_path, capsys):
    config = config_for(tmp_path, DIGITS, sweep="members = 100000000000\nwidth = 8")
    assert "GB free" in refused(capsys, "sweep", config, "--out", str(tmp_path / "run"))


def test_a_tables_labels_may_not_be_missing(tmp_path, capsys):
    source = csv_of(tmp_path, lambda row, v: [*v[:2], ""] if row == 5 else v)
    config = config_for(tmp_path, f'source = "{source}"')
    assert "is missing in row 5" in refused(capsys, "run", config)


def test_too_few_examples_are_refused(tmp_path, capsys):
    source = csv_of(tmp_path)
    config = config_for(tmp_path, f'source = "{source}"\ntrain_count = 9')
    assert "9 training examples are too few" in refused(capsys, "run", config)


def test_help_of_run_lists_every_key_and_starts_no_device():
    code = (
        "import sys; from influence.cli import main\n"
        "try:\n    main(['run', '--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for section in dataclasses.fields(Config):
        for key in dataclasses.fields(section.type):
            assert f"--{section.name}.{key.name}".replace("_", "-") in shown
    assert "--out" in shown
    assert shown.endswith("False\n")


def test_a_place_that_may_not_be_read_is_named(capsys, monkeypatch):
    def forbidden(_):
        raise PermissionError(13, "Permission denied", "/other/run/manifest.json")

    monkeypatch.setattr(cli, "_dispatch", forbidden)
    assert main(["report", "/other/run"]) == 2
    assert "no permission for /other/run/manifest.json" in capsys.readouterr().err


def test_a_model_with_state_takes_whole_batches(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(
        tmp_path,
        "normed_model.py",
        """
from flax import nnx


class Make(nnx.Module):
    def __init__(self, shape, classes, *, rngs):
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.linear = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, inputs):
        return self.linear(self.norm(inputs.reshape(inputs.shape[0], -1)))
""",
    )
    sections = {"model": 'factory = "normed_model:Make"', "sweep": "width = 1\nmicrobatch = 10"}
    config = config_for(tmp_path, DIGITS, **sections)
    said = refused(capsys, "sweep", config, "--out", str(tmp_path / "run"))
    assert "sweep.microbatch = 10, but the model keeps state while it trains (dropout) or" in said


def test_microbatch_must_divide_the_batch(tmp_path, capsys):
    config = config_for(tmp_path, DIGITS, sweep="width = 1\nmicrobatch = 7")
    said = refused(capsys, "sweep", config, "--out", str(tmp_path / "run"))
    assert "sweep.microbatch = 7 must be 0 or a divisor of optim.batch_size = 50" in said


def test_run_has_no_dry_run(capsys):
    assert "--dry-run belongs to accomplice sweep" in refused(
        capsys, "run", "mine.toml", "--dry-run"
    )


def test_a_reader_that_leaves_early_is_no_traceback():
    words = [sys.executable, "-m", "influence.cli", "sweep", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_interruption_ends_the_process_while_members_are_in_training():
    code = (
        "import signal, jax, jax.numpy as jnp\n"
        "from influence import cli\n"
        "def interrupted(words):\n"
        "    x = jnp.ones((600, 600))\n"
        "    jax.jit(lambda x: jax.lax.fori_loop(0, 400, lambda i, y: jnp.tanh(y @ x), x))(x)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "cli._dispatch = interrupted\n"
        "cli.entry_point()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("Interrupted; what was finished is kept.")
