"""Configs: the shipped ones load, what is written replays, and mistakes are named."""

import dataclasses
from pathlib import Path

import pytest

from influence.config import Config, override, read_config, write_toml
from training.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_replays(path, tmp_path):
    config = read_config(path)
    copy = tmp_path / "config.toml"
    copy.write_text(write_toml(config))
    assert read_config(copy) == config


def test_odd_values_survive_toml(tmp_path):
    data = dataclasses.replace(
        Config().data,
        source='a "quoted" \\ name\n€😀.csv',
        input=("x y", "z"),
        target_fraction=1e-5,
    )
    config = dataclasses.replace(Config(), data=data)
    path = tmp_path / "config.toml"
    path.write_text(write_toml(config), encoding="utf-8")
    assert read_config(path) == config


def test_the_command_line_wins_over_the_file():
    arguments = ["--sweep.members", "99", "--fit.held_out=7", "--data.input", "a", "b"]
    config, out = override(Config(), [*arguments, "--out", "there"], "accomplice run")
    assert (config.sweep.members, config.fit.held_out) == (99, 7)
    assert config.data.input == ("a", "b")
    assert out == Path("there")


@pytest.mark.parametrize("word", ["true", "True"])
@pytest.mark.parametrize("key", ["--sweep.keep-params", "--sweep.keep_params"])
def test_booleans_are_given_as_in_toml(key, word):
    config, _ = override(Config(), [key, word, "--data.label", "true"], "accomplice run")
    assert config.sweep.keep_params
    assert config.data.label == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sweeep]\nmembers = 3", r'unknown section \[sweeep\] \(did you mean "sweep"\?\)'),
        ("[sweep]\nmember = 30", r'sweep.member is unknown \(did you mean "members"\?\)'),
        ("[sweep]\nmembers = 30.5", r"sweep.members = 30.5 must be of type int"),
        ("[sweep]\nmembers = true", r"sweep.members = True must be of type int"),
        ('[sweep]\nalpha = "half"', r"sweep.alpha = 'half' must be a list of numbers"),
        ("[data]\ninput = 3", r"data.input = 3 must be a list of strings"),
        ('[optim]\nname = "sdg"', r'optim.name = "sdg" is unknown; choose one of sgd, adamw'),
        ("sweep = 3", r"sweep must be a section"),
        ("[sweep", r"is not TOML"),
        ("[sweep]\nalpha = 0", r"sweep.alpha = 0.0 must be above 0 and below 1"),
        ("[sweep]\nalpha = 1.0", r"sweep.alpha = 1.0 must be above 0 and below 1"),
        ("[sweep]\nmembers = 100\n[fit]\nheld_out = 101", r"fit.held_out = 101 must be at most"),
        ("[audit]\nbudget = 1.5", r"audit.budget = 1.5 must be above 0"),
        ("[optim]\nsteps = 0", r"optim.steps = 0 must be at least 1"),
        ("[optim]\nlearning_rate = inf", r"optim.learning_rate = inf must be above 0 and finite"),
        ("[optim]\nmomentum = nan", r"optim.momentum = nan must be at least 0"),
        ("[data]\nlength = 0", r"data.length = 0 must be from 1 to 65536"),
        ("[data]\nvocabulary = 15", r"data.vocabulary = 15 must be at least 16"),
        ("[sweep]\nseed = 4294967296", r"sweep.seed = 4294967296 must be at least 0 and below"),
    ],
)
def test_mistakes_in_a_file_are_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        override(read_config(path), [], "accomplice run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep.memers", "3"], r'unknown option --sweep.memers \(did you mean "--sweep.mem'),
        (["--members", "3"], r"unknown option --members"),
        (["--sweep.members", "many"], r"^Error parsing --sweep.members: invalid literal .* 'many'"),
        (["--sweep.members"], r"^Missing value for argument '--sweep.members'"),
        (["--optim.schedule", "linear"], r"invalid choice 'linear'"),
        (["stray"], r"^Unrecognized options: stray"),
        (["--sweep.alpha", "2"], r"sweep.alpha = 2.0 must be above 0 and below 1"),
    ],
)
def test_mistakes_on_the_command_line_are_named_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        override(Config(), arguments, "accomplice run")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*nowhere.toml"):
        read_config(tmp_path / "nowhere.toml")


def test_the_command_line_may_mend_what_the_file_leaves_impossible(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text("[sweep]\nmembers = 100")
    config, _ = override(read_config(path), ["--fit.held-out", "20"], "accomplice run")
    assert config.fit.held_out == 20


def test_local_paths_become_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for source, whole in [
        ("mine.csv", str(tmp_path / "mine.csv")),
        ("pictures", str(tmp_path / "pictures")),
        ("digits", "digits"),
        ("someone/their-data", "someone/their-data"),
    ]:
        config, _ = override(Config(), ["--data.source", source], "accomplice run")
        assert config.data.source == whole


def test_the_path_of_a_tokenizer_becomes_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = override(Config(), ["--data.tokenizer", "mine.json"], "accomplice run")
    assert config.data.tokenizer == str(tmp_path / "mine.json")
    assert override(Config(), [], "accomplice run")[0].data.tokenizer == ""
