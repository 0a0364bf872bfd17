"""The pages of the site, for Sphinx to render: `python nbs/_sphinx/pages.py FOLDER`.

FOLDER becomes a mirror of the repository, so that links among notebooks, reports and README hold as they stand. Notebooks go through
nbdev's own page processors, but nothing is executed: outputs are the committed ones, and an API entry is nbdev's `show_doc` of the package.

This folder lies beside the notebooks because it is about them; as its name begins with an underscore, nbdev's commands and Quarto pass over it.
"""
import ast, inspect, json, os, re, shutil, sys
from base64 import b64decode, b64encode
from importlib import import_module
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
from fastcore.nbio import mk_cell
from lines import LinesFormatter
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor, Processor
from nbdev.processors import FilterDefaults, add_show_docs, clean_magics, hide_line, populate_language, strip_ansi
from nbdev.serve_drv import exec_nb
from nbdev.showdoc import show_doc, showdoc_nm
from PIL import Image
from pygments import highlight
from pygments.lexers import PythonLexer

from ablation_nb.config import arm_label
from ablation_nb.figures import arm_order
from ablation_nb.report import study_question
from ablation_nb.results import read_rows

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ablation_nb"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LONG = 20  # lines of an exported cell that a reader is still shown at once
STORY = [f for f in NOTEBOOKS if f.stem[0].isdigit()]
STUDIES = ("true_model", "true_context", "true_depth", "true_factorial", "report_config", "replication",
           "any other", "laptop")


def definitions(code):
    "Name -> line of each function, class and patched method at the top level of `code`."
    lines = {}
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_":
            names = showdoc_nm(node)
            lines |= dict.fromkeys([names] if isinstance(names, str) else names, node.lineno)
    return lines


def exported(notebook, module):
    "Name -> line of what the module defines in cells `#| export`; what `#| exporti` exports is no door and gets no entry."
    cells = ["".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    doors = {name for code in cells if re.match(r"#\| ?export\b", code) for name in definitions(code)}
    lines = definitions((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    return {name: line for name, line in lines.items() if name in doors}


def label(module, name):
    "The anchor of an entry. Sphinx does not see the case of letters, so a class says that it is one."
    return f"{module}.{name}".lower() + (".class" if name[0].isupper() and "." not in name else "")


MODULES = {f.name: m[1] for f in NOTEBOOKS if (m := re.search(r"#\| ?default_exp (\w+)", f.read_text(encoding="utf-8")))}
API = {module: exported(ROOT / "nbs" / notebook, module) for notebook, module in MODULES.items()}
lookup = NbdevLookup()  # turns `name` into a link; of all libraries that nbdev knows, only ours is linked
lookup.syms = {name: "#" + label(module, name) for module, names in reversed(API.items()) for name in names}


class entries_first(Processor):
    "Entries of an exported cell stand above its source."
    def begin(self):
        cells = self.nb.cells
        for i in reversed(range(len(cells))):
            if getattr(cells[i], "has_sd", False) or "export" not in cells[i].directives_: continue
            n = next((n for n, c in enumerate(cells[i + 1:]) if not getattr(c, "has_sd", False)), len(cells) - i - 1)
            cells[i:i + n + 1] = cells[i:i + n + 1][::-1]  # nbdev stacks them upside down


class api_entry(Processor):
    "In place of a cell `show_doc(name)`, what it says, under an anchor and with a link to the source."
    def cell(self, cell):
        if not getattr(cell, "has_sd", False): return
        module, name = MODULES[Path(self.nb.path_).name], re.fullmatch(r"show_doc\((.+)\)", cell.source)[1]
        says = show_doc(attrgetter(name)(import_module(f"{PACKAGE.name}.{module}")), name=name)._repr_markdown_()
        source = f'<a class="source" href="../source/{module}.html#L-{API[module][name]}">source</a>'
        cell.update(cell_type="markdown", source=re.sub(r"^---\n+(### .+)", lambda m: f"({label(module, name)})=\n{m[1]}\n\n{source}", says))
        cell.pop("outputs", None)


def hide_or_fold(cell):
    "Hidden cells go; exported ones stay, and long ones and imports are folded."
    if cell.cell_type != "code": return
    if cell.directives_.keys() & {"export", "exporti"}:
        code = cell.source.strip()
        if len(code.splitlines()) > LONG or re.match(r"(from|import)\b", code): cell.metadata["tags"] = ["hide-input"]
    elif cell.directives_.keys() & {"hide", "default_exp"}: del cell["source"]


def excerpt(text, folder):
    "A piece of a report in a notebook keeps the links and pictures that lead somewhere from there; of other links the words stay."
    def keep(m):
        picture, words, to = m.groups()
        return m[0] if re.match(r"\w+:", to) or (to[0] != "#" and (folder / to.split("#")[0]).exists()) else "" if picture else words
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", keep, text)


class spoken(Processor):
    "What a cell says in markdown becomes prose of the page; on the first page its code goes."
    def end(self):
        cells, front = [], Path(self.nb.path_).stem == "index"
        for cell in self.nb.cells:
            outputs = cell.get("outputs", [])
            words = ["".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
            said = cell.cell_type == "code" and words and len(words) == len(outputs)
            if said: cell.outputs = []
            if front and cell.cell_type == "code": cell.metadata["tags"] = ["remove-input"]
            if not (front and cell.cell_type == "code" and not cell.outputs): cells.append(cell)
            if said: cells += [mk_cell(excerpt(w, Path(self.nb.path_).parent), "markdown") for w in words]
        self.nb.cells = cells


def settled(cell):
    "What a progress bar wrote is shown as it stood at the end."
    outputs = []
    for o in cell.get("outputs", []):
        if outputs and o.output_type == outputs[-1].output_type == "stream": outputs[-1]["text"] += o["text"]
        else: outputs.append(o)
    for o in outputs:
        if o.output_type == "stream": o["text"] = re.sub(r"[^\n]*\r(?!\n)", "", "".join(o["text"]))
    if outputs: cell["outputs"] = outputs


def sized(cell):
    "A picture is shown at 100 dots an inch, however fine it was stored; cleaned notebooks have lost its width."
    for o in cell.get("outputs", []):
        if "image/png" in o.get("data", {}):
            with Image.open(BytesIO(b64decode("".join(o["data"]["image/png"])))) as picture:
                o["metadata"] = {"image/png": {"width": f"{picture.width * 100 / picture.info.get('dpi', (100,))[0]:.0f}px"}}


def linked(cell):
    "Names of the package become links to their entries; a link within the page is written as Sphinx writes it, and not as JupyterLab does."
    if cell.cell_type == "markdown" and not cell.source.startswith("("): cell.source = re.sub(r"\]\(#[^)]+\)", lambda m: m[0].lower(), lookup.linkify(cell.source))


class Page(FilterDefaults):
    "nbdev's processors for pages, without execution, and with the code that nbdev would drop."
    def base_procs(self): return [populate_language, add_show_docs, strip_ansi, hide_line, entries_first, api_entry, hide_or_fold, clean_magics, settled, spoken, sized, linked]
    def nb_proc(self, nb): return NBProcessor(nb=nb, procs=self.procs(), rm_directives=True)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def promise(notebook):
    "Title and first sentence of a notebook."
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    says = re.search(r"^> (.+)", first, re.M)
    return re.match(r"# (.+)", first)[1], says[1] if says else ""


def title(page): return page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def toctree(*entries): return "\n```{toctree}\n:hidden:\n:maxdepth: 1\n\n" + "\n".join(entries) + "\n```\n"


def with_curve(nb, run):
    "Where an executed notebook of a run kept no picture, its curves are drawn again from `metrics.jsonl` by its own cell."
    for cell in nb["cells"]:
        if "run.metrics" in "".join(cell["source"]) and not cell["outputs"]:
            exec("".join(cell["source"]), dict(plt=plt, run=SimpleNamespace(metrics=pd.DataFrame(read_rows(run / "metrics.jsonl")))))
            picture = BytesIO()
            plt.savefig(picture, dpi=150, bbox_inches="tight"); plt.close()
            cell["outputs"] = [dict(output_type="display_data", metadata={}, data={"image/png": b64encode(picture.getvalue()).decode()})]
    return nb


def executed_train(page):
    "`train.ipynb` with the outputs of the first committed run of the baseline, cell by cell where the two are the same."
    run = min((ROOT / "outputs").glob("*/baseline/*/run.ipynb"))
    nb, ran = (json.loads(f.read_text(encoding="utf-8")) for f in (ROOT / "nbs" / "train.ipynb", run))
    left = {"".join(c["source"]): c["outputs"] for c in ran["cells"] if c["cell_type"] == "code"}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": cell["outputs"] = left.get("".join(cell["source"]), [])
    says = f"What stands below the cells is what one run left: [{run.parent.relative_to(ROOT / 'outputs').as_posix()}](../{run.relative_to(ROOT).as_posix()})."
    nb["cells"].insert(1, dict(mk_cell(says, "markdown"), metadata={}))
    write(page, json.dumps(with_curve(nb, run.parent)))
    return page


def notebooks(out):
    "The notebooks; the first page is `index.ipynb`, with the links of a README."
    (out / "nbs").mkdir(parents=True)
    for f in NOTEBOOKS: exec_nb(executed_train(out / "nbs" / f.name) if f.stem == "train" else f, out / "nbs" / f.name, Page)
    (out / "nbs" / "index.ipynb").rename(out / "index.ipynb")
    index = json.loads((out / "index.ipynb").read_text(encoding="utf-8"))
    for cell in index["cells"]: cell["source"] = "".join(cell["source"]).replace("](../", "](")
    index["cells"].append(dict(mk_cell(toctree("Tour <nbs/tour>", "story", "outputs/index", "api", "project"), "markdown"), metadata={}))
    write(out / "index.ipynb", json.dumps(index))


def story(out):
    "The numbered notebooks, then those that use them."
    after = sorted((f for f in NOTEBOOKS if f not in STORY and f.stem not in ("index", "tour")), key=lambda f: (f.stem != "train", f.stem != "analysis", f.stem))
    listed = {f: (f.stem.split("_")[0].lstrip("0") or "0", *promise(f)) for f in STORY} | {f: ("", *promise(f)) for f in after}
    row = lambda f: "- {} [{}](nbs/{}): {}".format(*listed[f][:2], f.name, listed[f][2])
    write(out / "story.md", "# Story\n\nThe package is written as notebooks, each of which defines, shows and tests one thing. They build on each other in this order.\n\n"
        + "\n".join(map(row, STORY)) + "\n\nNotebooks that use it:\n\n" + "\n".join(map(row, after)) + "\n"
        + toctree(*(f"{number} {title} <nbs/{f.stem}>" for f, (number, title, _) in listed.items())))


def executed(out, study):
    "One executed notebook for each arm of a study, by label; as copies of nbs/train.ipynb their links lead from there."
    first = {f.parent.parent.name: f for f in sorted(study.rglob("run.ipynb"), reverse=True)}
    for f in first.values():
        page = out / f.relative_to(ROOT)
        page.parent.mkdir(parents=True, exist_ok=True)
        exec_nb(f, page, Page)
        nb, up = with_curve(json.loads(page.read_text(encoding="utf-8")), f.parent), os.path.relpath(ROOT, f.parent)
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown": cell["source"] = re.sub(r"\]\((?![#\w]+:|#)", f"]({up}/nbs/", "".join(cell["source"]))
        nb["cells"][0]["source"] = f"# {arm_label(f.parent.parent.name)}: one run\n\n> {f.parent.relative_to(ROOT / 'outputs').as_posix()}, as papermill left it. The whole study: [report]({os.path.relpath(study, f.parent)}/report.md)."
        write(page, json.dumps(nb))
    return {arm_label(arm): first[arm].relative_to(study).as_posix() for arm in arm_order(first)}


def report_page(out, report, pages=()):
    "A report as a page, with the tables behind it; `pages` (label -> file) lie below it, a run of each arm or the points of a grid."
    tables = "".join(f"- [{f.name}](tables/{f.name})\n" for f in sorted(report.parent.glob("tables/*.csv")))
    named = "".join(f"{says}: " + ", ".join(f"[{name}]({f})" for name, f in these.items()) + ".\n\n" for says, these in pages if these)
    below = [f"{name} <{Path(f).with_suffix('').as_posix()}>" for _, these in pages for name, f in these.items()]
    write(out / report.relative_to(ROOT), report.read_text(encoding="utf-8") + f"\n## Data\n\nThe numbers behind this page:\n\n{tables}\n{named}" + (toctree(*below) if below else ""))


def importance(report):
    "Where a study stands among the others: the true model first, then by name."
    stem = report.parent.name.partition("-")[0]
    return STUDIES.index(stem if stem in STUDIES else "any other"), report.parent.name


def in_short(report):
    "What a study asks, what is still to do, and the first sentence of what it found."
    text, asked = report.read_text(encoding="utf-8"), study_question(report.parent.name)
    left = re.findall(r"^\*\*This study is not complete.+", text, re.M)
    first_finding = re.findall(r"^## What was found\n\n- (.+)", text, re.M)
    return "\n\n".join([f"*{asked}*"] * bool(asked) + left + first_finding)


def studies(out):
    "The report of each study with its figures, its tables and a run of each arm, and a page that shows the studies one below the other."
    reports, shown = sorted((ROOT / "outputs").glob("*/report.md"), key=importance), []
    for report in reports:
        study = report.parent
        for f in sorted(study.rglob("*")):
            if f.suffix in (".png", ".svg", ".csv"): write(out / f.relative_to(ROOT), ""); shutil.copy(f, out / f.relative_to(ROOT))
        pages = sorted(study.glob("*/report.md"), key=lambda f: [int(n) for n in re.findall(r"\d+", f.parent.name)])
        points = {title(f).partition(": ")[2]: f for f in pages}
        for f in points.values(): report_page(out, f)
        report_page(out, report, (("A run of each arm, notebook and all", executed(out, study)), ("The points of the grid", {name: f.relative_to(study).as_posix() for name, f in points.items()})))
        figure = "".join(f"[![{study.name}]({study.name}/{f})]({study.name}/report.md)\n\n" for f in ("ablation_comparison.png", "overview.png") if (study / f).exists())
        shown.append(f"## [{study.name}]({study.name}/report.md)\n\n{in_short(report)}\n\n{figure}")
    across = sorted((ROOT / "outputs").glob("*.md"))
    for f in (ROOT / "outputs").glob("*.*"): shutil.copy(f, out / "outputs")
    write(out / "outputs" / "index.md", "# Studies\n\n"
        "The studies in the order of their weight, each with its question and its finding. "
        "Every figure and number on these pages comes from runs in the repository.\n\n"
        + "".join(f"Across studies: [{title(f)}]({f.name}).\n\n" for f in across) + "".join(shown) + toctree(*(f.stem for f in across), *(f"{r.parent.name} <{r.parent.name}/report>" for r in reports)))


def api(out):
    "Every public name with its first line of documentation, and the highlighted source of each module."
    rows = []
    for notebook, module in MODULES.items():
        for name in API[module]:
            doc = inspect.getdoc(attrgetter(name)(import_module(f"{PACKAGE.name}.{module}"))) or ""
            rows.append(f"| [`{name}`](#{label(module, name)}) | [{module}](nbs/{notebook}) | {doc.splitlines()[0].replace('|', chr(92) + '|') if doc else ''} |")
        code = highlight((PACKAGE / f"{module}.py").read_text(encoding="utf-8"), PythonLexer(), LinesFormatter(lineanchors="L"))
        write(out / "source" / f"{module}.md", f"---\norphan: true\nnosearch: true\n---\n# {PACKAGE.name}/{module}.py\n\nExported from [{notebook}](../nbs/{notebook}).\n\n```{{raw}} html\n{code}\n```\n")
    write(out / "api.md", f"# API\n\nWhat `{PACKAGE.name}` exports. A name leads to its entry in the notebook that defines and tests it.\n\n| name | module | what it does |\n|---|---|---|\n" + "\n".join(rows) + "\n")


def project(out):
    "What is written about the project beside the notebooks."
    files = ("CONTRIBUTING.md", "LOG.md", "CHANGELOG.md")
    for f in files: shutil.copy(ROOT / f, out)
    for folder in ("studies", "reference"): shutil.copytree(ROOT / folder, out / folder)
    write(out / "project.md", "# Project\n\n" + "\n".join(f"- [{title(ROOT / f)}]({f})" for f in files) + "\n" + toctree(*(f.removesuffix(".md") for f in files)))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    for part in (notebooks, story, studies, api, project): part(out)
