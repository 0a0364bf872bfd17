"Studies under fire: real processes really killed, and the numbers afterwards those of an undisturbed study."
import contextlib
import json
import re
import signal
import subprocess
import threading
import time

import psutil
import pytest
from conftest import ROOT, succeeded
from engines import HEAD, LONG, checkpoints, engine, kernels, left, project, results, wait_for, write
from engines import undisturbed  # noqa: F401  the fixture `long`

from ablation_nb.stories import story

STUDY = "studies/long.toml"


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_engine_leaves_no_kernel_and_goes_on(tmp_path, env, sh, long, signum, status):
    root = project(tmp_path)
    process = engine(root, env, write(root, "long", LONG))
    wait_for(lambda: len(checkpoints(root)) >= 2)
    running = kernels(process)
    assert len(running) >= 2
    process.send_signal(signum)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == status
    assert ("Interrupted" in out) == (status > 0)
    psutil.wait_procs(running, timeout=10)
    assert not any(k.is_running() for k in running)

    half_done = [p.parent for p in checkpoints(root) if not p.with_name("result.json").exists()]
    before = {folder: rows(folder) for folder in half_done if (folder / "metrics.jsonl").exists()}
    assert before
    succeeded(sh("ablation", "run", STUDY, cwd=root))
    assert results(root, "long-builtin") == long
    # resumed from the checkpoint, not begun anew: the rows before it are the old ones, wall clock and all
    for folder, old in before.items(): assert rows(folder)[:10] == old[:10]


def rows(folder):
    "The rows of a run's metrics, wall-clock times included."
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_the_text_is_prepared(tmp_path, env, signum, status):
    root = project(tmp_path)
    own = {**env, "ABLATION_CACHE": str(tmp_path / "cache")}
    study = write(root, "text", HEAD + 'arms = ["nope"]\nseeds = [0]\n')
    process = engine(root, own, study, "--corpus", "builtin:50000")
    wait_for(lambda: list(tmp_path.glob("cache/.*.tmp")))
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status, out + err
    assert out.startswith("Interrupted")
    assert out.count("\n") == 1
    assert not err


def test_a_killed_kernel_stops_no_other_run(tmp_path, env, sh, long):
    "What the system does to a kernel that takes too much memory."
    root = project(tmp_path)
    process = engine(root, env, write(root, "long", LONG))
    wait_for(lambda: checkpoints(root))
    running = kernels(process)
    # their five channels are ipc; the one port is ipykernel's own, for what child processes print, chosen by the system
    for k in running:
        listening = [c for c in k.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert len(listening) <= 1
        assert len({c.laddr for c in k.net_connections("unix") if "/ipc-" in c.laddr}) == 5
    running[0].kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert err.count("its kernel was killed") == 1
    failed = err.split(":")[1].strip()
    assert failed.startswith("outputs/long-builtin/")
    assert "3 of 4 usable" in out
    assert not (root / failed / "result.json").exists()
    assert len(results(root, "long-builtin")) == 3
    succeeded(sh("ablation", "run", STUDY, cwd=root))
    assert results(root, "long-builtin") == long


def test_a_killed_nursery_costs_its_kernels_and_no_more(tmp_path, env, sh, long):
    root = project(tmp_path)
    process = engine(root, env, write(root, "long", LONG))
    wait_for(lambda: checkpoints(root))
    psutil.Process(process.pid).children()[0].kill()
    process.communicate(timeout=200)
    assert process.returncode == 1
    assert len(results(root, "long-builtin")) >= 2
    succeeded(sh("ablation", "run", STUDY, cwd=root))
    assert results(root, "long-builtin") == long


HUGE = HEAD + """
arms = ["baseline"]
seeds = [0]
[[grid]]
d_ff = 64
[[grid]]
d_ff = 100000000000
[[grid]]
batch_size = 10000000000000
"""


def test_a_run_that_asks_for_too_much_memory_or_raises_is_named(tmp_path, sh):
    root = project(tmp_path)
    done = sh("ablation", "run", write(root, "huge", HUGE), cwd=root)
    assert done.returncode == 1
    def said_of(point): return f"outputs/huge-builtin/{point}/baseline/0.01-s0: "
    assert f"{said_of('d_ff-100000000000')}A model of 1.92e+13 parameters needs" in done.stderr
    assert f"{said_of('batch_size-10000000000000')}MemoryError: Unable to allocate" in done.stderr
    assert list(results(root, "huge-builtin")) == ["d_ff-64/baseline/0.01-s0"]


@pytest.fixture
def small_disk(tmp_path):
    "A real disk of a few megabytes."
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs the rights of root")
    yield disk
    subprocess.run(["umount", "-l", disk])


@pytest.mark.parametrize("free", [250_000, 0])
def test_a_full_disk_fails_runs_and_spoils_none(tmp_path, small_disk, sh, long, free):
    root = project(tmp_path)
    (root / "outputs").symlink_to(small_disk)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
        while f.tell() < 5 * 2 ** 20 - free:
            f.write(bytes(4096))
    file = write(root, "long", LONG)
    done = sh("ablation", "run", file, cwd=root)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    no_space = [line for line in done.stderr.splitlines() if "No space" in line]
    assert no_space, done.stderr
    assert "No space left" in done.stderr
    for line in no_space: assert line.startswith("ablation: outputs/long-builtin"), done.stderr

    whole = results(root, "long-builtin")
    assert len(whole) < 4
    for run, numbers in whole.items(): assert long[run] == numbers, run
    assert not [p for p in small_disk.rglob("*.tmp") if p.name.startswith(".")]
    for p in small_disk.rglob("*.json"): json.loads(p.read_text())
    filler.unlink()
    succeeded(sh("ablation", "run", file, cwd=root))
    assert results(root, "long-builtin") == long


class Watch(threading.Thread):
    "Notes every result that appears below a root: each file with the time of its writing."

    def __init__(self, root):
        super().__init__()
        self.root, self.results, self.stop = root, set(), threading.Event()

    def run(self):
        while not self.stop.is_set():
            for p in left(self.root, "result.json"):
                with contextlib.suppress(OSError): self.results.add((p, p.stat().st_mtime_ns))
            time.sleep(0.02)


def two_engines(root, env, *argv):
    "Both do the same study at once: the results that appeared, and how many runs each engine says it made."
    watch = Watch(root)
    watch.start()
    both = [engine(root, env, *argv) for _ in range(2)]
    ends = [p.communicate(timeout=400) for p in both]
    watch.stop.set()
    watch.join()
    for process, (out, err) in zip(both, ends, strict=True): assert process.returncode == 0, out + err
    return watch.results, [int(re.search(r"(\d+) runs? in", out)[1]) for out, _ in ends]


def test_two_engines_share_a_study(tmp_path, env, long):
    """Each run is trained by one of them, once, and its notebook is that of the training.
    So it is when they replace what is stale."""
    root = project(tmp_path)
    first, counts = two_engines(root, env, write(root, "long", LONG))
    assert len(first) == 4
    assert sum(counts) == 4
    assert results(root, "long-builtin") == long

    file = write(root, "long", LONG.replace("n_steps = 240", "n_steps = 180"))
    second, counts = two_engines(root, env, file, "--rerun-stale")
    assert len(second - first) == 4
    assert sum(counts) == 4
    steps = {numbers["steps"] for numbers, _, _ in results(root, "long-builtin").values()}
    assert steps == {180}
    notebooks = left(root, "run.ipynb")
    assert len(notebooks) == 4
    for notebook in notebooks:
        text = notebook.read_text()
        assert "(new)" in text, notebook
        assert "180/180" in text, notebook


def test_an_engine_takes_over_from_one_that_died(tmp_path, env, long):
    root = project(tmp_path)
    file = write(root, "long", LONG)
    first = engine(root, env, file)
    second = engine(root, env, file)
    wait_for(lambda: len(checkpoints(root)) >= 2)
    assert first.poll() is None
    first.kill()
    first.communicate()
    _, err = second.communicate(timeout=250)
    assert second.returncode == 0, err
    assert results(root, "long-builtin") == long


NAMES = [
    "tiny stories", "it's here", 'a "b" c', "a$b", "5 $(x) ${y} $$", "$(shell touch made)",
    "back\\slash", "a`b`", "#tag; a,b", "*"]


def make_study(folder, env, *variables):
    "What reaches `ablation`, in whose place a script prints the text and its arguments."
    tool = folder / "bin" / "ablation"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '%s\\n' \"$ABLATION_CORPUS\" \"$@\"\n")
    tool.chmod(0o755)
    place = folder / "place"
    place.mkdir()
    command = ["make", "--silent", "--file", ROOT / "Makefile", "--old-file=install", f"BIN={tool.parent}", "study"]
    done = subprocess.run([*command, *variables], cwd=place, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not list(place.iterdir())
    return done.stdout.splitlines()


WAYS = [("given", name) for name in NAMES]
WAYS += [("environment", name) for name in ("tiny stories", "5 $(x) ${y} $$")]
WAYS += [("relative", name) for name in ("tiny stories", "it's here")]


@pytest.mark.parametrize("way, name", WAYS)
def test_make_hands_on_the_text_and_the_study_as_they_were_typed(tmp_path, env, way, name):
    for folder in (name, "tiny"):
        (tmp_path / folder).mkdir()
    corpus = f"../{name}" if way == "relative" else str(tmp_path / name)
    study = f"studies/{name}.toml"
    asked = [f"STUDY={study}"] if way == "environment" else [f"STUDY={study}", f"CORPUS={corpus}"]
    outside = corpus if way == "environment" else "other"
    told = make_study(tmp_path, {**env, "ABLATION_CORPUS": outside}, *asked)
    assert told == [str(tmp_path / name), "run", study, str(tmp_path / name), "report", study]


@pytest.mark.parametrize("asked, reaches", [
    (["CORPUS=tinystories"], "tinystories"),
    (["CORPUS=builtin:90"], "builtin:90"),
    (["CORPUS="], ""),
    ([], "from outside"),
])
def test_make_hands_on_a_word_as_it_is(tmp_path, env, asked, reaches):
    told = make_study(tmp_path, {**env, "ABLATION_CORPUS": "from outside"}, *asked)
    assert [told[0], told[3]] == [reaches, reaches]


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, sh):
    "As some editors save UTF-8: an arm, a study and a text."
    root, mark = project(tmp_path), "\ufeff"
    arm = 'Arm("slow_rope", "Slow RoPE", "RoPE with a base of 100", {"rope_theta": 100.0})'
    (root / "arms.py").write_text(f"{mark}from ablation_nb.config import Arm, register_arm\nregister_arm({arm})\n")
    (root / "text.txt").write_text(mark + "\n<|endoftext|>\n".join(map(story, range(100))))
    file = write(root, "marked", f'{mark}{HEAD}corpus = "text.txt"\narms = ["slow_rope"]\nseeds = [0]\n')
    done = sh("ablation", "run", file, cwd=root, ABLATION_CORPUS="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(results(root, "marked")) == 1
