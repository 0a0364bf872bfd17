"JupyterLab as a person uses it: open train.ipynb, change the arm, run all cells, see the loss curve and the result."
import contextlib
import json
import re
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
from conftest import ROOT, copied

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=NONE)

TOKEN = "tests"
LAST = "folder: out/"  # what the last cell prints
OUTPUT = ".jp-OutputArea-output"
ERROR = f"{OUTPUT}[data-mime-type='application/vnd.jupyter.stderr']"  # JupyterLab shows errors and standard error alike
KERNEL = ".jp-Notebook-ExecutionIndicator"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A scratch copy of the project: what a notebook writes stays in it."
    root = copied(tmp_path_factory.mktemp("lab") / "project", ".jupyter")
    shutil.copy(root / "nbs" / "train.ipynb", root / "nbs" / "mistyped.ipynb")
    return root


def make_lab(project):
    "The command that `make lab` runs."
    installed = ("--old-file=dev", f"BIN={Path(sys.executable).parent}")
    make = ["make", "-f", ROOT / "Makefile", "-n", "lab", *installed]
    recipe = subprocess.run(make, cwd=project, capture_output=True, text=True, check=True).stdout
    return shlex.split(next(line for line in recipe.splitlines() if "jupyter lab" in line))


@pytest.fixture(scope="module")
def lab(browser, project, env, tmp_path_factory):  # noqa: F811
    "The address of a JupyterLab in that copy; it is started as `make lab` starts it, but without a browser window."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folders = ("JUPYTER_CONFIG", "JUPYTER_RUNTIME", "JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES")
    own = {f"{name}_DIR": str(tmp_path_factory.mktemp(name)) for name in folders}
    here = [f"--port={port}", "--ServerApp.port_retries=0", "--no-browser", f"--IdentityProvider.token={TOKEN}"]
    argv = [*make_lab(project), *here]
    log = open(project.parent / "lab.log", "w")
    server = subprocess.Popen(argv, cwd=project, env={**env, **own}, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}").close()
                break
            assert server.poll() is None, (project.parent / "lab.log").read_text()
            time.sleep(0.25)
        workspace = f"http://127.0.0.1:{port}/lab/workspaces/{{0}}"  # one of its own has no other tab open
        yield f"{workspace}/tree/nbs/{{0}}.ipynb?token={TOKEN}"
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


def start(page, address, changes):
    "Open the notebook, write `name = value` lines over those of the parameters cell, and run all cells."
    page.goto(address)
    page.wait_for_selector(f"{KERNEL}[data-status=idle]", timeout=120_000)
    for name, value in changes.items():
        type_over(page, f"{name} = ", f"{name} = {value!r}")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def came_to_an_end(page):
    """Whether the last cell has spoken, or one has failed, while the kernel was busy.
    Not `wait_for`, which asks at every frame: on a busy machine there are few."""
    ended = page.locator(OUTPUT, has_text=LAST).or_(page.locator(ERROR))
    busy = page.locator(f"{KERNEL}[data-status=busy]")
    begun = at_work = time.time()
    while not ended.count() and time.time() < min(at_work + 15, begun + 170):
        if busy.count():
            at_work = time.time()
        page.wait_for_timeout(250)
    return bool(ended.count())


def run_all(window, address, shot, **changes):
    """The page of a notebook that was run to its end.
    A click that a busy page lost, or a run whose connection JupyterLab dropped, is made again in a new window."""
    for _ in range(4):
        page, begun = window(), time.time()
        start(page, address, changes)
        done = came_to_an_end(page)
        page.screenshot(path=shot)
        if done:
            return page
        parts = (".jp-InputArea-prompt", OUTPUT, ".jp-Dialog", "#jp-main-statusbar")
        shown = {part: page.locator(part).all_inner_texts() for part in parts}
        took = time.time() - begun
        warnings.warn(f"The notebook did not come to an end after {took:.0f} s: {shown}", stacklevel=2)
    raise AssertionError(f"the notebook did not come to an end in four windows: {shown}")


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
                cells = nbformat.reads(text, as_version=4).cells
                return [o for c in cells if c.cell_type == "code" for o in c.outputs]
        page.wait_for_timeout(500)
    raise AssertionError(f"{wanted} was not saved")


def test_the_printed_address_opens_the_first_page_and_asks_nothing(window, lab, project):
    page = window()
    (printed,) = set(re.findall(r"http://127\S+/lab\S+", (project.parent / "lab.log").read_text()))
    page.goto(printed.replace("token=...", f"token={TOKEN}"))   # a token that was given is not printed
    page.wait_for_selector(".jp-Notebook h1", timeout=120_000)
    assert page.locator(".jp-Notebook h1").first.inner_text().startswith("ablation_nb")
    page.wait_for_timeout(2000)   # the question came once the page stood
    assert page.locator(".Toastify__toast").all_inner_texts() == []


def test_change_the_arm_run_all_and_see_the_result(window, lab, project, tmp_path):
    page = run_all(window, lab.format("train"), tmp_path / "lab.png", ablation="nope", scale="smoke")
    assert page.locator(OUTPUT, has_text=LAST).count() == 1
    assert page.locator(ERROR).count() == 0
    curve = page.locator(f"{OUTPUT} img").first
    curve.scroll_into_view_if_needed()
    assert curve.evaluate("i => i.naturalWidth") > 300
    page.screenshot(path=tmp_path / "curve.png")
    outputs = saved(page, project / "nbs" / "train.ipynb", LAST)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    (result,) = (project / "out" / "nope").glob("*/result.json")
    assert json.loads(result.read_text())["status"] == "done"
    last = next(o.text for o in outputs if LAST in o.get("text", ""))
    assert result.parent.relative_to(project).as_posix() in last


def test_a_mistyped_arm_is_one_sentence_in_the_notebook(window, lab, project, tmp_path):
    page = run_all(window, lab.format("mistyped"), tmp_path / "typo.png", ablation="nopee", scale="smoke")
    error = page.locator(ERROR)
    error.first.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "error.png")
    assert error.count() == 1
    sentence = error.first.inner_text()
    assert "Unknown arm 'nopee'" in sentence
    assert "Did you mean 'nope'?" in sentence
    assert "Traceback" not in sentence
    outputs = saved(page, project / "nbs" / "mistyped.ipynb", "Unknown arm 'nopee'")
    assert len([o for o in outputs if o.output_type == "error"]) == 1
