"What the project opens to others: the ports of a cluster that is started as the documents say."
import json
import re
import shlex
import socket
import subprocess

import psutil
import pytest
from conftest import ROOT, as_in_a_terminal, refused, succeeded
from engines import project, wait_for, write

pytest.importorskip("distributed")
ONE_RUN = 'scale = "smoke"\narms = ["nope"]\nseeds = [0]\n[overrides]\nn_steps = 10\n'


def shell_of_scale_out():
    "The shell lines of the page on clusters, without what is for a screen only."
    cells = json.loads((ROOT / "nbs" / "scale_out.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"```sh\n(.+?)```", text, re.S)


def documented(word, *marks):
    "The first command of the page that starts so and holds these marks."
    lines = [line for block in shell_of_scale_out() for line in block.splitlines()]
    found = [re.search(rf"{word}[^>]*", line) for line in lines]
    return next(m[0].strip() for m in found if m and all(mark in m[0] for mark in marks))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listening(process):
    "IP addresses on which a process and its children wait for connections, one a socket."
    ours = [process, *process.children(recursive=True)]
    return [c.laddr.ip for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]


@pytest.fixture
def started(tmp_path, env):
    "Starts a command as it would be typed: `started('dask scheduler ...')` -> its process and what it logs."
    processes = []

    def start(command, **more):
        log = tmp_path / f"{len(processes)}.log"
        own = dict(cwd=tmp_path, env={**env, **more}, stdout=log.open("w"), stderr=subprocess.STDOUT)
        processes.append(subprocess.Popen(shlex.split(command), preexec_fn=as_in_a_terminal, **own))
        return psutil.Process(processes[-1].pid), log
    yield start
    for p in reversed(processes):
        p.terminate()
        p.wait(timeout=20)


def cluster(started, scheduler, worker, port, **env):
    "A scheduler and a worker of it, each up and with its addresses."
    first, log = started(scheduler, **env)
    wait_for(lambda: f":{port}" in log.read_text())
    second, log = started(worker, **env)
    wait_for(lambda: "Registered to" in log.read_text())
    return listening(first), listening(second)


def at(command, port, host="127.0.0.1"):
    "A documented command with a port that is free here, and with an address that is this machine's."
    command = command.replace("10.0.0.1", host).replace("8786", str(port)).replace("127.0.0.1:8787", "127.0.0.1:0")
    return f"{command} --port {port}" if "scheduler --host" in command else command


def test_a_cluster_as_documented_is_open_to_this_machine_alone(started):
    port = free_port()
    scheduler = at(documented("dask scheduler", "--host 127.0.0.1"), port)
    worker = at(documented("dask worker", "tcp://127.0.0.1"), port)
    of_scheduler, of_worker = cluster(started, scheduler, worker, port)
    assert len(of_scheduler) == 2, "its port and its dashboard"
    assert set(of_scheduler) == {"127.0.0.1"}
    assert len(of_worker) == 3, "its nanny, its port and its dashboard"
    assert set(of_worker) == {"127.0.0.1"}


def test_a_cluster_as_the_error_messages_say_is_open_to_this_machine_alone(started, sh, tmp_path):
    port = free_port()
    root = project(tmp_path / "project")
    run = "ablation", "run", write(root, "one", ONE_RUN), "--scheduler", f"tcp://127.0.0.1:{port}"

    def advised():
        words = refused(sh(*run, cwd=root), "certificates", status=2).stderr.split()
        return re.search(r"`(dask .+?)`", " ".join(words))[1]
    scheduler, log = started(f"{advised()} --port {port}")
    wait_for(lambda: f":{port}" in log.read_text())
    assert set(listening(scheduler)) == {"127.0.0.1"}
    worker, log = started(advised())
    wait_for(lambda: "Registered to" in log.read_text())
    assert set(listening(worker)) == {"127.0.0.1"}


def test_a_cluster_of_several_machines_lets_in_who_has_the_key(started, sh, env, tmp_path):
    "Every port that is open to others speaks TLS; a run is carried out, and without the key there is one sentence."
    keys = next(block for block in shell_of_scale_out() if "openssl" in block).replace("cd /shared/ablation\n", "")
    succeeded(sh("sh", "-ec", keys.replace("4096", "2048"), cwd=tmp_path))
    assert (tmp_path / "cluster.key").stat().st_mode & 0o077 == 0
    told = succeeded(sh("sh", "-c", ". ./cluster.env && env", cwd=tmp_path)).stdout.splitlines()
    tls = dict(line.split("=", 1) for line in told if line.startswith("DASK_"))
    port = free_port()
    scheduler, worker = (at(documented(f"dask {who}", "tls://"), port) for who in ("scheduler", "worker"))
    of_scheduler, of_worker = cluster(started, scheduler, worker, port, **tls)
    assert set(of_scheduler) == {"127.0.0.1"}
    assert sum(ip != "127.0.0.1" for ip in of_worker) <= 2, "its port, for each kind of address; not its dashboard"
    address = f"tls://127.0.0.1:{port}"
    root = project(tmp_path / "project")
    run = "ablation", "run", write(root, "one", ONE_RUN), "--scheduler"
    refused(sh(*run, address, cwd=root), "needs certificates", "__CLIENT__KEY", status=2)
    plain = refused(sh(*run, address.replace("tls", "tcp"), cwd=root), "No dask scheduler answers", status=2)
    assert "Traceback" not in plain.stderr
    assert "1 of 1 usable" in succeeded(sh(*run, address, cwd=root, **tls)).stdout
