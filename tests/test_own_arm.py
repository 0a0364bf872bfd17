"An arm from outside the package, as README tells it: a file arms.py at the project's root, a study file, and from there to the report and the site."
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CHAPTER = (ROOT / "README.md").read_text(encoding="utf-8").split("## An arm of your own\n")[1].split("\n## ")[0]
ARM, STUDY, COMMANDS = (re.search(rf"```{language}\n(.+?)```", CHAPTER, re.S)[1] for language in ("python", "toml", "sh"))


@pytest.fixture
def project(tmp_path):
    "A scratch copy of the project: `project(text)` writes its arms.py and gives back its root."
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".*", "_*"))
    shutil.copytree(ROOT / "reference", tmp_path / "reference")
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def with_arms(text):
        (tmp_path / "arms.py").write_text(text)
        return tmp_path
    return with_arms


def train(sh, root, arm):
    return sh("papermill", "nbs/train.ipynb", "out.ipynb", "-p", "ablation", arm, "-p", "scale", "smoke", "-p", "out", "run", "-p", "threads", 1, cwd=root)


def test_an_own_arm_trains_through_papermill(project, sh):
    root = project(ARM)
    done = train(sh, root, "slow_rope+silu")  # own arms compose, too
    assert done.returncode == 0, done.stderr
    config, result = (json.loads((root / "run" / f).read_text()) for f in ("config.json", "result.json"))
    assert config["arm"] == "silu+slow_rope" and config["model"]["rope_theta"] == 100 and config["model"]["ffn"] == "silu"
    assert result["status"] == "done" and all(c["passed"] for c in result["checks"])


def test_what_readme_says_goes_from_an_own_arm_to_the_report_and_the_site(project, sh):
    "Files and commands as they are written there; only the environment is made already."
    root = project(ARM)
    for f in ROOT.iterdir():
        if f.name in ("studies", "outputs", "ablation_nb", "Makefile") or f.suffix in (".md", ".cff"):
            shutil.copytree(f, root / f.name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__")) if f.is_dir() else shutil.copy(f, root)
    shutil.copytree(ROOT / "nbs" / "_sphinx", root / "nbs" / "_sphinx")
    (root / re.search(r"`(studies/\w+\.toml)`", CHAPTER)[1]).write_text(STUDY)
    source, *commands = (line.partition("#")[0].split() for line in COMMANDS.splitlines())
    assert source == ["source", ".venv/bin/activate"] and [c[0] for c in commands] == ["ablation", "ablation", "make"]
    for command in commands:
        done = sh(*command, *(["--old-file=install", f"BIN={Path(sys.executable).parent}"] if command[0] == "make" else []), cwd=root, ABLATION_CORPUS="")
        assert done.returncode == 0, done.stdout + done.stderr
    report = re.search(r"outputs/\S+/report\.md", COMMANDS)[0]
    row = next(line for line in (root / report).read_text().splitlines() if line.startswith("| Slow RoPE"))
    assert "[" in row, row
    assert "theta = 100" in (root / report).read_text()
    page = (root / "_docs" / report).with_suffix(".html").read_text(encoding="utf-8")
    assert "Slow RoPE" in page and "mine/report.html" in (root / "_docs" / "outputs" / "index.html").read_text(encoding="utf-8")

    # another name: the old runs stay where they are, are named, and are in no mean
    for f, text in (("arms.py", ARM), (re.search(r"`(studies/\w+\.toml)`", CHAPTER)[1], STUDY)):
        (root / f).write_text(text.replace("slow_rope", "slower_rope"))
    done = sh(*commands[1], cwd=root, ABLATION_CORPUS="")
    told = (root / report).read_text()
    assert done.returncode == 0 and "there is no arm 'slow_rope' any more" in told and "| Slow RoPE" not in told, done.stderr


def test_the_arm_is_not_there_without_the_file(project, sh):
    root = project(ARM)
    (root / "arms.py").unlink()
    done = train(sh, root, "slow_rope")
    assert done.returncode != 0 and "Unknown arm 'slow_rope'" in done.stderr


def test_an_arm_that_changes_nothing_is_refused_before_it_trains(project, sh):
    root = project(ARM.replace("100.0", "10_000.0"))
    done = train(sh, root, "slow_rope")
    assert done.returncode != 0 and "'slow_rope' claims a change that is not there" in done.stderr
    assert not (root / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("wrong, words", [
    (ARM.replace('"slow_rope"', '"nope"'), ["An arm called 'nope' exists already"]),
    (ARM.replace("rope_theta", "rope_thta"), ["'slow_rope' changes rope_thta", "Did you mean 'rope_theta'?"]),
    (ARM + ")", ["SyntaxError"]),
])
def test_what_is_wrong_in_the_file_is_said(project, sh, wrong, words):
    root = project(wrong)
    done = train(sh, root, "baseline")
    assert done.returncode != 0 and all(w in done.stderr for w in words), done.stderr
    (root / "one.toml").write_text('scale = "smoke"\narms = ["baseline"]\nseeds = [0]\n')
    done = sh("ablation", "plan", "one.toml", cwd=root)
    assert done.returncode == 2 and "arms.py, line " in done.stderr and done.stderr.count("\n") == 1 and all(w in done.stderr for w in words), done.stderr
    assert sh("ablation", "--help", cwd=root).returncode == 0


def own_layer():
    "The file with a layer of its own, as CONTRIBUTING.md has it."
    return next(b for b in (ROOT / "CONTRIBUTING.md").read_text().split("```python\n") if "register_feed_forward" in b.split("```")[0]).split("```")[0]


def test_an_own_layer_goes_from_one_file_to_the_report(project, sh):
    root = project(own_layer())
    (root / "studies").mkdir()
    (root / "studies" / "own.toml").write_text('scale = "smoke"\narms = ["baseline", "geglu", "nope+geglu"]\nseeds = [0, 1]\n')
    for command in ("run", "report"):
        done = sh("ablation", command, "studies/own.toml", cwd=root)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split("|")[1].strip(): line for line in (root / "outputs" / "own-builtin" / "report.md").read_text().split("## Results")[1].splitlines()[::-1] if line.startswith("| ")}  # the first table wins
    assert "[" in rows["GeGLU"] and "[" in rows["NoPE + GeGLU"], rows
    counts = {a: json.loads((root / f"outputs/own-builtin/{a}/0.01-s0/result.json").read_text())["parameters"] for a in ("baseline", "geglu")}
    assert counts["geglu"] == counts["baseline"]


@pytest.mark.parametrize("told, trained, words", [
    ("F.gelu(self.w1(x)) * self.w3(x)", "F.relu(self.w1(x)) * self.w3(x)", ["off geglu by"]),  # the layer is not its formula
    ("gated=True, ", "", ["must hold 2 matrices for geglu and holds 3"]),
    ("layer=GeGLU", "", ["The part 'geglu' has no layer"]),
])
def test_an_own_layer_that_is_not_what_it_says_does_not_train(project, sh, told, trained, words):
    assert told in own_layer()
    root = project(own_layer().replace(told, trained))
    done = train(sh, root, "geglu")
    assert done.returncode != 0 and all(w in done.stderr for w in words), done.stderr[-2000:]
    assert not (root / "run" / "metrics.jsonl").exists()
