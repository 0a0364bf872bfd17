"Studies at work: a copy of the project, an engine in it, and what came of it."
import contextlib
import time

import forks
import psutil
import pytest
from conftest import copied, losses, numbers, succeeded
from filelock import FileLock

HEAD = 'scale = "smoke"\n'
LONG = HEAD + """
arms = ["baseline", "nope"]
seeds = [0, 1]
[overrides]
n_steps = 240
checkpoint_every = 20
eval_every = 120
"""


def project(folder):
    "A copy of what a study needs: notebooks, settings and studies."
    return copied(folder, "studies")


def write(root, name, text):
    (root / "studies" / f"{name}.toml").write_text(text)
    return f"studies/{name}.toml"


def engine(root, env, *argv):
    "An engine at work, with two workers unless they are a scheduler's."
    two = [] if "--scheduler" in argv else ["--workers", "2"]
    return forks.Forked(["ablation", "run", *argv, *two], root, env)


def left(root, file):
    "All files of this name that runs have left."
    return list(root.glob(f"outputs/*/*/*/{file}"))


def checkpoints(root): return left(root, "checkpoint.safetensors")


def results(root, name):
    "Everything about a study's runs that must not depend on what happened to it: folder -> numbers, losses, documents."
    study, runs = root / "outputs" / name, {}
    for p in sorted(study.rglob("result.json")):
        folder, docs = p.parent, p.with_name("doc_losses.npy")
        doc_losses = docs.read_bytes() if docs.exists() else None
        runs[folder.relative_to(study).as_posix()] = numbers(folder), losses(folder), doc_losses
    return runs


def kernels(process):
    "Processes of a running engine that are kernels: forks of its nursery."
    with contextlib.suppress(psutil.NoSuchProcess):
        return [k for nursery in psutil.Process(process.pid).children() for k in nursery.children()]
    return []


def wait_for(condition, seconds=90):
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="session", name="long")
def undisturbed(common, sh):
    "The undisturbed study that the others are compared with, carried out by the first process that asks for it."
    root = common / "calm"
    with FileLock(f"{root}.lock"):
        if not root.exists(): succeeded(sh("ablation", "run", write(project(root), "long", LONG), cwd=root))
    runs = results(root, "long-builtin")
    assert len(runs) == 4
    return runs
