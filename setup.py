"Packaging: all metadata is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
meta = ini["DEFAULT"]
package = meta["lib_name"]
EXTRAS = "dev", "cluster", "hf", "tensorboard", "mlflow", "wandb"
places = {f"{package}.reference": "reference", f"{package}.template": "nbs"}

setup(
    version=meta["version"],
    description=meta["description"],
    keywords=meta["keywords"].split(),
    author=meta["author"],
    author_email=meta["author_email"],
    license=meta["license"],
    python_requires=f">={meta['min_python']}",
    # What is known of the replicated report comes along, and the notebooks that `ablation new` begins a project with.
    packages=[package, *places],
    package_dir=places,
    package_data={
        package: ["py.typed"],
        f"{package}.reference": ["*.toml", "*.csv"],
        f"{package}.template": ["train.ipynb", "analysis.ipynb"],
    },
    install_requires=meta["requirements"].split(),
    extras_require={name: meta[f"{name}_requirements"].split() for name in EXTRAS},
    entry_points={"console_scripts": meta["console_scripts"].split()},
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
)
