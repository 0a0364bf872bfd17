"""What the site does beyond Sphinx and its theme: the text of pages for the search, and pages that stay in step.

Much of what is done here is done once and kept: the same cell stands in dozens of executed notebooks."""
import html
import json
import re
from functools import cache
from itertools import count
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx import addnodes
from sphinx.search.en import SearchEnglish
from sphinx.util.osutil import relative_uri


def words(body):
    "The words of a page, of its HTML."
    text = re.sub(r"<(script|style)\b.*?</\1>|<a class=\"headerlink\".*?</a>", " ", body, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


texts = {}  # page -> its words


def keep_text(app, page, template, context, doctree):
    "What a page says, for the search of a site that is opened from a folder."
    if doctree and "nosearch" not in (context["meta"] or {}): texts[page] = words(context["body"])


def write_texts(app, exception):
    """The words of all pages, as a script that a page opened from a folder can load.

    Those of pages that were not written again are in the script that lies there."""
    if exception: return
    script = Path(app.outdir) / "_static" / "texts.js"
    lying = json.loads(script.read_text(encoding="utf-8")[len("texts("):-2]) if script.exists() else {}
    pages = {page: text for page, text in {**lying, **texts}.items() if page in app.env.all_docs}
    script.write_text(f"texts({json.dumps(pages, ensure_ascii=False)})\n", encoding="utf-8")


class EnglishOnce(SearchEnglish):
    "English, with the stem of a word looked up once and not once a page."
    def __init__(self, options):
        super().__init__(options)
        self.stem = cache(super().stem)


FORMATTER = HtmlFormatter()   # of classes; their colours are those of the theme


@cache
def coloured(code):
    "Python as HTML. What is no Python is marked, and stops no build: a run's notebook may be anybody's."
    return highlight(code, PythonLexer(stripnl=False), FORMATTER)


def highlight_once(app):
    "Code that stands on many pages is coloured once."
    painter, painted = app.builder.highlighter.highlight_block, {}

    def highlight_block(source, lang, opts=None, force=False, location=None, **look):
        if lang == "python" and not opts and not look.get("linenos"): return coloured(source.strip("\n"))
        key = source, lang, repr(opts), force, repr(sorted(look.items()))
        if key not in painted: painted[key] = painter(source, lang, opts, force, location, **look)
        return painted[key]
    app.builder.highlighter.highlight_block = highlight_block


def arm_anchor(name):
    "The place of an arm on the page of arms."
    return f"arm-{name.replace('_', '-')}"


def linked_arm(words, known, kind):
    "An arm's label or name as a link to where `known` says; of a composed one each part. None if it is none."
    whole = html.unescape(words).strip()
    parts = [whole] if whole in known else re.split(r" \+ |\+", whole)
    if not all(part in known for part in parts): return None
    return " + ".join(f'<a class="{kind}" href="{known[part]}">{html.escape(part)}</a>' for part in parts)


def link_in_row(row, labels, names, columns, kind):
    "A row of a table with its arms as links. A name is one only in `columns`: `silu` is a layer too."
    places = count()

    def cell(m):
        known = {**labels, **names} if next(places) in columns else labels
        def link(m): return m[1] + (linked_arm(m[2], known, kind) or m[2])
        return re.sub(r'^(<[^>]+>(?:<p>)?(?:<code[^>]*><span class="pre">)?)([^<]+)(?=<)', link, m[0])
    return re.sub(r"<t[dh]\b.*?</t[dh]>", cell, row, flags=re.S)


def runs_of_arms(app, study, page):
    """The arms of a study, each with the page of its first run: there its notebook stands with the arm as parameter.

    At a point of a grid these are runs of the point; a run does not lead to itself."""
    shown = re.compile(rf"{re.escape(study)}(?:[^/]+/)?([^/]+)/[^/]+/run")
    runs = [run for run in map(shown.fullmatch, sorted(app.env.all_docs, reverse=True)) if run and run[0] != page]
    runs.sort(key=lambda run: run[0].startswith(page.rpartition("/")[0] + "/"))
    return {run[1]: run[0] for run in runs}


def definitions(app, page, target):
    "Labels and names of arms with the address of what they mean, as seen from a page, and how such links are marked."
    study = next(filter(page.startswith, app.config.other_arms), None)
    if study: return {}, {arm: target(run) for arm, run in runs_of_arms(app, study, page).items()}, "its-arm"
    def there(anchors): return {words: f"{target('arms')}#{anchor}" for words, anchor in anchors.items()}
    return there(app.config.arm_labels), there(app.config.arm_names), "arm"


def link_arms(app, page, template, context, doctree):
    "In every table, a cell that is an arm leads to its definition, or where another notebook has it to a run of it."
    if not doctree or page == "arms": return
    labels, names, kind = definitions(app, page, context["pathto"])

    def table(m):
        head, mark, body = m[0].partition("</thead>")
        heads = re.findall(r"<th\b.*?</th>", head, re.S)
        columns = {i for i, h in enumerate(heads) if re.sub("<.*?>", "", h).strip() in ("arm", "arms")}
        def row(m): return link_in_row(m[0], labels, names, columns, kind)
        return head + mark + re.sub(r"<tr\b.*?</tr>", row, body, flags=re.S)
    context["body"] = re.sub(r"<table\b.*?</table>", table, context["body"], flags=re.S)


def add_dark_twins(app, doctree):
    """Beside a figure that has a twin for the dark stands that twin; the theme shows one of them.
    What nobody sees is not loaded: neither the other one, nor what is far below."""
    folder = app.env.doc2path(app.env.docname).parent
    for image in list(doctree.findall(nodes.image)):
        twin = image.copy()
        twin["uri"] = image["uri"].removesuffix(".svg") + ".dark.svg"
        if not (folder / twin["uri"]).exists(): continue
        image["loading"] = twin["loading"] = "lazy"
        image["classes"].append("only-light")
        twin["classes"].append("only-dark")
        image.parent.insert(image.parent.index(image) + 1, twin)


def link_figures(app, doctree, page):
    "A touch on a figure opens its file, in which a reader can move and enlarge it."
    for image in list(doctree.findall(nodes.image)):
        if isinstance(image.parent, nodes.reference) or image["uri"] not in app.env.images: continue
        file = f"{app.builder.imagedir}/{app.env.images[image['uri']][1]}"
        uri = relative_uri(app.builder.get_target_uri(page), file)
        link = nodes.reference("", "", internal=True, refuri=uri, classes=["figure", *image["classes"]])
        link["reftitle"] = "Open this figure alone"
        image.replace_self(link)
        link.append(image)


def keep_targets(app, doctree):
    "To which pages a page refers."
    env = app.env
    if not hasattr(env, "refers"): env.refers = {}
    asked = {str(node.get("reftarget")) for node in doctree.findall(addnodes.pending_xref)}
    env.refers[env.docname] = asked


def leave_out_runs(app, doctree):
    "An executed notebook says what `train.ipynb` says: a search finds it there, and not once a run."
    if app.env.docname.endswith("/run"): app.env.metadata[app.env.docname]["nosearch"] = True


def shape(env):
    "What the navigation of every page shows: the tree of pages and their titles."
    titles = {page: title.astext() for page, title in env.titles.items()}
    return sorted(env.toctree_includes.items()), sorted(titles.items())


def in_step(app, env):
    """Pages to write again although their own text is as it was.

    That are all where the tree of pages or a title has changed, else those that refer to a changed page."""
    changed, now = getattr(env, "changed", set()), repr(shape(env))
    before, env.shape = getattr(env, "shape", None), now
    if before != now: return set(env.all_docs)
    return {page for page, asked in env.refers.items() if asked & changed}


def keep_changed(app, env, pages): env.changed = set(pages)


def sweep(app, exception):
    "Pages, pictures and downloads of earlier builds that no page has any more leave the site."
    if exception: return
    env, out = app.env, Path(app.outdir)
    pages = {out / f"{page}.html" for page in [*env.all_docs, "search"]}
    kept = pages | {out / "_images" / name for _, name in env.images.values()}
    kept |= {out / "_downloads" / name for _, name in env.dlfiles.values()}
    lying = [f for f in out.rglob("*.html") if "_static" not in f.parts]
    for folder in ("_images", "_downloads"): lying += [f for f in (out / folder).rglob("*") if f.is_file()]
    for f in lying:
        if f not in kept: f.unlink()


def setup(app):
    for name in ("arm_labels", "arm_names"): app.add_config_value(name, {}, "html", dict)
    app.add_config_value("other_arms", [], "html", list)
    app.add_search_language(EnglishOnce)
    app.connect("builder-inited", highlight_once)
    app.connect("env-before-read-docs", keep_changed)
    app.connect("doctree-read", add_dark_twins, priority=100)  # before Sphinx gathers the pictures
    app.connect("doctree-read", keep_targets)
    app.connect("doctree-read", leave_out_runs)
    app.connect("env-updated", in_step)
    app.connect("doctree-resolved", link_figures)
    app.connect("html-page-context", link_arms)
    app.connect("html-page-context", keep_text)
    app.connect("build-finished", write_texts)
    app.connect("build-finished", sweep)
