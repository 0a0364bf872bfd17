"What README says on an arm of one's own: files and commands as they are written there."
import re

from conftest import ROOT

CHAPTER = (ROOT / "README.md").read_text(encoding="utf-8").split("## An arm of your own\n")[1].split("\n## ")[0]


def block(language):
    "What the chapter tells a reader to type."
    return re.search(rf"```{language}\n(.+?)```", CHAPTER, re.S)[1]


ARM, STUDY = block("python"), block("toml")
COMMANDS = [line.partition("#")[0].split() for line in block("sh").splitlines()]
STUDY_FILE = re.search(r"`(studies/\w+\.toml)`", CHAPTER)[1]
REPORT = re.search(r"outputs/\S+/report\.md", block("sh"))[0]
