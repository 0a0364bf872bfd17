"The rendered site: built as `make docs` builds it, read as a machine reads it, and looked at in a browser."
import configparser
import functools
import gc
import json
import os
import re
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from browser import browser  # noqa: F401  a fixture
from bs4 import BeautifulSoup
from chapter import ARM, COMMANDS, REPORT, STUDY, STUDY_FILE
from conftest import ROOT, succeeded

NOTEBOOK_STUDIES = ("digits", "gpt", "mlp")
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MADE = (".git", ".venv", ".cache", "build", "_docs", "_proc", "out", "*.pt",
        "__pycache__", ".pytest_cache", ".ipynb_checkpoints")


@pytest.fixture(scope="module")
def copy(tmp_path_factory, sh):
    """What is committed, without anything that a build could have left, and an own arm with its study.
    That is made by the commands of README; only the environment is there already."""
    there = tmp_path_factory.mktemp("site") / "project"
    shutil.copytree(ROOT, there, ignore=shutil.ignore_patterns(*MADE))
    (there / "arms.py").write_text(ARM)
    (there / STUDY_FILE).write_text(STUDY)
    source, *commands, site = COMMANDS
    assert source == ["source", ".venv/bin/activate"]
    assert [c[0] for c in commands] == ["ablation", "ablation"]
    assert site == ["make", "docs"]
    for c in commands: succeeded(sh(*c, cwd=there, ABLATION_CORPUS=""))
    plant_damage(there / "outputs")
    return there


def plant_damage(outputs):
    "What a person may find under outputs/ besides whole studies."
    whole = outputs / "laptop-tinystories"
    (outputs / "notes").mkdir()
    (outputs / "notes" / "todo.txt").write_text("no study")
    for name in ("unreported", "cut", "bytes"): (outputs / name).mkdir()
    for name in ("runs.zip", "study.json"): shutil.copy(whole / name, outputs / "unreported")
    shutil.copytree(whole / "baseline", outputs / "unreported" / "baseline")
    text = (whole / "report.md").read_text()
    (outputs / "cut" / "report.md").write_text(text[:text.index("| Post-norm")])  # its figure is left out
    (outputs / "cut" / "nope" / "0.01-s0").mkdir(parents=True)
    (outputs / "cut" / "nope" / "0.01-s0" / "run.ipynb").write_text('{"cells": [')
    shutil.copy(whole / "positions.png", outputs / "bytes" / "report.md")


def made_by_studies(root):
    "Every file that a run or a report leaves, with the time of its writing."
    files = [p for folder in ("out", "outputs", ".cache", "nbs") for p in (root / folder).rglob("*") if p.is_file()]
    return {p: p.stat().st_mtime_ns for p in files}


@pytest.fixture(scope="module")
def before(copy):
    "What lies there before the site is built."
    return made_by_studies(copy)


@pytest.fixture(scope="module")
def site(copy, before, sh):
    "The site that `make docs` builds there, with every way to the network closed."
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    succeeded(sh("make", "docs", "--old-file=dev", f"BIN={Path(sys.executable).parent}", cwd=copy, **closed))
    return copy / "_docs"


@pytest.fixture(scope="module")
def pages(site):
    "Each page of the site, parsed."
    files = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]
    gc.disable()   # it would look through all pages again and again
    parsed = {p.relative_to(site).as_posix(): BeautifulSoup(without_colours(p), "html.parser") for p in files}
    gc.freeze()
    gc.enable()
    return parsed


def without_colours(page):
    "The text of a page without the elements that colour words of code, which are two thirds of all."
    def plain(code):
        assert not re.search(r"<span[^>]* (id|href)=", code[0]), page
        return re.sub(r"</?span[^>]*>", "", code[0])
    return re.sub(r"<pre\b.*?</pre>", plain, page.read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture(scope="module")
def places(pages):
    "Each page with its elements that a link can lead to, by name."
    return {name: {e["id"]: e for e in soup.select("[id]")} for name, soup in pages.items()}


def test_nothing_was_trained_or_executed(copy, before, site):
    assert made_by_studies(copy) == before
    for n in NOTEBOOKS: assert (copy / "nbs" / n.name).read_bytes() == n.read_bytes()


def test_every_notebook_and_every_report_is_a_page(pages):
    notebooks = {f"nbs/{n.stem}.html" for n in NOTEBOOKS if n.stem != "index"}
    assert not {"index.html", *notebooks} - pages.keys()
    reports = {f"{r.parent.relative_to(ROOT).as_posix()}/report.html" for r in (ROOT / "outputs").glob("*/report.md")}
    assert reports
    assert not reports - pages.keys()
    for report in reports:
        assert pages[report].select("article img")
        least = 2 if report.split("/")[1] in NOTEBOOK_STUDIES else 3
        assert len(pages[report].select("article table")) >= least, report
        assert pages[report].select("a.download[href$='.csv']")


def test_a_page_of_ours_has_one_title(pages):
    ours = [name for name in pages if not name.endswith("/run.html") and not name.startswith("studies/strangers/")]
    assert ours
    assert not [name for name in ours if len(pages[name].select("h1")) != 1]


def test_studies_are_listed_by_weight_with_question_finding_and_what_was_run(pages):
    article = pages["outputs/index.html"].select_one("article")
    names = [h.get_text().rstrip("#") for h in article.select("h2")]
    assert names[0] == "true_model-tinystories"
    committed = [r.parent.name for r in (ROOT / "outputs").glob("*/report.md")]
    assert not set(committed) - set(names)
    for name in committed:
        section = article.select("h2")[names.index(name)].find_parent("section")
        says = section.get_text()
        assert section.select_one("p em").get_text().endswith("?"), name
        what = "Notebook: " if name in NOTEBOOK_STUDIES else "Scale: "
        for fact in (what, "Runs: ", "Device: ", "Begun: 20"): assert fact in says, (name, fact)
        assert section.select("a[href$='report.html'] img"), name


def test_a_study_without_a_report_or_with_a_damaged_one_is_a_sentence(pages):
    words = pages["outputs/index.html"].select_one("article").get_text()
    assert "no report yet: ablation report unreported" in words
    assert "notes" not in [h.get_text() for h in pages["outputs/index.html"].select("h2")]
    assert "outputs/unreported/report.html" not in pages
    assert "The picture outputs/cut/ablation_comparison.svg is missing." in pages["outputs/cut/report.html"].get_text()
    assert "outputs/bytes/report.md is damaged" in pages["outputs/bytes/report.html"].get_text()
    assert "outputs/bytes/report.md is damaged" in words
    assert "is no notebook" in pages["outputs/cut/nope/0.01-s0/run.html"].get_text()


def test_every_arm_in_a_table_leads_to_its_definition(pages):
    from ablation_nb.config import ARMS
    places = {e["id"] for e in pages["arms.html"].select("[id]")}
    labels = {*(a.label for a in ARMS.values()), "Slow RoPE"}
    bare, linked = [], 0
    for name, soup in pages.items():
        if name == "arms.html": continue
        for cell in soup.select("article tbody td, article tbody th"):
            is_arm = set(cell.get_text().strip().split(" + ")) <= labels
            if not is_arm or cell.select("a.reference"): continue  # an entry of the API is one of its own
            links = cell.select("a.arm")
            linked += len(links)
            if " + ".join(a.get_text() for a in links) != cell.get_text().strip(): bare.append(f"{name}: {cell}")
            for a in links: assert urlsplit(a["href"]).fragment in places, a
    assert linked > 1000
    assert not bare, "\n".join(bare[:20])
    tour = pages["nbs/tour.html"].select("article tbody td a.arm")
    assert {"baseline", "no_norm", "aa"} <= {a.get_text() for a in tour}, "names in a column of arms"
    for arm in ARMS.values():
        section = pages["arms.html"].find("section", id=f"arm-{arm.name.replace('_', '-')}")
        assert arm.says in section.get_text().replace("’", "'")
        assert not arm.change or section.select("tbody a.reference"), "its code"


def figures_of(soup):
    "The pictures of a page that are no links to other pages."
    return [i for i in soup.select("article img") if "figure" in (i.find_parent("a") or {}).get("class", [])]


def test_arms_of_another_notebook_lead_to_none_of_ours(pages):
    "Whatever they are called: its `no_norm` is its own, and leads to where it was run."
    report = pages["outputs/gpt/report.html"]
    assert not report.select("a.arm")
    links = {a.get_text(): a["href"] for a in report.select("td a.its-arm")}
    assert links == {arm: f"{arm}/s0/run.html" for arm in ("gpt", "no_norm", "no_positions", "relu")}
    bare = [td for td in report.select("td") if td.get_text(strip=True) in links and not td.a]
    assert not bare, bare
    run = pages["outputs/gpt/no_norm/s0/run.html"]
    assert run.h1.get_text().startswith("no_norm: one run")
    assert "nn.LayerNorm(n_embd)" in run.get_text(), "its own first cell"
    assert not [a for a in pages["arms.html"].select("a") if "outputs/gpt/" in a.get("href", "")]


def test_a_touch_on_a_figure_opens_its_file_and_drawings_have_twins_for_the_dark(site, pages):
    drawn = 0
    for name, soup in pages.items():
        images = soup.select("article img")
        for image in images:
            link = image.find_parent("a")
            assert link, f"{name}: {image}"
            if "figure" in link["class"]: assert link["href"] == image["src"]
        drawings = [i for i in images if i["src"].endswith(".svg")]
        light = [i for i in drawings if "only-light" in i.get("class", [])]
        dark = [i["src"] for i in images if "only-dark" in i.get("class", [])]
        assert len(drawings) == len(light) + len(dark)
        assert len(light) == len(dark)
        drawn += len(dark)
    assert drawn > 100
    assert figures_of(pages["index.html"])
    assert figures_of(pages["nbs/tour.html"])


def test_inks_stand_out_from_the_dark_as_from_paper(site, monkeypatch):
    from ablation_nb.figures import ARM_COLOURS, arm_colour, ink
    monkeypatch.syspath_prepend(ROOT / "nbs" / "_sphinx")
    from dark import GROUND, contrast, dark
    drawings = "".join(f.read_text() for f in (ROOT / "outputs").rglob("*.svg"))
    inks = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawings))
    assert len(inks) > 10
    for colour in inks:
        by_day, by_night = contrast(colour, "#ffffff"), contrast(dark(colour), GROUND)
        assert abs(by_night - min(by_day, 14.4)) < .1, colour
    for colour in [*ARM_COLOURS.values(), *(arm_colour(f"own_{i}") for i in range(40))]:
        assert contrast(dark(colour), GROUND) >= 3, colour
        assert contrast(dark(ink(colour)), GROUND) >= 4.5, colour
    twins = list(site.glob("_images/*.dark*.svg"))
    assert len(twins) > 30
    for twin in twins:
        svg = twin.read_text()
        assert "#ffffff" not in svg
        assert "#000000" not in svg
        assert f"svg{{fill: {dark('#000000')}}}" in svg, "letters, which are black by default"


def test_notebooks_that_are_run_with_parameters_show_or_name_a_run(pages):
    article = pages["nbs/train.html"].select_one("article")
    assert article.select("div.cell_output img")
    assert article.select("div.cell_output table")
    assert "folder:" in article.get_text()
    for name, example in dict(train="/run.html", analysis="/report.html", benchmark="31_bench.html").items():
        section = pages[f"nbs/{name}.html"].select_one("article section")
        before = section.select_one("div.cell").find_all_previous("a")
        assert any(example in a.get("href", "") for a in before if a.find_parent("article")), name


def test_a_run_shows_what_it_was_told_and_what_it_left(pages):
    "The code is one for all runs of a study, and stands on the page of `train.ipynb`."
    from ablation_nb.config import ARMS
    assert len(pages["nbs/train.html"].select("div.cell_input pre")) > 8
    runs = [name for name in pages if re.fullmatch(r"outputs/(laptop|atlas)-tinystories/.+/run\.html", name)]
    assert len(runs) > 40
    for name in runs:
        (told,) = pages[name].select("article div.cell_input pre")
        arm = re.search(r'^ablation = "(.+)"$', told.get_text(), re.M)[1]
        assert arm == name.split("/")[2]
        assert pages[name].h1.get_text().startswith(f"{ARMS[arm].label}: one run")
        article = pages[name].select_one("article")
        assert article.select("div.cell_output img"), name
        for words in ("paired", "final_val_loss", f"The run's folder: {Path(name).parent}"):
            assert words in article.get_text(), name
        assert {"train.ipynb", "report"} <= {a.get_text() for a in article.select("blockquote a")}, name


def test_every_run_of_ours_shows_its_curves(site, pages):
    from PIL import Image
    training = {name: h.find_parent("section") for name, soup in pages.items() if name.endswith("/run.html")
                for h in soup.select("h2") if h.get_text().startswith("Training")}
    assert len(training) > 150
    drawn = {name: [(site / name).parent / i["src"] for i in section.select("div.cell_output img")]
             for name, section in training.items()}
    assert [name for name, images in drawn.items() if not images] == []
    empty = [file.name for file in {f for images in drawn.values() for f in images}
             if Image.open(file).convert("L").getextrema()[0] > 200]
    assert empty == []


TABLE = """\
# Tables

| arm | `a  b` | :) |
|:--|--:|:-:|
| Pre-norm's \\| twin | `x < "y" & 'z'` | 1 < 2 & 3 @ 4 |
| [here](#tables), **bold** and *slanted* | "quoted" -- so... | $\\alpha$ `code` |
| | [`code`](#tables) | a `b` c |

|  | head |
|---|---|
| <b>raw</b> \\* https://example.org | `\\|` ![none](x.png) &amp; |

| alone |
|---|
"""
LOOK = """
import sys
sys.path.insert(0, "nbs/_sphinx")
html_theme = "pydata_sphinx_theme"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 1
"""


def test_tables_are_drawn_as_sphinx_draws_them(tmp_path, sh):
    (tmp_path / "index.md").write_text(TABLE)
    tables, words = [], []
    for extensions in (["myst_nb"], ["myst_nb", "extension"]):
        (tmp_path / "conf.py").write_text(f"{LOOK}extensions = {extensions}\n")
        out = tmp_path / f"site-{len(extensions)}"
        sh("python", "-m", "sphinx", "-q", "-E", tmp_path, out)   # the picture is missing, and said to be
        page = (out / "index.html").read_text()
        tables.append(re.findall(r'<div class="pst-scrollable-table-container">.*?</div>', page, re.S))
        index = (out / "searchindex.js").read_text()
        words.append(json.loads(index[index.index("(") + 1:index.rindex(")")])["terms"])
    theirs, ours = tables
    assert len(theirs) == 3
    assert "math" in "".join(theirs)
    assert ours == theirs
    assert words[1] == words[0]


def test_code_is_coloured_as_pygments_colours_it(monkeypatch):
    from pygments.lexers import PythonLexer
    monkeypatch.syspath_prepend(ROOT / "nbs" / "_sphinx")
    from extension import QuickPython
    odd = 'x.match(1)\nmatch y:\n    case _: z.__init__.y\n  """doc"""\n@a.b\ndef f(a=f"{b.c!r:>{w}}"): (a := 2); ...\n'
    for code in (odd, *(f.read_text(encoding="utf-8") for f in (ROOT / "ablation_nb").glob("[a-f]*.py"))):
        quick, plain = (list(lexer(stripnl=False).get_tokens(code)) for lexer in (QuickPython, PythonLexer))
        assert quick == plain


LINKS = (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href"), ("source", "src"))


def link_fault(tag, link, page, site, ids):
    "What is wrong with a link of a page; None if nothing is. `ids` has the places of each page."
    url = urlsplit(link)
    if url.scheme or url.netloc: return None if tag == "a" or url.scheme == "data" else "is fetched from elsewhere"
    target = Path(os.path.normpath((site / page).parent / unquote(url.path))) if url.path else site / page
    if target.is_dir(): target /= "index.html"
    if not target.exists(): return "does not exist"
    places = ids.get(target.relative_to(site).as_posix())
    if tag == "a" and url.fragment and places is not None and unquote(url.fragment) not in places:
        return "has no such place"
    return None


def test_every_link_leads_somewhere_and_every_file_is_in_the_site(site, pages, places):
    attributes, faults = dict(LINKS), []
    for page, soup in pages.items():
        for e in soup.find_all([*attributes]):
            link = e.get(attributes[e.name])
            fault = None if link is None else link_fault(e.name, link, page, site, places)
            if fault: faults.append(f"{page}: {link} {fault}")
    assert not faults, "\n".join(faults)


def test_links_of_a_notebook_to_a_study_that_was_taken_away_are_words(sh):
    "Whoever begins with a clone may keep the studies of others, or not. No other dead link is hidden."
    here = "[a](../outputs/laptop-tinystories/report.md), [b](../outputs/laptop-tinystories/none.md), [c](../none.md)"
    page = "[d](../outputs/ledger.md#no-such-place)"
    gone = "[e](../outputs/gone/report.md#all), ![f](../outputs/gone/f.png), [g](../outputs/gone.md)"
    code = ("import sys; sys.path.insert(0, 'nbs/_sphinx')\n"
            "from pages import NOTEBOOKS, is_of_absent_study, without_dead_links\n"
            f"print(without_dead_links({f'{here}, {page}; {gone}'!r}, NOTEBOOKS[0], is_of_absent_study))")
    words = "e, *The picture outputs/gone/f.png is missing.*, g"
    assert succeeded(sh("python", "-c", code)).stdout == f"{here}, {page}; {words}\n"


def test_the_story_can_be_read_from_page_to_page(pages):
    "The links to the next page go through the numbered notebooks in order, and the links back lead back."
    page, walked = "index.html", []
    while page and page not in walked:
        walked.append(page)
        link = pages[page].select_one("a.right-next")
        following = link and os.path.normpath(os.path.join(os.path.dirname(page), unquote(link["href"])))
        if following:
            back = pages[following].select_one("a.left-prev")
            assert os.path.normpath(os.path.join(os.path.dirname(following), unquote(back["href"]))) == page
        page = following
    numbered = [f"nbs/{n.stem}.html" for n in NOTEBOOKS if n.stem[0].isdigit()]
    start = walked.index(numbered[0])
    assert walked[start:start + len(numbered)] == numbered


def name_at(places, href):
    "The module and the name of an entry of the API's index, as the link to its source says."
    page, _, anchor = href.partition("#")
    entry = places[page][anchor]
    section = entry if entry.name == "section" else entry.find_parent("section")
    module, line = re.search(r"source/(\w+)\.html#L-(\d+)$", section.select_one("a.source")["href"]).groups()
    lines = (ROOT / "ablation_nb" / f"{module}.py").read_text(encoding="utf-8").splitlines()
    around = "\n".join(lines[int(line) - 1:int(line) + 2])
    return module, re.search(r"\b(?:def|class) (\w+)\b", around)[1]


def test_every_exported_name_has_an_entry_with_its_source(site, pages, places):
    """Two modules may use the same name: each has an entry of its own.
    What is exported for use within the package has none."""
    from ablation_nb._modidx import d
    listed = [r["href"] for r in pages["api.html"].select("tbody tr td:first-child a.reference")]
    entries = {name_at(places, href) for href in listed}
    defined = {tuple(n.split(".")[1:]) for names in d["syms"].values() for n in names if n.count(".") == 2}
    doors = {(m, name) for m, name in defined if name in import_module(f"ablation_nb.{m}").__all__}
    assert len(listed) > 100
    assert not doors - entries
    assert not (defined - doors) & entries, "a name that is no door has an entry"


def test_the_page_of_a_module_has_each_of_its_lines_by_number(pages):
    for f in sorted((ROOT / "ablation_nb").glob("[a-z]*.py")):
        code = pages[f"source/{f.stem}.html"].select_one("article .highlight pre")
        lines = [a.next_sibling or "" for a in code.select("a")]
        assert [a["id"] for a in code.select("a")] == [f"L-{i}" for i in range(1, len(lines) + 1)]
        assert code.get_text() == f.read_text(encoding="utf-8"), f.name
        assert all(str(line).count("\n") == 1 for line in lines), f.name


def test_pages_of_code_show_what_nbdev_says_and_the_source(pages):
    page = pages["nbs/03_layers.html"]
    entry = next(h for h in page.select("h3") if h.get_text().startswith("RMSNorm")).find_parent("section")
    assert "Root-mean-square normalisation" in entry.get_text()
    assert "def RMSNorm(" in entry.get_text()
    cells = page.select("div.cell_input, details.hide")
    cells = [c for c in cells if re.search(r"^(?:class|def) ", c.get_text(), re.M)]
    folded = [c for c in cells if c.name == "details" or c.find_parent("details")]
    open_ones = [c for c in cells if c not in folded]
    assert any("class RMSNorm(nn.Module)" in c.get_text() for c in open_ones), "a short cell is folded"
    assert all(len(c.find("pre").get_text().strip().splitlines()) > 20 for c in folded)
    for name, soup in pages.items():
        code = [p.get_text() for p in soup.select("div.cell pre")]
        assert not [c for c in code if re.search(r"^#\|", c, re.M)], f"{name}: a directive is left"


@pytest.fixture(scope="module")
def look(browser, site):  # noqa: F811
    "Open a page: `look('index.html', width=390, dark=True)`; what went wrong on the way lies in `.faults`."
    contexts = []

    def open_page(name, width=1280, dark=False):
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.faults = []

        def on_console(m):
            if m.type in ("error", "warning"): page.faults.append(m.text)

        def on_request(r):
            if not r.url.startswith(("file:", "data:", "blob:")): page.faults.append(f"{r.url} is asked for")
        page.on("console", on_console)
        page.on("request", on_request)
        page.on("pageerror", lambda e: page.faults.append(str(e)))
        page.on("requestfailed", lambda r: page.faults.append(f"{r.url} failed"))
        page.goto(f"{site.as_uri()}/{name}")
        return page
    yield open_page
    for context in contexts: context.close()


LOADED = """async () => {
  await window.MathJax?.startup.promise;
  for (const i of document.images) { i.loading = 'eager'; await i.decode().catch(() => 0); }
}"""

LOOKS = """() => ({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src),
  bad_maths: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent),
  raw_maths: [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container'))
    .map(e => e.textContent),
})"""


TABLES = """() => [...document.querySelectorAll('article table')].flatMap(table => {
  const cell = [...table.rows].at(-1)?.cells;
  let box = table.parentElement;
  while (box && !/auto|scroll/.test(getComputedStyle(box).overflowX)) box = box.parentElement;
  if (!cell?.length || !table.offsetParent) return [];
  const before = cell[cell.length - 1].getBoundingClientRect().right;
  const goes_on = box && before > box.getBoundingClientRect().right + 2;
  const says_so = box?.classList.contains('wide') && box.classList.contains('more') && box.tabIndex === 0;
  if (box) box.scrollLeft = box.scrollWidth;
  const edge = Math.min(innerWidth, box ? box.getBoundingClientRect().right : innerWidth);
  const beyond = cell[cell.length - 1].getBoundingClientRect().right - edge;
  if (box) box.scrollLeft = 0;
  const what = table.textContent.trim().slice(0, 40);
  return [...(goes_on && !says_so ? [`${what}: nothing says that it goes on`] : []),
          ...(beyond > 2 ? [`${what}: its last column is ${beyond} px beyond the edge`] : [])];
})"""


def faults_on_a_phone(page, name):
    page.set_viewport_size(dict(width=390, height=900))
    page.emulate_media(color_scheme="dark")
    page.evaluate(DRAWN_ANEW)
    faults = [f"{name}: {what} {value}" for what, value in page.evaluate(LOOKS).items() if value]
    ground, text = (page.evaluate(f"getComputedStyle(document.body).{c}") for c in ("backgroundColor", "color"))
    is_dark = brightness(ground) < 0.05 < 0.4 < brightness(text)
    if not is_dark: faults.append(f"{name}: {text} on {ground} in the dark")
    faults += [f"{name}: {image} is drawn for paper" for image in page.evaluate(ON_PAPER)]
    return faults + [f"{name}: {f}" for f in page.evaluate(TABLES)]


def faults_on_a_desk(page, name):
    page.set_viewport_size(dict(width=1280, height=900))
    page.emulate_media(color_scheme="light")
    page.evaluate(DRAWN_ANEW)
    faults = [f"{name}: {wide} px too wide" for wide in [page.evaluate(TOO_WIDE)] if wide]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if brightness(ground) <= 0.9: faults.append(f"{name} is not light")
    if page.evaluate(CUT_CODE): faults.append(f"{name}: code is cut off")
    faults += [f"{name}: {f}" for f in page.evaluate(TABLES)]
    return faults


def of_each_kind(pages):
    """The names of the pages, of those made alike only the one with the widest code: of the runs of a study, and of the
    sources of modules. With SCREENS=1 every page."""
    if os.environ.get("SCREENS"): return [*pages]

    def kind(name):
        alike = re.fullmatch(r"(outputs/[^/]+)/.+/run\.html|(source)/\w+\.html", name)
        return alike.groups() if alike else name

    def width(name):
        code = "\n".join(pre.get_text() for pre in pages[name].select("pre"))
        return max(map(len, code.splitlines()), default=0)
    widest = {}
    for name in pages: widest[kind(name)] = max(name, widest.get(kind(name), name), key=width)
    return [name for name in pages if name in widest.values()]


def test_a_walk_sees_each_kind_of_page(pages, monkeypatch):
    monkeypatch.delenv("SCREENS", raising=False)
    seen = {*of_each_kind(pages)}
    for study in (ROOT / "outputs").glob("*/study.json"):
        of_study = {name for name in pages if name.startswith(f"outputs/{study.parent.name}/")}
        assert len(of_study & seen) == len({name for name in of_study if not name.endswith("/run.html")}) + 1, study
    assert len([name for name in seen if name.startswith("source/")]) == 1
    assert not {name for name in pages if name.startswith(("nbs/", "studies/")) or "/" not in name} - seen


@pytest.fixture(scope="module")
def walk(look, pages):
    """Pages of each kind, on a phone in the dark and on a desk in the light: what is wrong there.
    The next page opens where the last was looked at, every second one on a desk: else it would be laid out once more.

    On the desk too: how far the verdict of each report lies beyond the edge of its table."""
    page = look("index.html", width=390, dark=True)
    page.add_init_script(UNPAINTED)
    root = page.url.rpartition("_docs/")[0] + "_docs/"
    found, verdicts = {faults_on_a_phone: [], faults_on_a_desk: []}, []
    order = [*found]
    for name in of_each_kind(pages):
        page.goto(root + name)
        page.evaluate(LOADED)
        for faults in order:
            found[faults] += faults(page, name) + [f"{name}: {f}" for f in page.faults]
            page.faults.clear()
            on_a_desk = faults is faults_on_a_desk
            if on_a_desk and name.endswith("/report.html"):
                verdicts += [(name, beyond) for beyond in page.evaluate(BEYOND_THE_EDGE)]
        order.reverse()
    return *found.values(), verdicts


# What is asked of the pages is in their layout and styles; to paint them takes a quarter of the time.
UNPAINTED = """new MutationObserver((_, seen) => {
  if (!document.documentElement) return;
  document.documentElement.style.visibility = 'hidden';
  seen.disconnect();
}).observe(document, {childList: true, subtree: true})"""
DRAWN_ANEW = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ON_PAPER = """() => [...document.querySelectorAll('article img')].filter(i => i.offsetParent)
  .filter(i => getComputedStyle(i).filter === 'none' && !i.classList.contains('only-dark')).map(i => i.src)"""


def test_every_page_on_a_phone_and_in_the_dark(walk):
    """No page is wider than a phone, lacks a picture, shows a formula raw, or complains.
    Each is dark where that is asked for, its figures too, and each table can be pushed to its last column."""
    assert not walk[0], "\n".join(walk[0])


def brightness(colour):
    "Relative luminance of a CSS colour rgb(r, g, b)."
    def linear(c): return c / 12.92 if c <= .04045 else ((c + .055) / 1.055)**2.4
    rgb = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    return sum(w * linear(c) for w, c in zip((.2126, .7152, .0722), rgb, strict=True))


COLOURS = """() => {
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(c)) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const says = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const words = 'article :is(p, li, :is(pre, code), :is(pre, code) span, td, th, th button, a)';
  const visible = [...document.querySelectorAll(words)].filter(e => says(e) && e.offsetParent !== null);
  const look = e => [getComputedStyle(e).color, ground(e), e.localName + '.' + e.className].join('|');
  return [...new Set(visible.map(look))];
}"""


def first_report(site): return next(p.relative_to(site).as_posix() for p in sorted(site.glob("outputs/*/report.html")))


@pytest.mark.parametrize("dark", [False, True])
def test_text_code_and_tables_stand_out_from_their_ground(look, site, dark):
    "WCAG asks for a contrast of 4.5."
    page, faults, looked_at = look("index.html", dark=dark), set(), set()
    for name in ("index.html", "nbs/03_layers.html", "nbs/tour.html", "outputs/ledger.html", first_report(site)):
        page.goto(f"{site.as_uri()}/{name}")
        for words in page.evaluate(COLOURS):
            text, ground, what = words.split("|")
            looked_at.add(what.partition(".")[0])
            light, dim = sorted((brightness(text), brightness(ground)), reverse=True)
            ratio = (light + .05) / (dim + .05)
            if ratio < 4.5: faults.add(f"{name}: {what} {text} on {ground}: {ratio:.2f}")
    assert not {"p", "td", "button", "span", "a"} - looked_at
    assert not faults, "\n".join(sorted(faults))


CUT_CODE = "[...document.querySelectorAll('article .highlight pre')].some(e => e.scrollWidth > e.clientWidth + 1)"
BEYOND_THE_EDGE = """
  [...document.querySelectorAll('article th')].filter(e => e.textContent.trim() === 'verdict').map(e =>
    e.getBoundingClientRect().right - e.closest('.pst-scrollable-table-container').getBoundingClientRect().right)
"""


def test_every_page_on_a_desk_in_the_light(walk):
    """No page is wider than the window, nor is code, and each table can be pushed to its last column.
    The verdict of a report is seen without that."""
    _, desk, verdicts = walk
    assert verdicts
    beyond = [f"{name}: the verdict is {b:.0f} px beyond the edge" for name, b in verdicts if b > 0]
    assert not desk + beyond, "\n".join(desk + beyond)


UNWRAPPED = """() => [...document.querySelectorAll('article .cell_input pre')].map(e => {
  e.style.whiteSpace = 'pre';
  return e.scrollWidth - e.clientWidth;
}).filter(beyond => beyond > 1)"""


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dark", [False, True])
def test_no_figure_is_loaded_that_nobody_sees(look, site, dark, first):
    """Neither its twin for the other ground, nor those that are far below: the list of studies has two dozen.
    That holds for the first page of a visit, too, at which the site knows nothing of the reader."""
    page, asked = look("index.html", dark=dark), set()
    if first: page.evaluate("localStorage.clear()")
    page.on("request", lambda r: asked.add(r.url.rpartition("/")[2]))
    page.goto(f"{site.as_uri()}/outputs/index.html")
    shown, hidden = (figures_of_kind(page, f"only-{ground}") for ground in ("dark", "light"))
    if not dark: shown, hidden = hidden, shown
    assert shown & asked
    assert shown - asked
    assert not hidden & asked


def figures_of_kind(page, kind):
    "Files of the pictures of a class, on a page."
    sources = page.evaluate(f"[...document.querySelectorAll('img.{kind}')].map(i => i.src)")
    return {src.rpartition("/")[2] for src in sources}


def test_code_of_the_tour_fits_the_page_and_scrolls_in_its_box_on_a_phone(look):
    assert look("nbs/tour.html").evaluate(UNWRAPPED) == []
    phone = look("nbs/tour.html", width=390)
    boxes = phone.locator("article .cell_input pre")
    styles = [boxes.nth(i).evaluate("e => getComputedStyle(e).overflowX") for i in range(boxes.count())]
    assert set(styles) == {"auto"}
    assert phone.evaluate(UNWRAPPED), "a line that is wider than a phone"
    assert phone.evaluate(TOO_WIDE) == 0


def test_a_table_that_goes_on_says_so_and_keeps_its_first_column(look):
    page, table = look("index.html", width=390), "article .pst-scrollable-table-container"
    box, goes_on = page.locator(table).first, f"document.querySelector('{table}').classList.contains('more')"
    page.wait_for_function(goes_on)
    arm = box.locator("tbody tr").first.locator("td, th").first
    before = arm.bounding_box()["x"]
    box.evaluate("e => e.scrollLeft = e.scrollWidth")
    page.wait_for_function(f"!{goes_on}")
    assert abs(arm.bounding_box()["x"] - before) < 2


def test_screenshots_for_a_person(look, site):
    "Nobody but a person sees whether a page is beautiful: `build/screens/`; whole ones with SCREENS=1."
    screens = ROOT / "build" / "screens"
    screens.mkdir(parents=True, exist_ok=True)
    notebooks = ("nbs/tour.html", "nbs/03_layers.html", "nbs/train.html")
    page = look("index.html")
    root = page.url.removesuffix("index.html")
    for name in ("index.html", *notebooks, first_report(site), "outputs/ledger.html"):
        page.goto(root + name)
        page.evaluate(LOADED)
        for kind, width, dark in (("desktop", 1280, False), ("phone", 390, False), ("dark", 1280, True)):
            page.set_viewport_size(dict(width=width, height=900))
            page.emulate_media(color_scheme="dark" if dark else "light")
            page.evaluate(DRAWN_ANEW)
            shot = screens / f"{name.removesuffix('.html').replace('/', '-')}-{kind}.png"
            page.screenshot(path=shot, full_page=bool(os.environ.get("SCREENS")))
            assert shot.stat().st_size > 10_000


def test_the_reader_can_switch_to_the_dark_and_it_stays(look):
    page = look("index.html")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("header .theme-switch-button:visible").click()
    page.locator("header .theme-change-button[data-mode=dark]:visible").click()
    page.goto(page.url.replace("index.html", "story.html"))
    assert brightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.05 < brightness(light)


def test_search_finds_a_word_with_its_surroundings(look, site):
    "From a file as where the site is served, and without a complaint."
    from_file = look("search.html?q=rotary")
    from_file.wait_for_selector("#search-results li p.context")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = look("index.html")
        page.goto(f"http://127.0.0.1:{server.server_port}/search.html?q=rotary")
        page.wait_for_selector("#search-results li p.context")
        server.shutdown()
    for results in (from_file, page):
        names = results.locator("#search-results li a").all_inner_texts()
        around = results.locator("#search-results li p.context").all_inner_texts()
        assert any("layers" in n for n in names)
        assert not any(n.endswith(".py") for n in names)
        assert len(around) == len(names)
        assert all("rotary" in words.lower() for words in around), around
    assert not from_file.faults, from_file.faults


def unsorted_column(look, report):
    "The cells and button of a report's first column of differences, if they are not sorted already; else None."
    page = look(report)
    table = page.locator("article table.sortable").first
    heads = table.locator("thead th").all_inner_texts()
    column = next((i for i, h in enumerate(heads) if "difference" in h), None)
    if column is None: return None

    def cells(): return [r.locator("td, th").nth(column).inner_text() for r in table.locator("tbody tr").all()]
    numbers = [float(c.split()[0]) for c in cells() if c != "–"]
    is_sorted = numbers in (sorted(numbers), sorted(numbers, reverse=True))
    if len(numbers) < 3 or is_sorted: return None
    return cells, numbers, table.locator("thead th").nth(column).get_by_role("button")


def test_tables_of_a_report_can_be_sorted(look, pages):
    "Up, down, and back: by value, with what has no value last."
    reports = (unsorted_column(look, p) for p in pages if p.endswith("/report.html"))
    cells, numbers, button = next(r for r in reports if r is not None)
    first = cells()
    for expected in (sorted(numbers), sorted(numbers, reverse=True)):
        button.click()
        assert [float(c.split()[0]) for c in cells()[:len(numbers)]] == expected
        assert cells()[len(numbers):] == [c for c in first if c == "–"]
    button.press("Enter")  # a button is a button for the keyboard too
    assert cells() == first


def make_docs(sh, copy):
    return sh("make", "docs", "--old-file=dev", f"BIN={Path(sys.executable).parent}", cwd=copy)


def stamps(folder): return {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in folder.rglob("*.html")}


def test_make_docs_again_builds_only_what_changed(copy, site, sh):
    rendered, before = copy / "build" / "site", stamps(site)
    succeeded(make_docs(sh, copy))
    assert stamps(site) == before, "nothing has changed, and nothing is written"

    was, study = stamps(rendered), copy / "outputs" / "true_model-tinystories"
    report = study / "report.md"
    report.write_text(report.read_text().replace("## What was run", "A sentence was planted.\n\n## What was run", 1))
    (study / "tables" / "noise.tex").unlink()
    (copy / "build" / "pages" / "stray.md").write_text("# Of an earlier time\n")
    succeeded(make_docs(sh, copy))
    written = {page for page, at in stamps(rendered).items() if was.get(page) != at}
    assert "outputs/true_model-tinystories/report.html" in written
    assert "outputs/index.html" in written, "it refers to the report"
    assert not [page for page in written if page.startswith(("nbs/", "outputs/laptop"))]
    assert "A sentence was planted." in (site / "outputs/true_model-tinystories/report.html").read_text()
    downloads = "".join(f.as_posix() for f in site.rglob("_downloads/*/*"))
    assert (ROOT / "outputs" / "true_model-tinystories" / "tables" / "noise.tex").exists()
    assert len(re.findall(r"/noise\.tex", downloads)) == len(list(copy.glob("outputs/*/**/tables/noise.tex")))
    assert not (site / "stray.html").exists()


def test_a_build_that_fails_leaves_the_site_as_it_was_and_is_not_built_upon(copy, site, sh):
    before, log = {f: f.read_bytes() for f in site.rglob("*.html")}, copy / "LOG.md"
    log.write_text(log.read_text() + "\nA [dead link](#of-no-place).\n")
    failed = make_docs(sh, copy)
    assert failed.returncode != 0
    assert "LOG.md" in failed.stderr
    assert "of-no-place" in failed.stderr
    assert {f: f.read_bytes() for f in site.rglob("*.html")} == before
    assert not (copy / "build" / "docs.json").exists(), "the next build begins anew"


BEFORE_QUARTO = """
from nbdev.quarto import refresh_quarto_yml, nbdev_sidebar
from nbdev.serve import proc_nbs
refresh_quarto_yml()
nbdev_sidebar.__wrapped__()
proc_nbs(n_workers=0)
"""


def test_quarto_could_render_the_same_notebooks(copy, sh):
    "`nbdev-docs` needs Quarto, which few machines have. Up to the call of it, all goes well."
    succeeded(sh("python", "-c", BEFORE_QUARTO, cwd=copy))
    website = {}
    for name in ("_quarto.yml", *yaml.safe_load((copy / "nbs" / "_quarto.yml").read_text())["metadata-files"]):
        website |= yaml.safe_load((copy / "nbs" / name).read_text())["website"].get("sidebar", {})
    assert set(website["contents"]) == {n.name for n in NOTEBOOKS}
    assert website["style"] == "floating"
    for n in NOTEBOOKS: assert json.loads((copy / "_proc" / n.name).read_text())["cells"]


def test_what_readme_says_goes_from_an_own_arm_to_the_report_and_the_site(copy, site, sh):
    "Files and commands as they are written there."
    report = (copy / REPORT).read_text()
    row = next(line for line in report.splitlines() if line.startswith("| Slow RoPE"))
    assert "[" in row, row
    assert "theta = 100" in report
    page = (site / REPORT).with_suffix(".html").read_text(encoding="utf-8")
    assert "Slow RoPE" in page
    assert "mine/report.html" in (site / "outputs" / "index.html").read_text(encoding="utf-8")

    # another name: the old runs stay where they are, are named, and are in no mean
    for file, text in (("arms.py", ARM), (STUDY_FILE, STUDY)):
        (copy / file).write_text(text.replace("slow_rope", "slower_rope"))
    succeeded(sh(*COMMANDS[2], cwd=copy, ABLATION_CORPUS=""))
    report = (copy / REPORT).read_text()
    assert "there is no arm 'slow_rope' any more" in report
    assert "| Slow RoPE" not in report


def test_citation_and_changelog_agree_with_the_metadata():
    meta = configparser.ConfigParser(delimiters=["="])
    meta.read(ROOT / "settings.ini")
    version, cff = meta["DEFAULT"]["version"], yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0"
    assert not {"message", "title", "authors"} - cff.keys()
    assert (str(cff["version"]), cff["license"]) == (version, meta["DEFAULT"]["license"])
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[Unreleased\]$", changes, re.M)
    assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.M)
