"What `ablation probe` finds in trained models, and what the report makes of it."
import json

import pytest
from conftest import copied, refused, succeeded, train_command
from engines import HEAD, write

STUDY = HEAD + """
corpus = "builtin:300"
arms = ["baseline", "nope"]
seeds = [0, 1]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A copy of the project's notebooks and settings."
    root = copied(tmp_path_factory.mktemp("project"), "studies")
    (root / "out").mkdir()
    return root


@pytest.fixture(scope="module")
def study(root, sh):
    "A study that was run, probed and reported."
    succeeded(sh("ablation", "run", write(root, "able", STUDY), cwd=root))
    folder = root / "outputs" / "able"
    before = succeeded(sh("ablation", "report", "able", cwd=root)).stdout
    assert "What the models can do" not in (folder / "report.md").read_text(), before
    said = succeeded(sh("ablation", "probe", "outputs/able", cwd=root)).stdout
    assert "[4/4]" in said
    assert "Next: ablation report able" in said
    succeeded(sh("ablation", "report", "able", cwd=root))
    return folder


def test_the_report_shows_what_was_found(study):
    page = (study / "report.md").read_text()
    assert "## What the models can do" in page
    assert "Each of 4 trained models was asked" in page
    assert "- Tells in which sixteenth" in page
    assert (study / "abilities.svg").exists()
    assert (study / "tables" / "abilities.csv").exists()
    assert (study / "tables" / "abilities.tex").exists()


def test_one_run_says_it_in_a_line(root, study, sh):
    folder = next(study.glob("nope/*/"))
    kept = (folder / "probe.json").read_bytes()
    said = succeeded(sh("ablation", "probe", folder, cwd=root)).stdout
    assert "looks back" in said
    assert "beyond the trained length" in said
    assert (folder / "probe.json").read_bytes() == kept, "asked again, it says the same"
    from_the_root = folder.relative_to(root)
    assert succeeded(sh("ablation", "probe", from_the_root, cwd=root / "nbs")).stdout.count("looks back") == 1


def test_packed_runs_keep_their_probes_and_other_runs_probes_count_for_none(root, study, sh, tmp_path):
    page = (study / "report.md").read_text()
    file = next(study.glob("nope/*/probe.json"))
    whole = json.loads(file.read_text())
    for damage in ("{", "[]", json.dumps({**whole, "of": {**whole["of"], "final_val_loss": 1.0}})):
        file.write_text(damage)
        succeeded(sh("ablation", "report", "able", cwd=root))
        assert "Each of 3 trained models was asked" in (study / "report.md").read_text()
    file.write_text(json.dumps(whole))
    (root / "nbs" / "able").mkdir()   # a study's name is the study's, whatever else is called so here
    assert "4 runs packed" in succeeded(sh("ablation", "pack", "able", cwd=root / "nbs")).stdout
    assert not list(study.glob("*/*/probe.json"))
    succeeded(sh("ablation", "report", "able", cwd=root))
    assert (study / "report.md").read_text() == page


@pytest.mark.parametrize("argv, words", [
    (["nbs"], "holds no run whose weights are there"),
    (["outputs/none"], "holds no run whose weights are there"),
])
def test_what_cannot_be_probed_is_one_sentence(root, study, sh, argv, words):
    done = refused(sh("ablation", "probe", *argv, cwd=root), words, status=2)
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_run_without_its_text_or_its_weights_is_one_sentence(root, sh):
    succeeded(sh(*train_command("out/one"), cwd=root))
    refused(sh("ablation", "probe", "out/one", "--corpus", "builtin:299", cwd=root), "is not what", status=2)
    weights = root / "out" / "one" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(sh("ablation", "probe", "out/one", cwd=root), "is damaged", status=2)
    weights.unlink()
    refused(sh("ablation", "probe", "out/one", cwd=root), "weights are not committed", status=2)


def test_in_a_window_of_fewer_tokens_than_parts_no_place_is_asked_for(root, sh):
    succeeded(sh(*train_command("out/short", context_length=8), cwd=root))
    assert "tells its place in –" in succeeded(sh("ablation", "probe", "out/short", cwd=root)).stdout
    assert json.loads((root / "out" / "short" / "probe.json").read_text())["placed"] is None
