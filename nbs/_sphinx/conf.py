"""How Sphinx renders the pages that pages.py has written.

Every file that a reader's browser asks for is in the site itself."""
import configparser
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where extension.py lies

from extension import arm_anchor

from ablation_nb.config import ARMS
from ablation_nb.ledger import settings_kept

meta = configparser.ConfigParser(delimiters=["="])
meta.read(Path(__file__).parents[2] / "settings.ini")
project, version, author = (meta["DEFAULT"][k] for k in ("lib_name", "version", "author"))
copyright = author

extensions = ["myst_nb", "extension"]
arm_labels = {arm.label: arm_anchor(arm.name) for arm in ARMS.values()}
outputs = Path(__file__).parents[2] / "outputs"
# pages of studies of other notebooks, whose arms are none of ours
other_arms = [f"outputs/{f.name}/" for f in outputs.glob("*/") if "notebook" in settings_kept(f)]
arm_names = {name: arm_anchor(arm.name) for arm in ARMS.values() for name in (arm.name, *arm.aliases)}
nb_execution_mode = "off"
nb_code_prompt_show, nb_code_prompt_hide = "Source", "Source"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_ref_domains = ["std"]  # a link leads to a page or a place: no other language is looked through
suppress_warnings = ["myst.header", "mystnb.lexer"]  # a page may go from # to ###; cleaned notebooks name no lexer

mathjax_path = "tex-svg.js"  # MathJax in one file, fonts included
mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
html_static_path = ["static", str(mathjax / mathjax_path)]
html_css_files, html_js_files = ["site.css"], ["tables.js", "search.js"]

html_context = {"default_mode": "auto"}  # light or dark, as the reader's system asks
html_theme, html_title = "pydata_sphinx_theme", project
html_show_sphinx = html_copy_source = html_use_index = False
html_theme_options = dict(
    logo=dict(text=project),
    navbar_align="left",
    header_links_before_dropdown=6,
    show_toc_level=2,
    collapse_navigation=True,
    secondary_sidebar_items=["page-toc"],
    footer_start=["copyright"],
    footer_end=[],
    primary_sidebar_end=[])
html_sidebars = {page: [] for page in ("index", "api", "arms", "nbs/tour", "outputs/**/run")}
