"A study of forty runs whose engine is killed again and again."
import os
import random
import time

from engines import HEAD, engine, project, results, wait_for, write

FORTY = HEAD + ('arms = ["baseline", "no_norm", "nope", "silu"]\nseeds = [0, 1, 2]\n[tune]\nlr = [3e-3, 1e-2, 1e-1]\nseeds = [100, 101]\n[fixed]\nlr = [1e-3]\nseeds = [0]\n'
                '[overrides]\nn_steps = 60\ncheckpoint_every = 10\n')


def test_forty_runs_killed_five_times_at_random(tmp_path, env, sh):
    "With tuning: 24 runs on the ladders, 12 of the test and 4 at the fixed rate. SIGKILL to the engine at moments that nobody chose."
    calm, storm = project(tmp_path / "calm"), project(tmp_path / "storm")
    for root in (calm, storm):
        write(root, "forty", FORTY)
    assert sh("ablation", "run", "studies/forty.toml", cwd=calm).returncode == 0
    whole = results(calm, "forty-builtin")
    assert len(whole) >= 40
    seed = int(os.environ.get("KILL_SEED", time.time()))
    print(f"KILL_SEED={seed}")
    draw, kills, moments = random.Random(seed), 0, []
    while kills < 5:
        process = engine(storm, env, "studies/forty.toml")
        target = len(results(storm, "forty-builtin")) + draw.randrange(1, 6)
        wait_for(lambda: process.poll() is not None or len(list(storm.glob("outputs/*/*/*/result.json"))) >= target)
        time.sleep(draw.random() / 2)
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        moments.append(len(results(storm, "forty-builtin")))
    assert kills == 5, (seed, moments)
    done = sh("ablation", "run", "studies/forty.toml", cwd=storm)
    assert done.returncode == 0, (seed, done.stderr)
    assert results(storm, "forty-builtin") == whole, (seed, moments)
    assert (storm / "outputs/forty-builtin/tuning.json").read_bytes() == (calm / "outputs/forty-builtin/tuning.json").read_bytes()
