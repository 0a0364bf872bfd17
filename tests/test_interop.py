"A trained run leaves for another library: `ablation export`, then transformers in a process without this package."
import json
import sys

import pytest
from conftest import refused, succeeded

from ablation_nb.config import ARMS, AblationError, model_config
from ablation_nb.interop import LLAMA, require_llama

PROMPT = "Once upon a time there was a"


def expressible(arm):
    try:
        require_llama(model_config(arm))
    except AblationError:
        return False
    return True


RECIPES = [arm for arm in ARMS if ARMS[arm].change and not ARMS[arm].part.keys() - {"init", "init_scale"}]  # one model
CAN = [arm for arm in ARMS if expressible(arm) and arm not in RECIPES]
CANNOT = [arm for arm in ARMS if not expressible(arm)]

THEIRS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "ablation_nb" not in sys.modules
prompt, *folders = sys.argv[1:]
told = []
for folder in folders:
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tok(prompt, return_tensors="pt")
    story = model.generate(**ids, do_sample=False, max_new_tokens=20)[0]
    with torch.no_grad(): logits = model(**ids).logits
    told.append([ids["input_ids"][0].tolist(), logits[0].tolist(), tok.decode(story, skip_special_tokens=True)])
print(json.dumps(told))
"""

WARNED = """
import json, logging, sys, warnings
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
said = []
class Listening(logging.Handler):
    def emit(self, record): said.append(record.getMessage())
logging.getLogger("transformers").addHandler(Listening(logging.WARNING))
logging.captureWarnings(True)
logging.getLogger("py.warnings").addHandler(Listening())
model, tok = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
one, two = (tok(text, return_tensors="pt", padding=True) for text in (sys.argv[2], ["One day", sys.argv[2]]))
lengths = [
    model.generate(**one).shape[1],
    model.generate(**one, max_new_tokens=20).shape[1],
    model.generate(one["input_ids"], do_sample=True, max_new_tokens=5).shape[1],
    model.generate(**two, max_new_tokens=5).shape[1],
]
pipeline("text-generation", model=sys.argv[1])(sys.argv[2])
print(json.dumps([said, lengths, one["input_ids"].shape[1]]))
"""

OURS = """
import json, sys, torch
from ablation_nb.model import generate
from ablation_nb.runs import Run
from ablation_nb.config import run_config
run = Run(run_config(sys.argv[3], scale="smoke", threads=1), sys.argv[1])
tok = run.data.tokenizer
assert run.finished
ids = tok.encode(sys.argv[2]).ids
story = generate(run.model, ids, 20, temperature=0)
with torch.no_grad(): logits = run.model(torch.tensor([ids]))
print(json.dumps([ids, logits[0].tolist(), tok.decode(story, skip_special_tokens=True)]))
"""


def spoken(sh, code, *argv, **env):
    "Token ids, logits and text, as this code prints them."
    done = succeeded(sh(sys.executable, "-c", code, *argv, **env))
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def exported(train, sh, tmp_path_factory):
    "Arm -> its run, its folder in the other layout, and what the other library says from that, in one process for all."
    there, told = tmp_path_factory.mktemp("exported"), {}
    for arm in CAN:
        (there / arm).mkdir()
        told[arm] = there / arm / "run", there / arm / "hf"
        succeeded(train(told[arm][0], ablation=arm))
        succeeded(sh("ablation", "export", told[arm][0], "--to", "hf", told[arm][1]))
    folders = [hf for _, hf in told.values()]
    says = spoken(sh, THEIRS, PROMPT, *folders, HF_HUB_OFFLINE="1", PYTHONPATH="")
    return {arm: (*told[arm], said) for arm, said in zip(CAN, says, strict=True)}


@pytest.mark.parametrize("arm", CAN)
def test_an_arm_that_llama_can_express_says_the_same_there(arm, exported, sh):
    run, hf, (ids, logits, text) = exported[arm]
    configs = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {f.name for f in hf.iterdir()} == {"README.md", "model.safetensors", *configs}
    our_ids, our_logits, our_text = spoken(sh, OURS, run, PROMPT, arm)
    assert ids == our_ids
    assert text == our_text
    assert len(text) > len(PROMPT)
    assert len(logits) == len(our_logits)
    for theirs, ours in zip(logits, our_logits, strict=True):
        assert max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) < 1e-5
    result = json.loads((run / "result.json").read_text())
    card = (hf / "README.md").read_text()
    assert f"{result['final_val_loss']:.4f} nats" in card
    assert result["identity"] in card


def test_its_model_generates_without_a_warning(train, sh, tmp_path):
    succeeded(train(tmp_path / "run", n_steps=3, warmup_steps=1))
    succeeded(sh("ablation", "export", tmp_path / "run", tmp_path / "hf"))
    said, lengths, prompt = spoken(sh, WARNED, tmp_path / "hf", PROMPT, HF_HUB_OFFLINE="1", PYTHONPATH="")
    assert said == []
    assert lengths[0] <= prompt + 32 // 2
    assert len(lengths) == 4


def test_which_arms_those_are():
    assert CAN == ["baseline", "aa", "gqa", "mqa", "geglu", "tied"]
    assert len(CANNOT) == len(ARMS) - len(CAN) - len(RECIPES)


@pytest.mark.parametrize("arm", ["post_norm"])  # the notebook refuses one arm for each reason
def test_an_arm_that_llama_cannot_express_is_refused(arm, train, sh, tmp_path):
    run, hf = tmp_path / "run", tmp_path / "hf"
    succeeded(train(run, ablation=arm, n_steps=3, warmup_steps=1))
    changed = next(f for f in LLAMA if f in ARMS[arm].change)
    done = refused(sh("ablation", "export", run, "--to", "hf", hf), f"cannot express {changed}=", status=2)
    assert done.stderr.count("\n") == 1
    assert not hf.exists()
