"train.ipynb as its users run it: through papermill, from the project's root, with real processes."
import contextlib
import inspect
import json
import os
import shutil
import time
from itertools import islice
from pathlib import Path

import forks
import nbformat
import psutil
import pytest
import torch
from conftest import ROOT, losses, numbers, refused, succeeded, train_command
from nbclient import NotebookClient
from papermill import PapermillExecutionError

from ablation_nb.data import SHORTEST_VALID, prepare, read_stories, sha256_file
from ablation_nb.kernels import run_notebook
from ablation_nb.layers import ONEDNN, linear
from ablation_nb.statistics import best_of_evaluations, noise_budget

REAL_TEXT = os.environ.get("ABLATION_CORPUS", "")


@pytest.fixture(scope="module")
def nope(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "nope"
    succeeded(train(folder, ablation="nope", anew=True))
    return folder


def test_a_run_leaves_everything(nope):
    documents = {"config.json", "env.json", "metrics.jsonl", "result.json"}
    arrays = {"doc_losses.npy", "position_losses.npy", "weights.safetensors"}
    assert {f.name for f in nope.iterdir() if f.name != ".lock"} == documents | arrays
    result = numbers(nope)
    assert result["status"] == "done"
    assert result["final_val_loss"] < result["initial_val_loss"] - 0.5
    assert len(result["checks"]) >= 8
    for c in result["checks"]: assert c["passed"], c
    assert json.loads((nope / "config.json").read_text())["model"]["position"] == "none"


def test_the_executed_notebook_shows_the_run(nope):
    cells = json.loads(nope.with_suffix(".ipynb").read_text())["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    data = [o["data"] for o in outputs if "data" in o]
    assert any("image/png" in d for d in data)
    assert any("".join(d.get("text/markdown", "")).startswith("> ") for d in data)
    assert not any(o["output_type"] == "error" for o in outputs)


def test_another_arm_in_the_same_kernel(env, tmp_path):
    "As in JupyterLab: run all, change the parameters cell, and run it and all below once more."
    notebook = nbformat.read(ROOT / "nbs" / "train.ipynb", 4)
    parameters = next(i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))

    def set_parameters(arm):
        settings = dict(ablation=arm, scale="smoke", threads=1, out=str(tmp_path / arm))
        notebook.cells[parameters].source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())

    client = NotebookClient(notebook, timeout=300, resources=dict(metadata=dict(path=str(ROOT))))
    with client.setup_kernel(env=env):
        for arm, first in (("baseline", 0), ("nope", parameters)):
            set_parameters(arm)
            for i, cell in list(enumerate(notebook.cells))[first:]: client.execute_cell(cell, i)
    assert numbers(tmp_path / "nope")["final_val_loss"] != numbers(tmp_path / "baseline")["final_val_loss"]


def test_same_seed_same_numbers_to_the_bit(nope, train, tmp_path):
    again = tmp_path / "again"
    succeeded(train(again, ablation="no_pos_emb"))  # by its other name
    assert losses(again) == losses(nope)
    assert numbers(again) == numbers(nope)


def test_another_seed_other_numbers(nope, train, tmp_path):
    succeeded(train(tmp_path / "other", ablation="nope", seed=1))
    assert losses(tmp_path / "other") != losses(nope)


def test_bad_input_is_one_sentence_from_papermill(train, tmp_path):
    arms = "baseline, no_norm, post_norm, nope, silu"
    done = refused(train(tmp_path / "bad", ablation="rope"), "AblationError: Unknown arm 'rope'", arms)
    assert "Traceback" not in done.stderr.split("AblationError:")[0].split("Exception encountered")[-1]
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("parameters, words", [
    (dict(ablatoin="nope"), ["no parameter 'ablatoin'", "Did you mean 'ablation'?"]),
    (dict(scale="huge"), ["Unknown scale 'huge'", "laptop"]),
    (dict(n_layers=2.5), ["n_layers=2.5", "int"]),
    (dict(n_layers=10**8), ["parameters needs", "GiB are there"]),
    (dict(lr="fast"), ["lr='fast'", "float"]),
    (dict(d_model=65), ["d_model=65", "n_heads=2"]),
    (dict(corpus="no/such/place"), ["no/such/place"]),
    (dict(device="cuda:99"), ["cuda:99"]),
    (dict(precision="tf32", device="cpu"), ["tf32", "fp32 or bf16"]),
    (dict(norm="batchnorm"), ["norm='batchnorm'", "rmsnorm"]),
    (dict(context_length=1_000_000), ["context_length=1000000"]),
    (dict(fresh="perhaps"), ["fresh='perhaps'", "true or false"]),
    (dict(ablation="no_norm+post_norm"), ["none to move"]),
    (dict(processes=3), ["processes=3", "batch_size=4"]),
])
def test_bad_input_is_one_sentence_before_any_training(env, tmp_path, parameters, words):
    folder, own = tmp_path / "bad", {k: env[k] for k in ("ABLATION_CACHE", "ABLATION_CORPUS")}
    parameters = {"scale": "smoke", "out": str(folder), **parameters}
    with pytest.raises(PapermillExecutionError) as e:  # in a forked kernel, as the engine does it
        run_notebook(ROOT / "nbs" / "train.ipynb", tmp_path / "bad.ipynb", ROOT, parameters, own)
    message = e.value.evalue
    assert e.value.ename == "AblationError"
    for w in words: assert w in message, message
    assert "\n" not in message, message
    assert not any("Traceback" in line for line in e.value.traceback)
    assert not folder.exists()


def test_killed_at_any_moment_and_started_again(train, env, tmp_path):
    """SIGKILL to papermill and its kernel, again and again.
    It comes before the first checkpoint, then twice between checkpoints. What a checkpoint had reached is kept as it
    was, wall-clock times included, and the end is that of an undisturbed run."""
    settings = {"ablation": "silu", "n_steps": 360, "checkpoint_every": 50, "eval_every": 120}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    succeeded(train(whole, **settings))
    rows, kept = cut / "metrics.jsonl", []

    def has_reached(step): return any(step_of(r) >= step for r in whole_lines(rows))
    for step in (10, 120, 230):
        process = forks.Forked(train_command(cut, **settings), ROOT, env)
        while process.poll() is None and not has_reached(step):
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        kill_with_children(process)
        assert not (cut / "result.json").exists()
        now = whole_lines(rows)
        assert now[:len(kept)] == kept, "the run began anew"
        checkpoint = step // 50 * 50
        kept = [r for r in now if step_of(r) <= checkpoint] if checkpoint else []
    succeeded(train(cut, **settings))
    assert whole_lines(rows)[:len(kept)] == kept
    assert losses(cut) == losses(whole)
    assert numbers(cut) == numbers(whole)


def step_of(row): return json.loads(row)["step"]


def whole_lines(path):
    "Lines of a file that another process writes; none while it is being replaced."
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().split("\n")[:-1]
    return []


needs_a_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile needs a C++ compiler, and there is no g++ here")


@needs_a_compiler
def test_compiled_follows_the_plain_model(train, nope, tmp_path):
    succeeded(train(tmp_path / "compiled", ablation="nope", compile=True))
    for plain, compiled in zip(losses(nope), losses(tmp_path / "compiled"), strict=True):
        for loss in {"train_loss", "val_loss"} & set(plain):
            assert abs(plain[loss] - compiled[loss]) < 1e-3, plain["step"]


@needs_a_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
def test_large_products_stay_with_onednn_when_compiled():
    "Forward, and both gradients: three calls, and what plain torch says."
    leaves = torch.randn(256, 64, requires_grad=True), torch.randn(512, 64, requires_grad=True)  # x_NK, w_MK
    compiled = torch.compile(lambda x_NK, w_MK: linear(x_NK, w_MK).square().mean())
    with torch.profiler.profile() as profile: ours = torch.autograd.grad(compiled(*leaves), leaves)
    calls = [e.count for e in profile.key_averages() if e.key == "mkldnn::_linear_pointwise"]
    assert calls == ([3] if ONEDNN else [])
    plain = torch.autograd.grad(torch.nn.functional.linear(*leaves).square().mean(), leaves)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_a_run_that_is_no_number_from_the_start_is_a_result(train, tmp_path):
    "Without norms every gated layer squares what it gets: a deep enough stack overflows before the first step."
    succeeded(train(tmp_path / "deep", ablation="no_norm", n_layers=24))
    result = numbers(tmp_path / "deep")
    assert result["status"] == "diverged"
    assert result["diverged_at"] == 0
    assert result["steps"] == 0


def test_a_run_in_several_processes_ends_with_its_kernel_and_goes_on(train, env, tmp_path):
    """SIGKILL to papermill alone: kernel, launcher and processes end by themselves, or two would train in one folder.
    The next one goes on from the checkpoint, and ends as one process does, within rounding."""
    settings = {"ablation": "nope", "n_steps": 200, "checkpoint_every": 50, "eval_every": 100}
    shared = {**settings, "processes": 2, "accumulate": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    succeeded(train(whole, **settings))
    process = forks.Forked(train_command(cut, **shared), ROOT, env)
    while process.poll() is None and not any(step_of(r) >= 60 for r in whole_lines(cut / "metrics.jsonl")):
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    ours = psutil.Process(process.pid).children(recursive=True)
    assert len(ours) >= 4, "a kernel, a launcher, two processes"
    doors = [c.laddr for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {d.ip for d in doors} <= {"127.0.0.1", "::1"}, "somebody else could reach the processes"
    process.kill()
    _, alive = psutil.wait_procs(ours, timeout=30)
    assert not alive
    assert not (cut / "result.json").exists()
    kept = [r for r in whole_lines(cut / "metrics.jsonl") if step_of(r) <= 50]
    succeeded(train(cut, **shared))
    assert whole_lines(cut / "metrics.jsonl")[:len(kept)] == kept, "the run began anew"
    rows, due = losses(cut), losses(whole)
    assert [r["step"] for r in rows] == [r["step"] for r in due]
    assert max(abs(a["val_loss"] - b["val_loss"]) for a, b in zip(rows, due) if "val_loss" in b) < 1e-3
    assert json.loads((cut / "env.json").read_text())["processes"] == 2


def kill_with_children(process):
    "SIGKILL a process and everything below it (a kernel runs in a session of its own)."
    for p in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            p.kill()
    process.wait()


SHARED = """
import torch
from ablation_nb.config import ARMS, initial_sd, run_config
from ablation_nb.data import prepare, batch
from ablation_nb.model import FlexibleTransformerLM
base = run_config("baseline", scale="smoke")
data = prepare(base.corpus, base.model.vocab_size)

def first_batch(cfg):
    return batch(data.train, cfg.train.seed, 0, cfg.train.batch_size, cfg.model.context_length)[0]

for arm in ARMS:
    cfg = run_config(arm, scale="smoke")
    assert (first_batch(base) == first_batch(cfg)).all(), arm
    a, b = (FlexibleTransformerLM(c.model, 0).state_dict() for c in (base, cfg))
    common = [k for k in a.keys() & b.keys() if a[k].shape == b[k].shape]
    assert len(common) >= 10, arm
    for k in common:
        is_gain = a[k].ndim == 1
        drawn_alike = is_gain or initial_sd(k, a[k].shape, base.model) == initial_sd(k, a[k].shape, cfg.model)
        assert torch.equal(a[k], b[k]) == drawn_alike, (arm, k)   # a recipe may draw them larger or smaller
"""


def test_arms_share_batches_and_common_tensors_at_step_0(sh):
    "Across arms, from the outside: the same first batch and the same common weights."
    succeeded(sh("python", "-c", SHARED))


is_real_text = bool(REAL_TEXT) and Path(REAL_TEXT).is_dir()


@pytest.fixture(scope="module")
def real_text(tmp_path_factory):
    "The first stories of the real text."
    if not is_real_text: pytest.skip("no real text at hand: ABLATION_CORPUS names no folder")
    text = tmp_path_factory.mktemp("real") / "slice"
    text.mkdir()
    for name, n in (("train", 2_000), ("valid", 100)):
        stories = islice(read_stories(Path(REAL_TEXT) / f"{name}.txt"), n)
        (text / f"{name}.txt").write_text("\n<|endoftext|>\n".join(stories))
    return text


def test_real_text(train, real_text, tmp_path):
    real = tmp_path / "real"
    succeeded(train(real, corpus=real_text))
    assert numbers(real)["final_val_loss"] < numbers(real)["initial_val_loss"] - 0.5
    assert os.path.abspath(real_text) not in (real / "config.json").read_text()


def test_half_of_the_prepared_tokens_set_to_zero_change_no_number(nope, sh, tmp_path):
    "The corpus lies there as ever: names, sizes and times are right, and only its content is not."
    cache = tmp_path / "cache"
    ask = "from ablation_nb.data import prepare; prepare('builtin:300', 512)"
    succeeded(sh("python", "-c", ask, ABLATION_CACHE=cache))
    tokens = next(cache.glob("*/train.bin"))
    good, before = tokens.read_bytes(), tokens.stat()
    half = len(good) // 2
    tokens.write_bytes(good[:half] + bytes(len(good) - half))
    os.utime(tokens, ns=(before.st_atime_ns, before.st_mtime_ns))
    succeeded(sh(*train_command(tmp_path / "run", ablation="nope"), ABLATION_CACHE=cache))
    assert losses(tmp_path / "run") == losses(nope)
    assert numbers(tmp_path / "run") == numbers(nope)
    assert next(cache.glob("*/train.bin")).read_bytes() == good
    assert "made again" in (tmp_path / "run.ipynb").read_text()


def test_a_text_too_small_for_a_report_is_refused_before_training(train, tmp_path):
    text = tmp_path / "tiny.txt"
    text.write_text("\n<|endoftext|>\n".join(f"One day Tom had {i} red balls." for i in range(40)))
    refused(train(tmp_path / "run", corpus=text), "The 2 validation stories have only")
    assert not (tmp_path / "run").exists()


def test_what_a_report_needs_is_what_a_run_asks_for():
    for function in (noise_budget, best_of_evaluations):
        assert inspect.signature(function).parameters["length"].default == SHORTEST_VALID - 1


def test_the_tokens_of_real_text_stay(real_text, tmp_path):
    "Committed runs have read such tokens: another reader, or another tokenizer, would make them runs on another text."
    if sha256_file(Path(REAL_TEXT) / "train.txt")[:16] != "fec7dc2892a7251b":
        pytest.skip("the real text is another one")
    data = prepare(real_text, 1_000, tmp_path / "cache")
    assert data.data_hash[:16] == "4289ce8beed763af"
    assert data.tokenizer_hash[:16] == "ed4fc6251c170d72"
