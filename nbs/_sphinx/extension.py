"""What the site does beyond Sphinx and its theme: the text of pages for the search, and pages that stay in step.

Much of what is done here is done once and kept: the same cell stands in dozens of executed notebooks."""
import html
import json
import re
from functools import cache
from itertools import count, groupby
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from docutils import nodes
from myst_parser.mdit_to_docutils.base import DocutilsRenderer
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import inherit
from pygments.lexers import PythonLexer
from pygments.token import Name, Punctuation, Text
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


class QuickPython(PythonLexer):
    "Python, with what is half of all words found first: spaces within a line, brackets, and what follows a dot."
    tokens: ClassVar = dict(root=[
        (r"(?<=\S)[^\S\n]+", Text),
        (r"[][{}(),;]", Punctuation),
        (r"(?<=\.)(?!__)[^\W\d]\w*", Name),
        inherit,
    ])


@cache
def coloured(code):
    "Python as HTML. What is no Python is marked, and stops no build: a run's notebook may be anybody's."
    return highlight(code, QuickPython(stripnl=False), FORMATTER)


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


class drawn_table(nodes.General, nodes.TextElement):
    "A table as pieces of HTML and what is more than that. With nodes for cells, most of all nodes were of tables."


class drawn(nodes.Inline, nodes.Element):
    "A piece of a table that is HTML already, with its words for the search."


APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
TYPOGRAPHIC = re.compile(r"[\"']|--|\.\.\.")   # what Sphinx might write otherwise


def escaped(text): return html.escape(text, quote=False).replace('"', "&quot;").replace("@", "&#64;")


def drawn_inline(token):
    "A piece of a cell as Sphinx writes it; None if that is more than words and code."
    if token.type == "text":
        text = APOSTROPHE.sub("’", token.content)
        return None if TYPOGRAPHIC.search(text) else escaped(text)
    if token.type != "code_inline": return None
    words = re.sub(r"[^ ]+", r'<span class="pre">\g<0></span>', escaped(token.content))
    words = re.sub(r" (?= )", "&#160;", words)
    return f'<code class="docutils literal notranslate">{words}</code>'


def pieces_of(table):
    "A table of markdown as Sphinx writes it: pieces of HTML, each with its words, and tokens of what is more."
    yield '<div class="pst-scrollable-table-container"><table class="table">\n', ""
    rows = 0
    for part, cell_tag in zip(table.children, ("th", "td")):
        yield f"<{part.type}>\n", ""
        for row in part.children:
            yield f'<tr class="row-{("odd", "even")[rows % 2]}">', ""
            rows += 1
            for cell in row.children:
                align = (cell.attrGet("style") or "").replace("text-align:", "text-")
                classes = " ".join(filter(None, ("head" * (cell_tag == "th"), align)))
                yield f'<{cell_tag}{f" class={classes!r}" if classes else ""}><p>'.replace("'", '"'), ""
                for token in cell.children[0].children if cell.children else ():
                    inline = drawn_inline(token)
                    yield token if inline is None else (inline, token.content)
                yield f"</p></{cell_tag}>\n", "\n"
            yield "</tr>\n", ""
        yield f"</{part.type}>\n", ""
    yield "</table>\n</div>\n", ""


def render_table(renderer, table):
    "In place of MyST's: what lies between two links of a table is one node."
    node = drawn_table()
    renderer.add_line_and_source_path(node, table)
    with renderer.current_node_context(node, append=True):
        for is_html, pieces in groupby(pieces_of(table), lambda piece: isinstance(piece, tuple)):
            if not is_html:
                renderer.render_children(SimpleNamespace(children=pieces))
                continue
            markup, words = map("".join, zip(*pieces))
            node.append(drawn("", nodes.Text(words), html=markup))


def write_drawn(translator, node):
    translator.body.append(node["html"])
    raise nodes.SkipNode


def as_it_is(translator, node): pass


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


UNUSED = re.compile(r"sphinx\.(transforms\.i18n|builders\.latex|domains\.(c|cpp|citation)\b)")


def pass_over_unused(registry):
    "Each transform of Sphinx looks through every page: not for other languages, for LaTeX, or for what is not Python."
    for transforms in (registry.transforms, registry.post_transforms):
        transforms[:] = [t for t in transforms if not UNUSED.match(t.__module__)]


def setup(app):
    pass_over_unused(app.registry)
    for name in ("arm_labels", "arm_names"): app.add_config_value(name, {}, "html", dict)
    app.add_config_value("other_arms", [], "html", list)
    app.add_search_language(EnglishOnce)
    app.add_node(drawn_table, html=(as_it_is, as_it_is))
    app.add_node(drawn, html=(write_drawn, None))
    DocutilsRenderer.render_table = render_table
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
