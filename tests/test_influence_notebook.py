"""Load, run and show from Python."""

import copy
import json
import shutil
from html.parser import HTMLParser

import pytest
from smoke import SMOKE

from influence import notebook
from influence.cli import main
from training.errors import UserError

SMALL = {
    "sweep.members": 40, "sweep.replicate_masks": 3, "sweep.replicate_seeds": 2,
    "optim.steps": 20, "fit.held_out": 10, "audit.seeds": 4, "sweep.width": 8, "joint.share": 0,
    "sweep.alpha": [0.5],
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    config = notebook.load(SMOKE, SMALL)
    return notebook.run(config, tmp_path_factory.mktemp("notebook") / "run")


def test_three_lines_show_what_was_found(result, capsys):
    result.show()
    said = capsys.readouterr().out
    verdict = result.audit["verdict"]
    assert f"{verdict['confirmed']} of {verdict['judged']} that were judged" in said
    assert "success of backdoor" in said
    assert str(result.report.resolve()) in said
    assert len(result.confirmed()) == verdict["confirmed"]
    assert result.scores.num_rows == result.audit["examples"]


def test_a_notebook_shows_the_summary_as_html_that_is_closed_and_escaped(result):
    result = copy.deepcopy(result)
    result.audit["verify"]["success_by_attack"]["<script>"] = result.audit["verify"]["accuracy"]
    page, open_tags = result._repr_html_(), []

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag != "script"
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Check().feed(page)
    assert not open_tags
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == 1 + notebook.SHOWN


def test_a_finished_run_is_opened_and_an_unfinished_one_is_told(result, tmp_path):
    again = notebook.open_result(result.path)
    assert again.summary() == result.summary()
    assert json.dumps(again.audit) == json.dumps(result.audit)
    words = [
        word
        for key, value in SMALL.items()
        for word in (
            f"--{key.replace('_', '-')}",
            str(value[0] if key.endswith("alpha") else value),
        )
    ]
    assert main(["sweep", SMOKE, "--out", str(tmp_path / "run"), *words]) == 0
    with pytest.raises(UserError, match="run first: accomplice audit"):
        notebook.open_result(tmp_path / "run")
    copied = shutil.copytree(result.path, tmp_path / "copied")
    assert main(["audit", str(copied)]) == 0
    with pytest.raises(UserError, match="run first: accomplice verify"):
        notebook.open_result(copied)


def test_keys_that_do_not_exist_are_named():
    with pytest.raises(UserError, match=r"sweep.membres|membres"):
        notebook.load(SMOKE, {"sweep.membres": 3})
