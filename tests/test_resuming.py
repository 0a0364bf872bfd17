"Studies that stop and go on: at a time limit, on a cluster, with other code; and what they show meanwhile."
import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import ROOT
from engines import HEAD, LONG, engine, kernels, project, results, undisturbed, wait_for, write  # noqa: F401  undisturbed is the fixture `long`


def test_time_limit_stops_at_a_checkpoint(tmp_path, sh):
    root = project(tmp_path)
    text = LONG.replace("n_steps = 800", "n_steps = 12_000").replace("checkpoint_every = 20", "checkpoint_every = 0").replace('"baseline", ', "").replace("[0, 1]", "[0]")
    file = write(root, "slow", text)
    calm = project(tmp_path / "calm")
    for limit in (12, 30, 60):  # a slow machine may not begin within the first
        started = time.time()
        done = sh("ablation", "run", file, "--time-limit", limit, cwd=root)
        assert done.returncode == 3 and time.time() - started < limit + 30 and ("time limit" in done.stderr or "time was up" in done.stderr), done.stderr
        if stopped := list(root.glob("outputs/*/*/*/checkpoint.safetensors")):
            break
    assert stopped and not list(root.glob("outputs/*/*/*/result.json"))
    assert sh("ablation", "run", file, cwd=root).returncode == 0
    write(calm, "slow", text)
    assert sh("ablation", "run", file, cwd=calm).returncode == 0
    assert results(root, "slow-builtin") == results(calm, "slow-builtin") != {}


def test_stale_is_judged_by_behaviour(tmp_path, env, sh):
    "The same study with a package and a notebook whose text has changed, then with ones that compute something else."
    root = project(tmp_path)
    shutil.copytree(ROOT / "ablation_nb", root / "ablation_nb")
    mine = {**env, "PYTHONPATH": str(root)}
    file = write(root, "tiny", HEAD + 'arms = ["baseline", "silu"]\nseeds = [0]\n')
    def ablation(*argv): return sh(sys.executable, "-c", "import sys; from ablation_nb.cli import main; sys.exit(main())", *argv, cwd=root, **mine)
    assert ablation("run", file).returncode == 0
    before = results(root, "tiny-builtin")
    trainer, notebook = root / "ablation_nb" / "trainer.py", root / "nbs" / "train.ipynb"
    text, cells = trainer.read_text(), notebook.read_text()
    assert "(globals(), above)" in cells and "color=\\\"0.6\\\"" in cells
    assert "low = cfg.lr" in text and "return cfg.lr * (i + 1)" in text
    trainer.write_text(text.replace("low = cfg.lr", "lowest = cfg.lr").replace("return low + (cfg.lr - low)", "return lowest + (cfg.lr - lowest)") + "\nUNUSED = 1\n")
    notebook.write_text(cells.replace("color=\\\"0.6\\\"", "color=\\\"0.5\\\""))
    done = ablation("run", file)
    assert done.returncode == 0 and "0 runs in" in done.stdout, done.stderr
    notebook.write_text(cells.replace("(globals(), above)", "({**globals(), 'lr': 9.0}, above)"))
    done = ablation("run", file)
    assert done.returncode == 1 and done.stderr.count("other code") == 2, done.stderr
    notebook.write_text(cells.replace("(globals(), above)", "(globals())"))
    done = ablation("run", file)
    assert done.returncode == 2 and "train.ipynb does not get as far" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    notebook.write_text(cells)
    trainer.write_text(text.replace("return cfg.lr * (i + 1)", "return 1.01 * cfg.lr * (i + 1)"))
    done = ablation("run", file)
    assert done.returncode == 1 and done.stderr.count("other code") == 2 and "silu/0.01-s0" in done.stderr and "--rerun-stale" in done.stderr
    assert results(root, "tiny-builtin") == before
    assert ablation("run", file, "--rerun-stale").returncode == 0
    after = results(root, "tiny-builtin")
    assert all(after[k] != before[k] for k in before)


@pytest.fixture
def cluster(tmp_path, env):
    "Starts a scheduler and workers, processes of their own, each worker with a card in its environment: `cluster(2)` -> address, workers."
    processes = []

    def start(n):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        address = f"tcp://127.0.0.1:{port}"
        quiet = dict(cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        processes.append(subprocess.Popen(["dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], env=env, **quiet))
        for i in range(n):
            processes.append(subprocess.Popen(["dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--resources", "run=1"], env={**env, "CUDA_VISIBLE_DEVICES": f"{i + 3}"}, **quiet))
        wait_for(lambda: connected(env, address) == n)
        return address, processes[1:]
    yield start
    for p in processes:
        p.kill()


def test_a_dask_worker_killed_in_mid_run(tmp_path, env, cluster, long):
    "The killed worker's run goes on from its checkpoint on the other; nothing is lost or doubled. Each run sees its worker's card and no other."
    root = project(tmp_path)
    train = json.loads((root / "nbs/train.ipynb").read_text())
    at = next(i for i, c in enumerate(train["cells"]) if "open_run(" in "".join(c["source"]) and c["cell_type"] == "code" and "import" not in "".join(c["source"]))
    train["cells"].insert(at, dict(cell_type="code", execution_count=None, id="card", metadata={}, outputs=[], source="print('on card', os.environ['CUDA_VISIBLE_DEVICES'])"))
    (root / "nbs/train.ipynb").write_text(json.dumps(train))
    address, workers = cluster(2)
    process = engine(root, env, write(root, "long", LONG), "--scheduler", address)

    def card(folder):
        with contextlib.suppress(FileNotFoundError, AttributeError):
            return re.search(r"on card (\d+)", (folder / "run.ipynb").read_text())[1]

    def rows(folder):
        return (folder / "metrics.jsonl").read_text().splitlines()[:-1]

    def in_the_middle():
        folders = [p.parent for p in root.glob("outputs/*/*/*/checkpoint.safetensors") if not (p.parent / "result.json").exists()]
        return [f for f in folders if card(f) == "3" and (r := rows(f)) and 20 <= json.loads(r[-1])["step"] < 500]
    found = []
    wait_for(lambda: found.extend(in_the_middle()) or found, 200)
    running = kernels(workers[0])
    workers[0].kill()
    cut = found[0]
    begun = [r for r in rows(cut) if json.loads(r)["step"] <= 20]
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, out + err
    assert running and not any(k.is_running() for k in running)
    assert results(root, "long-builtin") == long
    assert card(cut) == "4" and rows(cut)[:len(begun)] == begun  # seconds and all: it was not begun anew
    assert {card(p.parent) for p in root.glob("outputs/*/*/*/result.json")} <= {"3", "4"}


def test_an_interrupted_engine_takes_its_runs_from_the_cluster(tmp_path, env, cluster):
    root = project(tmp_path)
    address, (worker,) = cluster(1)
    process = engine(root, env, write(root, "long", LONG), "--scheduler", address)
    wait_for(lambda: list(root.glob("outputs/*/*/*/checkpoint.safetensors")))
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and "Interrupted" in out and "Traceback" not in err, err
    wait_for(lambda: not kernels(worker))  # the one that the worker was at
    time.sleep(3)
    assert not kernels(worker) and len(list(root.glob("outputs/*/*/*/env.json"))) <= 2


def connected(env, address):
    "Workers that a scheduler knows."
    code = f"from distributed import Client; print(len(Client('{address}', timeout=5).scheduler_info(n_workers=-1)['workers']))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    return int(done.stdout or 0)


def test_status_from_another_terminal(tmp_path, env, sh):
    root = project(tmp_path)
    process = engine(root, env, write(root, "long", LONG.replace("n_steps = 800", "n_steps = 40_000")))
    try:
        wait_for(lambda: len(list(root.glob("outputs/*/*/*/checkpoint.safetensors"))) >= 1)
        rows = json.loads(sh("ablation", "status", "studies/long.toml", "--json", cwd=root).stdout)
        shown = sh("ablation", "status", "studies/long.toml", cwd=root).stdout
    finally:
        process.kill()
        process.communicate()
    assert len(rows) == 4 and {"running", "absent"} & {r["state"] for r in rows} and any(r["state"] in ("running", "done") and r["step"] > 0 for r in rows)
    assert "long-builtin" in shown and "ETA" in shown


def test_a_terminal_shows_a_live_table(tmp_path, env):
    root = project(tmp_path)
    text = LONG.replace("[0, 1]", "[0]").replace("n_steps = 800", "n_steps = 2000")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = subprocess.Popen(["ablation", "run", write(root, "long", text)], cwd=root, env={**env, "TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError), open(master, "rb", buffering=0) as f:  # the end of a terminal is an error
        while piece := f.read(4096):
            shown += piece
    assert process.wait(10) == 0
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "tokens/s" in frames and "ETA" in frames and "0 ended, 2 to go" in frames
    steps = {int(n) for n in re.findall(r"seed 0 +│ (\d+)/2000", frames)}
    assert len(steps) > 1 and re.search(r"/2000 +│ \d\.\d{3} ", frames), frames[-2000:]


def test_the_plan_says_what_it_will_cost(sh):
    done = sh("ablation", "plan", "studies/laptop.toml", "--corpus", "builtin:300")
    assert done.returncode == 0 and "about" in done.stdout and "FLOPs" in done.stdout
    assert not (Path(ROOT) / "outputs" / "laptop-builtin").exists()
