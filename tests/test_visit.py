"The visit to a card, rehearsed without one: the same command, the same limits, the same way home."
import json
import sys
import time
from pathlib import Path

import pytest
from conftest import copied, refused, succeeded
from engines import HEAD, left, write

STUDY = HEAD + 'arms = ["baseline", "nope"]\nseeds = [0, 1]\n'


def copy(folder, text=STUDY):
    "What a visit carries, with a tiny study."
    requirements = [f"requirements{name}.txt" for name in ("", "-gpu", "-bench")]
    root = copied(folder, "ablation_nb", "Makefile", "setup.py", *requirements)
    (root / "studies").mkdir()
    write(root, "tiny", text)
    return root


OPTIONS = ("--checks", "smoke", "--rounds", "1")


def make_gpu(sh, root, limit):
    "`make gpu` with a tiny study, as on a machine that may write under $OUT alone."
    installed = ("--old-file=dev", f"BIN={Path(sys.executable).parent}")
    study = ("STUDY=studies/tiny.toml", "CORPUS=builtin:300", f"VISIT={' '.join(OPTIONS)}")
    out = dict(OUT=str(root / "brought"), PYTHONPATH=str(root))
    return sh("make", "gpu", *installed, *study, f"LIMIT={limit}", cwd=root, **out)


def visit(sh, root, limit, *more):
    "What `make gpu` carries out."
    go = ("ablation", "visit", "run", "studies/tiny.toml", "--time-limit", limit, *OPTIONS, *more)
    return sh(*go, cwd=root, OUT=root / "brought", PYTHONPATH=root)


@pytest.fixture(scope="module")
def away(tmp_path_factory, sh):
    root = copy(tmp_path_factory.mktemp("away"))
    succeeded(make_gpu(sh, root, 200))
    return root


def test_what_is_brought_home_is_little_and_complete(away):
    brought = list((away / "brought").iterdir())
    assert len(brought) <= 8
    for p in brought: assert p.stat().st_size < 16 * 2**20, p
    _, *agreement = (away / "brought" / "agreement.csv").read_text().splitlines()
    assert len(agreement) == 5 * 2 * 4  # arms, precisions, quantities
    for line in agreement: assert line.endswith(",holds"), line
    assert "ours" in (away / "brought" / "race.csv").read_text()


def test_at_home_the_runs_take_their_place_and_the_report_is_written(away, tmp_path, sh):
    home = copy(tmp_path)
    archives = sorted((away / "brought").glob("*.tar"))

    def unpack(): return sh("python", "-m", "ablation_nb.visit", "unpack", *archives, cwd=home, PYTHONPATH=str(home))
    assert succeeded(unpack()).stdout.count("new ") == 4
    assert succeeded(unpack()).stdout.count("known ") == 4

    def ablation(command):
        argv = ("ablation", command, "studies/tiny.toml", "--corpus", "builtin:300")
        return succeeded(sh(*argv, cwd=home, PYTHONPATH=str(home)))
    assert "0 runs in" in ablation("run").stdout  # nothing is left to do
    ablation("report")
    (report,) = (home / "outputs").glob("*/report.md")
    page = report.read_text()
    assert "NoPE" in page
    assert "not used" not in page


def last_step(metrics):
    "The step of the last row; 0 where the run was stopped before its first one."
    rows = metrics.read_text().splitlines()
    return json.loads(rows[-1])["step"] if rows else 0


def test_a_visit_that_ends_too_early_leaves_what_is_done_and_goes_on(tmp_path, sh):
    root = copy(tmp_path, STUDY + "[overrides]\nn_steps = 20_000\ncheckpoint_every = 50\n")
    for limit in (25, 50, 90, 180):  # a slow machine has not begun a run by then
        begun = time.time()
        done = succeeded(visit(sh, root, limit, "--rounds", 0))
        assert time.time() - begun < limit + 60, done.stdout + done.stderr
        assert "time limit" in done.stderr or "the time was up" in done.stderr
        study = next((root / "outputs").iterdir())
        steps = {p.parent: last_step(p) for p in study.rglob("metrics.jsonl")}
        if any(step > 0 for step in steps.values()): break
    assert any(step > 0 for step in steps.values())
    kept = [f for f in steps if (f / "checkpoint.safetensors").exists() or (f / "result.json").exists()]
    assert kept


def test_a_device_that_computes_something_else_begins_no_run(tmp_path, sh):
    root = copy(tmp_path)
    module = root / "ablation_nb" / "visit.py"
    text = module.read_text()
    spoiled = text.replace("            spoil(t)\n", "            t.lrs *= 1.05\n")
    assert spoiled != text
    module.write_text(spoiled)
    no_run = "does not compute what the CPU computes", "No run was begun", "nope in bf16, eager: movement of "
    refused(visit(sh, root, 100), *no_run, status=2)
    assert not left(root, "env.json")
    assert (root / "brought" / "agreement.csv").exists()
