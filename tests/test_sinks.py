"What MLflow and W&B are told of a study: the very rows that its folders keep, without a server or an account."
import json

import pytest
from conftest import refused, succeeded
from test_strangers import COIN, COIN_STUDY, coin

ROWS = [dict(step=s, loss=1 / s) for s in (1, 2, 5)]
STUDY = COIN_STUDY.replace("[0, 1, 2]", "[0]")
CODE = COIN + f"""
with open(f"{{out}}/metrics.jsonl", "w") as f:
    for row in {ROWS}: print(json.dumps(row), file=f)
"""


@pytest.fixture
def told(tmp_path, sh):
    "Run a small study, whose tracker is told of it: its root."
    def run(tracker, **env):
        root = coin(tmp_path / "coin", CODE, study=STUDY)
        done = succeeded(sh("ablation", "run", "coin.toml", "--log", tracker, cwd=root, **env))
        assert "The tracker fails" not in done.stdout
        return root
    return run


def test_mlflow_has_the_rows_and_the_result(told, monkeypatch):
    "In its local store of files."
    mlflow = pytest.importorskip("mlflow")
    root = told("mlflow", MLFLOW_TRACKING_URI="")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((root / "mlruns").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'coin'")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"base/s0", "more/s0", "less/s0"}
    for name, run in runs.items():
        result = json.loads((root / "outputs" / "coin" / name / "result.json").read_text())
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [dict(step=m.step, loss=m.value) for m in history] == ROWS
        assert run.data.metrics["result/value"] == result["value"]
        assert run.data.params["arm"] == name.partition("/")[0]
        assert run.info.status == "FINISHED"


def test_mlflow_goes_on_with_a_run_it_knows(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from ablation_nb.sinks import MLflowLog
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    MLflowLog("mine", "base/s0", "key", {}).add(ROWS[:2])
    again = MLflowLog("mine", "base/s0", "key", {})
    assert again.last == 2
    again.add(ROWS[2:])
    again.end({})
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 5]
    assert run.info.status == "FAILED"


BLOCK, HEADER = 32768, 7   # of the log format of LevelDB, in which W&B keeps its records


def records(file):
    "The records in one of W&B's files."
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, piece = file.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER: at += BLOCK - at % BLOCK   # what is left of a block is padding
        length, kind = int.from_bytes(data[at + 4:at + 6], "little"), data[at + 6]
        piece += data[at + HEADER:at + HEADER + length]
        at += HEADER + length
        if kind not in (1, 4): continue   # whole, or the last piece
        yield Record.FromString(piece)
        piece = b""


def test_wandb_has_the_rows_in_its_offline_folder(told):
    pytest.importorskip("wandb")
    root = told("wandb", WANDB_MODE="offline")
    files = list((root / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 3
    names = set()
    for file in files:
        rows, found = [], list(records(file))
        names |= {r.run.display_name for r in found if r.WhichOneof("record_type") == "run"}
        for r in found:
            if r.WhichOneof("record_type") != "history": continue
            values = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item}
            rows.append(dict(step=r.history.step.num, loss=values["loss"]))
        assert rows == ROWS
    assert names == {"base/s0", "more/s0", "less/s0"}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_said_before_the_first_run(tmp_path, sh, name):
    from importlib.util import find_spec
    if find_spec(name): pytest.skip(f"{name} is installed here")
    root = coin(tmp_path / "coin", study=STUDY)
    refused(sh("ablation", "run", "coin.toml", "--log", name, cwd=root), f"pip install 'ablation_nb[{name}]'", status=2)
    assert not (root / "outputs").exists()
