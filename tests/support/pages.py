"""The Markdown pages of the repository, taken apart: their code blocks, commands and links.

The convention on a page: a line `# not run by the tests: REASON` in a code block excuses what follows, up to the next
empty line in a block of commands, to the block's end in Python. What is excused must still parse.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MADE = {"_build", "api", "ops", "tutorials", "zoo"}  # folders of docs/ that git ignores
EXCUSE = re.compile(r"# not run by the tests: (\S.*)")


class Command(NamedTuple):
    page: str
    text: str
    excuse: str | None


def pages():
    """Every page that a reader may open: {path below the repository: text}."""
    folder = ROOT / "docs"
    found = [path for path in folder.rglob("*.md") if path.relative_to(folder).parts[0] not in MADE]
    found = sorted([*ROOT.glob("*.md"), *found, *(ROOT / "tutorials").rglob("*.md")])
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in found}


def blocks(text, language):
    """The code blocks of a language, indented ones (in a list) too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.M | re.S)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def excuse(code):
    """Why a Python block is not run, or None."""
    match = EXCUSE.match(code)
    return match[1] if match else None


def commands(page, text):
    """The commands of a page's `sh` blocks, lines that end in a backslash joined, comments taken off."""
    found = []
    for code in blocks(text, "sh"):
        why = None
        for line in code.replace("\\\n", " ").splitlines():
            if match := EXCUSE.match(line):
                why = match[1]
            elif not line.strip():
                why = None
            elif command := re.sub(r"(^|\s)#.*", "", line).strip():
                found += [Command(page, part.strip(), why) for part in command.split("&&")]
    return found


def links(text):
    """What a page links to or shows inside the repository: paths as they are written, without code blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose) if not re.match(r"\w+:", t)]
