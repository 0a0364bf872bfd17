"What trackers are told of a study: the very rows that its folders keep, without a server or an account."
import json
from pathlib import Path

import mlflow
import pytest
import wandb
from conftest import ROOT, refused, succeeded
from mlflow.entities import RunStatus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_strangers import COIN, COIN_STUDY, coin
from wandb.proto.wandb_internal_pb2 import Record

from ablation_nb.sinks import Follower, MLflowLog, TensorBoardLog, WandbLog

ROWS = [dict(step=s, loss=1 / s) for s in (1, 2, 5)]
STUDY = COIN_STUDY.replace("[0, 1, 2]", "[0]")
NAMES = {"base/s0", "more/s0", "less/s0"}
CODE = COIN + f"""
with open(f"{{out}}/metrics.jsonl", "w") as f:
    for row in {ROWS}: print(json.dumps(row), file=f)
"""


@pytest.fixture
def told(tmp_path, sh):
    "Run a small study, whose tracker is told of it: its root."
    def run(*options, **env):
        root = coin(tmp_path / "coin", CODE, study=STUDY)
        done = succeeded(sh("ablation", "run", "coin.toml", *options, cwd=root, **env))
        assert "The tracker fails" not in done.stdout
        return root
    return run


def test_tensorboard_has_the_rows_of_anybody_s_notebook(told):
    root = told("--tensorboard")
    for name in NAMES:
        folder = root / "outputs" / "coin" / name
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        rows = [dict(step=e.step, loss=e.value) for e in events.Scalars("loss")]
        assert rows == [dict(step=r["step"], loss=pytest.approx(r["loss"])) for r in ROWS]
        result = json.loads((folder / "result.json").read_text())
        assert [e.value for e in events.Scalars("result/value")] == [pytest.approx(result["value"])]


def test_two_trackers_at_a_time(told):
    root = told("--log", "mlflow", "--log", "tensorboard", MLFLOW_TRACKING_URI="")
    assert len(list(root.glob("mlruns/*/*/metrics/loss"))) == len(NAMES)
    assert len(list(root.glob("outputs/coin/*/*/tensorboard/events*"))) == len(NAMES)


def test_mlflow_has_the_rows_and_the_result(told, monkeypatch):
    "In its local store of files."
    root = told("--log", "mlflow", MLFLOW_TRACKING_URI="")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((root / "mlruns").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'coin'")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == NAMES
    for name, run in runs.items():
        result = json.loads((root / "outputs" / "coin" / name / "result.json").read_text())
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [dict(step=m.step, loss=m.value) for m in history] == ROWS
        assert run.data.metrics["result/value"] == result["value"]
        assert run.data.params["arm"] == name.partition("/")[0]
        assert run.info.status == "FINISHED"


def test_mlflow_goes_on_with_a_run_it_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    MLflowLog(Path("mine"), "base/s0", "key", {}).add(ROWS[:2])
    again = MLflowLog(Path("mine"), "base/s0", "key", {})
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
    root = told("--log", "wandb", WANDB_MODE="offline")
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
    assert names == NAMES


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_said_before_the_first_run(tmp_path, sh, name):
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / f"{name}.py").write_text("raise ImportError\n")
    root = coin(tmp_path / "coin", study=STUDY)
    done = sh("ablation", "run", "coin.toml", "--log", name, cwd=root, PYTHONPATH=f"{lacking}:{ROOT}")
    refused(done, f"pip install 'ablation_nb[{name}]'", status=2)
    assert not (root / "outputs").exists()


UNEVEN = [   # of two epochs, whose steps begin anew; validation has a row of its own
    dict(step=0, loss=4.0), dict(step=1, loss=3.0), dict(step=1, val=3.5),
    dict(step=0, loss=2.0), dict(step=1, loss=1.0), dict(step=1, loss=0.5), dict(step=1, val=1.5)]
TO_W_AND_B = [   # its own steps only rise; where they are others, the row's own stands beside
    (0, dict(loss=4.0)), (1, dict(loss=3.0, val=3.5)),
    (2, dict(loss=2.0, step=0)), (3, dict(loss=1.0, step=1)), (4, dict(loss=0.5, step=1)), (5, dict(val=1.5, step=1))]


def followed(open_log, folder, rows, a_time):
    "Follow a run's rows as they come, so many at a time, to its end."
    run = folder / "base" / "s0"
    run.mkdir(parents=True)
    (run / "env.json").write_text(json.dumps(dict(identity="i", package_hash="h")))
    (run / "config.json").write_text(json.dumps(dict(arm="base", model={}, train={})))
    said = []
    follow = Follower(open_log, folder, said.append)
    for i in range(0, len(rows), a_time):
        with open(run / "metrics.jsonl", "a") as f:
            for row in rows[i:i + a_time]: print(json.dumps(row), file=f)
        follow(run)
    (run / "result.json").write_text(json.dumps(dict(status="done", value=3)))
    follow(run, True)
    assert not said


def of(name, rows): return [(r["step"], r[name]) for r in rows if name in r]


AT_ONCE_OR_SINGLY = pytest.mark.parametrize("a_time", [1, 3, 7])


@AT_ONCE_OR_SINGLY
def test_tensorboard_takes_steps_that_come_twice_or_begin_anew(tmp_path, a_time):
    followed(TensorBoardLog, tmp_path / "mine", UNEVEN, a_time)
    events = EventAccumulator(str(tmp_path / "mine" / "base" / "s0" / "tensorboard"))
    events.Reload()
    for name in ("loss", "val"):
        assert [(e.step, e.value) for e in events.Scalars(name)] == of(name, UNEVEN)


@AT_ONCE_OR_SINGLY
def test_mlflow_takes_steps_that_come_twice_or_begin_anew(tmp_path, monkeypatch, a_time):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    followed(MLflowLog, tmp_path / "mine", UNEVEN, a_time)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    for name in ("loss", "val"):
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == of(name, UNEVEN)


@AT_ONCE_OR_SINGLY
def test_wandb_takes_steps_that_come_twice_or_begin_anew(tmp_path, monkeypatch, a_time):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("ablation_nb.sinks.project_root", lambda: tmp_path)
    followed(WandbLog, tmp_path / "mine", UNEVEN, a_time)
    wandb.teardown()   # its process has written all
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for r in records(file):
        if r.WhichOneof("record_type") != "history": continue
        values = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item}
        rows.append((r.history.step.num, {k: v for k, v in values.items() if k in ("loss", "val", "step")}))
    assert rows == TO_W_AND_B


@pytest.mark.parametrize("name", ["loss (train)", "../up", "/at", "a//b", "ü", "x" * 300, ""])
def test_mlflow_takes_a_number_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    followed(MLflowLog, tmp_path / "mine", [{"step": 3, name: 2.0, "n": 10**400}], 1)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert len(run.data.metrics) == 3
    assert 2.0 in run.data.metrics.values()


SLOW = """
import time
for i in range(3):
    with open(f"{out}/metrics.jsonl", "a") as f: print(json.dumps(dict(step=i, loss=LOSS + i)), file=f)
    time.sleep(PAUSE)
"""


def test_runs_that_wait_to_be_made_again_are_told_of_once_they_have_begun(tmp_path, sh):
    "Each makes its rows while others wait, whose folders still hold what other code made."
    def run(loss, pause, *options):
        code = COIN + SLOW.replace("LOSS", str(loss)).replace("PAUSE", str(pause))
        root = coin(tmp_path / "coin", code, study=STUDY)
        asked = "run", "coin.toml", "--workers", 1, "--log", "tensorboard", "--log", "mlflow", *options
        done = succeeded(sh("ablation", *asked, cwd=root, MLFLOW_TRACKING_URI=""))
        assert "The tracker fails" not in done.stdout + done.stderr, done.stdout + done.stderr
        return root
    run(100, 0)
    root = run(200, 0.5, "--rerun-stale")
    for name in NAMES:
        events = EventAccumulator(str(root / "outputs" / "coin" / name / "tensorboard"))
        events.Reload()
        assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 200), (1, 201), (2, 202)]
    files = list(root.glob("mlruns/*/*/metrics/loss"))
    found = sorted([line.split()[1:] for line in file.read_text().splitlines()] for file in files)
    assert found == [[[f"{loss + i}.0", str(i)] for i in range(3)] for loss in (100, 200) for _ in NAMES]
    ends = [file.read_text() for file in root.glob("mlruns/*/*/meta.yaml")]
    assert all(f"status: {RunStatus.FINISHED}" in text for text in ends), "those of the other code stand as they were"


def test_a_run_whose_time_is_up_before_it_begins_is_told_of_by_nobody(tmp_path, sh):
    root = coin(tmp_path / "coin", COIN + SLOW.replace("LOSS", "1").replace("PAUSE", "0"), study=STUDY)
    succeeded(sh("ablation", "run", "coin.toml", cwd=root))
    def codes():
        files = root.glob("outputs/coin/*/*/env.json")
        return {(f.parent, json.loads(f.read_text())["package_hash"]) for f in files}
    before = codes()
    coin(root, COIN + SLOW.replace("LOSS", "2").replace("PAUSE", "9"), study=STUDY)
    asked = "run", "coin.toml", "--workers", 1, "--rerun-stale", "--time-limit", 5, "--log", "tensorboard"
    sh("ablation", *asked, cwd=root)
    begun = {folder for folder, _ in codes() - before}
    assert len(begun) < len(NAMES)
    assert {f.parent for f in root.glob("outputs/coin/*/*/tensorboard")} == begun
