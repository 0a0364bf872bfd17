"Every file that a study leaves, damaged in every way: no command breaks, the run is named, and no mean has it."
import json
import shutil

import pytest
from conftest import copied
from engines import HEAD, write

from ablation_nb.config import AblationError
from ablation_nb.engine import mend, write_down
from ablation_nb.ledger import studies_in
from ablation_nb.report import read_results, write_report
from ablation_nb.results import pack_runs
from ablation_nb.runs import Run, alone
from ablation_nb.study import plan, prepared, read_study, show_plan, status, status_table
from ablation_nb.trainer import Stopped

STUDY = HEAD + """
arms = ["baseline", "nope"]
seeds = [0, 1]
[tune]
lr = [1e-3, 1e-2, 1e-1]
seeds = [100]
"""
NOTEBOOK = dict(cells=[dict(cell_type="code", source="", metadata={}, outputs=[])], metadata={}, nbformat=4)
CLOCK = dict(device="CPU", torch="2", precision="fp32", threads=1, steps=5, tokens=128,
             seconds=dict(baseline=[.01, .02], nope=[.01, .02]))
PROOF = '[[proof]]\nold = "a"\nnew = "b"\nfp32 = ["baseline"]\nbf16 = []\n'

RUN_FILES = ("config.json", "env.json", "metrics.jsonl", "result.json", "doc_losses.npy", "position_losses.npy")
HARMLESS = ("run.ipynb", "weights.safetensors", "checkpoint.safetensors")   # a report stands without them
PLANS = ("study.json", "tuning.json")
DAMAGES = ("empty", "half", "garbage", "not utf-8", "[]", "3", "null", "{}", "nulls", "nested nulls", "deep")


def nulls(value, depth):
    "The same tables and lists with null in place of what stands at this depth."
    if not depth: return None
    if isinstance(value, dict): return {k: nulls(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list): return [nulls(v, depth - 1) for v in value]
    return value


def damaged(content, damage):
    "The content of a file as this damage leaves it."
    if damage == "empty": return b""
    if damage == "half": return content[:len(content) // 2]
    if damage == "garbage": return b"\x00garbage\n" * 200
    if damage == "not utf-8": return content[:3] + b"\xff\xfe" + content[5:]
    if damage == "deep": return b"[" * 200_000
    if "nulls" not in damage: return damage.encode()
    try: value = json.loads(content)
    except ValueError: return b"null"
    return json.dumps(nulls(value, 1 + damage.startswith("nested"))).encode()


def carry_out(study):
    "Every run of a study, in this process; the last one only begins, and is cut off at a checkpoint."
    while todo := [j for j in plan(study)[0] if j.state in ("absent", "partial")]:
        *others, last = todo
        for j in others or todo: Run(j.cfg, j.folder).train(progress=False)
        if len(plan(study)[0]) == sum(j.state == "done" for j in plan(study)[0]) + 1: break
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setenv("ABLATION_DEADLINE", "1")
        Run(last.cfg, last.folder).train(progress=False)
    for p in study.outputs.glob("*/*/result.json"): p.with_name("run.ipynb").write_text(json.dumps(NOTEBOOK))
    write_down(study, plan(study)[1])
    (study.outputs / "speed.json").write_text(json.dumps(CLOCK))
    (study.outputs.parent / "code.toml").write_text(PROOF)


@pytest.fixture(scope="module")
def study(tmp_path_factory, env):
    "A tuned study: all runs but one are done."
    root = copied(tmp_path_factory.mktemp("project"), "studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for k in ("ABLATION_CACHE", "ABLATION_CORPUS"): patch.setenv(k, env[k])
        study = read_study(write(root, "hurt", STUDY))
        carry_out(study)
        shutil.copytree(root / "outputs", root / "whole")
        yield study


VICTIM = "nope/0.01-s0"


def restored(study, packed):
    "The study as it was, packed or not; the victim is made by code that only proofs and fingerprints can judge."
    outputs = study.outputs.parent
    shutil.rmtree(outputs)
    shutil.copytree(outputs.parent / "whole", outputs)
    file = study.outputs / VICTIM / "env.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "package_hash": "other code"}))
    if packed: pack_runs(study.outputs, alone)


def place_of(study, name):
    "Where a file lies that is to be damaged."
    if name in RUN_FILES or name in ("run.ipynb", "weights.safetensors"): return study.outputs / VICTIM / name
    if name == "checkpoint.safetensors": return next(study.outputs.glob(f"*/*/{name}"))
    return (study.outputs.parent if name == "code.toml" else study.outputs) / name


def outcome(command):
    "What a command returns, and the sentence it ends in; any other error than ours is one of the test."
    try: return command(), ""
    except AblationError as e:
        assert "\n" not in str(e), e
        return None, str(e)


def outcomes(study, ready):
    "What every command makes of a study: plan, status, report, ledger, pack."
    def planned():
        jobs, tuning = plan(study, ready)
        show_plan(jobs, tuning)
        return {j.folder.relative_to(study.outputs).as_posix(): (j.state, j.why) for j in jobs if j.folder}

    def shown(): return status_table(status(study, plan(study, ready)[0]).to_dict("records"), study.name)
    return dict(
        plan=outcome(planned),
        status=outcome(shown),
        report=outcome(lambda: read_results(study.outputs)),
        ledger=outcome(lambda: studies_in(study.outputs.parent)),
        pack=outcome(lambda: pack_runs(study.outputs, alone)))


@pytest.mark.parametrize("name", [*RUN_FILES, *HARMLESS, *PLANS, "speed.json", "runs.zip", "code.toml"])
def test_a_damaged_file_breaks_no_command(study, name):
    ready = prepared(study)
    restored(study, packed=False)
    calm = outcomes(study, ready)
    assert not any(sentence for _, sentence in calm.values()), calm
    whole = calm["report"][0]
    assert whole.runs.set_index("folder").status[VICTIM] == "done"
    for damage in DAMAGES:
        restored(study, packed=name == "runs.zip")
        file = place_of(study, name)
        file.write_bytes(damaged(file.read_bytes(), damage))
        after = outcomes(study, ready)
        for command, (_, sentence) in after.items():
            assert not sentence or name in sentence, (damage, command, sentence)
        if name in RUN_FILES: is_set_aside(name, damage, after, calm)
        if name in HARMLESS:
            assert after["plan"][0] == calm["plan"][0], damage
            assert after["report"][0].runs.equals(whole.runs), damage
            assert after["report"][0].refused == {}, damage
        if name in PLANS:
            assert after["plan"][0] == calm["plan"][0], damage
            assert name in after["report"][1], damage
            assert name in after["ledger"][0][1][study.name], damage


def is_set_aside(name, damage, after, calm):
    "The victim is named with the damaged file, and everything else is as it was."
    states, whole = after["plan"][0], calm["plan"][0]
    assert states[VICTIM][0] == "damaged", (damage, states)
    assert name in states[VICTIM][1], (damage, states)
    assert {k: v for k, v in states.items() if k != VICTIM} == {k: v for k, v in whole.items() if k != VICTIM}, damage
    r, before = after["report"][0], calm["report"][0]
    assert list(r.refused) == [VICTIM], (damage, r.refused)
    assert name in r.refused[VICTIM], (damage, r.refused)
    expected = before.runs[before.runs.folder != VICTIM].reset_index(drop=True)
    assert r.runs.equals(expected), damage
    assert VICTIM in after["pack"][1], damage


@pytest.mark.parametrize("name", PLANS)
def test_what_can_be_derived_is_written_again(study, name):
    restored(study, packed=False)
    file = study.outputs / name
    before = file.read_bytes()
    for damage in DAMAGES:
        file.write_bytes(damaged(before, damage))
        mend(study)
        assert file.read_bytes() == before, damage


def test_a_report_has_the_means_of_the_others(study):
    "A whole report over a damaged run says what one says without it, and names it."
    tables = {}
    for name in ("", "config.json", "result.json"):
        restored(study, packed=False)
        file = place_of(study, name or "config.json")
        if name: file.write_bytes(b"{}")
        else: shutil.rmtree(file.parent)
        page = write_report(study.outputs).read_text()
        assert (f"not used: `{VICTIM}`" in page) == bool(name), name
        tables[name] = (study.outputs / "tables" / "results.csv").read_bytes()
    assert tables["config.json"] == tables["result.json"] == tables[""]
