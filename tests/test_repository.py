"The repository keeps its promises: notebooks and package in step, notebooks clean, one place for metadata."
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from chapter import ARM, STUDY
from conftest import ROOT, succeeded

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory, sh):
    "A copy of notebooks and package after a fresh export and clean."
    there = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "ablation_nb", "outputs", "reference"):
        shutil.copytree(ROOT / name, there / name, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.safetensors"))
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, there)
    for command in ("nbdev-export", "nbdev-clean"): succeeded(sh(command, cwd=there))
    return there


@pytest.mark.parametrize("folder", ["nbs", "ablation_nb"])
def test_fresh_export_and_clean_change_nothing(copy, folder):
    for f in sorted((ROOT / folder).glob("*.*")):
        assert f.read_text() == (copy / folder / f.name).read_text(), f"{f.name}: run nbdev-export and nbdev-clean"


@pytest.mark.parametrize("name", ["train", "analysis"])
def test_parameters_tag_is_alive_after_clean(copy, name):
    cells = json.loads((copy / "nbs" / f"{name}.ipynb").read_text())["cells"]
    assert [c["metadata"].get("tags") for c in cells].count(["parameters"]) == 1


def committed(*places):
    "The files of the repository, and none that a trial or a study of one's own has left."
    return subprocess.run(["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


STUDIES = sorted(Path(report).parent.name for report in committed(":(glob)outputs/*/report.md"))
NOTEBOOK_STUDIES = sorted(p.stem for p in (ROOT / "studies").glob("*.toml") if "\nnotebook" in p.read_text())


def test_reports_are_committed():
    assert "replication-tinystories" in STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_the_committed_reports_regenerate_byte_for_byte(copy, study):
    from ablation_nb.question import write_question
    from ablation_nb.report import write_report
    folder, again = ROOT / "outputs" / study, copy / "outputs" / study
    if study in NOTEBOOK_STUDIES: write_question(again)
    else: write_report(again)
    made = [p for p in folder.rglob("*") if p.suffix in (".md", ".csv", ".tex", ".png", ".svg")]
    assert len(made) >= 6
    for p in made:
        assert p.read_bytes() == (again / p.relative_to(folder)).read_bytes(), p.relative_to(ROOT)


def test_the_committed_page_of_scale_regenerates_byte_for_byte(copy):
    from ablation_nb.report import write_scale
    assert write_scale(copy / "outputs")
    again = sorted((copy / "outputs").glob("scale*"))
    assert {f.suffix for f in again} == {".md", ".csv", ".tex", ".svg", ".png"}
    for f in again: assert (ROOT / "outputs" / f.name).read_bytes() == f.read_bytes(), f.name


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex on this machine")
def test_every_table_is_one_for_latex(tmp_path):
    tables = sorted((ROOT / "outputs").rglob("*.tex"))
    assert len(tables) > 100
    text = "\\par\n".join(f.read_text(encoding="utf-8") for f in tables)
    preamble = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "all.tex").write_text(f"{preamble}\n{text}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]


def test_readme_is_what_index_says(copy, sh):
    for name in ("Makefile", "CITATION.cff"): shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "studies", copy / "studies")
    succeeded(sh("make", "readme", "--old-file=dev", f"BIN={Path(sys.executable).parent}", cwd=copy))
    for name in ("README.md", "outputs/front.png"):
        assert (copy / name).read_bytes() == (ROOT / name).read_bytes(), f"{name}: run make readme"
    assert "\n\n\n" not in (ROOT / "README.md").read_text()


def test_make_lab_opens_the_first_page_on_this_machine_only(sh):
    done = succeeded(sh("make", "-n", "lab", "--old-file=dev"))
    argv = next(shlex.split(line) for line in done.stdout.splitlines() if "jupyter lab" in line)
    assert f"--ServerApp.root_dir={ROOT}" in argv, "links out of nbs/ lead nowhere otherwise"
    assert [a for a in argv if a.startswith("--") and "ip" in a.partition("=")[0]] == ["--ip=127.0.0.1"]
    assert argv[-1] == "nbs/index.ipynb"
    assert (ROOT / argv[-1]).is_file()
    assert f"--LabApp.default_url=/lab/tree/{argv[-1]}" in argv, "the address that it prints opens another page"
    assert not [a for a in argv if "token" in a or "password" in a], "JupyterLab's own token guards it"


def test_train_notebook_has_a_parameter_for_every_field():
    from ablation_nb.config import MODEL_FIELDS, TRAIN_FIELDS
    from ablation_nb.runs import OPTIONS
    cells = json.loads((ROOT / "nbs" / "train.ipynb").read_text())["cells"]
    source = next("".join(c["source"]) for c in cells if c["metadata"].get("tags") == ["parameters"])
    given = {}
    exec(source, given)
    assert [k for k in given if k != "__builtins__"] == [*OPTIONS, *MODEL_FIELDS, *TRAIN_FIELDS]
    assert {k: given[k] for k in OPTIONS} == OPTIONS
    assert all(given[k] is None for k in (*MODEL_FIELDS, *TRAIN_FIELDS))


def test_modules_import_only_downwards():
    order = [n.stem.split("_", 1)[1] for n in NOTEBOOKS if n.name[0].isdigit()]
    for i, module in enumerate(order):
        source = (ROOT / "ablation_nb" / f"{module}.py").read_text().partition("\nif __name__ ==")[0]
        used = set(re.findall(r"^ *from (?:ablation_nb)?\.(\w+) import", source, re.M))   # in functions, too
        assert used <= set(order[:i]), f"{module} imports {used - set(order[:i])}, which stand below it"
    assert "torch" not in (ROOT / "ablation_nb" / "statistics.py").read_text()


def test_metadata_has_one_place():
    meta = configparser.ConfigParser(delimiters=["="])
    meta.read(ROOT / "settings.ini")
    assert version("ablation_nb") == meta["DEFAULT"]["version"]
    assert meta["DEFAULT"]["version"] not in (ROOT / "setup.py").read_text() + (ROOT / "pyproject.toml").read_text()


def pins_of(name):
    "The pins of a file as `make pins` writes it, each with its hashes."
    text = (ROOT / name).read_text().replace("\\\n", "")
    return [line.split() for line in text.splitlines() if not line.startswith("#")]


def pinned(*files): return {pin.partition("==")[0].lower().replace("_", "-") for f in files for pin, *_ in pins_of(f)}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_pin_has_a_hash(name):
    "pip installs nothing else under `--require-hashes`. torch has a file of its own."
    for pin, *hashes in pins_of(name):
        assert re.fullmatch(r"[\w.-]+==[\w.]+", pin)
        assert hashes, f"{pin}: run make pins"
        for h in hashes: assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h), pin


@pytest.mark.parametrize(("kind", "files"), [
    ("requirements", ["requirements.txt"]),
    ("dev_requirements", ["requirements.txt", "requirements-dev.txt"]),
])
def test_no_requirement_is_forgotten(kind, files):
    meta = configparser.ConfigParser(delimiters=["="])
    meta.read(ROOT / "settings.ini")
    ranges = [r for r in meta["DEFAULT"][kind].split() if ";" not in r]  # the rest is for older Pythons
    names = {re.match(r"[\w-]+", r)[0].lower().replace("_", "-") for r in ranges}
    assert not names - pinned(*files) - {"torch"}, f"{kind}: run make pins"


def test_a_study_installs_only_what_it_needs():
    assert not pinned("requirements.txt") & pinned("requirements-dev.txt")
    tools = {"jupyterlab", "sphinx", "playwright", "ruff", "mypy", "pytest", "nbdev", "transformers", "distributed"}
    assert tools <= pinned("requirements-dev.txt")


def test_every_lab_note_is_listed_by_its_topic():
    text = (ROOT / "LOG.md").read_text()
    notes = re.findall(r"^## \S+ · (.+)$", text, re.M)
    listed = re.findall(r"^  \[(.+)\]\(#", text, re.M)
    assert sorted(listed) == sorted(notes)


def test_the_text_of_the_project_names_no_machine():
    for f in committed():
        if f in (".ci/run", "tests/test_repository.py") or f.endswith((".png", ".npy", ".zip")): continue
        text = (ROOT / f).read_text(encoding="utf-8")
        for place in ("../shared", "/work/", str(ROOT)): assert place not in text, f"{f} speaks of {place}"


def test_import_is_light(sh):
    "The package itself is there at once, and what a script needs to plan runs loads neither torch nor pandas."
    code = "import time; t = time.perf_counter(); import ablation_nb; print(time.perf_counter() - t)"
    took = sh("python", "-c", code, anew=True)
    assert float(took.stdout) < 0.2
    heavy = "assert not {'torch', 'pandas'} & set(sys.modules)"
    code = f"import sys, ablation_nb.config as c; c.run_config('nope', scale='smoke'); {heavy}"
    succeeded(sh("python", "-c", code, anew=True))
    code = "import sys, ablation_nb.report, ablation_nb.ledger; assert 'torch' not in sys.modules"
    succeeded(sh("python", "-c", code, anew=True))   # who reads runs needs pandas, and trains nothing


def test_the_repository_stays_small():
    tracked = committed()
    assert len(tracked) < 2000, "pack the runs of finished studies: `ablation pack outputs/NAME`"
    outputs = [ROOT / f for f in tracked if f.startswith("outputs/")]
    assert sum(f.stat().st_size for f in outputs if f.exists()) < 105e6


def test_trials_of_the_studies_leave_nothing_for_git():
    "What `make study` or a study on built-in stories leaves is ignored, and what is committed is in the ledger."
    from ablation_nb.ledger import is_trial
    from ablation_nb.study import read_study
    files = [f for f in sorted((ROOT / "studies").glob("*.toml")) if f.stem not in NOTEBOOK_STUDIES]
    trials = [s for s in (read_study(f, "builtin") for f in files) if is_trial(s.settings)]
    assert {"laptop", "depth", "replication-builtin"} <= {s.name for s in trials}
    for s in trials:
        page = f"outputs/{s.name}/report.md"
        done = subprocess.run(["git", "check-ignore", "-q", page], cwd=ROOT)
        assert done.returncode == 0, f"add /outputs/{s.name}/ to .gitignore"
    listed = (ROOT / "outputs" / "ledger.md").read_text().partition("## The studies")[2]
    for name in STUDIES: assert f"- {name}: " in listed


def test_a_packed_run_is_small():
    from ablation_nb.results import PACKED, Archive
    archives = [Archive(ROOT / "outputs" / study / PACKED) for study in STUDIES]
    assert sum(a.path.stat().st_size for a in archives) / sum(len(a.runs) for a in archives) < 40_000


def test_committed_runs_stand_by_proof():
    "On any machine: by the text of the code, or by the proofs that are committed."
    from ablation_nb.provenance import package_hash, proven, read_proofs
    from ablation_nb.results import load_runs
    now, proofs = package_hash(), read_proofs(ROOT / "outputs" / "code.toml")
    for study in sorted({*STUDIES} - {*NOTEBOOK_STUDIES}):   # theirs: test_strangers
        for r in load_runs(ROOT / "outputs" / study).itertuples():
            stands = proven(r.arm, r.precision, r.package_hash, now, proofs)
            assert stands, f"{study}/{r.folder}: run `ablation prove`, and this study again if it says so"


@pytest.fixture(scope="module")
def built(tmp_path_factory, sh):
    "A wheel and an sdist of what git tracks."
    there = tmp_path_factory.mktemp("built")
    sources = ["ablation_nb", "reference", "nbs/train.ipynb", "nbs/analysis.ipynb",
               "*.py", "*.ini", "*.toml", "*.in", "*.md", "*.txt", "LICENSE"]
    for f in committed(*sources):
        (there / "src" / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / f, there / "src" / f)
    succeeded(sh("python", "-m", "build", "--no-isolation", "--outdir", there / "dist", there / "src"))
    return there / "dist"


def test_sdist_holds_the_replicated_report(built):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"reference/{f.name}" for f in (ROOT / "reference").iterdir()} <= inside


def installed(built, kind, sh, folder):
    "The package alone in an empty environment, whose folder this is; what it needs is lent by that of the tests."
    (file,) = built.glob(f"*.{kind}")
    succeeded(sh("python", "-m", "venv", "--without-pip", folder))
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(f"import sys; sys.path += [{sysconfig.get_path('purelib')!r}]")
    pip = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index")
    succeeded(sh(folder / "bin" / "python", *pip, file))
    return folder / "bin", site


ABOUT_ITSELF = """
import json
import ablation_nb, ablation_nb.interop
from ablation_nb.tables import SEED_REPORT, reference_file
files = {name: str(reference_file(name)) for name in ("report.csv", "claims.toml", "untrained.csv")}
print(json.dumps([ablation_nb.__file__, ablation_nb.__version__, files, SEED_REPORT.hours["baseline"]]))
"""


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_wheel_and_sdist_install_in_an_empty_environment(built, kind, sh, tmp_path):
    bin, site = installed(built, kind, sh, tmp_path / "env")
    python = bin / "python"

    place, own_version, files, hours = json.loads(succeeded(sh(python, "-c", ABOUT_ITSELF, cwd=tmp_path)).stdout)
    assert place.startswith(str(site))
    assert own_version == version("ablation_nb")
    assert set(files) == {"report.csv", "claims.toml", "untrained.csv"}
    for name, file in files.items():
        assert Path(file).is_relative_to(site)
        assert Path(file).read_bytes() == (ROOT / "reference" / name).read_bytes()
    assert hours == 2.1
    shown = succeeded(sh(tmp_path / "env" / "bin" / "ablation", "--help", cwd=tmp_path)).stdout
    for word in ("plan", "run", "status", "report", "export"): assert word in shown


def beyond(built, sh, folder):
    """How to run `-m MODULE` or `-c CODE` beyond a clone: forks that have other libraries already and take the package
    from the wheel, and what they find on PATH is of the empty environment."""
    bin, site = installed(built, "whl", sh, folder)
    own = dict(PYTHONPATH=site, PATH=f"{bin}:{os.environ['PATH']}", ABLATION_CORPUS="", ABLATION_CACHE="")
    def python(*argv, cwd): return sh("python", *argv, cwd=cwd, **own)
    place = succeeded(python("-c", "import ablation_nb; print(ablation_nb.__file__)", cwd=folder)).stdout
    assert Path(place.strip()).is_relative_to(site)
    return python, bin, site


def test_the_page_of_one_s_own_question_is_walked_as_it_stands(built, sh, tmp_path):
    "From an empty folder to a report, where nothing but the package is installed."
    python, *_ = beyond(built, sh, tmp_path / "env")
    shutil.copy(ROOT / "nbs" / "own_question.ipynb", tmp_path)
    succeeded(python("-m", "papermill", "own_question.ipynb", "walked.ipynb", cwd=tmp_path))

    def told(file):
        cells = json.loads(file.read_text())["cells"]
        outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
        return "".join("".join(o["data"].get("text/markdown", "")) for o in outputs if "data" in o)
    assert "**`sorted` changes nothing here**" in told(tmp_path / "walked.ipynb")
    assert told(tmp_path / "walked.ipynb") == told(ROOT / "nbs" / "own_question.ipynb"), "the page shows other numbers"


def test_a_new_project_works_beyond_a_clone(built, sh, tmp_path):
    "What the package brings is enough: a project of its own, a run, a report, one run in a notebook, the analysis."
    python, bin, site = beyond(built, sh, tmp_path / "env")
    def works(*argv, cwd): return succeeded(python("-m", *argv, cwd=cwd)).stdout
    ablation = ("-c", "from ablation_nb import command; import sys; sys.exit(command())")
    def command(*argv, cwd=tmp_path): return succeeded(python(*ablation, *argv, cwd=cwd)).stdout

    assert "cd my-study" in command("new", "my-study")
    root = tmp_path / "my-study"
    for name in ("train.ipynb", "analysis.ipynb"):   # the very files, but for the study that the analysis shows
        text = (ROOT / "nbs" / name).read_text().replace("laptop-tinystories", "mine")
        assert (root / "nbs" / name).read_text() == text
        assert (site / "ablation_nb" / "template" / name).read_bytes() == (ROOT / "nbs" / name).read_bytes()
    assert (root / "arms.py").read_text() == ARM
    assert (root / "studies" / "mine.toml").read_text() == STUDY

    nothing_else = dict(PYTHONPATH="", ABLATION_CORPUS="", ABLATION_CACHE="")   # the environment's own interpreter
    assert "6 of 6 usable" in succeeded(sh(bin / "ablation", "run", "mine", cwd=root, **nothing_else)).stdout
    assert "The report: outputs/mine/report.md" in command("report", "mine", cwd=root)
    assert "| Slow RoPE" in (root / "outputs" / "mine" / "report.md").read_text()
    parameters = ("-p", "ablation", "nope", "-p", "scale", "smoke")
    works("papermill", "nbs/train.ipynb", "out/nope.ipynb", *parameters, cwd=root)
    assert len(list((root / "out").glob("nope/*/result.json"))) == 1
    works("papermill", "nbs/analysis.ipynb", "out/analysis.ipynb", cwd=root)
    assert "cannot name a project" in python(*ablation, "new", "a b", cwd=tmp_path).stderr
