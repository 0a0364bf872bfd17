"What of the packages in .venv a study needs, and what only development: prints one of the two lists, for `make pins`."
import configparser
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOOLS = ["setuptools"]                          # builds the package itself
APART = {"pip", "torch", "ablation-nb"}         # torch has a file of its own


def needed(requirements):
    "Names of all packages that these requirements bring, at any depth, as they are installed here."
    names, left = set(), [Requirement(r) for r in requirements]
    while left:
        r = left.pop()
        name = canonicalize_name(r.name)
        try: asked = distribution(name).requires or []
        except PackageNotFoundError: continue   # of another system, or of CUDA
        names.add(name)
        for d in map(Requirement, asked):
            extras = r.extras or {""}
            if any(d.marker is None or d.marker.evaluate({"extra": e}) for e in extras):
                if canonicalize_name(d.name) not in names: left.append(d)
    return names


if __name__ == "__main__":
    meta = configparser.ConfigParser(delimiters=["="])
    meta.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
    study = needed([*meta["DEFAULT"]["requirements"].split(), *TOOLS])
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}
    chosen = study if sys.argv[1] == "study" else installed.keys() - study
    print("\n".join(f"{name}=={installed[name]}" for name in sorted(chosen - APART)))
