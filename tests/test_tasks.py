"A study on a task, as its users run it: episodes of two lengths, answers in results, tables, figures and pages."
import json

import numpy as np
import pandas as pd
import pytest
from conftest import copied, numbers, refused, succeeded
from engines import HEAD, write

TASK = "task:recall:keys=16:values=16:episodes=2000"
STUDY = HEAD + f"""
corpus = "{TASK}"
arms = ["baseline", "learned"]
seeds = [0, 1]
[grid]
context_length = [16, 32]
[overrides]
n_steps = 30
batch_size = 8
valid_stories = 64
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A copy of the project's notebooks and settings."
    root = copied(tmp_path_factory.mktemp("project"), "studies")
    (root / "out").mkdir()
    return root


@pytest.fixture(scope="module")
def study(root, sh):
    "The folder of a study on a task, run and reported, although the environment names a text."
    file = write(root, "asking", STUDY)
    said = succeeded(sh("ablation", "plan", file, cwd=root)).stdout
    assert "8" in said
    succeeded(sh("ablation", "run", file, cwd=root))
    succeeded(sh("ablation", "report", file, cwd=root))
    return root / "outputs" / "asking"


def test_a_run_keeps_what_it_answered(study):
    results = [json.loads(p.read_text()) for p in study.glob("*/*/*/result.json")]
    assert len(results) == 8
    for r in results:
        assert 0 <= r["accuracy"] <= 1
        [(episode, answers)] = r["stories"].items()
        assert episode.startswith(". k")
        assert set(answers.split()) <= {".", *(f"{kind}{i}" for kind in "kv" for i in range(16))}
    for folder in study.glob("*/learned/*"):
        r = json.loads((folder / "result.json").read_text())
        assert r["accuracy_2x"] is None
        places = np.load(folder / "position_losses.npy")
        assert np.isnan(places[1]).all()
    configs = [json.loads(p.read_text()) for p in study.glob("*/*/*/config.json")]
    assert {c["corpus"] for c in configs} == {TASK}
    assert {c["model"]["vocab_size"] for c in configs} == {33}


def test_pages_speak_of_answers(study):
    page = (study / "report.md").read_text()
    assert "## Answers over the grid" in page
    assert "replicates" not in page
    for point in ("context_length-16", "context_length-32"):
        page = (study / point / "report.md").read_text()
        assert "\n## Answers\n" in page
        assert "over all answers of the validation episodes" in page
        assert "- Right answers (chance 0." in page.partition("## How fine")[0]
        assert "## Beside the report" not in page
        assert (study / point / "answers.svg").exists()
        table = pd.read_csv(study / point / "tables" / "answers.csv").set_index("arm")
        runs = [json.loads(p.read_text())["accuracy"] for p in (study / point / "baseline").glob("*/result.json")]
        assert np.isclose(table.accuracy["baseline"], np.mean(runs))
        assert np.isnan(table.accuracy_2x["learned"])


def test_nothing_is_left_to_do_and_status_says_so(root, study, sh):
    assert "Nothing is left to do." in succeeded(sh("ablation", "plan", "studies/asking.toml", cwd=root)).stdout
    rows = json.loads(succeeded(sh("ablation", "status", "studies/asking.toml", "--json", cwd=root)).stdout)
    assert [r["state"] for r in rows] == ["done"] * 8


def test_a_run_is_its_own_again(root, study, sh):
    first = study / "context_length-16" / "baseline" / "0.01-s0"
    shape = dict(context_length=16, n_steps=30, batch_size=8, valid_stories=64)
    settings = dict(scale="smoke", corpus=TASK, threads=1, out="out/again", **shape)
    argv = [x for name, value in settings.items() for x in ("-p", name, str(value))]
    succeeded(sh("papermill", "nbs/train.ipynb", "out/again.ipynb", *argv, cwd=root))
    assert numbers(root / "out" / "again") == numbers(first)


def test_what_a_task_cannot_be_is_one_sentence(root, sh):
    def plan(corpus, more=""):
        text = HEAD + f'corpus = "{corpus}"\narms = ["nope"]\nseeds = [0]\n{more}'
        return sh("ablation", "plan", write(root, "odd", text), cwd=root)
    refused(plan("task:recal"), "corpus = 'task:recal' is refused", "Did you mean 'recall'?", status=2)
    refused(plan("task:recall:episodes=10"), "80 episodes", "episodes=80", status=2)
    refused(plan("task:recall", "[overrides]\nvocab_size = 99\n"), "vocab_size=99", "129 tokens", status=2)
    refused(plan("task:copy:length=40"), "context_length=32", "longer context", status=2)
