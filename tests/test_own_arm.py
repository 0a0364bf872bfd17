"An arm from outside the package, as README tells it: arms.py at the project's root, a study, the report and the site."
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copied, refused, succeeded

CHAPTER = (ROOT / "README.md").read_text(encoding="utf-8").split("## An arm of your own\n")[1].split("\n## ")[0]


def block(language):
    "What the chapter tells a reader to type."
    return re.search(rf"```{language}\n(.+?)```", CHAPTER, re.S)[1]


ARM, STUDY, COMMANDS = block("python"), block("toml"), block("sh")
STUDY_FILE = re.search(r"`(studies/\w+\.toml)`", CHAPTER)[1]
REPORT = re.search(r"outputs/\S+/report\.md", COMMANDS)[0]


@pytest.fixture
def project(tmp_path):
    "A scratch copy of the project: `project(text)` writes its arms.py and gives back its root."
    def with_arms(text, *names):
        root = copied(tmp_path, *names)
        (root / "arms.py").write_text(text)
        return root
    return with_arms


def train(sh, root, arm):
    parameters = dict(ablation=arm, scale="smoke", out="run", threads=1)
    argv = [word for name, value in parameters.items() for word in ("-p", name, value)]
    return sh("papermill", "nbs/train.ipynb", "out.ipynb", *argv, cwd=root)


def test_an_own_arm_trains_through_papermill(project, sh):
    root = project(ARM)
    succeeded(train(sh, root, "slow_rope+silu"))  # own arms compose, too
    config, result = (json.loads((root / "run" / f).read_text()) for f in ("config.json", "result.json"))
    assert config["arm"] == "silu+slow_rope"
    assert config["model"]["rope_theta"] == 100
    assert config["model"]["ffn"] == "silu"
    assert result["status"] == "done"
    assert all(c["passed"] for c in result["checks"])


@pytest.fixture
def built(project, sh):
    "The whole project after the commands of the chapter; only the environment is made already. Its root, the commands."
    pages = [f.name for f in ROOT.iterdir() if f.suffix in (".md", ".cff")]
    root = project(ARM, "studies", "outputs", "ablation_nb", "Makefile", *pages)
    (root / STUDY_FILE).write_text(STUDY)
    source, *commands = (line.partition("#")[0].split() for line in COMMANDS.splitlines())
    assert source == ["source", ".venv/bin/activate"]
    assert [c[0] for c in commands] == ["ablation", "ablation", "make"]
    for command in commands:
        more = ["--old-file=install", f"BIN={Path(sys.executable).parent}"] if command[0] == "make" else []
        succeeded(sh(*command, *more, cwd=root, ABLATION_CORPUS=""))
    return root, commands


def test_what_readme_says_goes_from_an_own_arm_to_the_report_and_the_site(built, sh):
    "Files and commands as they are written there."
    root, commands = built
    report = (root / REPORT).read_text()
    row = next(line for line in report.splitlines() if line.startswith("| Slow RoPE"))
    assert "[" in row, row
    assert "theta = 100" in report
    page = (root / "_docs" / REPORT).with_suffix(".html").read_text(encoding="utf-8")
    assert "Slow RoPE" in page
    assert "mine/report.html" in (root / "_docs" / "outputs" / "index.html").read_text(encoding="utf-8")

    # another name: the old runs stay where they are, are named, and are in no mean
    for file, text in (("arms.py", ARM), (STUDY_FILE, STUDY)):
        (root / file).write_text(text.replace("slow_rope", "slower_rope"))
    succeeded(sh(*commands[1], cwd=root, ABLATION_CORPUS=""))
    report = (root / REPORT).read_text()
    assert "there is no arm 'slow_rope' any more" in report
    assert "| Slow RoPE" not in report


def test_the_arm_is_not_there_without_the_file(project, sh):
    root = project(ARM)
    (root / "arms.py").unlink()
    refused(train(sh, root, "slow_rope"), "Unknown arm 'slow_rope'")


def test_an_arm_that_changes_nothing_is_refused_before_it_trains(project, sh):
    root = project(ARM.replace("100.0", "10_000.0"))
    refused(train(sh, root, "slow_rope"), "'slow_rope' claims a change that is not there")
    assert not (root / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("wrong, words", [
    (ARM.replace('"slow_rope"', '"nope"'), ["An arm called 'nope' exists already"]),
    (ARM.replace("rope_theta", "rope_thta"), ["'slow_rope' changes rope_thta", "Did you mean 'rope_theta'?"]),
    (ARM + ")", ["SyntaxError"]),
])
def test_what_is_wrong_in_the_file_is_said(project, sh, wrong, words):
    root = project(wrong)
    refused(train(sh, root, "baseline"), *words)
    (root / "one.toml").write_text('scale = "smoke"\narms = ["baseline"]\nseeds = [0]\n')
    done = refused(sh("ablation", "plan", "one.toml", cwd=root), "arms.py, line ", *words, status=2)
    assert done.stderr.count("\n") == 1, done.stderr
    succeeded(sh("ablation", "--help", cwd=root))


def own_layer():
    "The file with a layer of its own, as CONTRIBUTING.md has it."
    blocks = [b.split("```")[0] for b in (ROOT / "CONTRIBUTING.md").read_text().split("```python\n")[1:]]
    return next(b for b in blocks if "register_feed_forward" in b)


LAYERS = """
scale = "smoke"
arms = ["baseline", "geglu", "nope+geglu"]
seeds = [0, 1]
"""


def test_an_own_layer_goes_from_one_file_to_the_report(project, sh):
    root = project(own_layer())
    (root / "studies").mkdir()
    (root / "studies" / "own.toml").write_text(LAYERS)
    for command in ("run", "report"): succeeded(sh("ablation", command, "studies/own.toml", cwd=root))
    study = root / "outputs" / "own-builtin"
    lines = (study / "report.md").read_text().split("## Results")[1].splitlines()
    table = [line for line in lines if line.startswith("| ")]
    rows = {line.split("|")[1].strip(): line for line in reversed(table)}  # the first table wins
    for arm in ("GeGLU", "NoPE + GeGLU"): assert "[" in rows[arm], rows

    def parameters(arm): return json.loads((study / arm / "0.01-s0" / "result.json").read_text())["parameters"]
    assert parameters("geglu") == parameters("baseline")


@pytest.mark.parametrize("promised, trained, words", [
    ("F.gelu(self.w1(x)) * self.w3(x)", "F.relu(self.w1(x)) * self.w3(x)", "off geglu by"),  # it is not its formula
    ("gated=True, ", "", "must hold 2 matrices for geglu and holds 3"),
    ("layer=GeGLU", "", "The part 'geglu' has no layer"),
])
def test_an_own_layer_that_is_not_what_it_says_does_not_train(project, sh, promised, trained, words):
    assert promised in own_layer()
    root = project(own_layer().replace(promised, trained))
    refused(train(sh, root, "geglu"), words)
    assert not (root / "run" / "metrics.jsonl").exists()
