"JupyterLab as a person uses it: open train.ipynb, change the arm, run all cells, see the loss curve and the result."
import contextlib
import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import nbformat
import psutil
import pytest
from browser import CHROMIUM, NONE, browser  # noqa: F401  browser is a fixture
from conftest import ROOT

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=NONE)

TOKEN = "tests"
LAST = "folder: out/"  # what the last cell prints
ERROR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"  # JupyterLab shows errors and standard error alike


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A scratch copy of the project: what a notebook writes stays in it."
    there = tmp_path_factory.mktemp("lab") / "project"
    shutil.copytree(ROOT / "nbs", there / "nbs", ignore=shutil.ignore_patterns(".*"))
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, there)
    shutil.copy(there / "nbs" / "train.ipynb", there / "nbs" / "mistyped.ipynb")
    return there


@pytest.fixture(scope="module")
def lab(browser, project, env, tmp_path_factory):  # noqa: F811
    "The address of a JupyterLab in that copy; it is started as `make lab` starts it, but without a browser window."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = {f"{name}_DIR": str(tmp_path_factory.mktemp(name)) for name in ("JUPYTER_CONFIG", "JUPYTER_RUNTIME", "JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES")}
    told = subprocess.run(["make", "-f", ROOT / "Makefile", "-n", "lab", "--old-file=install", f"BIN={Path(sys.executable).parent}"], cwd=project, capture_output=True, text=True, check=True).stdout
    argv = [*shlex.split(next(line for line in told.splitlines() if "jupyter lab" in line)), f"--port={port}", "--ServerApp.port_retries=0", "--no-browser", f"--IdentityProvider.token={TOKEN}"]
    log = open(project.parent / "lab.log", "w")
    server = subprocess.Popen(argv, cwd=project, env={**env, **own}, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}").close()
                break
            assert server.poll() is None, (project.parent / "lab.log").read_text()
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/lab/workspaces/{{0}}/tree/nbs/{{0}}.ipynb?token={TOKEN}"  # a workspace of its own has no other tab open
    finally:
        for p in [*psutil.Process(server.pid).children(recursive=True), server]:
            with contextlib.suppress(psutil.NoSuchProcess):
                p.kill()
        server.wait()
        log.close()


def type_over(page, start, line):
    "Replace the first line that begins so, as a person would: again, when the notebook moved under the pointer."
    lines = page.locator(".jp-Notebook .cm-line")
    for _ in range(10):
        lines.filter(has_text=start).first.click()
        page.keyboard.press("Home")
        page.keyboard.press("Shift+End")
        if page.evaluate("getSelection().toString()").startswith(start):
            page.keyboard.insert_text(line)
        for _ in range(20):
            if line in lines.all_inner_texts():
                return
            page.wait_for_timeout(100)
    raise AssertionError(f"{line} could not be typed")


def run_all(window, address, shot, **changes):
    "Open the notebook, write `name = value` lines over those of the parameters cell, run all cells, and wait until the last one has spoken, or one has failed. The page."
    for _ in range(4):  # a click that a busy page has lost, or a run whose connection JupyterLab has dropped, is made again in a new window
        page = window()
        page.goto(address)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=120_000)
        for name, value in changes.items():
            type_over(page, f"{name} = ", f"{name} = {value!r}")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        ended = page.locator(".jp-OutputArea-output", has_text=LAST).or_(page.locator(ERROR))
        busy = page.locator(".jp-Notebook-ExecutionIndicator[data-status=busy]")
        begun = seen = time.time()
        while not ended.count() and time.time() < min(seen + 15, begun + 170):  # not `wait_for`, which asks at every frame: on a busy machine there are few
            seen = time.time() if busy.count() else seen
            page.wait_for_timeout(250)
        page.screenshot(path=shot)
        if ended.count():
            return page
        said = {k: page.locator(k).all_inner_texts() for k in (".jp-InputArea-prompt", ".jp-OutputArea-output", ".jp-Dialog", "#jp-main-statusbar")}
        warnings.warn(f"The notebook did not come to an end after {time.time() - begun:.0f} s: {said}", stacklevel=2)
    raise AssertionError(f"the notebook did not come to an end in four windows: {said}")


@pytest.fixture
def window(browser):  # noqa: F811
    "Opens a browser window of its own; the one before it is closed."
    contexts = []

    def another():
        for c in contexts:
            c.close()
        contexts[:] = [browser.new_context(viewport={"width": 1400, "height": 1000})]
        return contexts[0].new_page()
    yield another
    for c in contexts:
        c.close()


def saved(page, notebook, wanted):
    "The outputs of the notebook on disk, once it holds `wanted`."
    for i in range(60):
        if i % 10 == 0:  # again, in case a busy page lost the keys
            page.keyboard.press("Control+s")
        with contextlib.suppress(ValueError, nbformat.reader.NotJSONError):  # half a file, while it is being written
            text = notebook.read_text(encoding="utf-8")
            if wanted in text:
                return [o for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "code" for o in c.outputs]
        page.wait_for_timeout(500)
    raise AssertionError(f"{wanted} was not saved")


def test_change_the_arm_run_all_and_see_the_result(window, lab, project, tmp_path):
    page = run_all(window, lab.format("train"), tmp_path / "lab.png", ablation="nope", scale="smoke")
    assert page.locator(".jp-OutputArea-output", has_text=LAST).count() == 1 and page.locator(ERROR).count() == 0
    curve = page.locator(".jp-OutputArea-output img").first
    curve.scroll_into_view_if_needed()
    assert curve.evaluate("i => i.naturalWidth") > 300
    page.screenshot(path=tmp_path / "curve.png")
    outputs = saved(page, project / "nbs" / "train.ipynb", LAST)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    results = list((project / "out" / "nope").glob("*/result.json"))
    assert len(results) == 1 and json.loads(results[0].read_text())["status"] == "done"
    told = next(o.text for o in outputs if LAST in o.get("text", ""))
    assert results[0].parent.relative_to(project).as_posix() in told


def test_a_mistyped_arm_is_one_sentence_in_the_notebook(window, lab, project, tmp_path):
    page = run_all(window, lab.format("mistyped"), tmp_path / "typo.png", ablation="nopee", scale="smoke")
    error = page.locator(ERROR)
    error.first.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "error.png")
    words = error.first.inner_text()
    assert error.count() == 1 and "Unknown arm 'nopee'" in words and "Did you mean 'nope'?" in words and "Traceback" not in words
    assert len([o for o in saved(page, project / "nbs" / "mistyped.ipynb", "Unknown arm 'nopee'") if o.output_type == "error"]) == 1
