"What the end-to-end tests share: a project root to run commands from, and a small corpus."
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def as_in_a_terminal():
    "Before a process begins: Ctrl-C interrupts it, even where the tests themselves run in the background and ignore it."
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def env(tmp_path_factory):
    "An environment whose prepared text goes to a folder of its own, and whose default corpus is the built-in one."
    env = {**os.environ, "ABLATION_CACHE": str(tmp_path_factory.mktemp("cache")), "ABLATION_CORPUS": "builtin:300"}
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}


@pytest.fixture(scope="session")
def sh(env):
    "Run a command from the project's root: `sh('papermill', ...)` -> completed process with text output."
    def run(*argv, cwd=ROOT, timeout=300, **extra):
        return subprocess.run([str(a) for a in argv], cwd=cwd, env={**env, **extra}, capture_output=True, text=True, timeout=timeout)
    return run


@pytest.fixture(scope="session")
def train(sh):
    "Train at smoke scale through papermill, into a run folder: `train(folder, ablation='nope')`."
    def run(folder, **parameters):
        parameters = {"scale": "smoke", "threads": 1, "out": folder, **parameters}
        return sh("papermill", "nbs/train.ipynb", f"{folder}.ipynb", *(a for k, v in parameters.items() for a in ("-p", k, v)))
    return run
