"""The pages of the site, for Sphinx to render: `make(folder)`, which make_docs.py calls.

The folder becomes a mirror of the repository, so that links among notebooks, reports and README hold as they stand.
A page is made again where what it is made of has changed, and written where its text has.
Notebooks go through nbdev's own page processors, but nothing is executed: outputs are the committed ones, and an API
entry is nbdev's `show_doc` of the package.

This folder lies beside the notebooks because it is about them. As its name begins with an underscore, nbdev's commands
and Quarto pass over it.
"""
import ast, inspect, json, os, re
from base64 import b64decode, b64encode
from dataclasses import fields
from functools import cache, partial
from importlib import import_module
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import nh3
import pandas as pd
from fastcore import docments
from fastcore.nbio import dict2nb, mk_cell, nb2str
from mdit_py_plugins.anchors.index import slugify
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor, Processor
from nbdev.processors import FilterDefaults, add_show_docs, hide_line, populate_language, strip_ansi
from nbdev.showdoc import BasicMarkdownRenderer, show_doc, showdoc_nm
from PIL import Image

from ablation_nb.config import (
    ARMS, FAMILIES, PARTS, TRAIN_FIELDS, AblationError, arm_family, arm_label, arm_order, flops_per_token, model_config,
    parameter_count, train_config)
from ablation_nb.layers import ATTENTION_LAYERS, FEED_FORWARD_LAYERS, NORM_LAYERS, POSITION_LAYERS
from ablation_nb.ledger import settings_kept
from ablation_nb.model import BLOCK_LAYERS
from ablation_nb.report import study_question
from ablation_nb.results import every_field, natural, read_json, read_rows, run_folders, who
from ablation_nb.tables import inert
from dark import dark_figure
from extension import arm_anchor, coloured
from make_docs import CODE, ROOT, digest

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


docments.get_source = cache(docments.get_source)  # of each entry it is asked for twice


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
        says = show_doc(named(module, name), BasicMarkdownRenderer, name)._repr_markdown_()
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
            words = words_of(cell)
            if words: cell.outputs = []
            if page.stem == "index" and cell.cell_type == "code": cell.metadata["tags"] = ["remove-input"]
            is_seen = "remove-input" not in cell.metadata.get("tags", []) or cell.outputs
            if is_seen: cells.append(cell)
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
        return [*nbdevs, entries_first, api_entry, hide_or_fold, settled, spoken, sized, linked]

    def nb_proc(self, nb): return NBProcessor(nb=nb, procs=self.base_procs(), rm_directives=True)


written = []  # what was asked to lie in the mirror, in turn


def keep(path, data):
    "A file of the mirror. One that has these bytes already keeps its time, and Sphinx passes over it."
    written.append(path)
    if path.exists() and path.read_bytes() == data: return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write(path, text): keep(path, text.encode("utf-8"))


def copy(file, out):
    "A file of the repository at its place in the mirror; a figure has a twin for the dark."
    place = out / file.relative_to(ROOT)
    keep(place, file.read_bytes())
    if file.suffix == ".svg": write(place.with_suffix(".dark.svg"), dark_figure(file.read_text(encoding="utf-8")))


def write_notebook(path, nb):
    "A notebook, whose cells are called by their places: names drawn by chance would make each one a new page."
    for i, cell in enumerate(nb["cells"]): cell["id"] = f"cell-{i}"
    nb["nbformat"], nb["nbformat_minor"] = 4, 5
    code = "\n".join(cell["source"] for cell in nb["cells"] if cell["cell_type"] == "code")
    if re.search(r"^[!%]", code, re.M): nb["metadata"]["language_info"] = dict(name="python", pygments_lexer="ipython3")
    write(path, nb2str(nb))


def page_of(nb, path):
    "A notebook as a page; `path` is where it lies in the repository, from where its links lead."
    nb = dict2nb(nb)
    nb.path_ = str(path)
    Page()(nb)
    return nb


def promise(notebook):
    "Title and first sentence of a notebook."
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    says = re.search(r"^> (.+)", first, re.M)
    return re.match(r"# (.+)", first)[1], says[1] if says else ""


def title(page): return page.read_text(encoding="utf-8", errors="replace").partition("\n")[0].removeprefix("# ")


def toctree(*entries): return "\n```{toctree}\n:hidden:\n:maxdepth: 1\n\n" + "\n".join(entries) + "\n```\n"


TAGS = {"div", "p", "pre", "span", "b", "i", "table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"border", "colspan", "rowspan", "class"}
SHOWN = ("text/plain", "text/html", "text/markdown", "image/png")  # what else an output may be is not looked at
NAMED = ("kernelspec", "language_info")  # of a notebook's metadata; others could tell Sphinx to execute it


def of_a_table(tag, name, value):
    "The attribute, if it may stay. A class can make math of text, but the one of a frame makes a table of it."
    return value if name != "class" or value == "dataframe" else None


def plain_html(html):
    "Tables and text of an output, without styles, scripts, links and whatever else a browser would act on."
    return nh3.clean("".join(html), tags=TAGS, attributes={"*": ATTRIBUTES}, attribute_filter=of_a_table)


def is_picture(data):
    "Is this base64 of a picture?"
    try: Image.open(BytesIO(b64decode("".join(data)))).verify()
    except (OSError, ValueError, SyntaxError): return False
    return True


def plain_output(o):
    "An output with the kinds of data that are words, tables or pictures."
    if "data" not in o: return o
    data = {kind: o["data"][kind] for kind in SHOWN if kind in o["data"]}
    if "image/png" in data and not is_picture(data["image/png"]): del data["image/png"]
    if "text/html" in data: data["text/html"] = plain_html(data["text/html"])
    if "text/markdown" in data: data["text/markdown"] = inert("".join(data["text/markdown"]))
    return dict(o, data=data, metadata={})


def plain_run(run):
    """The executed notebook of a run, of which nothing is trusted: whoever sent the folder wrote it.

    None if it is no notebook."""
    try: nb = json.loads(run.read_text(encoding="utf-8"))
    except ValueError: return None
    try: nbformat.validate(nb)
    except nbformat.ValidationError: return None
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


def settings_of(run):
    "The training of a run that its files say, with what was usual where they do not."
    try: return SimpleNamespace(**every_field(read_json(run / "config.json")))
    except (AblationError, OSError, LookupError, TypeError): return train_config()


def with_curve(nb, run):
    """Where an executed notebook of a run kept no picture, its curves are drawn again from `metrics.jsonl`.

    By the cell of `train.ipynb`: what a run's folder brings is read, not executed."""
    for cell in nb["cells"]:
        if "run.metrics" not in "".join(cell["source"]) or "outputs" not in cell: continue
        if any("image/png" in o.get("data", {}) for o in cell["outputs"]): continue
        rows = pd.DataFrame(read_rows(run / "metrics.jsonl"))
        if not {"train_loss", "val_loss", "grad_norm"} <= {*rows}: continue
        names = dict(plt=plt, run=SimpleNamespace(metrics=rows, cfg=SimpleNamespace(train=settings_of(run))))
        exec(curve(), names)
        png = BytesIO()
        names["fig"].savefig(png, dpi=150, bbox_inches="tight")   # as notebooks show it, with all of its labels
        picture = {"image/png": b64encode(png.getvalue()).decode()}
        cell["outputs"] = [dict(output_type="display_data", metadata={}, data=picture)]
    return nb


def shown_run():
    "The executed notebook of a baseline that stands below the cells of `train.ipynb`; None where no page shows one."
    runs = sorted(run for study in reported() for run in study.glob("baseline/*/run.ipynb"))
    return next((run for run in runs if plain_run(run)), None)


def executed_train():
    "`train.ipynb` with the outputs that its cells had in a committed run of the baseline."
    run = shown_run()
    nb = json.loads((ROOT / "nbs" / "train.ipynb").read_text(encoding="utf-8"))
    if run is None: return nb
    left = {c["id"]: c["outputs"] for c in plain_run(run)["cells"] if c["cell_type"] == "code"}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": cell["outputs"] = left.get(cell["id"], [])
    name, link = run.parent.relative_to(ROOT / "outputs").as_posix(), run.relative_to(ROOT).as_posix()
    says = f"What stands below the cells is what one run left: [{name}](../{link})."
    nb["cells"].insert(1, dict(mk_cell(says, "markdown"), metadata={}))
    return with_curve(nb, run.parent)


FRONT = toctree("Tour <nbs/tour>", "story", "outputs/index", "arms", "api", "project")


def as_drawing(text):
    "Pictures of `outputs/` by their drawings, which stay sharp and have a twin for the dark. GitHub shows dots."
    def drawing(m): return f"({m[1]}.svg)" if (ROOT / f"{m[1]}.svg").exists() else m[0]
    return re.sub(r"\((outputs/[^)\s]+)\.png\)", drawing, text)


def is_of_absent_study(to):
    "Does a link lead to a study that was taken away, or to another page of `outputs/`?"
    place = re.match(r"(?:\.\./)*outputs/([^/#]+)", to)
    return bool(place) and not (ROOT / "outputs" / place[1]).exists()


def notebook_page(out, f):
    """A notebook as a page; the first page is `index.ipynb`, with the links of a README.

    Whoever begins with a clone may take studies away: links to them are words."""
    page = out / "nbs" / f.name
    raw = executed_train() if f.stem == "train" else json.loads(f.read_text(encoding="utf-8"))
    nb = page_of(raw, f)
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = without_dead_links(cell.source, f, is_of_absent_study)
        for data in (o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})):
            data["text/markdown"] = without_dead_links("".join(data["text/markdown"]), f, is_of_absent_study)
    if f.stem == "index":
        page = out / "index.ipynb"
        for cell in nb.cells: cell.source = as_drawing(cell.source.replace("](../", "]("))
        nb.cells.append(mk_cell(FRONT, "markdown"))
    write_notebook(page, nb)


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


def label_in(study):
    "How the arms of a study are called on its pages: arm -> label. Those of somebody's notebook are none of ours."
    return str if of_own_notebook(study) else arm_label


def executed(out, study):
    "One executed notebook for each arm of a study, by label."
    label = label_in(study)
    first = {f.parent.parent.name: f for f in sorted(study.rglob("run.ipynb"), reverse=True)}
    for f in first.values(): run_page(out, study, f)
    return {label(arm): first[arm].relative_to(study).as_posix() for arm in arm_order(first)}


def what_was_left(cells):
    "Of an executed `train.ipynb`, whose code has a page of its own: what it was told, and what its cells left."
    kept = []
    for cell in cells[1:]:   # the first is its title
        tags = cell["metadata"]["tags"]
        if "parameters" in tags and kept: kept.pop()   # what may be changed there
        elif cell["cell_type"] == "markdown" or "injected-parameters" in tags: kept.append(cell)
        elif cell["outputs"]: kept.append(dict(cell, metadata={"tags": ["remove-input"]}))
    return kept


def run_page(out, study, f):
    "A run as a page: what it left, or the whole notebook where that is somebody's own."
    nb, run, up = plain_run(f), f.parent.relative_to(ROOT / "outputs").as_posix(), os.path.relpath(ROOT, f.parent)
    if nb is None:
        nb = dict(metadata={}, nbformat=4, nbformat_minor=5, cells=[])
        says = f"outputs/{run}/run.ipynb is no notebook and is not shown."
    elif of_own_notebook(study): says = f"{run}, as papermill left it."
    else:
        nb["cells"] = what_was_left(with_curve(nb, f.parent)["cells"])
        says = f"What {run} was told, and what it left. Its code: [train.ipynb]({up}/nbs/train.ipynb)."
    nb = page_of(nb, f)
    nb["metadata"]["orphan"] = True
    for cell in nb["cells"]: led_to_nbs(cell, up)
    whole = f"The whole study: [report]({os.path.relpath(study / 'report.md', f.parent)})."
    *above, arm, which = f.parent.relative_to(study).parts
    title = f"{label_in(study)(arm)}: one run of {', '.join([study.name, *above])} ({which})"
    head = inert(f"# {title}\n\n> {says} {whole}")
    nb["cells"].insert(0, dict(mk_cell(head, "markdown"), metadata={}))
    write_notebook(out / f.relative_to(ROOT), nb)


BROKEN = "**{0} is damaged**: {1}. `ablation report {2}` writes it anew."


def report_text(report):
    "A report's markdown; of one that is damaged, a page that says so."
    study = report.relative_to(ROOT / "outputs").parts[0]
    def instead(fault): return f"# {study}\n\n{BROKEN.format(report.relative_to(ROOT).as_posix(), fault, study)}\n"
    try: text = report.read_text(encoding="utf-8")
    except UnicodeDecodeError: return instead("it is no text in UTF-8")
    return text if text.startswith("# ") else instead("it does not begin with a title")


def without_dead_links(text, page, may_be_dead=lambda to: True):
    """The markdown of a page, where each link leads somewhere: of others the words stay.

    A picture that is not there is named. `page` is where the text lies in the repository.
    A link that may not be dead is left as it is, and the build fails if it leads nowhere."""
    places = {slugify(words) for words in re.findall(r"^#+ +(.+)", text, re.M)}
    def there(to): return to[1:] in places if to[0] == "#" else (page.parent / to.partition("#")[0]).exists()
    def keep(m):
        picture, words, to = m.groups()
        if re.match(r"\w+:", to) or not may_be_dead(to) or there(to): return m[0]
        missing = os.path.relpath(page.parent / to, ROOT)
        return f"*The picture {missing} is missing.*" if picture else words
    return re.sub(r"(!?)\[([^\[\]]*)\]\(([^)\s]+)\)", keep, text)


def report_page(out, report, runs, points):
    """A report as a page, with the tables behind it.

    Both are files by label: a run of each arm, to which it leads, and the points of a grid, which lie below it."""
    def listed(kind):
        files = sorted(report.parent.glob(f"tables/*.{kind}"))
        return "".join(f"- [{f.name}](tables/{f.name})\n" for f in files)
    text = without_dead_links(report_text(report), report)
    if listed("csv"): text += f"\n## Data\n\nThe numbers behind this page:\n\n{listed('csv')}\n"
    if listed("tex"): text += f"Its tables for LaTeX, with booktabs:\n\n{listed('tex')}\n"
    for says, files in (("A run of each arm", runs), ("The points of the grid", points)):
        links = ", ".join(f"[{name}]({f})" for name, f in files.items())
        if links: text += f"\n{says}: {links}.\n\n"
    text = inert(text)
    if points: text += toctree(*(f"{name} <{Path(f).with_suffix('').as_posix()}>" for name, f in points.items()))
    write(out / report.relative_to(ROOT), text)


def of_own_notebook(study):
    "Does a study run somebody's own notebook, and not train.ipynb?"
    return "notebook" in settings_kept(study)


def importance(study):
    "Where a study stands among the others: the true model first, then by name, those of other notebooks last."
    stem = study.name.partition("-")[0]
    return of_own_notebook(study), STUDIES.index(stem if stem in STUDIES else "any other"), study.name


def reported():
    "The folders of the studies that have a report, in the order of their weight."
    return sorted((f.parent for f in (ROOT / "outputs").glob("*/report.md")), key=importance)


def unreported():
    "The folders under outputs/ that have runs and no report."
    folders = sorted(f for f in (ROOT / "outputs").glob("*/") if not (f / "report.md").exists())
    return [f for f in folders if run_folders(f)]


def in_short(report):
    "What a study asks, what a reader must know before a verdict, and the first sentence of what it found."
    text, asked = report_text(report), study_question(report.parent.name)
    first = re.findall(r"^\*\*(?:This study is not complete|These models have hardly begun|outputs/).+", text, re.M)
    first_finding = re.findall(r"^## What was found\n\n- (.+)", text, re.M)
    says = "\n\n".join([f"*{asked}*"] * bool(asked) + first + first_finding)
    return inert(without_dead_links(says, report))


PICTURES = (".png", ".svg")
BESIDE = (*PICTURES, ".csv", ".tex")  # what a page links to


def study_page(out, report):
    "The page of a study, with its figures, its tables, a run of each arm and the points of its grid."
    study = report.parent
    for f in sorted(study.rglob("*")):
        if f.suffix in BESIDE: copy(f, out)
    pages = sorted(study.glob("*/report.md"), key=lambda f: natural(f.parent.name))
    for f in pages: report_page(out, f, {}, {})
    points = {f.parent.name: f.relative_to(study).as_posix() for f in pages}
    report_page(out, report, executed(out, study), points)


FACTS = ("Scale", "Notebook", "Runs", "Device")  # of a report's list of what was run


def began(study):
    "The day on which the first run of a study began, as its packed or loose runs say; empty if none does."
    days = []
    for run in run_folders(study):
        try: days.append(str(read_json(run / "env.json").get("started", ""))[:10])
        except AblationError: continue
    return min(filter(None, days), default="")


def facts_of(report):
    "A line on what was run: scale, runs, device, and the day on which it began."
    says = dict(re.findall(r"^- \*\*(\w+)\*\*: (.+)", report_text(report), re.M))
    day = began(report.parent)
    facts = [f"**{name}**: {says[name]}" for name in FACTS if name in says] + [f"**Begun**: {day}"] * bool(day)
    return inert(" · ".join(facts))


def entry_of(report):
    "A study among the studies: its name, its question, its finding, what was run, and its figure."
    study = report.parent
    figures = [f for f in ("ablation_comparison", "overview") if (study / f"{f}.svg").exists()]
    shown = "".join(f"[![{study.name}]({study.name}/{f}.svg)]({study.name}/report.md)\n\n" for f in figures)
    return f"## [{study.name}]({study.name}/report.md)\n\n{in_short(report)}\n\n{facts_of(report)}\n\n{shown}"


def entry_without_report(study):
    "A study that has runs and no report."
    asked = study_question(study.name)
    says = [f"*{asked}*"] * bool(asked) + [f"no report yet: `ablation report {study.name}`"]
    return inert(f"## {study.name}\n\n" + "\n\n".join(says)) + "\n\n"


def across_page(out, f):
    "A page across studies, such as the ledger."
    write(out / f.relative_to(ROOT), without_dead_links(f.read_text(encoding="utf-8"), f))


def studies(out):
    "One page that shows the studies one below the other, and the pages across them."
    reports = [study / "report.md" for study in reported()]
    across = sorted((ROOT / "outputs").glob("*.md"))
    for f in (ROOT / "outputs").glob("*.*"):
        if f.suffix in BESIDE: copy(f, out)
    for f in across: across_page(out, f)
    text = ("# Studies\n\nThe studies in the order of their weight, each with its question and its finding. "
            "Every figure and number on these pages comes from runs in the repository.\n\n")
    links = ", ".join(f"[{title(f)}]({f.name})" for f in across)
    if links: text += f"Across studies: {links}.\n\n"
    text += "".join(map(entry_of, reports)) + "".join(map(entry_without_report, unreported()))
    pages = [f.stem for f in across] + [f"{r.parent.name} <{r.parent.name}/report>" for r in reports]
    write(out / "outputs" / "index.md", text + toctree(*pages))


ARMS_SAY = """\
An arm is the baseline with one thing changed: a part of the model, or the recipe by which it is drawn and trained.
Its change is a few fields, its entry stands in [{where}](nbs/{notebook}), and arms combine with `+`: `nope+silu`
changes what both change. How to add one: [CONTRIBUTING.md](CONTRIBUTING.md).
Sizes are those of the 22.7M-parameter model."""
MADE_BY = dict(  # field -> the layers by name, and what chooses among them
    norm=(NORM_LAYERS, "make_norm"),
    placement=(BLOCK_LAYERS, "make_block"),
    position=(POSITION_LAYERS, "make_position"),
    attention=(ATTENTION_LAYERS, "make_attention"),
    ffn=(FEED_FORWARD_LAYERS, "make_feed_forward"),
    head=({}, "make_head"),
    init=({}, "drawn_parameter"),
    init_scale=({}, "drawn_parameter"),
)


def code_of(config, field):
    "The name in the package of what makes a part of a model: its own class, or what chooses among them."
    if field in TRAIN_FIELDS: return "lr_at" if FAMILIES.get(field) == "schedule" else "make_optimizers"
    layers, chooses = MADE_BY.get(field, ({}, "ModelConfig"))
    part = PARTS.get(field, {}).get(getattr(config, field))
    name = getattr(getattr(part, "layer", None) or layers.get(getattr(config, field)), "__name__", None)
    return name if name in lookup.syms else chooses


def arm_entry(arm, studied):
    "An arm among the arms: what it does, its fields beside the baseline's, its size, its code and its studies."
    model, plain, rows = model_config(arm.name), model_config(), []
    for mine, baseline in ((model, plain), (train_config("full", arm.name), train_config("full"))):
        for f in (f.name for f in fields(mine) if getattr(mine, f.name) != getattr(baseline, f.name)):
            code = lookup.linkify(f"`{code_of(mine, f)}`")
            rows.append(f"| `{f}` | {getattr(baseline, f)} | {getattr(mine, f)} | {code} |")
    names = " or ".join(f"`{name}`" for name in (arm.name, *arm.aliases))
    size, more = parameter_count(model), parameter_count(model) / parameter_count(plain) - 1
    says = f"{names}: {arm.says}." + f" {arm.source}." * bool(arm.source)
    text = f"({arm_anchor(arm.name)})=\n### {arm.label}\n\n{says}\n\n"
    if rows: text += "| field | baseline | here | made by |\n|:--|:--|:--|:--|\n" + "\n".join(rows) + "\n\n"
    text += f"Parameters: {size:,}" + (f" ({more:+.2%})" if more else "") + "; "
    text += f"FLOPs per token: {flops_per_token(model) / 1e6:,.1f}M.\n\n"
    links = ", ".join(f"[{s.name}](outputs/{s.name}/report.md)" for s in studied)
    return inert(text) + (f"Studies: {links}.\n\n" if links else "")


def arms_of(study):
    "The arms of a study's runs, those of composed arms among them."
    return {part for run in run_folders(study) for part in who(study, run)["arm"].split("+")}


def arms(out):
    "One section an arm, to which the tables of the site link."
    notebook = next(f for f, module in MODULES.items() if module == "config")
    text = f"# Arms\n\n{ARMS_SAY.format(where=Path(notebook).stem, notebook=notebook)}\n\n"
    used = {study: arms_of(study) for study in reported() if not of_own_notebook(study)}
    for family in dict.fromkeys(["none", *FAMILIES.values(), *map(arm_family, ARMS)]):
        members = [arm for arm in ARMS.values() if arm_family(arm.name) == family]
        if members: text += f"## {'Controls' if family == 'none' else family.capitalize()}\n\n"
        for arm in members: text += arm_entry(arm, [study for study, names in used.items() if arm.name in names])
    write(out / "arms.md", text)


def api_row(notebook, module, name):
    "A name of a module with the first line of its documentation, as the row of a table."
    doc = (inspect.getdoc(named(module, name)) or "").partition("\n")[0].replace("|", "\\|")
    return f"| [`{name}`](#{label(module, name)}) | [{module}](nbs/{notebook}) | {doc} |"


def coloured_lines(code):
    "The lines of a module as HTML. Its cells are coloured as they are on the page of their notebook, and with these."
    for piece in re.split(r"(?m)^(# %% .+\n)", code):
        text = piece.rstrip("\n")
        if text: yield from re.search(r"<pre>(.*)\n</pre>", coloured(text), re.S)[1].split("\n")
        yield from [""] * (len(piece) - len(text) - 1)


def source_page(out, notebook, module):
    "The highlighted source of a module, each line with its anchor."
    lines = coloured_lines((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    html = "\n".join(f'<a id="L-{i}"></a>{line}' for i, line in enumerate(lines, 1))
    html = f'<div class="highlight"><pre>{html}\n</pre></div>'
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


def lone_notebook(out, f):
    "A notebook that links lead to, and no list of pages."
    nb = page_of(json.loads(f.read_text(encoding="utf-8")), f)
    nb["metadata"]["orphan"] = True
    write_notebook(out / f.relative_to(ROOT), nb)


def project(out):
    "What is written about the project beside the notebooks."
    files = ("CONTRIBUTING.md", "LOG.md", "CHANGELOG.md")
    for f in files: copy(ROOT / f, out)
    for folder in ("studies", "reference"):
        for f in sorted((ROOT / folder).rglob("*.*")):
            if f.suffix == ".ipynb": lone_notebook(out, f)
            else: copy(f, out)
    links = "\n".join(f"- [{title(ROOT / f)}]({f})" for f in files)
    write(out / "project.md", f"# Project\n\n{links}\n" + toctree(*(f.removesuffix(".md") for f in files)))


def parts(out):
    "The mirror in parts: (name, what it is made of, how it is made)."
    asked = sorted((ROOT / "studies").glob("*.toml"))
    shown, train = shown_run(), ROOT / "nbs" / "train.ipynb"
    for f in NOTEBOOKS:
        sources = [f, shown.parents[2]] if f == train and shown else [f]
        yield f.name, sources, partial(notebook_page, out, f)
    for study in reported():
        yield study.name, [study, train, *asked], partial(study_page, out, study / "report.md")
    for make_part in (story, studies, arms, api, project): yield make_part.__name__, None, partial(make_part, out)


def make(out, record):
    """The mirror in the folder `out`: parts whose sources have changed are made again, and what vanished goes.

    `record` is the file that remembers what each part was made of, and which files it left."""
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    there = sorted(f.name for f in (ROOT / "outputs").glob("*"))  # links to what is not there are words
    now, common = {}, digest(CODE) + str([s.name for s in reported()]) + str(there)
    for name, sources, make_part in parts(out):
        made = before.get(name)
        key = sources and digest(sources) + common
        if not made or not key or made["key"] != key:
            written.clear()
            make_part()
            made = dict(key=key, files=sorted({f.relative_to(out).as_posix() for f in written}))
        now[name] = made
    lying = {f for made in now.values() for f in made["files"]}
    for f in out.rglob("*"):
        if f.is_file() and f.relative_to(out).as_posix() not in lying: f.unlink()
    record.write_text(json.dumps(now), encoding="utf-8")
