"Old runs under new code, wherever they were made."
import json
import re
import subprocess

import pytest
from conftest import copied, refused, succeeded

PLAN = """
import json
from ablation_nb.provenance import package_hash, proven, read_proofs
from ablation_nb.results import load_runs
runs, now, proofs = load_runs("outputs/true_model-tinystories"), package_hash(), read_proofs()
print(json.dumps([(r.arm, proven(r.arm, r.precision, r.package_hash, now, proofs)) for r in runs.itertuples()]))
"""


@pytest.fixture
def clone(tmp_path):
    "A git repository with the notebooks, the package, and the runs that a graphics card made."
    root = copied(tmp_path, "ablation_nb", "outputs/code.toml", "outputs/true_model-tinystories/runs.zip")
    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "before"]): git("-C", root, *argv)
    return root


def git(*argv):
    own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *own, *argv], check=True)


def edit(root, *changes):
    "Replace pieces of the trainer's code."
    file = root / "ablation_nb" / "trainer.py"
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def standing(sh, root):
    "The arms whose runs on the card stand under the code as it is, and those whose runs do not."
    runs = json.loads(succeeded(sh("python", "-c", PLAN, cwd=root, PYTHONPATH=root)).stdout)
    return {arm for arm, stands in runs if stands}, {arm for arm, stands in runs if not stands}


ARMS = {"baseline", "no_norm", "nope"}
OTHERS = {"post_norm", "silu"}  # of which nothing is proven


def prove(sh, root, *commits):
    return sh("ablation", "prove", *commits, "--arms", *sorted(ARMS), cwd=root, PYTHONPATH=root)


WARM_UP = "return cfg.lr * (i + 1) / cfg.warmup_steps", "return cfg.lr * (i + 5) / cfg.warmup_steps"


def test_a_renamed_variable_leaves_runs_of_another_machine_standing_and_another_warm_up_does_not(clone, sh):
    "What is computed here is held against both versions at once."
    assert standing(sh, clone) == (ARMS | OTHERS, set())
    edit(clone, WARM_UP)
    assert standing(sh, clone) == (set(), ARMS | OTHERS)
    git("-C", clone, "commit", "-q", "-a", "-m", "another warm-up")
    edit(clone, WARM_UP[::-1], ("share = (i", "part = (i"), ("min(1, share)", "min(1, part)"))
    assert standing(sh, clone) == (set(), ARMS | OTHERS)  # until it is proven
    said = refused(prove(sh, clone, "HEAD~1", "HEAD")).stdout
    counts = re.findall(r"(\d) of 3 arms make the same numbers", said)
    assert counts == ["3", "3", "0", "0"], said   # fp32 and bf16, of one version and of the other
    assert standing(sh, clone) == (ARMS, OTHERS)
    edit(clone, WARM_UP, ("part = (i", "share = (i"), ("min(1, part)", "min(1, share)"))
    assert standing(sh, clone) == (set(), ARMS | OTHERS)


def test_a_proof_against_the_last_commit_needs_no_name(clone, sh):
    edit(clone, ("share = (i", "part = (i"), ("min(1, share)", "min(1, part)"))
    done = succeeded(sh("ablation", "prove", "--arms", "nope", cwd=clone, PYTHONPATH=clone))
    assert "1 of 1 arms make the same numbers" in done.stdout


def test_what_is_no_commit_is_said(clone, sh):
    done = refused(prove(sh, clone, "yesterday"), "'yesterday' is no commit", status=2)
    assert done.stderr.count("\n") == 1


FORKED = """
import json, sys
from pathlib import Path
import nbformat
from ablation_nb.kernels import run_notebook
code = ("from ablation_nb.provenance import package_hash\\nfrom ablation_nb.trainer import lr_at\\n"
        "print(package_hash(), 5 in lr_at.__code__.co_consts)")
asked = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
asked.metadata.kernelspec = dict(name="python3", language="python", display_name="Python 3")
nbformat.write(asked, "asked.ipynb")
def said():
    run_notebook(Path("asked.ipynb"), Path("said.ipynb"), Path("."), {})
    return nbformat.read("said.ipynb", 4).cells[-1].outputs[0].text.split()
before = said()
file, (old, new) = Path("ablation_nb/trainer.py"), json.loads(sys.argv[1])
file.write_text(file.read_text().replace(old, new))
print(json.dumps([before, said()]))
"""
HASH = "from ablation_nb.provenance import package_hash; print(package_hash())"


def test_a_kernel_names_the_code_that_it_runs_whatever_was_edited_since_the_engine_began(clone, sh):
    asked = sh("python", "-c", FORKED, json.dumps(WARM_UP), cwd=clone, PYTHONPATH=clone, anew=True)
    before, after = json.loads(succeeded(asked).stdout)
    assert before == after
    assert before[1] == "False"
    now = succeeded(sh("python", "-c", HASH, cwd=clone, PYTHONPATH=clone, anew=True)).stdout.strip()
    assert now != before[0]
