"Old runs under new code: a renamed variable leaves them standing, wherever they were made, and another warm-up does not."
import json
import shutil
import subprocess

import pytest
from conftest import ROOT

PLAN = """
import json
from ablation_nb.provenance import package_hash, proven, read_proofs
from ablation_nb.results import load_runs
runs = load_runs("outputs/true_model-tinystories")
print(json.dumps([proven(r.arm, r.precision, r.package_hash, package_hash(), read_proofs()) for r in runs.itertuples()]))
"""


@pytest.fixture
def clone(tmp_path):
    "A git repository with the notebooks, the package, and the runs that a graphics card made."
    for name in ("nbs", "ablation_nb"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (tmp_path / "outputs" / "true_model-tinystories").mkdir(parents=True)
    for name in ("settings.ini", "outputs/code.toml", "outputs/true_model-tinystories/runs.zip"):
        shutil.copy(ROOT / name, tmp_path / name)
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "before"]):
        subprocess.run([*git, *argv], check=True)
    return tmp_path


def edit(root, old, new):
    file = root / "ablation_nb" / "trainer.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def standing(sh, root):
    "For each run of the card: does it stand under the code as it is?"
    done = sh("python", "-c", PLAN, cwd=root, PYTHONPATH=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_renamed_variable_leaves_the_runs_of_another_machine_standing(clone, sh):
    assert all(standing(sh, clone))
    edit(clone, "share = (i", "part = (i")
    edit(clone, "min(1, share)", "min(1, part)")
    assert not any(standing(sh, clone))  # until it is proven
    done = sh("ablation", "prove", cwd=clone, PYTHONPATH=clone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 of 9 arms make the same numbers" in done.stdout
    assert all(standing(sh, clone))


def test_another_warm_up_makes_them_stale(clone, sh):
    edit(clone, "return cfg.lr * (i + 1) / cfg.warmup_steps", "return cfg.lr * (i + 5) / cfg.warmup_steps")
    done = sh("ablation", "prove", cwd=clone, PYTHONPATH=clone)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 of 9 arms make the same numbers" in done.stdout
    assert not any(standing(sh, clone))


def test_what_is_no_commit_is_said(clone, sh):
    done = sh("ablation", "prove", "yesterday", cwd=clone, PYTHONPATH=clone)
    assert done.returncode == 2
    assert "'yesterday' is no commit" in done.stderr
    assert done.stderr.count("\n") == 1
