"A whole study as its users run it: the command `ablation`, kernels of its own, the report at the end."
import json
import shutil
import signal
import subprocess
import time

import pandas as pd
import psutil
import pytest
from conftest import ROOT, as_in_a_terminal

STUDY = 'scale = "smoke"\narms = ["baseline", "aa", "nope", "silu"]\nseeds = [0, 1]\n'


@pytest.fixture(scope="module")
def study(tmp_path_factory, sh):
    "A copy of the project's notebooks and settings in which a small study has been run and reported."
    root = tmp_path_factory.mktemp("project")
    for name in ("nbs", "studies"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "out").mkdir()
    (root / "studies" / "tiny.toml").write_text(STUDY)
    for command in ("run", "report"):
        done = sh("ablation", command, "studies/tiny.toml", cwd=root)
        assert done.returncode == 0, done.stdout + done.stderr
    return root / "outputs" / "tiny-builtin", done.stdout


def test_every_run_has_its_folder_and_its_notebook(study):
    folder, _ = study
    done = {p.parent.relative_to(folder).as_posix() for p in folder.glob("*/*/result.json")}
    assert done == {f"{arm}/0.01-s{seed}" for arm in ("baseline", "aa", "nope", "silu") for seed in (0, 1)}
    assert all((folder / d / "run.ipynb").exists() for d in done)


def test_every_notebook_keeps_its_picture(study):
    for nb in study[0].glob("*/*/run.ipynb"):
        assert sum("image/png" in o.get("data", {}) for c in json.loads(nb.read_text())["cells"] for o in c.get("outputs", [])) == 1, nb


def test_any_executor_will_do(study, sh):
    "The seam to other machines is Python's own: whatever speaks `concurrent.futures.Executor` works a study off."
    root = study[0].parent.parent
    (root / "studies" / "other.toml").write_text('scale = "smoke"\narms = ["baseline", "nope"]\nseeds = [0]\n')
    code = """
from concurrent.futures import ThreadPoolExecutor
from ablation_nb.engine import work_off
from ablation_nb.study import read_study
class Counting(ThreadPoolExecutor):
    asked = []
    def submit(self, f, *a): self.asked.append(a[1].name); return super().submit(f, *a)
study = read_study("studies/other.toml")
assert work_off(study, workers=1, executor=Counting(1)) == {} and work_off(study, executor=Counting(1)) == {}
print(Counting.asked, len(list(study.outputs.glob("*/*/result.json"))))
"""
    done = sh("python", "-c", code, cwd=root)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "['0.01-s0', '0.01-s0'] 2", done.stdout + done.stderr


def test_the_command_prints_the_table_and_where_the_report_lies(study):
    folder, printed = study
    assert "nope" in printed and "outputs/tiny-builtin/report.md" in printed
    assert (folder / "ablation_comparison.png").stat().st_size > 20_000


def test_the_noise_row_is_exactly_zero_on_one_machine(study):
    "Same seed, same code, same threads: the baseline under another name has the same losses to the bit."
    runs = pd.read_csv(study[0] / "tables" / "runs.csv").set_index(["arm", "seed"])
    assert (runs.loc["aa"].final_val_loss == runs.loc["baseline"].final_val_loss).all()
    assert (runs.loc["nope"].final_val_loss != runs.loc["baseline"].final_val_loss).all()


def test_the_report_regenerates_byte_for_byte(study, sh):
    folder, _ = study
    made = [p for p in folder.rglob("*") if p.suffix in (".md", ".csv", ".png", ".svg")]
    before = {p: p.read_bytes() for p in made}
    assert len(before) >= 6
    assert sh("ablation", "report", "studies/tiny.toml", cwd=folder.parent.parent).returncode == 0
    assert {p: p.read_bytes() for p in made} == before


def test_a_second_run_does_nothing(study, sh):
    folder, _ = study
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*")}
    done = sh("ablation", "run", "studies/tiny.toml", cwd=folder.parent.parent)
    assert done.returncode == 0 and "\n0 runs in" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*")} == before


def test_a_run_without_result_is_completed_with_the_same_numbers(study, sh):
    "Only result.json says that a run is done; without it, weights or not, it is run again."
    folder, _ = study
    run = folder / "nope" / "0.01-s1"
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    assert sh("ablation", "run", "studies/tiny.toml", cwd=folder.parent.parent).returncode == 0
    after = json.loads((run / "result.json").read_text())
    assert {k: v for k, v in after.items() if "second" not in k} == {k: v for k, v in before.items() if "second" not in k}


def test_a_damaged_run_stops_no_other(study, sh):
    folder, _ = study
    result = folder / "silu" / "0.01-s1" / "result.json"
    result.write_text("{")
    done = sh("ablation", "run", "studies/tiny.toml", cwd=folder.parent.parent)
    assert done.returncode == 1 and "silu/0.01-s1" in done.stderr and "--rerun-stale" in done.stderr
    done = sh("ablation", "run", "studies/tiny.toml", "--rerun-stale", cwd=folder.parent.parent)
    assert done.returncode == 0 and json.loads(result.read_text())["status"] == "done"


def test_interrupted_by_the_keyboard_leaves_no_kernel(study, env):
    root = study[0].parent.parent
    (root / "studies" / "long.toml").write_text('scale = "smoke"\narms = ["silu", "nope"]\nseeds = [0]\n[overrides]\nn_steps = 100000\n')
    process = subprocess.Popen(["ablation", "run", "studies/long.toml"], cwd=root, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal)
    waited = time.time() + 60
    while not list((root / "outputs" / "long-builtin").glob("*/*/checkpoint.safetensors")) and time.time() < waited:
        time.sleep(0.1)
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130 and "Interrupted" in process.stdout.read()
    psutil.wait_procs(kernels, timeout=10)
    assert not any(k.is_running() for k in kernels)
    assert not list((root / "outputs" / "long-builtin").glob("*/*/result.json"))


def test_a_run_that_fails_stops_no_other_and_is_named(study, sh):
    root = study[0].parent.parent
    (root / "studies" / "bad.toml").write_text('scale = "smoke"\narms = ["silu", "nope"]\nseeds = [0]\n[overrides]\nn_steps = 10\nwarmup_steps = 2\n')
    blocked = root / "outputs" / "bad-builtin" / "nope" / "0.01-s0" / "metrics.jsonl"
    blocked.mkdir(parents=True)  # a folder where a file should be
    done = sh("ablation", "run", "studies/bad.toml", cwd=root)
    assert done.returncode == 1 and "outputs/bad-builtin/nope/0.01-s0" in done.stderr
    assert (root / "outputs" / "bad-builtin" / "silu" / "0.01-s0" / "result.json").exists()


@pytest.mark.parametrize("argv, words", [
    (["run", "studies/none.toml"], ["studies/none.toml", "laptop.toml"]),
    (["run", "studies/laptop.toml", "--corpus", "no/such/text"], ["no/such/text"]),
])
def test_bad_commands_are_one_sentence(sh, tmp_path, argv, words):
    done = sh("ablation", *argv)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(w in done.stderr for w in words), done.stderr


def test_foreign_runs_are_named_by_the_report_and_counted_in_no_mean(study, sh):
    folder, _ = study
    root, env = folder.parent.parent, folder / "silu" / "0.01-s0" / "env.json"
    kept, results = env.read_text(), folder / "tables" / "results.csv"
    seeds = lambda: pd.read_csv(results).set_index("arm").loc["silu"].done
    assert seeds() == 2
    env.write_text(json.dumps({**json.loads(kept), "data_hash": "0" * 12}))
    done = sh("ablation", "report", "studies/tiny.toml", cwd=root)
    assert done.returncode == 0 and "silu/0.01-s0" in (folder / "report.md").read_text() and seeds() == 1
    env.write_text(kept)
    assert sh("ablation", "report", "studies/tiny.toml", cwd=root).returncode == 0 and seeds() == 2


def test_a_report_without_runs_is_one_sentence(study, sh):
    root = study[0].parent.parent
    (root / "studies" / "none.toml").write_text(STUDY)
    done = sh("ablation", "report", "studies/none.toml", cwd=root)
    assert done.returncode == 2 and "none-builtin" in done.stderr and "Traceback" not in done.stderr
