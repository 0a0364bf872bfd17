"The visit to a card, rehearsed without one: the same command, the same limits, the same way home."
import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

STUDY = 'scale = "smoke"\narms = ["baseline", "nope"]\nseeds = [0, 1]\n'


def copy(folder):
    for name in ("nbs", "ablation_nb", "reference"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("settings.ini", "pyproject.toml", "Makefile", "requirements.txt", "requirements-gpu.txt", "requirements-bench.txt", "setup.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "studies").mkdir()
    (folder / "studies" / "tiny.toml").write_text(STUDY)
    return folder


def visit(sh, root, limit, **more):
    "`make gpu` with a tiny study, as on a machine that may write under $OUT alone."
    return sh("make", "gpu", "--old-file=install", f"BIN={Path(sys.executable).parent}", "STUDY=studies/tiny.toml", f"LIMIT={limit}",
              "VISIT=--checks smoke --rounds 1", "CORPUS=builtin:300", cwd=root, OUT=str(root / "brought"), PYTHONPATH=str(root), **more)


@pytest.fixture(scope="module")
def away(tmp_path_factory, sh):
    root = copy(tmp_path_factory.mktemp("away"))
    done = visit(sh, root, 200)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_what_is_brought_home_is_little_and_complete(away):
    brought = list((away / "brought").iterdir())
    assert len(brought) <= 8 and all(p.stat().st_size < 16 * 2**20 for p in brought)
    agreement = (away / "brought" / "agreement.csv").read_text().splitlines()
    assert len(agreement) == 1 + 5 * 2 * 4 and all(line.endswith(",holds") for line in agreement[1:])  # arms, precisions, quantities
    assert "ours" in (away / "brought" / "race.csv").read_text()


def test_at_home_the_runs_take_their_place_and_the_report_is_written(away, tmp_path, sh):
    home = copy(tmp_path)
    archives = sorted((away / "brought").glob("*.tar"))
    done = sh("python", "-m", "ablation_nb.visit", "unpack", *archives, cwd=home, PYTHONPATH=str(home))
    assert done.returncode == 0 and done.stdout.count("new ") == 4, done.stdout + done.stderr
    again = sh("python", "-m", "ablation_nb.visit", "unpack", *archives, cwd=home, PYTHONPATH=str(home))
    assert again.returncode == 0 and again.stdout.count("known ") == 4
    ran = sh("ablation", "run", "studies/tiny.toml", "--corpus", "builtin:300", cwd=home, PYTHONPATH=str(home))
    assert ran.returncode == 0 and "0 runs in" in ran.stdout, ran.stdout + ran.stderr  # nothing is left to do
    report = sh("ablation", "report", "studies/tiny.toml", "--corpus", "builtin:300", cwd=home, PYTHONPATH=str(home))
    assert report.returncode == 0, report.stderr
    (page,) = (home / "outputs").glob("*/report.md")
    assert "NoPE" in page.read_text() and "not used" not in page.read_text()


def test_a_visit_that_ends_too_early_leaves_what_is_done_and_goes_on(tmp_path, sh):
    root = copy(tmp_path)
    (root / "studies" / "tiny.toml").write_text(STUDY + "[overrides]\nn_steps = 100_000\ncheckpoint_every = 50\n")
    begun = time.time()
    done = visit(sh, root, 90)
    assert done.returncode == 0 and time.time() - begun < 150, done.stdout + done.stderr
    assert "time limit" in done.stderr or "the time was up" in done.stderr
    study = next((root / "outputs").iterdir())
    started = {p.parent: json.loads(p.read_text().splitlines()[-1])["step"] for p in study.rglob("metrics.jsonl")}
    assert started and any(0 < step for step in started.values())
    assert any((f / "checkpoint.safetensors").exists() or (f / "result.json").exists() for f in started)


def test_a_device_that_computes_something_else_begins_no_run(tmp_path, sh):
    root = copy(tmp_path)
    module = root / "ablation_nb" / "visit.py"
    text = module.read_text().replace("            spoil(t)\n", "            t.lrs *= 1.05\n")
    assert text != module.read_text()
    module.write_text(text)
    done = visit(sh, root, 100)
    assert done.returncode != 0 and "does not compute what the CPU computes" in done.stderr and "No run was begun" in done.stderr
    assert "nope in bf16, eager: movement of " in done.stderr
    assert not list(root.glob("outputs/*/*/*/env.json")) and (root / "brought" / "agreement.csv").exists()
