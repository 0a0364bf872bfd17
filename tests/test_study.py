"A whole study as its users run it: the command `ablation`, kernels of its own, the report at the end."
import json
import signal
import subprocess

import pandas as pd
import psutil
import pytest
from conftest import as_in_a_terminal, copied, numbers, refused, succeeded
from engines import HEAD, wait_for, write

ARMS, SEEDS = ("baseline", "aa", "nope", "silu"), (0, 1)
STUDY = HEAD + 'arms = ["baseline", "aa", "nope", "silu"]\nseeds = [0, 1]\n'
TWO = HEAD + 'arms = ["silu", "nope"]\nseeds = [0]\n[overrides]\n'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A copy of the project's notebooks and settings."
    root = copied(tmp_path_factory.mktemp("project"), "studies")
    (root / "out").mkdir()
    return root


@pytest.fixture(scope="module")
def printed(root, sh):
    "What the report of a small study printed, after the study had been run."
    file = write(root, "tiny", STUDY)
    succeeded(sh("ablation", "run", file, cwd=root, anew=True))
    return succeeded(sh("ablation", "report", file, cwd=root, anew=True)).stdout


@pytest.fixture(scope="module")
def study(root, printed):
    "The folder of that study's runs, with its report."
    return root / "outputs" / "tiny-builtin"


@pytest.fixture
def tiny(root, study, sh):
    "A command of the study: `tiny('run')`."
    def run(command, *argv): return sh("ablation", command, "studies/tiny.toml", *argv, cwd=root)
    return run


def test_every_run_has_its_folder_and_its_notebook(study):
    done = {p.parent.relative_to(study).as_posix() for p in study.glob("*/*/result.json")}
    assert done == {f"{arm}/0.01-s{seed}" for arm in ARMS for seed in SEEDS}
    for folder in done: assert (study / folder / "run.ipynb").exists(), folder


def test_every_notebook_keeps_its_picture(study):
    for nb in study.glob("*/*/run.ipynb"):
        outputs = [o for c in json.loads(nb.read_text())["cells"] for o in c.get("outputs", [])]
        pictures = [o for o in outputs if "image/png" in o.get("data", {})]
        assert len(pictures) == 1, nb


EXECUTOR = """
from concurrent.futures import ThreadPoolExecutor
from ablation_nb.engine import work_off
from ablation_nb.study import read_study
class Counting(ThreadPoolExecutor):
    asked = []
    def submit(self, f, *a):
        self.asked.append(a[1].name)
        return super().submit(f, *a)
study = read_study("studies/other.toml")
assert work_off(study, workers=1, executor=Counting(1)) == {}
assert work_off(study, executor=Counting(1)) == {}
print(Counting.asked, len(list(study.outputs.glob("*/*/result.json"))))
"""


def test_any_executor_will_do(root, study, sh):
    "The seam to other machines is Python's own: whatever speaks `concurrent.futures.Executor` carries a study out."
    write(root, "other", HEAD + 'arms = ["baseline", "nope"]\nseeds = [0]\n')
    done = succeeded(sh("python", "-c", EXECUTOR, cwd=root))
    assert done.stdout.splitlines()[-1] == "['0.01-s0', '0.01-s0'] 2", done.stdout


def test_the_command_prints_the_table_and_where_the_report_lies(study, printed):
    assert "nope" in printed
    assert "outputs/tiny-builtin/report.md" in printed
    assert (study / "ablation_comparison.png").stat().st_size > 20_000


def test_the_noise_row_is_exactly_zero_on_one_machine(study):
    "Same seed, same code, same threads: the baseline under another name has the same losses to the bit."
    losses = pd.read_csv(study / "tables" / "runs.csv").set_index(["arm", "seed"]).final_val_loss
    assert (losses.loc["aa"] == losses.loc["baseline"]).all()
    assert (losses.loc["nope"] != losses.loc["baseline"]).all()


def test_the_report_regenerates_byte_for_byte(study, tiny):
    made = [p for p in study.rglob("*") if p.suffix in (".md", ".csv", ".png", ".svg")]
    before = {p: p.read_bytes() for p in made}
    assert len(before) >= 6
    for p in made: p.unlink()   # what stands is not written again, and would be compared with itself
    succeeded(tiny("report"))
    assert {p: p.read_bytes() for p in made} == before


def test_a_second_run_does_nothing(study, tiny):
    def times(): return {p: p.stat().st_mtime_ns for p in study.glob("*/*/*")}
    before = times()
    assert "\n0 runs in" in succeeded(tiny("run")).stdout
    assert times() == before


def test_a_run_without_result_is_completed_with_the_same_numbers(study, tiny):
    "Only result.json says that a run is done; without it, weights or not, it is run again."
    run = study / "nope" / "0.01-s1"
    before = numbers(run)
    (run / "result.json").unlink()
    succeeded(tiny("run"))
    assert numbers(run) == before


def test_a_damaged_run_stops_no_other(study, tiny):
    result = study / "silu" / "0.01-s1" / "result.json"
    result.write_text("{")
    refused(tiny("run"), "silu/0.01-s1", "--rerun-stale")
    succeeded(tiny("run", "--rerun-stale"))
    assert json.loads(result.read_text())["status"] == "done"


def test_interrupted_by_the_keyboard_leaves_no_kernel(root, study, env):
    argv = ["ablation", "run", write(root, "long", TWO + "n_steps = 20_000\n")]
    pipe = dict(stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen(argv, cwd=root, env=env, preexec_fn=as_in_a_terminal, **pipe)
    folder = root / "outputs" / "long-builtin"
    wait_for(lambda: list(folder.glob("*/*/checkpoint.safetensors")), 60)
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Interrupted" in process.stdout.read()
    psutil.wait_procs(kernels, timeout=10)
    assert not any(k.is_running() for k in kernels)
    assert not list(folder.glob("*/*/result.json"))


def test_a_run_that_fails_stops_no_other_and_is_named(root, study, sh):
    file = write(root, "bad", TWO + "n_steps = 10\nwarmup_steps = 2\n")
    folder = root / "outputs" / "bad-builtin"
    (folder / "nope" / "0.01-s0" / "metrics.jsonl").mkdir(parents=True)  # a folder where a file should be
    refused(sh("ablation", "run", file, cwd=root), "outputs/bad-builtin/nope/0.01-s0")
    assert (folder / "silu" / "0.01-s0" / "result.json").exists()


def test_a_report_counts_the_runs_that_its_file_asks_for_now(root, sh):
    "A file whose steps and seed were changed: the earlier runs are as many, and in no mean."
    text = HEAD + 'arms = ["baseline", "nope"]\nseeds = [0]\n[overrides]\nwarmup_steps = 2\nn_steps = 20\n'
    for now in (text, text.replace("[0]", "[1]").replace("20", "10")):
        file = write(root, "changed", now)
        succeeded(sh("ablation", "run", file, cwd=root))
    succeeded(sh("ablation", "report", file, cwd=root))
    folder = root / "outputs" / "changed-builtin"
    assert pd.read_csv(folder / "tables" / "runs.csv").seed.tolist() == [1, 1]
    page = (folder / "report.md").read_text()
    assert "not complete" not in page
    assert "baseline/0.01-s0" in page
    assert "n_steps=20 where the study asks for 10" in page


def test_a_study_whose_runs_diverged_says_so_and_names_the_way_out(root, sh):
    text = HEAD + 'arms = ["baseline"]\nseeds = [0]\nlr = [1e30]\n[overrides]\nn_steps = 20\n'
    file = write(root, "wild", text)
    succeeded(sh("ablation", "run", file, cwd=root))
    words = "1 run diverged, at the learning rate 1e+30", "lower the rate in studies/wild.toml"
    refused(sh("ablation", "report", file, cwd=root), *words, status=2)


def test_a_reader_that_has_gone_is_no_fault(root, study, sh):
    assert sh("bash", "-c", "ablation status studies/tiny.toml --json | true", cwd=root).stderr == ""


@pytest.mark.parametrize("argv, words", [
    (["run", "studies/none.toml"], ["studies/none.toml", "laptop.toml"]),
    (["run", "studies/laptop.toml", "--corpus", "no/such/text"], ["no/such/text"]),
])
def test_bad_commands_are_one_sentence(sh, argv, words):
    done = refused(sh("ablation", *argv), *words, status=2)
    assert "Traceback" not in done.stderr


def test_foreign_runs_are_named_by_the_report_and_counted_in_no_mean(study, tiny):
    env = study / "silu" / "0.01-s0" / "env.json"
    kept = env.read_text()

    def seeds(): return pd.read_csv(study / "tables" / "results.csv").set_index("arm").loc["silu"].done
    assert seeds() == 2
    env.write_text(json.dumps({**json.loads(kept), "data_hash": "0" * 12}))
    succeeded(tiny("report"))
    assert "silu/0.01-s0" in (study / "report.md").read_text()
    assert seeds() == 1
    env.write_text(kept)
    succeeded(tiny("report"))
    assert seeds() == 2


def test_a_report_without_runs_is_one_sentence(root, study, sh):
    done = refused(sh("ablation", "report", write(root, "none", STUDY), cwd=root), "none-builtin", status=2)
    assert "Traceback" not in done.stderr
