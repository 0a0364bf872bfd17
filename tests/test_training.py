"train.ipynb as its users run it: through papermill, from the project's root, with real processes."
import contextlib
import inspect
import json
import os
import shutil
import subprocess
import time
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT
from papermill import PapermillExecutionError

from ablation_nb.data import SHORTEST_VALID, prepare, read_stories, sha256_file
from ablation_nb.kernels import run_notebook
from ablation_nb.layers import ONEDNN, linear
from ablation_nb.statistics import best_of_evaluations, noise_budget

REAL_TEXT = os.environ.get("ABLATION_CORPUS", "")


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def numbers(folder):
    result = json.loads((folder / "result.json").read_text())
    return {k: v for k, v in result.items() if "second" not in k}


@pytest.fixture(scope="module")
def nope(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "nope"
    done = train(folder, ablation="nope")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_leaves_everything(nope):
    assert {f.name for f in nope.iterdir() if f.name != ".lock"} == {"config.json", "env.json", "metrics.jsonl", "doc_losses.npy", "position_losses.npy", "result.json", "weights.safetensors"}
    result = numbers(nope)
    assert result["status"] == "done" and result["final_val_loss"] < result["initial_val_loss"] - 0.5
    assert all(c["passed"] for c in result["checks"]) and len(result["checks"]) >= 8
    assert json.loads((nope / "config.json").read_text())["model"]["position"] == "none"


def test_the_executed_notebook_shows_the_run(nope):
    cells = json.loads(nope.with_suffix(".ipynb").read_text())["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert any("".join(o["data"].get("text/markdown", "")).startswith("> ") for o in outputs if "data" in o)
    assert not any(o["output_type"] == "error" for o in outputs)


def test_same_seed_same_numbers_to_the_bit(nope, train, tmp_path):
    assert train(tmp_path / "again", ablation="no_pos_emb").returncode == 0  # by its other name
    assert losses(tmp_path / "again") == losses(nope) and numbers(tmp_path / "again") == numbers(nope)


def test_another_seed_other_numbers(nope, train, tmp_path):
    assert train(tmp_path / "other", ablation="nope", seed=1).returncode == 0
    assert losses(tmp_path / "other") != losses(nope)


def test_bad_input_is_one_sentence_from_papermill(train, tmp_path):
    done = train(tmp_path / "bad", ablation="rope")
    assert done.returncode != 0
    assert "AblationError: Unknown arm 'rope'" in done.stderr and "baseline, no_norm, post_norm, nope, silu" in done.stderr
    assert "Traceback" not in done.stderr.split("AblationError:")[0].split("Exception encountered")[-1]
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("parameters, words", [
    (dict(ablatoin="nope"), ["no parameter 'ablatoin'", "Did you mean 'ablation'?"]),
    (dict(scale="huge"), ["Unknown scale 'huge'", "laptop"]),
    (dict(n_layers=2.5), ["n_layers=2.5", "int"]),
    (dict(lr="fast"), ["lr='fast'", "float"]),
    (dict(d_model=65), ["d_model=65", "n_heads=2"]),
    (dict(corpus="no/such/place"), ["no/such/place"]),
    (dict(device="cuda:99"), ["cuda:99"]),
    (dict(precision="tf32", device="cpu"), ["tf32", "fp32 or bf16"]),
    (dict(norm="batchnorm"), ["norm='batchnorm'", "rmsnorm"]),
    (dict(context_length=1_000_000), ["context_length=1000000"]),
    (dict(fresh="perhaps"), ["fresh='perhaps'", "true or false"]),
    (dict(ablation="no_norm+post_norm"), ["none to move"]),
])
def test_bad_input_is_one_sentence_before_any_training(env, tmp_path, parameters, words):
    with pytest.raises(PapermillExecutionError) as e:  # in a forked kernel, as the engine does it
        run_notebook(ROOT / "nbs" / "train.ipynb", tmp_path / "bad.ipynb", ROOT, {"scale": "smoke", "out": str(tmp_path / "bad"), **parameters}, {k: env[k] for k in ("ABLATION_CACHE", "ABLATION_CORPUS")})
    assert e.value.ename == "AblationError" and all(w in e.value.evalue for w in words) and "\n" not in e.value.evalue, e.value.evalue
    assert not any("Traceback" in line for line in e.value.traceback) and not (tmp_path / "bad").exists()


def test_killed_at_any_moment_and_started_again(train, env, tmp_path):
    """SIGKILL to papermill and its kernel, again and again: before the first checkpoint, then twice between checkpoints.
    What a checkpoint had reached is kept as it was, wall-clock times included, and the end is that of an undisturbed run."""
    steps = {"ablation": "silu", "n_steps": 1200, "checkpoint_every": 50, "eval_every": 100}
    assert train(tmp_path / "whole", **steps).returncode == 0
    argv = ["papermill", "nbs/train.ipynb", str(tmp_path / "cut.ipynb")]
    for k, v in {"scale": "smoke", "threads": 1, "out": tmp_path / "cut", **steps}.items():
        argv += ["-p", k, str(v)]
    rows, kept = tmp_path / "cut" / "metrics.jsonl", []
    for step in (10, 170, 330):
        process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any(json.loads(r)["step"] >= step for r in whole_lines(rows)):
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        kill_with_children(process)
        assert not (tmp_path / "cut" / "result.json").exists()
        now = whole_lines(rows)
        assert now[:len(kept)] == kept, "the run began anew"
        kept = [r for r in now if json.loads(r)["step"] <= step // 50 * 50] if step >= 50 else []
    assert train(tmp_path / "cut", **steps).returncode == 0
    assert whole_lines(rows)[:len(kept)] == kept
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def whole_lines(path):
    "Lines of a file that another process writes; none while it is being replaced."
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().split("\n")[:-1]
    return []


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler, and there is no g++ here")
def test_compiled_follows_the_plain_model(train, nope, tmp_path):
    assert train(tmp_path / "compiled", ablation="nope", compile=True).returncode == 0
    for a, b in zip(losses(nope), losses(tmp_path / "compiled"), strict=True):
        assert all(abs(a[k] - b[k]) < 1e-3 for k in ("train_loss", "val_loss") if k in a)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler, and there is no g++ here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
def test_large_products_stay_with_onednn_when_compiled():
    "Forward, and both gradients: three calls, and what plain torch says."
    x_NK, w_MK = torch.randn(256, 64, requires_grad=True), torch.randn(512, 64, requires_grad=True)
    with torch.profiler.profile() as seen:
        ours = torch.autograd.grad(torch.compile(lambda x, w: linear(x, w).square().mean())(x_NK, w_MK), (x_NK, w_MK))
    assert [e.count for e in seen.key_averages() if e.key == "mkldnn::_linear_pointwise"] == ([3] if ONEDNN else [])
    plain = torch.autograd.grad(torch.nn.functional.linear(x_NK, w_MK).square().mean(), (x_NK, w_MK))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_a_run_that_is_no_number_from_the_start_is_a_result(train, tmp_path):
    "Without norms every gated layer squares what it gets: a deep enough stack overflows before the first step."
    done = train(tmp_path / "deep", ablation="no_norm", n_layers=24)
    assert done.returncode == 0, done.stderr
    result = numbers(tmp_path / "deep")
    assert (result["status"], result["diverged_at"], result["steps"]) == ("diverged", 0, 0)


def kill_with_children(process):
    "SIGKILL a process and everything below it (a kernel runs in a session of its own)."
    for p in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            p.kill()
    process.wait()


def test_arms_share_batches_and_common_tensors_at_step_0(sh):
    "Across arms, from the outside: the same first batch and the same common weights."
    code = """
import torch
from ablation_nb.config import ARMS, run_config
from ablation_nb.data import prepare, batch
from ablation_nb.model import FlexibleTransformerLM
base = run_config("baseline", scale="smoke")
data = prepare(base.corpus, base.model.vocab_size)
for arm in ARMS:
    cfg = run_config(arm, scale="smoke")
    x = [batch(data.train, c.train.seed, 0, c.train.batch_size, c.model.context_length)[0] for c in (base, cfg)]
    assert (x[0] == x[1]).all()
    a, b = (FlexibleTransformerLM(c.model, 0).state_dict() for c in (base, cfg))
    common = [k for k in a.keys() & b.keys() if a[k].shape == b[k].shape]
    assert len(common) >= 10 and all(torch.equal(a[k], b[k]) for k in common), arm
"""
    done = sh("python", "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not REAL_TEXT or not Path(REAL_TEXT).is_dir(), reason="no real text at hand: ABLATION_CORPUS names no folder")
def test_real_text(train, tmp_path):
    done = train(tmp_path / "real", corpus=REAL_TEXT)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "real")["final_val_loss"] < numbers(tmp_path / "real")["initial_val_loss"] - 0.5
    assert os.path.abspath(REAL_TEXT) not in (tmp_path / "real" / "config.json").read_text()


def test_half_of_the_prepared_tokens_set_to_zero_change_no_number(nope, sh, tmp_path):
    "The corpus lies there as ever: names, sizes and times are right, and only its content is not."
    cache = tmp_path / "cache"
    parameters = dict(ablation="nope", scale="smoke", threads=1, out=tmp_path / "run")
    command = ["papermill", "nbs/train.ipynb", tmp_path / "run.ipynb"]
    for name, value in parameters.items():
        command += ["-p", name, value]
    ask = "from ablation_nb.data import prepare; prepare('builtin:300', 512)"
    prepared = sh("python", "-c", ask, ABLATION_CACHE=cache)
    assert prepared.returncode == 0, prepared.stderr
    tokens = next(cache.glob("*/train.bin"))
    good, before = tokens.read_bytes(), tokens.stat()
    half = len(good) // 2
    tokens.write_bytes(good[:half] + bytes(len(good) - half))
    os.utime(tokens, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = sh(*command, ABLATION_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(nope)
    assert numbers(tmp_path / "run") == numbers(nope)
    assert next(cache.glob("*/train.bin")).read_bytes() == good
    assert "made again" in (tmp_path / "run.ipynb").read_text()


def test_a_text_too_small_for_a_report_is_refused_before_training(train, tmp_path):
    text = tmp_path / "tiny.txt"
    text.write_text("\n<|endoftext|>\n".join(f"One day Tom had {i} red balls." for i in range(40)))
    done = train(tmp_path / "run", corpus=text)
    assert done.returncode == 1
    assert "The 2 validation stories have only" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_what_a_report_needs_is_what_a_run_asks_for():
    for function in (noise_budget, best_of_evaluations):
        assert inspect.signature(function).parameters["length"].default == SHORTEST_VALID - 1


@pytest.mark.skipif(not Path(REAL_TEXT or "none").is_dir(), reason="no real text: ABLATION_CORPUS names no folder")
def test_the_tokens_of_real_text_stay(tmp_path):
    "Committed runs have read such tokens: another reader, or another tokenizer, would make them runs on another text."
    if sha256_file(Path(REAL_TEXT) / "train.txt")[:16] != "fec7dc2892a7251b":
        pytest.skip("the real text is another one")
    text = tmp_path / "slice"
    text.mkdir()
    for name, n in (("train", 2_000), ("valid", 100)):
        stories = islice(read_stories(Path(REAL_TEXT) / f"{name}.txt"), n)
        (text / f"{name}.txt").write_text("\n<|endoftext|>\n".join(stories))
    data = prepare(text, 1_000, tmp_path / "cache")
    assert data.data_hash[:16] == "4289ce8beed763af"
    assert data.tokenizer_hash[:16] == "ed4fc6251c170d72"
