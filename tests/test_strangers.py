"Anybody's notebook in an empty folder: three that know nothing of this package, and what is said of bad ones."
import json
import shutil
import signal

import forks
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, refused, succeeded
from engines import wait_for

from ablation_nb.ledger import claims_of
from ablation_nb.provenance import notebook_code
from ablation_nb.results import load_runs

NAMES = "digits", "mlp", "gpt"
EIGHT = "seeds    = [0, 1, 2, 3, 4, 5, 6, 7]"
COMMITTED = ROOT / "outputs"


def lone(folder, seeds="[0, 1]"):
    "An empty folder with the three notebooks and their study files, which ask for fewer seeds than the committed ones."
    shutil.copytree(ROOT / "studies" / "strangers", folder / "studies" / "strangers")
    for name in NAMES:
        text = (ROOT / "studies" / f"{name}.toml").read_text()
        assert EIGHT in text
        (folder / "studies" / f"{name}.toml").write_text(text.replace(EIGHT, f"seeds    = {seeds}"))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory): return lone(tmp_path_factory.mktemp("strangers") / "mine")


@pytest.fixture(scope="module")
def study(place, sh):
    "Run a study once and report it: `study('digits')` -> its folder, and what the report printed."
    made = {}

    def carried_out(name):
        if name not in made:
            succeeded(sh("ablation", "run", name, cwd=place))
            made[name] = succeeded(sh("ablation", "report", name, cwd=place)).stdout
        return place / "outputs" / name, made[name]
    return carried_out


def verdicts(folder, setup=None):
    "Arm -> verdict, of the first set of runs or of one by name."
    table = pd.read_csv(folder / "tables" / "results.csv")
    own = table[table.setup == (setup or table.setup.iloc[0])].set_index("arm")
    return own.verdict.dropna().to_dict()


def values(folder):
    "Every run's metric and the hash of all that it left, by its folder."
    found = {}
    for p in folder.glob("*/*/result.json"):
        result = json.loads(p.read_text())
        found[p.parent.relative_to(folder).as_posix()] = result["value"], result["numbers"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_stranger_stands_with_eight_seeds(name):
    folder = COMMITTED / name
    runs = load_runs(folder)
    plan = json.loads((folder / "study.json").read_text())
    assert set(runs.status) == {"done"}
    tested = runs[runs.seed.isin(plan["seeds"])]
    assert set(tested.groupby("arm").seed.nunique()) == {8}
    assert set(tested.arm) == set(plan["arms"])
    report = (folder / "report.md").read_text()
    assert "not complete" not in report
    assert "nats per token" not in report
    for heading in ("What was found", "What was run", "Results", "Every run", "Is each treatment real?"):
        assert f"\n## {heading}\n" in report
    assert (folder / "ablation_comparison.svg").stat().st_size > 5_000


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_runs_stand_on_the_notebook_as_it_is(name):
    plan = json.loads((COMMITTED / name / "study.json").read_text())
    notebook, files = ROOT / plan["notebook"], [ROOT / f for f in plan["files"]]
    now = notebook_code(notebook, files, ROOT)
    runs = load_runs(COMMITTED / name)
    assert set(runs.package_hash) == {now.code_hash}, f"ablation run {name} --rerun-stale"
    assert set(runs.data_hash) == {now.data_hash}


def test_digits_get_verdicts_in_the_direction_of_their_metric():
    folder = COMMITTED / "digits"
    table = pd.read_csv(folder / "tables" / "results.csv").set_index("arm")
    assert verdicts(folder)["penalised"] == "worse"
    assert table.difference["penalised"] < -0.01, "accuracy falls, and less of it is worse"
    assert table.value["plain"] > table.value["penalised"]
    assert table.n["scaled"] == 8


def test_the_direction_is_said(study):
    assert "accuracy in share of digits, higher is better" in study("digits")[1]


def test_the_ledger_names_a_stranger_and_takes_no_claim_from_it():
    lines = (COMMITTED / "ledger.md").read_text().partition("## The studies")[2].splitlines()
    (line,) = [line for line in lines if line.startswith("- digits: ")]
    assert "accuracy of `studies/strangers/digits.ipynb`, no part of this ledger" in line
    assert "clipped changes nothing" in line
    assert claims_of(COMMITTED / "gpt").empty, "its no_norm is none of ours"


def test_what_a_stranger_logs_is_drawn_and_its_items_are_weighed():
    report = (COMMITTED / "mlp" / "report.md").read_text()
    assert "![What the runs logged](curves.svg)" in report
    assert "`aa` would have the lines of `bare`" in report
    assert (COMMITTED / "mlp" / "curves.svg").stat().st_size > 5_000
    weighed = report.partition("## The items of the evaluation")[2].partition("##")[0]
    assert "| `dropout` | 8 | 2,000 |" in weighed
    assert "which is not the" not in weighed, "the mean of its items is its metric"
    digits = (COMMITTED / "digits" / "report.md").read_text()
    assert "which is not the accuracy itself" in digits
    assert "## On the way" not in digits, "it logs nothing"


def test_a_treatment_that_never_reaches_the_model_is_told_by_its_numbers():
    assert verdicts(COMMITTED / "digits")["clipped"] == "changes nothing"
    report = (COMMITTED / "digits" / "report.md").read_text()
    assert "`clipped` changes nothing here" in report
    assert "`aa` is `plain` run again: the same seed gave the same numbers" in report


def test_the_planted_arm_counts_in_no_correction():
    table = pd.read_csv(COMMITTED / "digits" / "tables" / "results.csv").set_index("arm")
    tested = table.loc[["scaled", "penalised"]]
    assert tested.p_holm.min() == pytest.approx(2 * tested.p.min())
    assert tested.p_holm.max() == pytest.approx(max(tested.p.max(), 2 * tested.p.min()))


def test_a_network_is_tuned_and_its_checks_are_listed(study):
    folder, _ = study("mlp")
    tuning = json.loads((folder / "tuning.json").read_text())[""]
    assert set(tuning) == {"bare", "aa", "dropout", "batchnorm"}
    assert tuning["aa"] == tuning["bare"]
    report = (folder / "report.md").read_text()
    assert "## Learning rates" in report
    assert "two passes in training differ" in report
    assert "two passes in training agree" in report


def test_a_treatment_that_its_own_check_refutes_does_not_train(place, sh):
    text = (place / "studies" / "mlp.toml").read_text().partition("[tune]")[0]
    (place / "studies" / "idle.toml").write_text(text.replace('"batchnorm"', '"dropout_idle"').replace("[0, 1]", "[0]"))
    words = "outputs/idle/dropout_idle/s0", "its check 1 failed: dropout_idle: two passes agree"
    refused(sh("ablation", "run", "idle", cwd=place), *words)
    assert not list(place.glob("outputs/idle/dropout_idle/*/result.json"))
    assert not list(place.glob("outputs/idle/dropout_idle/*/out/*")), "its cells below the check have run"
    assert len(list(place.glob("outputs/idle/dropout/*/result.json"))) == 1, "a run that fails stops no other"


def test_a_stranger_s_gpt_is_compared_without_its_knowing():
    folder = COMMITTED / "gpt"
    assert verdicts(folder)["no_positions"] in ("worse", "better", "equivalent", "undetermined")
    assert set(verdicts(folder)) == {"no_norm", "no_positions", "relu"}


def test_done_is_done_and_its_cost_is_known(study, place, sh):
    study("digits")
    assert "\n0 runs in" in succeeded(sh("ablation", "run", "digits", cwd=place)).stdout
    assert "Nothing is left to do." in succeeded(sh("ablation", "plan", "digits", cwd=place)).stdout
    rows = json.loads(succeeded(sh("ablation", "status", "digits", "--json", cwd=place)).stdout)
    assert {r["state"] for r in rows} == {"done"}
    longer = (place / "studies" / "digits.toml").read_text().replace("[0, 1]", "[0, 1, 2]")
    (place / "outputs" / "longer").symlink_to(place / "outputs" / "digits")
    (place / "studies" / "longer.toml").write_text(longer)
    said = succeeded(sh("ablation", "plan", "longer", cwd=place)).stdout
    (place / "outputs" / "longer").unlink()
    assert "To do: 5 runs of studies/strangers/digits.ipynb" in said
    assert " a run." in said


def test_packed_it_reads_as_before(study, place, sh):
    folder, _ = study("digits")
    packed = place / "outputs" / "packed"
    shutil.copytree(folder, packed)
    before = load_runs(folder).drop(columns="study")
    assert "10 runs packed" in succeeded(sh("ablation", "pack", "outputs/packed", cwd=place)).stdout
    pd.testing.assert_frame_equal(load_runs(packed).drop(columns="study"), before)
    shutil.copy(place / "studies" / "digits.toml", place / "studies" / "packed.toml")
    rows = json.loads(succeeded(sh("ablation", "status", "packed", "--json", cwd=place)).stdout)
    assert [r["state"] for r in rows] == ["done"] * 10
    assert "0 runs packed" in succeeded(sh("ablation", "pack", "studies/packed.toml", cwd=place)).stdout


def test_an_arm_that_fails_at_a_seed_is_not_judged_by_its_others_and_holds_up_no_other(tmp_path, sh):
    "Its reason is told, and the run is made again as soon as it can be."
    unlucky = 'import os\nif ablation == "less" and seed == 1 and os.path.exists("fail"): 1 / 0\n'
    more = COIN_STUDY + "[until]\nmost = 5\nevery = 2\n"
    undecided = COIN.replace("(seed)", "(ablation + str(seed))").replace("5", ".1")   # draws that no arm shares
    root = coin(tmp_path / "coin", code=unlucky + undecided, study=more)
    (root / "fail").touch()
    done = sh("ablation", "run", "coin.toml", cwd=root)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout
    study = root / "outputs" / "coin"
    assert (study / "more" / "s4" / "result.json").exists(), "the other arm went on"
    assert not (study / "less" / "s3").exists()
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    page = (study / "report.md").read_text()
    assert "- failed: `less`, seed 1 (`less/s1`): ZeroDivisionError: division by zero" in page
    verdicts = pd.read_csv(study / "tables" / "results.csv").set_index("arm").verdict
    assert verdicts["less"] == "failed"
    assert verdicts["more"] != "failed"
    rows = json.loads(succeeded(sh("ablation", "status", "coin.toml", "--json", cwd=root)).stdout)
    assert [(r["arm"], r["seed"]) for r in rows if r["state"] == "failed"] == [("less", 1)]
    assert "Asked otherwise" not in page
    (root / "fail").unlink()
    (root / "coin.toml").write_text(more.replace("margin = 0.1", "margin = 3"))
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    assert not list(study.rglob("failed.json"))
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    said = "**Asked otherwise before**: margin became 3 once 12 runs had ended (before: 0.1)."
    assert said in (study / "report.md").read_text()
    assert (study / "less" / "s4" / "result.json").exists()


TOO_HOT = """
import json, math, random
if ablation == "never" or ablation == "more" and lr > 5: raise ValueError("too hot")
json.dump({"score": random.Random(seed).gauss(0, .01) - math.log10(lr)**2}, open(f"{out}/result.json", "w"))
"""


def test_a_rung_that_fails_counts_as_diverged_where_its_arm_can_come_to_a_number(tmp_path, sh):
    "An arm that always fails waits instead: that may be a mistake, and its ladder does not grow."
    ladder = "[tune]\nlr = [0.1, 1.0, 10.0]\nseeds = [9]\n"
    study = COIN_STUDY.replace('"less"', '"never"') + ladder
    root = coin(tmp_path / "coin", TOO_HOT, PARAMETERS + "lr = 1.0\n", study)
    refused(sh("ablation", "run", "coin.toml", cwd=root), "too hot")
    outputs = root / "outputs" / "coin"
    tuning = json.loads((outputs / "tuning.json").read_text())[""]
    assert tuning["more"]["lr"] == tuning["base"]["lr"] == 1
    assert "never" not in tuning
    assert {f.name for f in (outputs / "never").iterdir()} == {"0.1-s9", "1-s9", "10-s9"}
    assert (outputs / "more" / "1-s2" / "result.json").exists()
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    assert "- `more`: a run diverged or failed at 10, so no such rate is chosen." in (outputs / "report.md").read_text()


def test_killed_and_begun_again_it_comes_to_the_same_numbers(study, tmp_path, sh, env):
    "The notebook keeps a checkpoint of its own, finds it again, and ends with the numbers of an undisturbed run."
    calm = values(study("gpt")[0])
    root = lone(tmp_path / "again")
    folder = root / "outputs" / "gpt"
    process = forks.Forked(["ablation", "run", "gpt", "--workers", "2"], root, env)
    def half_way():
        kept = folder.glob("*/*/out/checkpoint.pt")
        return [p for p in kept if not (p.parents[1] / "result.json").exists()]
    wait_for(half_way, 120)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert len(list(folder.glob("*/*/result.json"))) < len(calm)
    succeeded(sh("ablation", "run", "gpt", cwd=root))
    assert values(folder) == calm
    notebooks = [p.read_text() for p in folder.glob("*/*/run.ipynb")]
    assert any("resumed at step" in text for text in notebooks), "no run went on from its checkpoint"


COIN = """
import json, random
draw = random.Random(seed)
value = draw.gauss({"base": 0, "more": 5, "less": -5}.get(ablation, 0), 1)
json.dump({"score": value}, open(f"{out}/result.json", "w"))
"""
PARAMETERS = 'ablation = "base"\nseed = 0\nout = "."\nbias = 0\n'
COIN_STUDY = """
notebook = "coin.ipynb"
metric = "score"
better = "higher"
baseline = "base"
arms = ["base", "more", "less"]
seeds = [0, 1, 2]
margin = 0.1
"""


def coin(folder, code=COIN, parameters=PARAMETERS, study=COIN_STUDY, tags=("parameters",), **metadata):
    "A folder with a notebook of one cell, and a study of it."
    cells = [nbformat.v4.new_code_cell(source) for source in (parameters, code)]
    cells[0].metadata["tags"] = list(tags)
    spec = dict(name="python3", language="python", display_name="Python 3")
    folder.mkdir(exist_ok=True)
    nb = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec, **metadata})
    nbformat.write(nb, folder / "coin.ipynb")
    (folder / "coin.toml").write_text(study)
    return folder


R = dict(kernelspec=dict(name="ir", language="R", display_name="R"))
NOWHERE = dict(kernelspec=dict(name="nowhere", language="python", display_name="Nowhere"))


@pytest.mark.parametrize("words, changes", [
    ("is not there; name a notebook", dict(study=COIN_STUDY.replace("coin.ipynb", "corn.ipynb"))),
    ("has no cell tagged `parameters`", dict(tags=())),
    ("has no parameter seed", dict(parameters='ablation = "base"\nout = "."\n')),
    ("has no parameter lr", dict(study=COIN_STUDY + "lr = [1e-3]\n")),
    ("is no parameter of coin.ipynb. Did you mean 'bias'?", dict(study=COIN_STUDY + "[overrides]\nbiass = 1\n")),
    ("cannot be set here; give `seeds = [...]`", dict(study=COIN_STUDY + "[grid]\nseed = [1, 2]\n")),
    ("runs on a kernel of R", R),
    ("asks for the kernel 'nowhere', which is not installed", NOWHERE),
    ("does not hold the baseline 'bass'. Did you mean 'base'?",
     dict(study=COIN_STUDY.replace('"base"\n', '"bass"\n', 1))),
    ("margin = None is missing", dict(study=COIN_STUDY.replace("margin = 0.1\n", ""))),
    ("metric = None is missing", dict(study=COIN_STUDY.replace('metric = "score"\n', ""))),
    ("better = None is missing, and the name 'score' reads as if higher were better", dict(
        study=COIN_STUDY.replace('better = "higher"\n', ""))),
    ("must be 'higher' or 'lower'", dict(study=COIN_STUDY.replace("higher", "up"))),
    ("is not a key of a study of a notebook", dict(study=COIN_STUDY + 'scale = "smoke"\n')),
    ("cannot name a folder", dict(study=COIN_STUDY.replace('"more"', '"../more"'))),
    ("cannot name a folder", dict(study=COIN_STUDY.replace('"more"', '"."'))),
    ("cannot name a folder", dict(study=COIN_STUDY.replace('"more"', '"-more"'))),
    ("is the name of what a study keeps itself", dict(study=COIN_STUDY.replace('"more"', '"runs.zip"'))),
    ("is the name of what a study keeps itself", dict(study=COIN_STUDY.replace('"more"', '"Tables"'))),
    ("is not below", dict(study=COIN_STUDY + 'files = ["none.csv"]\n')),
    ("is not below", dict(study=COIN_STUDY + "files = [3]\n")),
    ("is no value that a run keeps", dict(study=COIN_STUDY + "[overrides]\nbias = 2020-01-01\n")),
    ("is no value that a run keeps", dict(study=COIN_STUDY + "[overrides]\nbias = nan\n")),
    ("is no value that a run keeps", dict(study=COIN_STUDY + "[grid]\nbias = [[1, 2], [3]]\n")),
    ("cannot be read back from its folder's name", dict(study=COIN_STUDY + '[grid]\nbias = ["a_b-c"]\n')),
    ("is not Python in code cell 2, line 1", dict(code="x = = 3")),
])
def test_what_cannot_run_is_said_before_the_first_run(tmp_path, sh, words, changes):
    root = coin(tmp_path / "coin", **changes)
    done = refused(sh("ablation", "plan", "coin.toml", cwd=root), words, status=2)
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("words, code", [
    ("left a result.json without 'score'. Did you mean 'scores'? It holds: scores.",
     COIN.replace('"score"', '"scores"')),
    ("left a score that is not finite", COIN.replace('"score": value', '"score": float("nan")')),
    ("left a score that is not finite", COIN.replace('"score": value', '"score": float("inf")')),
    ("left 'high' as its score; let it write a number", COIN.replace('"score": value', '"score": "high"')),
    ('wrote "status": "failed"; write "done", or "diverged"',
     COIN.replace('"score": value', '"score": value, "status": "failed"')),
    ("left True as its score", COIN.replace('"score": value', '"score": True')),
    ("left no result.json", "value = 3"),
    ("left a result.json that is not JSON", 'open(f"{out}/result.json", "w").write("{")'),
    ("ZeroDivisionError: division by zero", "1 / 0"),
    ("ValueError: one ...", 'raise ValueError("one\\n" * 500)'),
    ("Busy: 3", "class Busy(Exception): pass\nraise Busy(3)"),
    ("left a score that is too large for a number in 64 bits", COIN.replace('"score": value', '"score": 10**400')),
    ("left a result.json that cannot be read (Is a directory)", 'import os\nos.mkdir(f"{out}/result.json")'),
    ("left no result.json", 'import os\nos.symlink("nowhere", f"{out}/result.json")'),
    ("left a result.json that cannot be kept as JSON: 'utf-8' codec can't encode",
     COIN.replace('"score": value', '"score": value, "note": "\\ud800"')),
    ("left a folder as its metrics.jsonl", COIN + 'import os\nos.mkdir(f"{out}/metrics.jsonl")'),
    ("coin.ipynb, or a file that it imports or reads, was changed while it ran; run it again",
     COIN + 'f = open("coin.ipynb").read()\nopen("coin.ipynb", "w").write(f.replace("gauss(", "gauss(0 + "))'),
])
def test_a_result_that_cannot_count_fails_the_run_in_a_sentence(tmp_path, sh, words, code):
    root = coin(tmp_path / "coin", code, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    done = refused(sh("ablation", "run", "coin.toml", cwd=root), words)
    assert done.stderr.count("\n") == 3, done.stderr
    assert not list(root.glob("outputs/coin/*/*/result.json"))


ITEMS = COIN + """
import numpy as np
np.save(f"{out}/items.npy", np.array(ARRAY))
"""


EDITS_ITSELF = """
if smoke:
    text = open("coin.ipynb").read()
    open("coin.ipynb", "w").write(text.replace("gauss(", "gauss(0 + "))
"""


def test_a_short_run_whose_notebook_changes_meanwhile_is_not_kept(tmp_path, sh):
    root = coin(tmp_path / "coin", COIN + EDITS_ITSELF, PARAMETERS + "smoke = False\n")
    kept = root / "kept"
    refused(sh("ablation", "run", "coin.toml", cwd=root, ABLATION_CACHE=kept), "was changed while it ran")
    assert "gauss(0 + 0 + " in (root / "coin.ipynb").read_text()
    assert not list(kept.glob("smoke/*"))


@pytest.mark.parametrize("words, array", [
    ("that is empty; let it hold a number an item, or write none.", "[]"),
    ("of shape (2, 2); let it be a list", "[[1, 2], [3, 4]]"),
    ("in which 2 of 3 numbers are not finite.", "[1, np.nan, np.inf]"),
])
def test_items_that_cannot_be_compared_fail_the_run_in_a_sentence(tmp_path, sh, words, array):
    code = ITEMS.replace("ARRAY", array)
    root = coin(tmp_path / "coin", code, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    done = refused(sh("ablation", "run", "coin.toml", cwd=root), f"coin.ipynb left an items.npy {words}")
    assert done.stderr.count("\n") == 3, done.stderr
    assert not list(root.glob("outputs/coin/*/*/items.npy"))


@pytest.mark.parametrize("array, kept", [
    ("[True, False, seed]", [1, 0, 0]), ("[True, False]", [1, 0]), ("[0.5, 2], dtype=np.float16", [0.5, 2]),
])
def test_items_of_any_kind_of_number_are_kept_as_floats_of_64_bits(tmp_path, sh, array, kept):
    code = ITEMS.replace("ARRAY", array)
    root = coin(tmp_path / "coin", code, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    items = np.load(root / "outputs" / "coin" / "more" / "s0" / "items.npy")
    assert items.dtype == np.float64
    assert items.tolist() == kept
    assert states(sh, root) == {"done"}


def test_a_number_that_no_float_holds_beside_the_metric_hurts_nothing(tmp_path, sh):
    own = '{"score": 1, "a": 1e999, "b": NaN, "c": [{"d": Infinity}]}'
    code = COIN + f'open(f"{{out}}/result.json", "w").write({own!r})'
    root = coin(tmp_path / "coin", code, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    result = json.loads((root / "outputs" / "coin" / "more" / "s0" / "result.json").read_text())
    assert result["own"] == dict(score=1, a=None, b=None, c=[dict(d=None)])
    assert states(sh, root) == {"done"}


@pytest.mark.parametrize("check", ["np.array([1, 2]).sum() == 4", "torch.tensor(3) == 4"])
def test_a_check_that_gives_false_fails_the_run(tmp_path, sh, check):
    words = "coin.ipynb went on though its check 1 gave False or an error; let that end it."
    refused(sh("ablation", "run", "coin.toml", cwd=checked(tmp_path / "coin", check)), words)


def test_a_check_whose_error_is_let_pass_fails_the_run(tmp_path, sh):
    root = checked(tmp_path / "coin", "assert 3 == 4, 'other'", "raises-exception")
    refused(sh("ablation", "run", "coin.toml", cwd=root), "its check 1 failed: other")


def test_of_a_check_that_prints_much_the_beginning_is_kept(tmp_path, sh):
    root = checked(tmp_path / "coin", 'for i in range(10**5): print("line", i)')
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    (check,) = json.loads((root / "outputs" / "coin" / "more" / "s0" / "result.json").read_text())["checks"]
    assert check["passed"]
    assert check["says"].startswith("line 0; line 1; ")
    assert check["says"].endswith(" ...")
    assert len(check["says"]) < 1100


def checked(folder, check, *tags):
    "A folder as `coin` makes it, whose notebook has a check before its last cell."
    coin(folder, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    nb = nbformat.read(folder / "coin.ipynb", 4)
    cell = nbformat.v4.new_code_cell(f"import numpy as np, torch\n{check}")
    cell.metadata["tags"] = ["check", *tags]
    nb.cells.insert(1, cell)
    nbformat.write(nb, folder / "coin.ipynb")
    return folder


@pytest.mark.parametrize("left", [
    'os.mkdir(f"{out}/result.json")', 'shutil.rmtree(out)\n    open(out, "w").close()',
    'shutil.rmtree(out)\n    os.makedirs("aside", exist_ok=True)\n    os.symlink(os.path.abspath("aside"), out)',
    'os.mkdir(f"{out}/../items.npy")'])
def test_what_a_failed_run_left_stands_in_no_way(tmp_path, sh, left):
    "Folders, files and links where others are due are removed when the run begins again."
    spoilt = f"""
import os, shutil
if not os.path.exists("again"):
    open(f"{{out}}/checkpoint", "w").close()
    {left}
    1 / 0
"""
    root = coin(tmp_path / "coin", spoilt + COIN, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    refused(sh("ablation", "run", "coin.toml", cwd=root), "ZeroDivisionError")
    (root / "again").touch()
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    assert states(sh, root) == {"done"}


def states(sh, root):
    rows = json.loads(succeeded(sh("ablation", "status", "coin.toml", "--json", cwd=root)).stdout)
    return {r["state"] for r in rows}


def test_a_loss_that_is_none_is_null_in_the_list_of_runs(tmp_path, sh):
    row = dict(step=3, train_loss=float("nan"), val_loss=float("inf"), seconds=float("inf"), tokens=5)
    code = f"open(f'{{out}}/metrics.jsonl', 'w').write({json.dumps(row)!r})\n1 / 0"
    root = coin(tmp_path / "coin", code, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    refused(sh("ablation", "run", "coin.toml", cwd=root), "ZeroDivisionError")
    said = succeeded(sh("ablation", "status", "coin.toml", "--json", cwd=root)).stdout
    constants = []
    rows = json.loads(said, parse_constant=constants.append)
    assert not constants, "NaN and Infinity are no JSON"
    assert {r["step"] for r in rows} == {3}
    assert {(r["train_loss"], r["val_loss"]) for r in rows} == {(None, None)}


def test_runs_stand_as_long_as_what_made_them_does(tmp_path, sh):
    root = tmp_path / "coin"
    study = COIN_STUDY + 'files = ["table.csv"]\n'
    code = "import helper\n" + COIN
    root.mkdir()
    (root / "table.csv").write_text("1\n")
    (root / "helper.py").write_text("A = 1\n")
    coin(root, code, study=study)
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    assert states(sh, root) == {"done"}
    coin(root, "# a remark\n" + code, PARAMETERS.replace('"base"', '"more"'), study + 'unit = "points"\n')
    assert states(sh, root) == {"done"}, "remarks, the saved arm and the unit change no number"
    for change, back in (
        (lambda: coin(root, code + "\nx = 1", study=study), lambda: coin(root, code, study=study)),
        (lambda: coin(root, code, PARAMETERS + "k = 2\n", study), lambda: coin(root, code, study=study)),
        (lambda: (root / "helper.py").write_text("A = 2\n"), lambda: (root / "helper.py").write_text("A = 1\n")),
        (lambda: (root / "table.csv").write_text("2\n"), lambda: (root / "table.csv").write_text("1\n")),
    ):
        change()
        assert states(sh, root) == {"stale"}
        back()
        assert states(sh, root) == {"done"}
    coin(root, code + "\nx = 1", study=study)
    said = succeeded(sh("ablation", "plan", "coin.toml", cwd=root)).stdout
    assert "9 runs are stale or damaged" in said
    assert "Nothing is left" not in said
    refused(sh("ablation", "run", "coin.toml", cwd=root), "made with other code")
    succeeded(sh("ablation", "run", "coin.toml", "--rerun-stale", cwd=root))
    assert states(sh, root) == {"done"}


def test_what_is_imported_behind_magics_and_from_other_folders_makes_runs_stale(tmp_path, sh):
    root = tmp_path / "coin"
    names = "timed.py", "lined.py", "ran.py", "src/aside.py"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{(root / name).stem} = 1\n")
    code = """%time from lined import lined
    %run ran.py
    here, there = %time (1, 2)
    import sys; sys.path.insert(0, "src")
    from aside import aside
    assert (lined, ran, here, there, aside) == (1, 1, 1, 2, 1)
    """.replace("\n    ", "\n")
    coin(root, code + COIN, study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    nb = nbformat.read(root / "coin.ipynb", 4)
    nb.cells.insert(1, nbformat.v4.new_code_cell("%%time\nfrom timed import timed"))
    nbformat.write(nb, root / "coin.ipynb")
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    assert states(sh, root) == {"done"}
    for name in names:
        before = (root / name).read_text()
        (root / name).write_text("other = 2\n")
        assert states(sh, root) == {"stale"}, name
        (root / name).write_text(before)
    assert states(sh, root) == {"done"}


@pytest.mark.parametrize("content, words", [
    (b"A = = 1", "line 1: invalid syntax"),
    (b"A = '\xe9'", "invalid or missing encoding declaration"),
    (b"A = 1\0", "null bytes"),
])
def test_a_helper_that_is_no_python_is_named(tmp_path, sh, content, words):
    root = coin(tmp_path / "coin", "import helper\n" + COIN)
    (root / "helper.py").write_bytes(content)
    for command in ("plan", "run", "status"):
        done = refused(sh("ablation", command, "coin.toml", cwd=root), "helper.py is not Python", words, status=2)
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_short_run_tells_that_other_code_makes_the_same_numbers(tmp_path, sh):
    "Where a notebook offers `smoke`, code that changes nothing leaves its runs standing, and code that does, not."
    parameters = PARAMETERS + "smoke = False\n"
    code = COIN + 'if smoke: open(f"{out}/short", "w").write("")\n'
    cache = dict(ABLATION_CACHE=str(tmp_path / "cache"))
    root = coin(tmp_path / "coin", code, parameters, COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    def asked(*argv): return succeeded(sh("ablation", *argv, cwd=root, **cache)).stdout
    def found(): return {r["state"] for r in json.loads(asked("status", "coin.toml", "--json"))}
    asked("run", "coin.toml")
    assert not list(root.glob("outputs/coin/*/*/out/short")), "the run itself is no short one"
    env = json.loads((root / "outputs" / "coin" / "more" / "s0" / "env.json").read_text())
    (value,) = env["fingerprint"]["more"]["smoke"]
    assert value == json.loads((root / "outputs" / "coin" / "more" / "s0" / "result.json").read_text())["value"]
    coin(root, code.replace("draw", "chance"), parameters, COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    assert found() == {"done"}, "another name of a variable changes no number"
    coin(root, code.replace('"more": 5', '"more": 6'), parameters, COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    assert found() == {"done", "stale"}, "the numbers of one arm are others, those of two are not"


def test_on_a_cluster(tmp_path, sh):
    "Workers of dask take the runs of anybody's notebook."
    distributed = pytest.importorskip("distributed")
    root = coin(tmp_path / "coin", study=COIN_STUDY.replace("[0, 1, 2]", "[0]"))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, resources=dict(run=1), dashboard_address=":0", host="127.0.0.1",
    ) as cluster:
        done = sh("ablation", "run", "coin.toml", "--scheduler", cluster.scheduler_address, cwd=root)
    assert "3 of 3 usable" in succeeded(done).stdout


def test_a_notebook_without_a_checkpoint_begins_anew(tmp_path, sh):
    root = coin(tmp_path / "coin")
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    folder = root / "outputs" / "coin" / "more" / "s1"
    before = values(root / "outputs" / "coin")
    (folder / "result.json").unlink()
    (folder / "out" / "left.txt").write_text("half")
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    assert values(root / "outputs" / "coin") == before
    assert not (folder / "out" / "left.txt").exists()


def test_a_result_that_was_touched_counts_no_more(tmp_path, sh):
    root = coin(tmp_path / "coin")
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    file = root / "outputs" / "coin" / "more" / "s1" / "result.json"
    result = json.loads(file.read_text())
    result["own"]["score"] = 99.0
    file.write_text(json.dumps(result))
    assert states(sh, root) == {"done", "damaged"}


def test_a_seed_that_does_nothing_is_told(tmp_path, sh):
    root = coin(tmp_path / "coin", COIN.replace("Random(seed)", "Random(1)"))
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    assert set(verdicts(root / "outputs" / "coin").values()) == {"one draw"}
    assert "**The seed does nothing**" in (root / "outputs" / "coin" / "report.md").read_text()


DRAWS = """
import json, random
import numpy, torch
drawn = dict(score=random.random(), numpy=float(numpy.random.rand()), torch=float(torch.rand(1)))
drawn["order"] = str({*"abcdefgh"})
json.dump(drawn, open(f"{out}/result.json", "w"))
"""


def test_what_the_seed_does_not_fix_is_told_by_the_control(tmp_path, sh):
    "Kernels are forks of one process: without a seed they still must not draw the same numbers."
    study = COIN_STUDY.replace('["base", "more", "less"]', '["base", "aa"]').replace("[0, 1, 2]", "[0, 1]")
    root = coin(tmp_path / "coin", DRAWS, study=study)
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    study = root / "outputs" / "coin"
    assert "draws something that its seed does not fix" in (study / "report.md").read_text()
    results = [json.loads(f.read_text()) for f in study.glob("*/s*/out/result.json")]
    for source in ("score", "numpy", "torch"): assert len({r[source] for r in results}) == 4, source
    assert len({r["order"] for r in results}) == 1, "sets have another order in another process"


def test_a_failed_run_of_a_mended_notebook_is_to_do_again(tmp_path, sh):
    "There is nothing in it that somebody might want to keep."
    root = coin(tmp_path / "coin", "assert ablation != 'more'\n" + COIN)
    assert sh("ablation", "run", "coin.toml", cwd=root).returncode == 1
    assert states(sh, root) == {"done", "failed"}
    coin(root, COIN)
    done = succeeded(sh("ablation", "run", "coin.toml", "--rerun-stale", cwd=root))
    assert states(sh, root) == {"done"}, done.stdout


def test_a_check_that_could_stop_nothing_is_refused(tmp_path, sh):
    root = coin(tmp_path / "coin")
    nb = nbformat.read(root / "coin.ipynb", 4)
    nb.cells.append(nbformat.v4.new_code_cell("assert True"))
    nb.cells[-1].metadata["tags"] = ["check"]
    nbformat.write(nb, root / "coin.ipynb")
    refused(sh("ablation", "plan", "coin.toml", cwd=root), "behind one that writes result.json", status=2)


@pytest.mark.parametrize("answer, tagged", [(["--yes"], True), ([], False)])
def test_a_study_file_is_written_from_a_notebook_by_the_command(tmp_path, sh, answer, tagged):
    "A cell is tagged where somebody has said yes, and nobody has where there is no terminal; then it is missing."
    root = coin(tmp_path / "coin", tags=(), study="")
    done = succeeded(sh("ablation", "new", "--from", "coin.ipynb", "mine", *answer, cwd=root))
    cells = nbformat.read(root / "coin.ipynb", 4).cells
    assert (cells[0].metadata.get("tags") == ["parameters"]) is tagged
    assert ("Missing: Cell 1 has no tag `parameters`; a study does not run without." in done.stdout) is not tagged
    assert "Next: ablation plan mine.toml" in done.stdout
    if not tagged: return
    text = (root / "mine.toml").read_text()
    assert 'baseline = "base"' in text
    assert 'metric   = "score"' in text
    assert "To do: " in succeeded(sh("ablation", "plan", "mine.toml", cwd=root)).stdout


def test_the_keys_that_a_notebook_looks_its_arm_up_among_are_arms(tmp_path, sh):
    shutil.copy(ROOT / "studies" / "strangers" / "digits.ipynb", tmp_path)
    succeeded(sh("ablation", "new", "--from", "digits.ipynb", "mine", cwd=tmp_path))
    text = (tmp_path / "mine.toml").read_text()
    assert 'arms     = ["plain", "aa", "scaled", "penalised", "clipped"]' in text, text


@pytest.mark.parametrize("written, metric", [
    ("json.dump(dict(rate=value), file)", "rate"),
    ("result = {'rate': value}\njson.dump(result, file)", "rate"),
    ("result = dict(seed=seed)\nresult['rate'] = value\nfile.write(json.dumps(result))", "rate"),
    ("json.dump(measured(value), file)", None),
])
def test_the_metric_is_read_from_what_is_dumped(tmp_path, sh, written, metric):
    code = f"value = 3\nfile = open(out + '/result.json', 'w')\n{written}"
    root = coin(tmp_path / "coin", code=code, study="")
    said = succeeded(sh("ablation", "new", "--from", "coin.ipynb", "mine", cwd=root)).stdout
    assert "No cell writes" not in said
    assert ("could not be read; set `metric`." in said) is (metric is None)
    line = f'metric   = "{metric}"\n' if metric else 'metric   = "loss"   # set this: a key of result.json\n'
    assert line in (root / "mine.toml").read_text()


@pytest.mark.parametrize("text", ["[1, 2]", "{}", '{"cells": [{"cell_type": "code", "source": "x = 1"}]}', "x"])
def test_a_study_is_written_of_notebooks_alone(tmp_path, sh, text):
    (tmp_path / "odd.ipynb").write_text(text)
    done = sh("ablation", "new", "--from", "odd.ipynb", "mine", cwd=tmp_path)
    refused(done, "odd.ipynb is no Jupyter notebook", status=2)


def test_lists_and_names_with_capitals_are_carried_to_the_report(tmp_path, sh):
    parameters = PARAMETERS + 'sizes = [1]\nnLayers = 1\ngröße = "e"\n'
    study = COIN_STUDY.replace("[0, 1, 2]", "[0, 1]")
    study += '[overrides]\nsizes = [1, 2]\n[grid]\nnLayers = [1, 2]\n"größe" = ["e"]\n'
    root = coin(tmp_path / "coin", parameters=parameters, study=study)
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    report = (root / "outputs" / "coin" / "report.md").read_text()
    assert "sizes = [1, 2]" in report
    assert "Nothing is: all 12 runs are done." in report
    table = pd.read_csv(root / "outputs" / "coin" / "tables" / "results.csv")
    assert set(table.setting) == {"nLayers = 1, größe = e", "nLayers = 2, größe = e"}


def test_what_a_notebook_lacks_is_named_when_a_study_is_written(tmp_path, sh):
    root = coin(tmp_path / "coin", code="value = 3", parameters='ablation = "base"\n', study="")
    said = succeeded(sh("ablation", "new", "--from", "coin.ipynb", "mine", cwd=root)).stdout
    for words in ("sets no `seed`; add seed = 0.", 'sets no `out`; add out = ".".', "No cell writes result.json"):
        assert words in said, said
    refused(sh("ablation", "new", "--from", "coin.ipynb", "mine", cwd=root), "mine.toml exists already", status=2)
    refused(sh("ablation", "new", "--from", "corn.ipynb", "other", cwd=root), "There is no notebook corn.ipynb.",
            status=2)


def test_a_grid_and_seeds_until_decided(tmp_path, sh):
    code = COIN.replace(".get(ablation, 0)", ".get(ablation, 0) + bias")
    study = COIN_STUDY.replace("[0, 1, 2]", "[0, 1]") + "[grid]\nbias = [0, 1]\n[until]\nmost = 4\n"
    root = coin(tmp_path / "coin", code, study=study)
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    table = pd.read_csv(root / "outputs" / "coin" / "tables" / "results.csv")
    assert set(table.setting) == {"bias = 0", "bias = 1"}
    report = (root / "outputs" / "coin" / "report.md").read_text()
    assert "Seeds were added here until each verdict stood" in report
    assert "not complete" not in report


def test_a_report_is_of_the_study_file_as_it_stands(tmp_path, sh):
    "Margin, unit, direction and fewer seeds need no new run; the tuning and the plan read them too."
    root = coin(tmp_path / "coin")
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    changed = COIN_STUDY.replace("higher", "lower").replace("[0, 1, 2]", "[0, 1]") + 'unit = "points"\n'
    (root / "coin.toml").write_text(changed)
    said = succeeded(sh("ablation", "report", "coin.toml", cwd=root)).stdout
    assert "score in points, lower is better" in said
    assert verdicts(root / "outputs" / "coin")["more"] == "worse"
    report = (root / "outputs" / "coin" / "report.md").read_text()
    assert "`more/s2`, because the study does not ask for it" in report
    assert "Nothing is left to do." in succeeded(sh("ablation", "plan", "coin.toml", cwd=root)).stdout


def test_of_an_edited_notebook_the_runs_that_it_makes_now_count(tmp_path, sh):
    "Those before are named, and left; they are no majority that speaks."
    root = coin(tmp_path / "coin")
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    coin(root, "x = 1\n" + COIN, study=COIN_STUDY.replace("[0, 1, 2]", "[0, 1, 2, 3, 4]"))
    assert sh("ablation", "run", "coin.toml", cwd=root).returncode == 1
    done = succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    assert "9 runs of coin.ipynb were made before it or its data changed" in done.stderr
    report = (root / "outputs" / "coin" / "report.md").read_text()
    assert "6 of 15 runs have ended" in report
    assert "where the notebook as it stands has" in report
    assert "`more/s0`" in report
    assert "`more/s3`" not in report
    shutil.copytree(root / "outputs/coin/more/s4", root / "outputs/coin/more/s3", dirs_exist_ok=True)
    said = succeeded(sh("ablation", "report", "coin.toml", cwd=root)).stderr
    assert "1 run of coin.ipynb was made as another arm, at another seed, or with other settings" in said
    coin(root)   # as it was, and with the seeds of then: these runs are whole again, whatever came between
    done = succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    assert "made before" not in done.stderr
    report = (root / "outputs" / "coin" / "report.md").read_text()
    assert "not complete" not in report
    assert "`more/s3`, because" in report


def test_a_run_may_say_that_it_diverged(tmp_path, sh):
    code = COIN + 'if ablation == "less": json.dump({"status": "diverged"}, open(f"{out}/result.json", "w"))\n'
    root = coin(tmp_path / "coin", code)
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    succeeded(sh("ablation", "report", "coin.toml", cwd=root))
    assert verdicts(root / "outputs" / "coin")["less"] == "diverged"
