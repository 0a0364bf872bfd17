"The tests that stand in the notebooks: `nbdev-test` carries each of them out, in a process of its own."
import os

import pytest
from conftest import ROOT, succeeded

BY_PAPERMILL = ("analysis", "benchmark", "index", "own_question", "train")  # other tests and targets of make run them
NOTEBOOKS = sorted(n.stem for n in (ROOT / "nbs").glob("*.ipynb") if n.stem not in BY_PAPERMILL)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(sh, name):
    corpus = os.environ.get("ABLATION_CORPUS", "")  # a notebook may look at real text
    done = succeeded(sh("nbdev-test", f"nbs/{name}.ipynb", ABLATION_CORPUS=corpus))
    assert "Success." in done.stdout, done.stdout
