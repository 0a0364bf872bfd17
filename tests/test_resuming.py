"Studies that stop and go on: at a time limit, on a cluster, with other code; and what they show meanwhile."
import contextlib
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import time

import forks
import pytest
from conftest import ROOT, copied, refused, succeeded
from engines import HEAD, LONG, checkpoints, engine, kernels, left, project, results, wait_for, write
from engines import undisturbed  # noqa: F401  the fixture `long`

Client = pytest.importorskip("distributed").Client

SLOW = HEAD + """
arms = ["nope"]
seeds = [0]
[overrides]
n_steps = 1000
checkpoint_every = 0
eval_every = 500
"""


def test_time_limit_stops_at_a_checkpoint(tmp_path, sh):
    root, calm = project(tmp_path), project(tmp_path / "calm")
    file = write(root, "slow", SLOW)
    for limit in (2, 3, 4, 5, 7, 9, 12, 16, 22, 30, 40):  # a slow machine may not have begun, a fast one be at the end
        started = time.time()
        done = sh("ablation", "run", file, "--time-limit", limit, cwd=root)
        took = time.time() - started
        assert done.returncode == 3, done.stderr
        assert took < limit + 30
        assert "time limit" in done.stderr or "time was up" in done.stderr, done.stderr
        stopped = checkpoints(root)
        if stopped:
            break
    assert stopped
    assert not left(root, "result.json")
    succeeded(sh("ablation", "run", file, cwd=root))
    write(calm, "slow", SLOW)
    succeeded(sh("ablation", "run", file, cwd=calm))
    assert results(calm, "slow-builtin")
    assert results(root, "slow-builtin") == results(calm, "slow-builtin")


@pytest.fixture
def other_code(tmp_path, env, sh):
    "A tiny study that has run with a package and a notebook of its own, which a test may rewrite."
    root = copied(tmp_path, "studies", "ablation_nb")
    file = write(root, "tiny", HEAD + 'arms = ["baseline", "silu"]\nseeds = [0]\n')
    main = "import sys; from ablation_nb.cli import main; sys.exit(main())"

    def run(*argv): return sh(sys.executable, "-c", main, "run", file, *argv, cwd=root, PYTHONPATH=str(root))
    succeeded(run())
    return root, run


def edited(text, *changes):
    "The text with these pieces replaced; each must be there."
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def test_stale_is_judged_by_behaviour(other_code):
    "The same study with a package and a notebook whose text has changed, then with ones that compute something else."
    root, run = other_code
    before = results(root, "tiny-builtin")
    trainer, notebook = root / "ablation_nb" / "trainer.py", root / "nbs" / "train.ipynb"
    text, cells = trainer.read_text(), notebook.read_text()

    same = ("low = cfg.lr", "lowest = cfg.lr"), ("return low + (cfg.lr - low)", "return lowest + (cfg.lr - lowest)")
    trainer.write_text(edited(text, *same) + "\nUNUSED = 1\n")
    notebook.write_text(edited(cells, ("color=\\\"0.6\\\"", "color=\\\"0.5\\\"")))
    assert "0 runs in" in succeeded(run()).stdout

    notebook.write_text(edited(cells, ("(globals(), above)", "({**globals(), 'lr': 9.0}, above)")))
    assert refused(run()).stderr.count("other code") == 2

    notebook.write_text(edited(cells, ("(globals(), above)", "(globals())")))
    done = refused(run(), "train.ipynb does not get as far", status=2)
    assert done.stderr.count("\n") == 1, done.stderr

    notebook.write_text(cells)
    # what trains may not be changed unnoticed: checks see it; how a model is evaluated only its behaviour shows
    evaluation = "self.token_losses = self.valid_losses()", "self.token_losses = 1.01 * self.valid_losses()"
    trainer.write_text(edited(text, evaluation))
    done = refused(run(), "silu/0.01-s0", "--rerun-stale")
    assert done.stderr.count("other code") == 2
    assert results(root, "tiny-builtin") == before
    succeeded(run("--rerun-stale"))
    after = results(root, "tiny-builtin")
    for folder in before: assert after[folder] != before[folder], folder


@pytest.fixture
def cluster(tmp_path, env):
    """Starts a scheduler and workers, processes of their own: `cluster(2)` -> address, workers.
    Each worker has a card in its environment."""
    processes = []

    def launch(*argv, **more):
        processes.append(forks.Forked(["dask", *argv, "--no-dashboard"], tmp_path, {**env, **more}))

    def start(n):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        address = f"tcp://127.0.0.1:{port}"
        launch("scheduler", "--host", "127.0.0.1", "--port", str(port))
        one_run = ("--nthreads", "1", "--no-nanny", "--resources", "run=1")
        for i in range(n): launch("worker", address, *one_run, CUDA_VISIBLE_DEVICES=f"{i + 3}")
        wait_for(lambda: connected(address) == n)
        return address, processes[1:]
    yield start
    for p in processes: p.kill()


def connected(address):
    "Workers that a scheduler knows."
    with contextlib.suppress(OSError), Client(address, timeout=5) as client:
        return len(client.scheduler_info(n_workers=-1)["workers"])


def print_the_card(notebook):
    "Have the training notebook print which card its kernel sees, before it opens its run."
    train = json.loads(notebook.read_text())
    source = "print('on card', os.environ['CUDA_VISIBLE_DEVICES'])"

    def opens_a_run(cell):
        code = "".join(cell["source"])
        return cell["cell_type"] == "code" and "open_run(" in code and "import" not in code

    at = next(i for i, cell in enumerate(train["cells"]) if opens_a_run(cell))
    card = dict(cell_type="code", execution_count=None, id="card", metadata={}, outputs=[], source=source)
    train["cells"].insert(at, card)
    notebook.write_text(json.dumps(train))


def card(folder):
    "The card that a run printed; None before it did."
    with contextlib.suppress(FileNotFoundError, AttributeError):
        return re.search(r"on card (\d+)", (folder / "run.ipynb").read_text())[1]


def rows(folder):
    "The rows of a run's metrics, but for the last, which may be half a line."
    return (folder / "metrics.jsonl").read_text().splitlines()[:-1]


def test_a_dask_worker_killed_in_mid_run(tmp_path, env, cluster, long):
    """The killed worker's run goes on from its checkpoint on the other; nothing is lost or doubled.
    Each run sees its worker's card and no other."""
    root = project(tmp_path)
    print_the_card(root / "nbs" / "train.ipynb")
    address, workers = cluster(2)
    process = engine(root, env, write(root, "long", LONG), "--scheduler", address)

    def in_the_middle(folder):
        if (folder / "result.json").exists() or card(folder) != "3": return False
        seen = rows(folder)
        return bool(seen) and 20 <= json.loads(seen[-1])["step"] < 200

    cut = []
    wait_for(lambda: cut.extend(p.parent for p in checkpoints(root) if in_the_middle(p.parent)) or cut, 200)
    running = kernels(workers[0])
    workers[0].kill()
    folder = cut[0]
    begun = [r for r in rows(folder) if json.loads(r)["step"] <= 20]
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, out + err
    assert running
    assert not any(k.is_running() for k in running)
    assert results(root, "long-builtin") == long
    assert card(folder) == "4"
    assert rows(folder)[:len(begun)] == begun  # seconds and all: it was not begun anew
    assert {card(p.parent) for p in left(root, "result.json")} <= {"3", "4"}


def test_an_interrupted_engine_takes_its_runs_from_the_cluster(tmp_path, env, cluster):
    root = project(tmp_path)
    address, (worker,) = cluster(1)
    process = engine(root, env, write(root, "long", LONG), "--scheduler", address)
    wait_for(lambda: checkpoints(root))
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "Interrupted" in out
    assert "Traceback" not in err, err
    wait_for(lambda: not kernels(worker))  # the one that the worker was running
    time.sleep(3)
    assert not kernels(worker)
    assert len(left(root, "env.json")) <= 2


def test_status_from_another_terminal(tmp_path, env, sh):
    root = project(tmp_path)
    process = engine(root, env, write(root, "long", LONG.replace("n_steps = 240", "n_steps = 20_000")))
    try:
        wait_for(lambda: checkpoints(root))
        rows = json.loads(sh("ablation", "status", "studies/long.toml", "--json", cwd=root).stdout)
        table = sh("ablation", "status", "studies/long.toml", cwd=root).stdout
    finally:
        process.kill()
        process.communicate()
    assert len(rows) == 4
    assert {"running", "absent"} & {r["state"] for r in rows}
    assert any(r["step"] > 0 for r in rows if r["state"] in ("running", "done"))
    assert "long-builtin" in table
    assert "ETA" in table


def test_a_terminal_shows_a_live_table(tmp_path, env):
    root = project(tmp_path)
    file = write(root, "long", LONG.replace("[0, 1]", "[0]").replace("n_steps = 240", "n_steps = 600"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    terminal = dict(stdin=slave, stdout=slave, stderr=slave)
    process = subprocess.Popen(["ablation", "run", file], cwd=root, env={**env, "TERM": "xterm"}, **terminal)
    os.close(slave)
    screen = b""
    with contextlib.suppress(OSError), open(master, "rb", buffering=0) as f:  # the end of a terminal is an error
        while piece := f.read(4096):
            screen += piece
    assert process.wait(10) == 0
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    assert "tokens/s" in frames
    assert "ETA" in frames
    assert "0 ended, 2 to go" in frames
    steps = {int(n) for n in re.findall(r"seed 0 +│ (\d+)/600", frames)}
    assert len(steps) > 1, frames[-2000:]
    assert re.search(r"/600 +│ \d\.\d{3} ", frames), frames[-2000:]


def test_the_plan_says_what_it_will_cost(sh):
    done = succeeded(sh("ablation", "plan", "studies/laptop.toml", "--corpus", "builtin:300"))
    assert "about" in done.stdout
    assert "FLOPs" in done.stdout
    assert not (ROOT / "outputs" / "laptop-builtin").exists()
