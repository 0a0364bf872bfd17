"What the command `ablation` needs before it says anything: help, plan and status wait for neither torch nor pandas."
import json
import os
import shutil
import sys
from unittest import mock

import pytest
from conftest import ROOT, copied, refused, succeeded

from ablation_nb.data import prepare
from ablation_nb.provenance import identity_of, package_hash
from ablation_nb.results import Archive, write_archive

SLOW = ("torch", "pandas", "scipy", "matplotlib", "papermill", "transformers", "huggingface_hub", "safetensors", "dask")
WATCHED = """
import json, sys
from ablation_nb.cli import main
try: code = main(sys.argv[1:])
except SystemExit as e: code = e.code
print(json.dumps(dict(code=code or 0, modules=[m for m in sys.modules if "." not in m])), file=sys.stderr)
"""


def as_if_of_this_text(archive, data):
    "The runs of an archive, with the hashes that they would have on another text and by the code as it stands."
    files = {}
    for folder, names in archive.runs.items():
        of_run = {name: archive.read(f"{folder}/{name}") for name in names}
        config, env, result = (json.loads(of_run[f"{name}.json"]) for name in ("config", "env", "result"))
        config["corpus"] = "builtin:300"
        env |= dict(data_hash=data.data_hash, tokenizer_hash=data.tokenizer_hash, package_hash=package_hash())
        env["identity"] = result["identity"] = identity_of(config, data.data_hash, data.tokenizer_hash)
        for name, value in (("config", config), ("env", env), ("result", result)):
            of_run[f"{name}.json"] = json.dumps(value).encode()
        files |= {f"{folder}/{name}": content for name, content in of_run.items()}
    return files


@pytest.fixture(scope="module")
def root(tmp_path_factory, env):
    "A copy of the project with the laptop study, all of it done and packed."
    root = copied(tmp_path_factory.mktemp("project"), "studies")
    study = root / "outputs" / "laptop-builtin"
    study.mkdir(parents=True)
    with mock.patch.dict(os.environ, env): data = prepare("builtin:300", 2048)
    packed = Archive(ROOT / "outputs" / "laptop-tinystories" / "runs.zip")
    write_archive(study / "runs.zip", as_if_of_this_text(packed, data))
    return root


@pytest.fixture
def watched(root, sh):
    "A command, run: what it printed, and the slow modules that it imported."
    def run(*argv):
        done = succeeded(sh(sys.executable, "-c", WATCHED, *argv, cwd=root, anew=True))
        said = json.loads(done.stderr.splitlines()[-1])
        assert said["code"] == 0, done.stdout + done.stderr
        return done.stdout, [m for m in SLOW if m in said["modules"]]
    return run


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["run", "--help"]])
def test_help_needs_next_to_nothing(sh, argv):
    done = succeeded(sh(sys.executable, "-c", WATCHED, *argv, anew=True))
    modules = json.loads(done.stderr.splitlines()[-1])["modules"]
    assert not {*SLOW, "numpy", "rich"} & {*modules}


def test_the_plan_of_a_finished_study_needs_no_torch(watched):
    printed, slow = watched("plan", "studies/laptop.toml")
    assert "Nothing is left to do." in printed
    assert "stale" not in printed
    assert slow == []


def test_its_status_needs_none_either(watched):
    printed, slow = watched("status", "studies/laptop.toml", "--json")
    assert {run["state"] for run in json.loads(printed)} == {"done"}
    assert slow == []


def test_a_study_is_known_by_its_name(root, sh):
    by_name = succeeded(sh("ablation", "plan", "laptop", cwd=root)).stdout
    assert by_name == succeeded(sh("ablation", "plan", "studies/laptop.toml", cwd=root)).stdout
    assert "Nothing is left to do." in by_name


def test_a_report_is_written_from_the_folder_of_its_runs(root, sh, tmp_path):
    "As whoever has the runs of a text, and not the text, does it: by its name, or by its path."
    name, files = "low_rate-tinystories", ("report.md", "tables/results.csv", "dynamics.svg")
    folder = root / "outputs" / name
    shutil.copytree(ROOT / "outputs" / name, folder)
    for f in files: (folder / f).unlink()
    page = f"outputs/{name}/report.md"
    assert f"The report: {page}" in succeeded(sh("ablation", "report", name, cwd=root)).stdout
    for f in files: assert (folder / f).read_bytes() == (ROOT / "outputs" / name / f).read_bytes(), f
    for asked, here in ((f"outputs/{name}", root), (folder, tmp_path)):
        said = succeeded(sh("ablation", "report", asked, cwd=here, ABLATION_CORPUS=root / "nbs")).stdout
        assert f"The report, as it was: {page}" in said
    (folder / "study.json").write_text("{")
    refused(sh("ablation", "report", name, cwd=root), "study.json", status=2)
    shutil.rmtree(folder)


INTERRUPTED = """
import sys
from unittest import mock
from ablation_nb.cli import main
with mock.patch("ablation_nb.ledger.write_ledger", side_effect=KeyboardInterrupt):
    sys.exit(main(["report", sys.argv[1]]))
"""


def test_a_report_that_is_interrupted_before_the_ledger_is_made_up_for(root, sh):
    name = "low_rate-tinystories"
    folder, ledger = root / "outputs" / name, root / "outputs" / "ledger.md"
    shutil.copytree(ROOT / "outputs" / name, folder)
    (folder / ".report.json").unlink(missing_ok=True)   # as in a clone
    (folder / "report.md").write_text("older")
    for file in (ledger, ledger.with_suffix(".csv")): file.write_text("older")
    done = sh("python", "-c", INTERRUPTED, name, cwd=root, anew=True)
    assert done.stderr == "ablation: interrupted.\n"
    assert (folder / "report.md").read_bytes() == (ROOT / "outputs" / name / "report.md").read_bytes()
    assert ledger.read_text() == "older"
    succeeded(sh("ablation", "report", name, cwd=root))
    assert name in ledger.read_text()
    shutil.rmtree(folder)
    for file in (ledger, ledger.with_suffix(".csv")): file.unlink()


def test_from_elsewhere_a_file_leads_to_its_project(root, sh, tmp_path):
    file = root / "studies" / "laptop.toml"
    done = succeeded(sh("ablation", "plan", file, cwd=tmp_path))
    assert "Nothing is left to do." in done.stdout
    assert done.stderr == f"ablation: the project is {root}.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "words"), [
    ("lapto", ("no study file lapto;", "in studies:", "Did you mean 'laptop.toml'?")),
    ("studies/none.toml", ("no study file studies/none.toml;", "laptop.toml")),
])
def test_what_is_no_study_is_one_sentence(root, sh, asked, words):
    refused(sh("ablation", "plan", asked, cwd=root), *words, status=2)


def test_a_model_that_no_memory_holds_is_planned_by_nobody(root, sh, tmp_path):
    study = tmp_path / "vast.toml"
    study.write_text('scale = "smoke"\narms = ["baseline", "nope"]\nseeds = [0]\n[overrides]\nn_layers = 100_000_000\n')
    refused(sh("ablation", "plan", study, cwd=root), "parameters needs", "GiB are there; make it smaller", status=2)


def test_outside_a_project_a_name_means_nothing(sh, tmp_path):
    whole = ROOT / "studies" / "laptop.toml"
    words = "no study file laptop;", "in no project", f"such as {whole}."
    done = refused(sh("ablation", "plan", "laptop", cwd=tmp_path), *words, status=2)
    assert done.stderr.count("\n") == 1
    assert "such as" not in sh("ablation", "plan", "lapto", cwd=tmp_path).stderr


@pytest.mark.parametrize(("typed", "told", "option"), [
    (("--corpus", "tinystories"), dict(ABLATION_CORPUS=""), "--corpus "),
    ((), dict(ABLATION_CORPUS="tinystories", MAKELEVEL="1"), "CORPUS="),
    ((), dict(ABLATION_CORPUS="tinystories", MAKELEVEL=""), "ABLATION_CORPUS="),
])
def test_without_a_network_one_sentence_comes_at_once(root, sh, tmp_path, typed, told, option):
    offline = dict(
        HF_ENDPOINT="https://127.0.0.1:9", HF_HOME=str(tmp_path), ABLATION_CACHE=str(tmp_path), no_proxy="*",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), ""))
    argv = ("ablation", "run", "laptop", *typed)
    words = "does not answer", f"pass {option}builtin, or {option}FOLDER"
    done = refused(sh(*argv, cwd=root, **{**offline, **told}, anew=True), *words, status=2)
    assert done.stderr.count("\n") == 1


SMOKE = 'scale = "smoke"\ncorpus = "builtin:300"\narms = ["nope"]\nseeds = [0]\n'
NUMBERS = "arm,seed,loss\nbaseline,0,1\nbaseline,1,2\nnope,0,2\nnope,1,3\n"


@pytest.mark.parametrize(("place", "argv"), [
    ("outputs/smoke", ("run", "smoke")),
    ("outputs/smoke", ("report", "smoke")),
    ("outputs/smoke", ("time", "smoke")),
    ("file", ("compare", "numbers.csv", "--out", "file/page")),
    ("file", ("export", "outputs/laptop-builtin/baseline/0.01-s0", "file/hf")),
    ("file", ("visit", "run", "smoke", "--out", "file/visit")),
    ("file", ("new", "file/my-study")),
])
def test_what_cannot_be_written_is_one_sentence(root, sh, place, argv):
    for name, text in (("file", ""), ("outputs/smoke", ""), ("studies/smoke.toml", SMOKE), ("numbers.csv", NUMBERS)):
        (root / name).write_text(text)
    done = refused(sh("ablation", *argv, cwd=root), f"{place}", "cannot be written (Not a directory)", status=2)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""   # nothing was begun


def test_nor_can_a_proof_without_its_folder(sh, tmp_path):
    root = copied(tmp_path)
    (root / "outputs").write_text("a file where a folder has to be")
    done = refused(sh("ablation", "prove", cwd=root), "outputs cannot be written", status=2)
    assert done.stderr.count("\n") == 1
