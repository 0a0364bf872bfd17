"JupyterLab as a person uses it: open train.ipynb, change the arm, run all cells, see the loss curve and the result."
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import nbformat
import psutil
import pytest
from browser import CHROMIUM, NONE, browser  # noqa: F401  browser is a fixture
from conftest import ROOT

if CHROMIUM:
    from playwright.sync_api import TimeoutError
else:
    pytestmark = pytest.mark.skip(NONE)

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
    argv = ["jupyter", "lab", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--no-browser", f"--IdentityProvider.token={TOKEN}"]
    log = open(project.parent / "lab.log", "w")
    server = subprocess.Popen(argv + ["--allow-root"] * (os.getuid() == 0), cwd=project, env={**env, **own}, stdout=log, stderr=log)
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
    for _ in range(10):
        page.locator(".jp-Notebook .cm-line").filter(has_text=start).first.click()
        page.keyboard.press("Home")
        page.keyboard.press("Shift+End")
        if page.evaluate("getSelection().toString()").startswith(start):
            page.keyboard.insert_text(line)
        with contextlib.suppress(TimeoutError):
            return page.wait_for_selector(f".jp-Notebook .cm-line:text-is(\"{line}\")", timeout=3000)
    raise AssertionError(f"{line} could not be typed")


def run_all(browser, address, shot, **changes):  # noqa: F811
    "Open the notebook, write `name = value` lines over those of the parameters cell, run all cells, and give back the page when the last one has spoken, or one has failed."
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(address)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=120_000)
    for name, value in changes.items():
        type_over(page, f"{name} = ", f"{name} = {value!r}")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector(f".jp-OutputArea-output:has-text('{LAST}'), {ERROR}", timeout=170_000)
    page.keyboard.press("Control+s")
    page.screenshot(path=shot)
    return page


def saved(notebook, wanted):
    "The outputs of the notebook on disk, once it holds `wanted`."
    for _ in range(60):
        text = notebook.read_text(encoding="utf-8")
        if wanted in text:
            break
        time.sleep(0.5)
    assert wanted in text
    return [o for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "code" for o in c.outputs]


def test_change_the_arm_run_all_and_see_the_result(browser, lab, project, tmp_path):  # noqa: F811
    page = run_all(browser, lab.format("train"), tmp_path / "lab.png", ablation="nope", scale="smoke")
    assert page.locator(".jp-OutputArea-output", has_text=LAST).count() == 1 and page.locator(ERROR).count() == 0
    curve = page.locator(".jp-OutputArea-output img").first
    curve.scroll_into_view_if_needed()
    assert curve.evaluate("i => i.naturalWidth") > 300
    page.screenshot(path=tmp_path / "curve.png")
    outputs = saved(project / "nbs" / "train.ipynb", LAST)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    results = list((project / "out" / "nope").glob("*/result.json"))
    assert len(results) == 1 and json.loads(results[0].read_text())["status"] == "done"
    told = next(o.text for o in outputs if LAST in o.get("text", ""))
    assert results[0].parent.relative_to(project).as_posix() in told


def test_a_mistyped_arm_is_one_sentence_in_the_notebook(browser, lab, project, tmp_path):  # noqa: F811
    page = run_all(browser, lab.format("mistyped"), tmp_path / "typo.png", ablation="nopee", scale="smoke")
    error = page.locator(ERROR)
    error.first.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "error.png")
    words = error.first.inner_text()
    assert error.count() == 1 and "Unknown arm 'nopee'" in words and "Did you mean 'nope'?" in words and "Traceback" not in words
    assert len([o for o in saved(project / "nbs" / "mistyped.ipynb", "Unknown arm 'nopee'") if o.output_type == "error"]) == 1
