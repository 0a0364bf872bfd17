"Code whose long lines wrap: each line is an element of its own, so that what is left of it hangs below where it began."
import re

from pygments.formatters import HtmlFormatter


def hanging(line):
    "A highlighted line that knows its indent, in letters."
    text = re.sub(r"<[^>]+>", "", line)
    return f'<span class="line" style="--indent: {len(text) - len(text.lstrip(" "))}ch">{line}</span>'


class LinesFormatter(HtmlFormatter):
    "Pygments' formatter, with its lines marked."
    def wrap(self, source): return super().wrap((code, hanging(line) if code else line) for code, line in source)
