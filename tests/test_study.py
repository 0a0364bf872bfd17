"A whole study as its users run it: the command `ablation`, kernels of its own, the report at the end."
import json
import shutil

import pandas as pd
import pytest
from conftest import ROOT

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
    assert done.returncode == 0 and "0 runs" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*")} == before


def test_a_half_done_run_is_completed_with_the_same_numbers(study, sh):
    folder, _ = study
    run = folder / "nope" / "0.01-s1"
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    assert sh("ablation", "run", "studies/tiny.toml", cwd=folder.parent.parent).returncode == 0
    after = json.loads((run / "result.json").read_text())
    assert {k: v for k, v in after.items() if "second" not in k} == {k: v for k, v in before.items() if "second" not in k}


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
    (["report", "studies/laptop.toml", "--corpus", "builtin:77"], ["builtin"]),
])
def test_bad_commands_are_one_sentence(sh, tmp_path, argv, words):
    done = sh("ablation", *argv)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(w in done.stderr for w in words), done.stderr


def test_foreign_runs_are_refused_by_the_report(study, sh):
    folder, _ = study
    env = folder / "silu" / "0.01-s0" / "env.json"
    kept = env.read_text()
    env.write_text(json.dumps({**json.loads(kept), "data_hash": "0" * 12}))
    done = sh("ablation", "report", "studies/tiny.toml", cwd=folder.parent.parent)
    env.write_text(kept)
    assert done.returncode != 0 and "silu/0.01-s0" in done.stderr
