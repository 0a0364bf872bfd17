"What a newcomer does, in the order of README: a study, a notebook that JupyterLab has saved, one run, the next step."
import json

import nbformat
import pytest
from conftest import copied, refused, succeeded

STUDY = 'scale = "smoke"\narms = ["baseline"]\nseeds = [0]\n[overrides]\nn_steps = 40\n'
TRIED = dict(ablation='"nope"', seed="3", n_steps="7", d_ff="96", corpus='"tinystories"')


@pytest.fixture(scope="module")
def root(tmp_path_factory, sh):
    "A copy of the project with a finished study of one run."
    root = copied(tmp_path_factory.mktemp("walk") / "project")
    for name in ("studies", "out"): (root / name).mkdir()
    (root / "studies" / "one.toml").write_text(STUDY)
    succeeded(sh("ablation", "run", "one", cwd=root))
    return root


def parameters(told):
    "What papermill is told, as it is typed."
    return [word for name, value in told.items() for word in ("-p", name, value)]


def save_as_tried(notebook):
    "What JupyterLab saves of train.ipynb once somebody has changed its parameters, run it, and added a cell."
    page = nbformat.read(notebook, 4)
    cell = next(c for c in page.cells if "parameters" in c.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for name, value in TRIED.items():
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
        lines[at] = f"{name} = {value}"
    cell.source = "\n".join(lines)
    for i, c in enumerate(page.cells):
        if c.cell_type == "code": c.execution_count = i
    page.cells[-1].outputs = [nbformat.v4.new_output("stream", text="what it printed")]
    page.cells += [nbformat.v4.new_code_cell("run.metrics.plot()"), nbformat.v4.new_code_cell("")]
    nbformat.write(page, notebook)


def test_a_saved_notebook_breaks_no_study(root, sh):
    save_as_tried(root / "nbs" / "train.ipynb")
    rows = json.loads(succeeded(sh("ablation", "status", "one", "--json", cwd=root)).stdout)
    assert [r["state"] for r in rows] == ["done"]   # nothing is stale
    (root / "studies" / "one.toml").write_text(STUDY.replace("[0]", "[0, 1]"))
    done = succeeded(sh("ablation", "run", "one", cwd=root))
    said, _, begun = done.stdout.partition("[1/1]")
    words = "was saved with ablation = 'nope', corpus = 'tinystories', d_ff = 96, seed = 3, n_steps = 7 in"
    assert words in said, said
    assert "2 of 2 usable" in begun
    config = json.loads((root / "outputs" / "one-builtin" / "baseline" / "0.01-s1" / "config.json").read_text())
    assert config["arm"] == "baseline"
    assert config["corpus"] == "builtin:300"
    assert config["train"]["seed"] == 1
    assert config["train"]["n_steps"] == 40
    first = json.loads((root / "outputs" / "one-builtin" / "baseline" / "0.01-s0" / "config.json").read_text())
    assert config["model"] == first["model"]


def test_one_run_ends_with_the_number_of_its_baseline_and_the_next_step(root, sh):
    told = dict(ablation="nope", scale="smoke", n_steps=40, corpus="builtin:300", seed=0, d_ff="None")
    succeeded(sh("papermill", "nbs/train.ipynb", "out/nope.ipynb", *parameters(told), cwd=root))
    cells = nbformat.read(root / "out" / "nope.ipynb", 4).cells
    shown = next(o.data["text/markdown"] for c in cells for o in c.get("outputs", [])
                 if "difference" in o.get("data", {}).get("text/markdown", ""))
    (run,) = (root / "out" / "nope").iterdir()
    folders = run, root / "outputs" / "one-builtin" / "baseline" / "0.01-s0"
    own, base = (json.loads((f / "result.json").read_text())["final_val_loss"] for f in folders)
    assert f"`outputs/one-builtin/baseline/0.01-s0` | {base:.4f} |" in shown
    assert f"| difference | {own - base:+.4f} |" in shown
    assert "`ablation run nope`" in shown


@pytest.mark.parametrize(("told", "words"), [
    (dict(out="file/run"), "file/run cannot be written (Not a directory)"),
    (dict(corpus="tinystories"), "does not answer; try again with a network, or pass -p corpus builtin"),
])
def test_what_would_stop_a_run_half_way_is_the_last_line_of_papermill(root, sh, tmp_path, told, words):
    (root / "file").write_text("where a folder has to be")
    offline = dict(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    if "corpus" in told: offline["ABLATION_CACHE"] = str(tmp_path)
    argv = parameters({"scale": "smoke", "corpus": "builtin:300", **told})
    done = refused(sh("papermill", "nbs/train.ipynb", "out/x.ipynb", *argv, cwd=root, anew=True, **offline), words)
    assert done.stderr.strip().splitlines()[-1].startswith("AblationError: ")


def test_papermill_from_elsewhere_names_the_way_home(root, sh, tmp_path):
    notebook = root / "nbs" / "train.ipynb"
    done = refused(sh("papermill", notebook, "x.ipynb", cwd=tmp_path), "is in no project", "--cwd FOLDER")
    assert done.stderr.strip().splitlines()[-1].startswith("AblationError: ")
    assert [f.name for f in tmp_path.iterdir()] == ["x.ipynb"]
    told = parameters(dict(scale="smoke", corpus="builtin:300", ablation="nope", n_steps=4, warmup_steps=1, seed=0))
    succeeded(sh("papermill", notebook, tmp_path / "x.ipynb", "--cwd", root, *told, "-p", "d_ff", "None", cwd=tmp_path))
