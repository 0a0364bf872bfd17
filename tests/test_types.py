"The package is typed throughout: `make lint` asks the same, and here it is asked beside other tests."
import subprocess
import sys

from conftest import ROOT


def test_the_package_is_typed_throughout():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
