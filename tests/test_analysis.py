"analysis.ipynb through papermill: a small study becomes a page, tables and figures, the same bytes every time."
import json
import shutil
import zipfile

import nbformat
import pytest
from conftest import ROOT, succeeded


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Two arms and two seeds of a committed study, under another name; one run more is not to be trusted."
    committed = ROOT / "outputs" / "laptop-tinystories"
    study, kept = tmp_path_factory.mktemp("outputs") / "small", tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(committed / "runs.zip") as archive: archive.extractall(kept)
    for arm in ("baseline", "nope"):
        for seed in (0, 1): shutil.copytree(kept / arm / f"0.01-s{seed}", study / arm / f"0.01-s{seed}")
    shutil.copytree(kept / "silu" / "0.01-s0", study / "no_norm" / "0.01-s0")
    plan = json.loads((committed / "study.json").read_text())
    plan |= dict(study="small", arms=["baseline", "nope"], seeds=[0, 1])
    (study / "study.json").write_text(json.dumps(plan))
    return study


def written(study):
    "What the report left beside the runs: name -> bytes."
    files = [study / "report.md", *study.glob("*.png"), *study.glob("*.svg"), *(study / "tables").glob("*.csv")]
    return {p.relative_to(study).as_posix(): p.read_bytes() for p in files}


def shown(notebook):
    "What the cells of an executed notebook show, as text."
    cells = nbformat.read(notebook, 4).cells
    return [str(o.get("data") or o.get("text")) for c in cells for o in c.get("outputs", [])]


def test_the_notebook_analyses_a_study_and_repeats_itself_to_the_byte(small, sh, tmp_path):
    notebook = tmp_path / "analysis.ipynb"

    def analyse():
        succeeded(sh("papermill", "nbs/analysis.ipynb", notebook, "-p", "study", small))
        return written(small)

    first = analyse()
    assert analyse() == first
    for name in ("report.md", "ablation_comparison.png", "dynamics.svg", "positions.png"): assert name in first, name
    for table in ("results", "dynamics", "positions"): assert f"tables/{table}.csv" in first, table

    page = first["report.md"].decode()
    assert "**NoPE**: " in page
    assert "## What the models write" in page
    assert "`no_norm/0.01-s0`, because its config.json says arm 'silu'" in page
    assert "not those that study.json describes" not in page
    outputs = json.dumps([c["outputs"] for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"])
    assert "image/png" in outputs
    assert "Rotary positions (RoPE) make no measurable difference" in outputs


def test_a_study_json_of_other_settings_is_named(small):
    from ablation_nb.report import write_report
    before = (small / "study.json").read_text()
    (small / "study.json").write_text(json.dumps(json.loads(before) | dict(overrides=dict(n_steps=70))))
    page = write_report(small).read_text()
    (small / "study.json").write_text(before)
    assert "not those that study.json describes" in page
    assert "where it says 70" in page


def test_a_study_of_somebody_s_notebook_is_shown_as_its_page(sh, tmp_path):
    study = tmp_path / "outputs" / "digits"
    shutil.copytree(ROOT / "outputs" / "digits", study)
    notebook = tmp_path / "analysis.ipynb"
    succeeded(sh("papermill", "nbs/analysis.ipynb", notebook, "-p", "study", study))
    text = notebook.read_text()
    assert "accuracy in share of digits, higher is better" in text
    assert "clipped` changes nothing here" in text
    assert "nats per token" not in "".join(shown(notebook))
    assert (study / "report.md").read_bytes() == (ROOT / "outputs" / "digits" / "report.md").read_bytes()
