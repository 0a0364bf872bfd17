"""`make docs`: the pages, the site of them, and last of all `_docs`, of which nobody ever sees a half.

What has not changed since the last time is not made again: pages whose sources are as they were, and the site of pages
whose text is. What a build leaves is built upon only if it came to its end."""
import gc
import hashlib
import json
import os
import shutil
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD, SITE = ROOT / "build", ROOT / "_docs"
PAGES, RENDERED, DOCTREES, UNITS, DONE = (BUILD / n for n in ("pages", "site", "doctrees", "pages.json", "docs.json"))
TOOLS = ("sphinx", "docutils", "myst-nb", "myst-parser", "pydata-sphinx-theme", "nbdev", "pygments", "matplotlib")
CODE = [ROOT / name for name in ("ablation_nb", "arms.py", "settings.ini", "pyproject.toml")]
SOURCES = [*CODE, *(ROOT / name for name in ("nbs", "outputs", "studies", "reference")), *sorted(ROOT.glob("*.md"))]
READ = {".ipynb", ".py", ".md", ".toml", ".json", ".jsonl", ".csv", ".tex", ".png", ".svg", ".zip", ".ini",
        ".css", ".js"}  # kinds of files that a page is made of; weights are none

# What pages.py needs of others, and may keep its bytecode: to compile it takes longer than to write the pages.
LIBRARIES = ("sphinx.cmd.build", "myst_nb", "pydata_sphinx_theme", "nbdev.showdoc", "nbdev.processors", "nh3",
             "matplotlib.pyplot", "ablation_nb.report")


def files_in(place):
    "The files below a folder that a page may be made of, or the file itself."
    if place.is_file(): return [place]
    return sorted(f for f in place.rglob("*") if f.suffix in READ and f.is_file())


def digest(places):
    "One hash over names and contents of files, and of what lies in folders."
    total = hashlib.blake2b(digest_size=16)
    for f in (f for place in places for f in files_in(place)):
        total.update(f"{f.relative_to(ROOT)}\0{f.stat().st_size}\0".encode())
        total.update(f.read_bytes())
    return total.hexdigest()


def tools():
    "One hash over what renders: a page of another version is made again, whatever its text."
    return digest([Path(__file__).parent]) + str([sys.version, *map(version, TOOLS)])


def show_site():
    "A copy of what was rendered becomes `_docs`, in one step."
    new, old = BUILD / "new", BUILD / "old"
    for folder in (new, old): shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(RENDERED, new)
    if SITE.exists(): SITE.rename(old)
    new.rename(SITE)
    shutil.rmtree(old, ignore_errors=True)


def render():
    "Sphinx, in this process, with the libraries that pages.py has imported; its exit status."
    import nbformat
    from sphinx.cmd.build import build_main
    nbformat.validate = lambda nb, **how: None  # pages.py has written each notebook that is read here
    strict = ["-q", "-W", "--keep-going"]
    return build_main([*strict, "-c", str(Path(__file__).parent), "-d", str(DOCTREES), str(PAGES), str(RENDERED)])


def main():
    gc.disable()  # a page is a tree full of circles, half a gigabyte in all: looking for litter took a twentieth
    now = dict(tools=tools(), sources=digest(SOURCES))
    last = json.loads(DONE.read_text()) if DONE.exists() else {}
    if last != now or not SITE.exists():
        DONE.unlink(missing_ok=True)  # until this build has come to its end
        if last.get("tools") != now["tools"]:
            for folder in (PAGES, RENDERED, DOCTREES): shutil.rmtree(folder, ignore_errors=True)
            UNITS.unlink(missing_ok=True)
        sys.modules["rfc3987_syntax"] = None  # a second to build grammars of web addresses, which no notebook asks for
        for library in LIBRARIES: import_module(library)
        asked, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left beside the notebooks
        import pages
        sys.dont_write_bytecode = asked
        pages.make(PAGES, UNITS)
        if status := render(): return status
        show_site()
        DONE.write_text(json.dumps(now))
    print(f"The site: {os.path.relpath(SITE / 'index.html')}")
    return 0


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os._exit(status)  # memory is not given back piece by piece
