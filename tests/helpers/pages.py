"""The documentation as text: its pages, code blocks, commands and links."""

import pathlib
import re
import shlex
from typing import NamedTuple

from helpers.tiny import ROOT

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n)?^(?P<fence>```+)(?P<language>\S*)[^\n]*\n(?P<code>.*?)^(?P=fence)",
    re.M | re.S,
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")  # its file and its anchor

# What a reader saves: the file, its page, and a word of its code block.
SAVED = {
    "barlow.py": ("README.md", "class BarlowTwins"),
    "rotnet.py": ("docs/write_a_method.md", "class RotNet"),
    "rotnet_config.py": ("docs/write_a_method.md", "# rotnet_config.py"),
}


class Block(NamedTuple):
    """A code block. `reason`: why it was not run as it stands; None where it must hold."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[pathlib.Path]:
    """Every page of the documentation."""
    docs = (ROOT / "docs").rglob("*.md")
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(docs)]


def blocks(*languages: str) -> list[Block]:
    """The code blocks of these languages on all pages."""
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text[: match.start("code")].count("\n")
            name = str(page.relative_to(ROOT))
            found.append(Block(name, line, match["language"], match["code"], match["reason"]))
    return [block for block in found if block.language in languages]


def commands(code: str) -> list[list[str]]:
    """The words of every command of a shell block."""
    joined = code.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in joined.splitlines()]
    return [shlex.split(command) for line in lines for command in line.split("&&") if command.strip()]


def python_block(page: str, word: str) -> str:
    """The Python block of a page that has a word."""
    (code,) = [block.code for block in blocks("python") if block.page == page and word in block.code]
    return code


def files_of_pages() -> dict[str, str]:
    """{name: content} of the files that pages tell their reader to write."""
    return {name: python_block(*where) for name, where in SAVED.items()}


def prose(text: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text)


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
