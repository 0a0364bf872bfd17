"What the end-to-end tests share: a project root to run commands from, a small corpus, copies, and what a run left."
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forks
import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent

LONGEST = (  # by minutes
    "site", "training", "repository", "resuming", "doors", "visit", "strangers", "study", "provenance", "types", "lab",
    "faults")
LONG_NOTEBOOKS = ("23_report", "25_ledger", "32_visit", "07_step", "09_statistics")
SHARE_NOTHING = ("test_notebooks", "test_faults")  # but what a whole session shares


def pytest_collection_modifyitems(items):
    "What takes minutes begins first, so that no process is left with it at the end."
    places = {f"test_{name}": i for i, name in enumerate(LONGEST)}

    def place(item):
        if any(f"[{name}]" in item.name for name in LONG_NOTEBOOKS): return 1, 0
        return places.get(item.path.stem, len(LONGEST)), item.path.stem == "test_notebooks"
    items.sort(key=place)


class ByFile(LoadScopeScheduling):
    "Tests of a file go to one process, unless they share nothing."
    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return nodeid if Path(file).stem in SHARE_NOTHING else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def as_in_a_terminal():
    """Before a process begins: Ctrl-C interrupts it.
    So it is even where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def copied(folder, *names):
    "A scratch copy of what every notebook needs and of what else is named, without what can be made again. Its folder."
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.safetensors")
    for name in ("nbs", "reference", "settings.ini", "pyproject.toml", *names):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir(): shutil.copytree(source, target, ignore=unwanted)
        else: shutil.copy(source, target)
    return folder


def succeeded(done):
    "A finished command that reports success; what it said, if not."
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refused(done, *words, status=1):
    "A finished command that ended with this status and said these words on standard error."
    assert done.returncode == status, done.stdout + done.stderr
    for w in words: assert w in done.stderr, done.stderr
    return done


def numbers(folder):
    "What result.json says of a run, without wall-clock times."
    result = json.loads((folder / "result.json").read_text())
    return {k: v for k, v in result.items() if "second" not in k}


def losses(folder):
    "The rows of metrics.jsonl, without wall-clock times."
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


@pytest.fixture(scope="session")
def common(tmp_path_factory):
    "A folder that the processes of a test session share."
    own = tmp_path_factory.getbasetemp()
    forks.SERVER.place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return forks.SERVER.place


OF_MAKE = ("CORPUS", "STUDY", "LIMIT", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")   # what is said to `make test` itself


@pytest.fixture(scope="session")
def env(common):
    "An environment whose prepared text goes to a folder of its own, and whose default corpus is the built-in one."
    cache, path = common / "cache", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    others = ("PYTHONDONTWRITEBYTECODE", *OF_MAKE)   # the first: each would compile the package
    kept = {k: v for k, v in os.environ.items() if k not in others}
    compiler = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # each process that helps it would import torch
    return {**kept, **compiler, "ABLATION_CACHE": str(cache), "ABLATION_CORPUS": "builtin:300", "PATH": path}


@pytest.fixture(scope="session")
def sh(env):
    """Run a command from the project's root: `sh('papermill', ...)` -> completed process with text output.
    It is a fork that has imported other libraries already, unless a test asks for one that starts from nothing."""
    def run(*argv, cwd=ROOT, timeout=600, anew=False, **extra):
        argv, own = [str(a) for a in argv], {k: str(v) for k, v in {**env, **extra}.items()}
        if not anew and forks.can_fork(argv, own): return forks.done(argv, cwd, own, timeout)
        return subprocess.run(argv, cwd=cwd, env=own, capture_output=True, text=True, timeout=timeout)
    succeeded(run("python", "-c", "pass"))  # the libraries are imported before any test looks at its clock
    return run


def train_command(folder, **parameters):
    "The papermill command that trains at smoke scale into a run folder, whose notebook lies beside it."
    argv = ["papermill", "nbs/train.ipynb", f"{folder}.ipynb"]
    for name, value in {"scale": "smoke", "threads": 1, "out": folder, **parameters}.items():
        argv += ["-p", name, str(value)]
    return argv


@pytest.fixture(scope="session")
def train(sh):
    "Train at smoke scale through papermill, into a run folder: `train(folder, ablation='nope')`."
    def run(folder, anew=False, **parameters): return sh(*train_command(folder, **parameters), anew=anew)
    return run
