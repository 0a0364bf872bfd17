"An arm from outside the package: arms.py at the project's root. README's own walk stands in test_site.py."
import json
import re
import shutil

import pytest
from chapter import ARM
from conftest import ROOT, copied, refused, succeeded

@pytest.fixture
def project(tmp_path):
    "A scratch copy of the project: `project(text)` writes its arms.py and gives back its root."
    def with_arms(text, *names):
        root = copied(tmp_path, *names)
        (root / "arms.py").write_text(text)
        return root
    return with_arms


def train(sh, root, arm, **more):
    parameters = dict(ablation=arm, scale="smoke", out="run", threads=1, **more)
    argv = [word for name, value in parameters.items() for word in ("-p", name, value)]
    return sh("papermill", "nbs/train.ipynb", "out.ipynb", *argv, cwd=root)


def test_an_own_arm_trains_through_papermill(project, sh):
    root = project(ARM)
    succeeded(train(sh, root, "slow_rope+silu"))  # own arms compose, too
    config, result = (json.loads((root / "run" / f).read_text()) for f in ("config.json", "result.json"))
    assert config["arm"] == "silu+slow_rope"
    assert config["model"]["rope_theta"] == 100
    assert config["model"]["ffn"] == "silu"
    assert result["status"] == "done"
    assert all(c["passed"] for c in result["checks"])


def test_the_arm_is_not_there_without_the_file(project, sh):
    root = project(ARM)
    (root / "arms.py").unlink()
    refused(train(sh, root, "slow_rope"), "Unknown arm 'slow_rope'")


def test_an_arm_that_changes_nothing_is_refused_before_it_trains(project, sh):
    root = project(ARM.replace("100.0", "10_000.0"))
    refused(train(sh, root, "slow_rope"), "'slow_rope' changes nothing here: rope_theta=10000.0 is idle")
    assert not (root / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("wrong, words", [
    (ARM.replace('"slow_rope"', '"nope"'), ["An arm called 'nope' exists already"]),
    (ARM.replace("rope_theta", "rope_thta"), ["'slow_rope' changes rope_thta", "Did you mean 'rope_theta'?"]),
    (ARM + ")", ["SyntaxError"]),
])
def test_what_is_wrong_in_the_file_is_said(project, sh, wrong, words):
    root = project(wrong)
    refused(train(sh, root, "baseline"), *words)
    (root / "one.toml").write_text('scale = "smoke"\narms = ["baseline"]\nseeds = [0]\n')
    done = refused(sh("ablation", "plan", "one.toml", cwd=root), "arms.py, line ", *words, status=2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("ablation: arms.py, line "), "no key of the study file is to blame"
    succeeded(sh("ablation", "--help", cwd=root))


@pytest.mark.parametrize("arm", ["slow_rope", "baseline"])
def test_the_file_changes_nothing_that_all_runs_go_through(project, sh, arm):
    smoother = "F.cross_entropy = lambda *given, smoothed=F.cross_entropy: smoothed(*given, label_smoothing=0.1)\n"
    root = project(f"{ARM}\nimport torch.nn.functional as F\n{smoother}")
    refused(train(sh, root, arm), "arms.py puts something else in place of torch.nn.functional.cross_entropy;")
    assert not (root / "run").exists()


def blocks():
    "What CONTRIBUTING.md has of Python."
    return [b.split("```")[0] for b in (ROOT / "CONTRIBUTING.md").read_text().split("```python\n")[1:]]


def block_with(word):
    "What it has of an arms.py."
    return next(b for b in blocks() if word in b)


def test_each_example_can_be_taken_by_itself(tmp_path, sh):
    for i, block in enumerate(blocks()): (tmp_path / f"block_{i}.py").write_text(block)
    succeeded(sh("ruff", "check", "--isolated", "--no-cache", "--select", "F821", tmp_path))


def own_layer():
    "The file with a layer of its own."
    return block_with("register_feed_forward")


def of_every_kind(promised="", trained=""):
    "The file with what CONTRIBUTING.md has of layers and rules, or another text in place of one there."
    text = own_layer() + block_with("register_rule") + block_with("class Lion") + block_with("def z_loss")
    assert promised in text
    return text.replace(promised, trained) if promised else text


def test_own_rules_stand_in_the_same_file(project, sh):
    root = project(of_every_kind())
    succeeded(train(sh, root, "lion+reglu+root+z_loss", min_lr_ratio=0.0))   # at the end the rate is 0
    result = json.loads((root / "run" / "result.json").read_text())
    assert result["status"] == "done"
    said = {c["name"]: c["says"] for c in result["checks"]}
    assert said["update"].startswith("The first update is that of 'lion' at a rate of 0.01, gradients clipped from ")
    assert said["update"].endswith("So are two by random gradients, and from a checkpoint it goes on to the same bits.")
    for arm in ("lion", "z_loss"): assert f"Held against the training without '{arm}'" in said["recipe"]
    assert said["objective"].startswith("'z_loss' gives 1,280 tokens, sure and unsure ones, the losses of its formula ")


@pytest.mark.parametrize("promised, trained, words", [
    ("mean.lerp_(p.grad, 1 - later)", "mean.lerp_(p.grad, 1 - now)", "[update] Update 2 moved"),
    ("mean=torch.zeros_like(p)", "", "optimizer='lion' fails at a step: KeyError: 'mean'"),
    ("dict(lr=cfg.lr, betas", "dict(lr=cfg.rate, betas", "optimizer='lion' cannot be made: AttributeError:"),
    ("Optimizer(lion, Lion)", "lion", "arms.py, line"),
])
def test_an_own_optimiser_that_is_not_its_formula_does_not_train(project, sh, promised, trained, words):
    root = project(of_every_kind(promised, trained))
    refused(train(sh, root, "lion"), words)
    assert not (root / "run" / "metrics.jsonl").exists()


LAYERS = """
scale = "smoke"
arms = ["baseline", "reglu", "nope+reglu"]
seeds = [0, 1]
"""


def test_an_own_layer_goes_from_one_file_to_the_report(project, sh):
    root = project(own_layer())
    (root / "studies").mkdir()
    (root / "studies" / "own.toml").write_text(LAYERS)
    for command in ("run", "report"): succeeded(sh("ablation", command, "studies/own.toml", cwd=root))
    study = root / "outputs" / "own-builtin"
    ledger = root / "outputs" / "ledger.md"
    assert "- own-builtin: smoke, 6 runs" in ledger.read_text()   # there is no other study
    lines = (study / "report.md").read_text().split("## Results")[1].splitlines()
    table = [line for line in lines if line.startswith("| ")]
    rows = {line.split("|")[1].strip(): line for line in reversed(table)}  # the first table wins
    for arm in ("ReGLU", "NoPE + ReGLU"): assert "[" in rows[arm], rows

    def parameters(arm): return json.loads((study / arm / "0.01-s0" / "result.json").read_text())["parameters"]
    assert parameters("reglu") == parameters("baseline")

    # a second arm leaves the runs of the first where they are, and an edit of it too
    (root / "arms.py").write_text(own_layer() + block_with("def z_loss"))
    (root / "studies" / "own.toml").write_text(LAYERS.replace('"reglu"', '"reglu", "z_loss"', 1))
    done = succeeded(sh("ablation", "run", "studies/own.toml", cwd=root))
    assert re.search(r"^2 runs in .*, 8 of 8 usable$", done.stdout, re.M), done.stdout
    succeeded(sh("ablation", "report", "studies/own.toml", cwd=root))
    assert "Nothing is: all 8 runs are done." in (study / "report.md").read_text()
    (root / "arms.py").write_text(own_layer() + block_with("def z_loss").replace("1e-4", "2e-4"))
    plan = succeeded(sh("ablation", "plan", "studies/own.toml", cwd=root)).stdout
    stale = {row.split()[1] for row in plan.splitlines() if re.match(r"│ \S+ +│ 0.01 │ 2 +│ 0 +│ 2 +│", row)}
    assert stale == {"z_loss"}, plan

    # beside a study on real text it is a trial, which the ledger does without
    shutil.copytree(ROOT / "outputs" / "reduced-tinystories", root / "outputs" / "reduced-tinystories")
    ledger.write_text("as it was committed")
    (study / "report.md").unlink()
    succeeded(sh("ablation", "report", "studies/own.toml", cwd=root))
    assert (study / "report.md").exists()
    assert ledger.read_text() == "as it was committed"


BARE = """
class Bare(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_out, d_in))

    def forward(self, x): return x @ self.weight.T
"""


def test_matrices_that_are_no_linear_layers_train_in_bf16_too(project, sh):
    "Their products are in bf16, as torch has it, and they stay what they are."
    mine = own_layer().replace("\n\n\nclass ReGLU", f"\nimport torch\n\n{BARE}\n\nclass ReGLU", 1)
    mine = mine.replace("(Linear(cfg.d_model", "(Bare(cfg.d_model", 1)
    root = project(mine)
    succeeded(train(sh, root, "reglu", precision="bf16"))
    assert json.loads((root / "run" / "result.json").read_text())["status"] == "done"


@pytest.mark.parametrize("promised, trained, words", [
    ("F.relu(self.w1(x)) * self.w3(x)", "F.silu(self.w1(x)) * self.w3(x)", "off reglu by"),  # it is not its formula
    ("gated=True, ", "", "must hold 2 matrices for reglu and holds 3"),
    ("layer=ReGLU", "", "The part 'reglu' has no layer"),
])
def test_an_own_layer_that_is_not_what_it_says_does_not_train(project, sh, promised, trained, words):
    assert promised in own_layer()
    root = project(own_layer().replace(promised, trained))
    refused(train(sh, root, "reglu"), words)
    assert not (root / "run" / "metrics.jsonl").exists()


PARTS = (ROOT / "tests" / "own_parts.py").read_text()   # one of each kind that is not a feed-forward layer


@pytest.mark.parametrize("arm, compiled", [
    ("near+squashed+half+capped+clipped+smooth", True),
    ("half_tied+one_kv", False),
    ("after+summed+tabled+narrow+root", False),
])
def test_an_own_part_of_each_kind_proves_itself_and_trains(project, sh, arm, compiled):
    root = project(PARTS)
    layers = dict(n_layers=1) if compiled else {}   # two equal ones have one code
    succeeded(train(sh, root, arm, compile=compiled, **layers))
    result = json.loads((root / "run" / "result.json").read_text())
    assert result["status"] == "done"
    assert all(c["passed"] for c in result["checks"])


@pytest.mark.parametrize("arm, promised, trained, check", [
    ("near", "-back.float().sqrt()", "-back.float()", "[distance]"),
    ("squashed", "torch.asinh(scores)", "torch.tanh(scores)", "[attention]"),
    ("half", "self.ffn(self.norm2(x)) / 2", "self.ffn(self.norm2(x)) / 3", "[placement]"),
    ("capped", "3 * torch.tanh(super().forward(x) / 3)", "2 * torch.tanh(super().forward(x) / 2)", "[output]"),
    ("clipped", "x.clamp(-1, 1)", "x.clamp(-2, 2)", "[norms]"),
    ("clipped", "ClippedNorm", "Clipped", "[norms] No module is a norm: the class that norm='clipped' makes must have"),
    ("after", "return x + self.norm2(self.ffn(x))", "return x + self.ffn(self.norm2(x))", "[scale]"),
    ("summed", "if causal: scores", "if causal and q.requires_grad: scores", "[causal]"),
    ("tabled", 'self.register_buffer("sin", angles.sin())',
     'self.register_buffer("sin", angles.sin())\n        self.more = nn.Parameter(torch.ones(1))',
     "[parameters] 53,410 parameters where the formula demands 53,408: a part has numbers beside those of its kind"),
    ("tabled", "a * sin + b * cos), -1)", "a * sin + b * cos), -1) * (1 + torch.rand(1))",
     "[repeats] The same text has other logits each time: something in tabled is random"),
    ("tabled", "a * sin + b * cos", "b * sin + a * cos", "[rotation]"),
    ("narrow", "0.03)", "(2 / sum(shape)) ** 0.5)", "[paired] 'narrow' draws every matrix as large as"),
    ("smooth", "label_smoothing=0.1", "label_smoothing=0.11", "[objective] The losses of 'smooth' are off its formula"),
    ("root", "1 - np.sqrt(share)", "np.cos(np.pi / 2 * share) ** 2", "schedule='root' is idle"),
])
def test_an_own_part_that_is_not_its_formula_does_not_train(project, sh, arm, promised, trained, check):
    assert promised in PARTS
    refused(train(sh, project(PARTS.replace(promised, trained)), arm), check)


@pytest.mark.parametrize("first", ["layers", "model", "trainer"])
def test_own_parts_are_there_whichever_module_is_imported_first(project, sh, first):
    "Each of these imports the registry before it is whole, and the registry arms.py, which asks for all of them."
    code = (f"from ablation_nb import {first}\n"
            "from ablation_nb import config, layers, model\n"
            "import ablation_nb, arms, sys\n"
            f"assert {first} is sys.modules['ablation_nb.{first}'] is ablation_nb.{first}\n"
            "lm = model.FlexibleTransformerLM(config.model_config('half', 'smoke'))\n"
            "assert isinstance(lm.blocks[0], model.TransformerBlock)\n"
            "assert isinstance(lm.blocks[0].attn.wq, layers.Linear)\n"
            "assert issubclass(arms.HalfBlock, model.TransformerBlock)\n"
            "print(config.ARMS_FAULT, *sorted(config.OWN_PARTS))\n")
    root = project(PARTS.replace("import torch\n", "import torch\nimport ablation_nb.trainer\n"))
    done = succeeded(sh("python", "-c", code, cwd=root))
    names = "after capped clipped half half_tied narrow near one_kv root smooth squashed summed tabled"
    assert done.stdout == f"[] {names}\n"
