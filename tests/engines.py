"Studies at work: a copy of the project, an engine in it, and what came of it."
import contextlib
import json
import shutil
import subprocess
import time

import psutil
import pytest
from conftest import ROOT, as_in_a_terminal

HEAD = 'scale = "smoke"\n'
LONG = HEAD + 'arms = ["baseline", "nope"]\nseeds = [0, 1]\n[overrides]\nn_steps = 800\ncheckpoint_every = 20\neval_every = 400\n'


def project(folder):
    "A copy of what a study needs: notebooks and settings."
    for name in ("nbs", "studies", "reference"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def write(root, name, text):
    (root / "studies" / f"{name}.toml").write_text(text)
    return f"studies/{name}.toml"


def engine(root, env, *argv):
    two = [] if "--scheduler" in argv else ["--workers", "2"]
    return subprocess.Popen(["ablation", "run", *argv, *two], cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal)


def results(root, name):
    "Everything about a study's runs that must not depend on what happened to it: folder -> numbers, losses, document losses."
    found = {}
    for p in sorted((root / "outputs" / name).rglob("result.json")):
        folder = p.parent
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[folder.relative_to(root / "outputs" / name).as_posix()] = (
            {k: v for k, v in json.loads(p.read_text()).items() if "second" not in k},
            [{k: v for k, v in r.items() if k != "seconds"} for r in rows],
            (folder / "doc_losses.npy").read_bytes() if (folder / "doc_losses.npy").exists() else None)
    return found


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


@pytest.fixture(scope="module", name="long")
def undisturbed(tmp_path_factory, sh):
    "The undisturbed study that the others are compared with."
    root = project(tmp_path_factory.mktemp("calm"))
    done = sh("ablation", "run", write(root, "long", LONG), cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(root, "long-builtin")
    assert len(found) == 4
    return found
