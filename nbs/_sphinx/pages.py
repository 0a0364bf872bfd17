"""The pages of the site, for Sphinx to render: `python nbs/_sphinx/pages.py FOLDER`.

FOLDER becomes a mirror of the repository, so that links among notebooks, reports and README hold as they stand.
Notebooks go through nbdev's own page processors, but nothing is executed: outputs are the committed ones, and an API
entry is nbdev's `show_doc` of the package.

This folder lies beside the notebooks because it is about them. As its name begins with an underscore, nbdev's commands
and Quarto pass over it.
"""
import ast, inspect, json, os, re, shutil, sys
from base64 import b64decode, b64encode
from importlib import import_module
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import bleach
import matplotlib.pyplot as plt
import pandas as pd
from fastcore.nbio import mk_cell
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor, Processor
from nbdev.processors import FilterDefaults, add_show_docs, clean_magics, hide_line, populate_language, strip_ansi
from nbdev.serve_drv import exec_nb
from nbdev.showdoc import show_doc, showdoc_nm
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from ablation_nb.config import arm_label, arm_order
from ablation_nb.report import study_question
from ablation_nb.results import read_rows
from ablation_nb.tables import inert

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ablation_nb"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LONG = 20  # lines of an exported cell that a reader is still shown at once
STORY = [f for f in NOTEBOOKS if f.stem[0].isdigit()]
WINGS = {  # tens of a notebook's number
    "0": "What trains, and how it is judged",
    "1": "How it runs",
    "2": "What it says",
    "3": "Doors",
}
ORDER = ("The package is written as notebooks, each of which defines, shows and tests one thing. "
         "Each builds on those above it.")
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
    """Name -> line of what the module defines in cells `#| export`.

    What `#| exporti` exports is no door and gets no entry."""
    cells = ["".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    doors = {name for code in cells if re.match(r"#\| ?export\b", code) for name in definitions(code)}
    lines = definitions((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    return {name: line for name, line in lines.items() if name in doors}


def label(module, name):
    "The anchor of an entry. Sphinx does not see the case of letters, so a class says that it is one."
    return f"{module}.{name}".lower() + (".class" if name[0].isupper() and "." not in name else "")


def module_of(notebook):
    "The module that a notebook exports; None if it exports none."
    m = re.search(r"#\| ?default_exp (\w+)", notebook.read_text(encoding="utf-8"))
    return m and m[1]


MODULES = {f.name: module for f in NOTEBOOKS if (module := module_of(f))}
API = {module: exported(ROOT / "nbs" / notebook, module) for notebook, module in MODULES.items()}
lookup = NbdevLookup()  # turns `name` into a link; of all libraries that nbdev knows, only ours is linked
lookup.syms = {name: "#" + label(module, name) for module, names in reversed(API.items()) for name in names}


def named(module, name): return attrgetter(name)(import_module(f"{PACKAGE.name}.{module}"))


class entries_first(Processor):
    "Entries of an exported cell stand above its source."
    def begin(self):
        cells = self.nb.cells
        for i in reversed(range(len(cells))):
            if getattr(cells[i], "has_sd", False) or "export" not in cells[i].directives_: continue
            end = next((j for j in range(i + 1, len(cells)) if not getattr(cells[j], "has_sd", False)), len(cells))
            cells[i:end] = cells[i:end][::-1]  # nbdev stacks them upside down


class api_entry(Processor):
    "In place of a cell `show_doc(name)`, what it says, under an anchor and with a link to the source."
    def cell(self, cell):
        if not getattr(cell, "has_sd", False): return
        module, name = MODULES[Path(self.nb.path_).name], re.fullmatch(r"show_doc\((.+)\)", cell.source)[1]
        says = show_doc(named(module, name), name=name)._repr_markdown_()
        source = f'<a class="source" href="../source/{module}.html#L-{API[module][name]}">source</a>'
        def with_anchor(m): return f"({label(module, name)})=\n{m[1]}\n\n{source}"
        cell.update(cell_type="markdown", source=re.sub(r"^---\n+(### .+)", with_anchor, says))
        cell.pop("outputs", None)


def hide_or_fold(cell):
    "Hidden cells go; exported ones stay, and long ones and imports are folded."
    if cell.cell_type != "code": return
    if cell.directives_.keys() & {"export", "exporti"}:
        code = cell.source.strip()
        if len(code.splitlines()) > LONG or re.match(r"(from|import)\b", code): cell.metadata["tags"] = ["hide-input"]
    elif cell.directives_.keys() & {"hide", "default_exp"}: del cell["source"]


def excerpt(text, folder):
    """A piece of a report in a notebook keeps the links and pictures that lead somewhere from there.

    Of other links the words stay."""
    def keep(m):
        picture, words, to = m.groups()
        if re.match(r"\w+:", to): return m[0]
        if to[0] != "#" and (folder / to.split("#")[0]).exists(): return m[0]
        return "" if picture else words
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", keep, text)


def words_of(cell):
    "What a code cell says in markdown, if it says nothing else."
    outputs = cell.get("outputs", [])
    words = ["".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
    return words if cell.cell_type == "code" and len(words) == len(outputs) else []


class spoken(Processor):
    "What a cell says in markdown becomes prose of the page; on the first page its code goes."
    def end(self):
        page, cells = Path(self.nb.path_), []
        for cell in self.nb.cells:
            words, front_code = words_of(cell), page.stem == "index" and cell.cell_type == "code"
            if words: cell.outputs = []
            if front_code: cell.metadata["tags"] = ["remove-input"]
            if not front_code or cell.outputs: cells.append(cell)
            cells += [mk_cell(excerpt(w, page.parent), "markdown") for w in words]
        self.nb.cells = cells


def settled(cell):
    "What a progress bar wrote is shown as it stood at the end."
    outputs = []
    for o in cell.get("outputs", []):
        goes_on = outputs and o.output_type == outputs[-1].output_type == "stream"
        if goes_on: outputs[-1]["text"] += o["text"]
        else: outputs.append(o)
    for o in outputs:
        if o.output_type == "stream": o["text"] = re.sub(r"[^\n]*\r(?!\n)", "", "".join(o["text"]))
    if outputs: cell["outputs"] = outputs


def sized(cell):
    "A picture is shown at 100 dots an inch, however fine it was stored; cleaned notebooks have lost its width."
    for o in cell.get("outputs", []):
        if "image/png" not in o.get("data", {}): continue
        with Image.open(BytesIO(b64decode("".join(o["data"]["image/png"])))) as picture:
            inches = picture.width / picture.info.get("dpi", (100,))[0]
        o["metadata"] = {"image/png": {"width": f"{100 * inches:.0f}px"}}


def linked(cell):
    """Names of the package become links to their entries.

    A link within the page is written as Sphinx writes it, and not as JupyterLab does."""
    if cell.cell_type != "markdown" or cell.source.startswith("("): return
    cell.source = re.sub(r"\]\(#[^)]+\)", lambda m: m[0].lower(), lookup.linkify(cell.source))


class Page(FilterDefaults):
    "nbdev's processors for pages, without execution, and with the code that nbdev would drop."
    def base_procs(self):
        nbdevs = [populate_language, add_show_docs, strip_ansi, hide_line]
        return [*nbdevs, entries_first, api_entry, hide_or_fold, clean_magics, settled, spoken, sized, linked]

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


TAGS = {"div", "p", "pre", "span", "b", "i", "table", "thead", "tbody", "tr", "th", "td"}
SHOWN = ("text/plain", "text/html", "text/markdown", "image/png")  # what else an output may be is not looked at
NAMED = ("kernelspec", "language_info")  # of a notebook's metadata; others could tell Sphinx to execute it


def is_of_a_table(tag, name, value):
    "May this attribute stay? A class can make math of text, but the one of a frame makes a table of it."
    return name in ("border", "colspan", "rowspan") or (name, value) == ("class", "dataframe")


def plain_html(html):
    "Tables and text of an output, without styles, scripts, links and whatever else a browser would act on."
    said = re.sub(r"<style.*?</style>", "", "".join(html), flags=re.S)
    return bleach.clean(said, tags=TAGS, attributes=is_of_a_table, strip=True)


def plain_output(o):
    "An output with the kinds of data that are words, tables or pictures."
    if "data" not in o: return o
    data = {kind: o["data"][kind] for kind in SHOWN if kind in o["data"]}
    if "text/html" in data: data["text/html"] = plain_html(data["text/html"])
    if "text/markdown" in data: data["text/markdown"] = inert("".join(data["text/markdown"]))
    return dict(o, data=data, metadata={})


def plain_run(run):
    "The executed notebook of a run, of which nothing is trusted: whoever sent the folder wrote it."
    nb = json.loads(run.read_text(encoding="utf-8"))
    nb["metadata"] = {name: nb["metadata"][name] for name in NAMED if name in nb["metadata"]}
    for cell in nb["cells"]:
        cell["metadata"] = {"tags": cell["metadata"].get("tags", [])}
        cell.pop("attachments", None)
        if cell["cell_type"] == "code": cell["outputs"] = [plain_output(o) for o in cell["outputs"]]
        else: cell["source"] = inert("".join(cell["source"]))
    return nb


def curve():
    "The cell of `train.ipynb` that draws a run's curves."
    cells = json.loads((ROOT / "nbs" / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    return next(code for c in cells if "run.metrics" in (code := "".join(c["source"])))


def with_curve(nb, run):
    """Where an executed notebook of a run kept no picture, its curves are drawn again from `metrics.jsonl`.

    By the cell of `train.ipynb`: what a run's folder brings is read, not executed."""
    for cell in nb["cells"]:
        if "run.metrics" not in "".join(cell["source"]) or cell.get("outputs") != []: continue
        rows = pd.DataFrame(read_rows(run / "metrics.jsonl"))
        exec(curve(), dict(plt=plt, run=SimpleNamespace(metrics=rows)))
        png = BytesIO()
        plt.savefig(png, dpi=150, bbox_inches="tight")
        plt.close()
        picture = {"image/png": b64encode(png.getvalue()).decode()}
        cell["outputs"] = [dict(output_type="display_data", metadata={}, data=picture)]
    return nb


def executed_train(page):
    "`train.ipynb` with the outputs that its cells had in a committed run of the baseline."
    run = min((ROOT / "outputs").glob("*/baseline/*/run.ipynb"))
    nb, ran = json.loads((ROOT / "nbs" / "train.ipynb").read_text(encoding="utf-8")), plain_run(run)
    left = {c["id"]: c["outputs"] for c in ran["cells"] if c["cell_type"] == "code"}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": cell["outputs"] = left.get(cell["id"], [])
    name, link = run.parent.relative_to(ROOT / "outputs").as_posix(), run.relative_to(ROOT).as_posix()
    says = f"What stands below the cells is what one run left: [{name}](../{link})."
    nb["cells"].insert(1, dict(mk_cell(says, "markdown"), metadata={}))
    write(page, json.dumps(with_curve(nb, run.parent)))
    return page


FRONT = toctree("Tour <nbs/tour>", "story", "outputs/index", "api", "project")


def notebooks(out):
    "The notebooks; the first page is `index.ipynb`, with the links of a README."
    (out / "nbs").mkdir(parents=True)
    for f in NOTEBOOKS:
        page = out / "nbs" / f.name
        exec_nb(executed_train(page) if f.stem == "train" else f, page, Page)
    (out / "nbs" / "index.ipynb").rename(out / "index.ipynb")
    index = json.loads((out / "index.ipynb").read_text(encoding="utf-8"))
    for cell in index["cells"]: cell["source"] = "".join(cell["source"]).replace("](../", "](")
    index["cells"].append(dict(mk_cell(FRONT, "markdown"), metadata={}))
    write(out / "index.ipynb", json.dumps(index))


def story(out):
    "The numbered notebooks wing by wing, then those that use them."
    users = [f for f in NOTEBOOKS if f not in STORY and f.stem not in ("index", "tour")]
    users.sort(key=lambda f: (f.stem != "train", f.stem != "analysis", f.stem))
    wings = {says: [f for f in STORY if f.stem[0] == ten] for ten, says in WINGS.items()}
    wings["Notebooks that use the package"] = users

    def row(f): return "- [{0}](nbs/{2}): {1}".format(*promise(f), f.name)
    def entry(f): return f"{promise(f)[0]} <nbs/{f.stem}>"
    parts = [f"## {says}\n\n" + "\n".join(map(row, files)) for says, files in wings.items()]
    pages = [entry(f) for files in wings.values() for f in files]
    write(out / "story.md", f"# Story\n\n{ORDER}\n\n" + "\n\n".join(parts) + "\n" + toctree(*pages))


def led_to_nbs(cell, up):
    "A markdown cell of a copy of nbs/train.ipynb, whose links lead from there; `up` is the way to the root."
    if cell["cell_type"] == "markdown":
        cell["source"] = re.sub(r"\]\((?![#\w]+:|#)", f"]({up}/nbs/", "".join(cell["source"]))


def executed(out, study):
    "One executed notebook for each arm of a study, by label."
    first = {f.parent.parent.name: f for f in sorted(study.rglob("run.ipynb"), reverse=True)}
    for arm, f in first.items():
        page = out / f.relative_to(ROOT)
        write(page, json.dumps(plain_run(f)))
        exec_nb(page, page, Page)
        nb = with_curve(json.loads(page.read_text(encoding="utf-8")), f.parent)
        for cell in nb["cells"]: led_to_nbs(cell, os.path.relpath(ROOT, f.parent))
        run, report = f.parent.relative_to(ROOT / "outputs").as_posix(), os.path.relpath(study / "report.md", f.parent)
        whole = f"> {run}, as papermill left it. The whole study: [report]({report})."
        nb["cells"][0]["source"] = inert(f"# {arm_label(arm)}: one run\n\n{whole}")
        write(page, json.dumps(nb))
    return {arm_label(arm): first[arm].relative_to(study).as_posix() for arm in arm_order(first)}


def report_page(out, report, pages=()):
    """A report as a page, with the tables behind it.

    `pages` (what they are, label -> file) lie below it: a run of each arm, the points of a grid."""
    def listed(kind):
        files = sorted(report.parent.glob(f"tables/*.{kind}"))
        return "".join(f"- [{f.name}](tables/{f.name})\n" for f in files)
    text = report.read_text(encoding="utf-8") + f"\n## Data\n\nThe numbers behind this page:\n\n{listed('csv')}\n"
    if listed("tex"): text += f"Its tables for LaTeX, with booktabs:\n\n{listed('tex')}\n"
    for says, files in pages:
        links = ", ".join(f"[{name}]({f})" for name, f in files.items())
        if links: text += f"{says}: {links}.\n\n"
    text = inert(text)
    below = [f"{name} <{Path(f).with_suffix('').as_posix()}>" for _, files in pages for name, f in files.items()]
    if below: text += toctree(*below)
    write(out / report.relative_to(ROOT), text)


def importance(report):
    "Where a study stands among the others: the true model first, then by name."
    stem = report.parent.name.partition("-")[0]
    return STUDIES.index(stem if stem in STUDIES else "any other"), report.parent.name


def in_short(report):
    "What a study asks, what is still to do, and the first sentence of what it found."
    text, asked = report.read_text(encoding="utf-8"), study_question(report.parent.name)
    left = re.findall(r"^\*\*This study is not complete.+", text, re.M)
    first_finding = re.findall(r"^## What was found\n\n- (.+)", text, re.M)
    return inert("\n\n".join([f"*{asked}*"] * bool(asked) + left + first_finding))


def study_page(out, report):
    "The page of a study, with its figures, its tables, a run of each arm and the points of its grid."
    study = report.parent
    for f in sorted(study.rglob("*")):
        if f.suffix not in (".png", ".svg", ".csv", ".tex"): continue
        there = out / f.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, there)
    pages = sorted(study.glob("*/report.md"), key=lambda f: [int(n) for n in re.findall(r"\d+", f.parent.name)])
    for f in pages: report_page(out, f)
    points = {title(f).partition(": ")[2]: f.relative_to(study).as_posix() for f in pages}
    runs = executed(out, study)
    report_page(out, report, (("A run of each arm, notebook and all", runs), ("The points of the grid", points)))


def entry_of(report):
    "A study among the studies: its name, its question, its finding and its figure."
    study = report.parent
    figures = [f for f in ("ablation_comparison.png", "overview.png") if (study / f).exists()]
    shown = "".join(f"[![{study.name}]({study.name}/{f})]({study.name}/report.md)\n\n" for f in figures)
    return f"## [{study.name}]({study.name}/report.md)\n\n{in_short(report)}\n\n{shown}"


def studies(out):
    "The page of each study, and one that shows the studies one below the other."
    reports = sorted((ROOT / "outputs").glob("*/report.md"), key=importance)
    for report in reports: study_page(out, report)
    for f in (ROOT / "outputs").glob("*.*"): shutil.copy(f, out / "outputs")
    across = sorted((ROOT / "outputs").glob("*.md"))
    text = ("# Studies\n\nThe studies in the order of their weight, each with its question and its finding. "
            "Every figure and number on these pages comes from runs in the repository.\n\n")
    text += "".join(f"Across studies: [{title(f)}]({f.name}).\n\n" for f in across)
    text += "".join(map(entry_of, reports))
    pages = [f.stem for f in across] + [f"{r.parent.name} <{r.parent.name}/report>" for r in reports]
    write(out / "outputs" / "index.md", text + toctree(*pages))


def api_row(notebook, module, name):
    "A name of a module with the first line of its documentation, as the row of a table."
    doc = (inspect.getdoc(named(module, name)) or "").partition("\n")[0].replace("|", "\\|")
    return f"| [`{name}`](#{label(module, name)}) | [{module}](nbs/{notebook}) | {doc} |"


def source_page(out, notebook, module):
    "The highlighted source of a module."
    code = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    html = highlight(code, PythonLexer(), HtmlFormatter(lineanchors="L"))
    head = "---\norphan: true\nnosearch: true\n---\n"
    text = f"# {PACKAGE.name}/{module}.py\n\nExported from [{notebook}](../nbs/{notebook}).\n\n"
    write(out / "source" / f"{module}.md", f"{head}{text}```{{raw}} html\n{html}\n```\n")


def api(out):
    "Every public name with its first line of documentation, and the source of each module."
    rows = [api_row(notebook, module, name) for notebook, module in MODULES.items() for name in API[module]]
    for notebook, module in MODULES.items(): source_page(out, notebook, module)
    text = (f"# API\n\nWhat `{PACKAGE.name}` exports. "
            "A name leads to its entry in the notebook that defines and tests it.\n\n"
            "| name | module | what it does |\n|---|---|---|\n")
    write(out / "api.md", text + "\n".join(rows) + "\n")


def project(out):
    "What is written about the project beside the notebooks."
    files = ("CONTRIBUTING.md", "LOG.md", "CHANGELOG.md")
    for f in files: shutil.copy(ROOT / f, out)
    for folder in ("studies", "reference"): shutil.copytree(ROOT / folder, out / folder)
    links = "\n".join(f"- [{title(ROOT / f)}]({f})" for f in files)
    write(out / "project.md", f"# Project\n\n{links}\n" + toctree(*(f.removesuffix(".md") for f in files)))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    for part in (notebooks, story, studies, api, project): part(out)
