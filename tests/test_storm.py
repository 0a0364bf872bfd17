"Studies whose engine is killed again and again, while the disk spoils their files."
import itertools
import os
import random
import time

from conftest import succeeded
from engines import HEAD, engine, left, project, results, wait_for, write

FEW = HEAD + """
arms = ["baseline", "nope"]
seeds = [0]
[tune]
lr = [3e-3, 1e-2, 3e-2]
seeds = [100]
[overrides]
n_steps = 60
checkpoint_every = 10
"""
FORTY = HEAD + """
arms = ["baseline", "no_norm", "nope", "silu"]
seeds = [0, 1, 2]
[tune]
lr = [3e-3, 1e-2, 1e-1]
seeds = [100, 101]
[fixed]
lr = [1e-3]
seeds = [0]
[overrides]
n_steps = 60
checkpoint_every = 10
"""


def calm_and_storm(folder, sh, text):
    "Two roots: one in which nobody disturbs the study, and one for the storm; and the study file in both."
    calm, storm = project(folder / "calm"), project(folder / "storm")
    for root in (calm, storm): study = write(root, "many", text)
    succeeded(sh("ablation", "run", study, cwd=calm))
    return calm, storm, study


def must_be_as(calm, storm, *told):
    "The study has the numbers of the other one, and the same plan."
    assert results(storm, "many-builtin") == results(calm, "many-builtin"), told
    for name in ("tuning.json", "study.json"):
        after, expected = (root / "outputs" / "many-builtin" / name for root in (storm, calm))
        assert after.read_bytes() == expected.read_bytes(), (name, *told)


FILES = (
    "metrics.jsonl", "checkpoint.safetensors", "result.json", "study.json", "config.json", "doc_losses.npy",
    "env.json", "tuning.json", "position_losses.npy", "run.ipynb", "weights.safetensors")
DAMAGES = (
    lambda content: b"",
    lambda content: content[:len(content) // 2],
    lambda content: b"\x00\xff garbage" * 100,
    lambda content: b"[]\n",
    lambda content: content[:len(content) // 2] + bytes(len(content) - len(content) // 2))


def spoil(root, name, damage, draw):
    "Damage one of the files of this name, if there are any yet."
    files = sorted(root.glob(f"outputs/*/**/{name}"))
    if not files: return
    file = draw.choice(files)
    file.write_bytes(damage(file.read_bytes()))


def test_kills_and_damage_of_every_file_in_turn(tmp_path, env, sh):
    """With tuning: SIGKILL to the engine at moments that nobody chose.
    In between a few files are spoilt, each of another kind, in ways that take turns.
    KILLS=60 does the same to the study of forty runs, in some ten minutes."""
    calm, storm, study = calm_and_storm(tmp_path, sh, FORTY if "KILLS" in os.environ else FEW)
    seed, kills = int(os.environ.get("KILL_SEED", time.time())), int(os.environ.get("KILLS", 4))
    print(f"KILL_SEED={seed}")
    draw, names, damages, spoilt = random.Random(seed), itertools.cycle(FILES), itertools.cycle(DAMAGES), []
    for _ in range(kills):
        process = engine(storm, env, study, "--rerun-stale")
        target = len(left(storm, "result.json")) + 1
        wait_for(lambda: process.poll() is not None or len(left(storm, "result.json")) >= target)
        time.sleep(draw.random() / 2)
        process.kill()
        process.communicate()
        for name in itertools.islice(names, 3):
            spoil(storm, name, next(damages), draw)
            spoilt.append(name)
    assert set(spoilt) == set(FILES)
    done = sh("ablation", "run", study, "--rerun-stale", cwd=storm)
    assert done.returncode == 0, (seed, done.stderr)
    must_be_as(calm, storm, seed)
