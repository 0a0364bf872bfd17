"A study of forty runs whose engine is killed again and again."
import os
import random
import time

from conftest import succeeded
from engines import HEAD, engine, left, project, results, wait_for, write

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


def test_forty_runs_killed_five_times_at_random(tmp_path, env, sh):
    """With tuning: 24 runs on the ladders, 12 of the test and 4 at the fixed rate.
    SIGKILL to the engine at moments that nobody chose."""
    calm, storm = project(tmp_path / "calm"), project(tmp_path / "storm")
    for root in (calm, storm): study = write(root, "forty", FORTY)
    succeeded(sh("ablation", "run", study, cwd=calm))
    whole = results(calm, "forty-builtin")
    assert len(whole) >= 40
    seed = int(os.environ.get("KILL_SEED", time.time()))
    print(f"KILL_SEED={seed}")
    draw, kills, moments = random.Random(seed), 0, []
    while kills < 5:
        process = engine(storm, env, study)
        target = len(results(storm, "forty-builtin")) + draw.randrange(1, 6)
        wait_for(lambda: process.poll() is not None or len(left(storm, "result.json")) >= target)
        time.sleep(draw.random() / 2)
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        moments.append(len(results(storm, "forty-builtin")))
    assert kills == 5, (seed, moments)
    done = sh("ablation", "run", study, cwd=storm)
    assert done.returncode == 0, (seed, done.stderr)
    assert results(storm, "forty-builtin") == whole, (seed, moments)
    rates, expected = (root / "outputs" / "forty-builtin" / "tuning.json" for root in (storm, calm))
    assert rates.read_bytes() == expected.read_bytes()
