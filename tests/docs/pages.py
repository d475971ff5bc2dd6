"""The Markdown files as GitHub shows them: headings, links, and the commands that they tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT: Final = Path(__file__).resolve().parents[2]

SHELL: Final = {"sh", "console", "indented"}
"""Languages of blocks with commands; those without a fence hold commands, too."""

DATA: Final = {"ini", "json", "nginx", "text", "yaml"}
"""Languages of blocks that nobody runs."""

PROGRAMS: Final = {
    *("apache2", "apt-get", "aws", "cloud-init", "curl", "docker", "git", "install"),
    *("iptables-restore", "kubectl", "make", "mv", "nft", "nginx", "openssl", "promtool"),
    *("pulumi", "python", "systemctl", "useradd"),
}
"""What a command within a line begins with; anything that has an option counts as one, too."""


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    """Where its block or paragraph begins."""
    text: str
    within: bool = False
    """Whether it stands within a line of text."""
    tags: frozenset[str] = frozenset()
    """Which of several ways its block is for: what stands behind the language."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Block:
    language: str
    """"indented" if it is; empty if it does not say."""
    line: int
    text: str
    tags: frozenset[str]


@dataclass(frozen=True)
class Page:
    path: str
    """From the repository's root."""

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text()

    @cached_property
    def _tokens(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    @cached_property
    def first_paragraph(self) -> str:
        """What stands below the title."""
        kinds = [token.type for token in self._tokens]
        return self._tokens[kinds.index("paragraph_open") + 1].content

    @cached_property
    def anchors(self) -> set[str]:
        """Of every heading, by GitHub's rules: a second one of the same name ends with -1."""
        found: dict[str, int] = {}
        for before, token in zip(self._tokens, self._tokens[1:], strict=False):
            if before.type == "heading_open":
                slug = anchor("".join(it.content for it in token.children or []))
                number = found[slug] = found.get(slug, -1) + 1
                if number:
                    found[f"{slug}-{number}"] = 0
        return set(found)

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and images."""
        return [
            str(it.attrs.get("href") or it.attrs.get("src"))
            for it in self._inner
            if it.type in ("link_open", "image")
        ]

    @cached_property
    def spans(self) -> list[tuple[int, str]]:
        """Code within a line, and the line where its paragraph begins."""
        return [(line, it.content) for line, it in self._inner_of_lines if it.type == "code_inline"]

    @cached_property
    def blocks(self) -> list[Block]:
        found = []
        for token in self._tokens:
            if token.type in ("fence", "code_block"):
                info = token.info if token.type == "fence" else "indented"
                language, *tags = info.split() or [""]
                line = (token.map or [0])[0] + 1
                found.append(Block(language, line, token.content, frozenset(tags)))
        return found

    @cached_property
    def commands(self) -> list[Command]:
        """Of its blocks and within its lines."""
        found = [
            Command(self.path, block.line, text, tags=block.tags)
            for block in self.blocks
            if block.language in SHELL
            for text in lines(block.text)
        ]
        for line, text in self.spans:
            words = re.sub(r"^(\w+=\S* )+", "", text).split()
            option = any(word.startswith("-") for word in words[1:])
            if len(words) > 1 and (
                Path(words[0]).name in PROGRAMS
                or (option and re.fullmatch(r"[a-z][a-z0-9_./-]+", words[0]))
            ):
                found.append(Command(self.path, line, text, within=True))
        return found

    @property
    def _inner(self) -> Iterator[Token]:
        return (it for _, it in self._inner_of_lines)

    @property
    def _inner_of_lines(self) -> Iterator[tuple[int, Token]]:
        for token in self._tokens:
            for child in token.children or []:
                yield (token.map or [0])[0] + 1, child


def lines(block: str) -> list[str]:
    """The commands of a block: of those with a prompt if there is one, without their comments.

    Lines that a backslash or a here-document joins are one.
    """
    found, rest = [], iter(block.splitlines())
    prompts = re.search(r"(?m)^\$ ", block)
    for line in rest:
        text = line
        while text.endswith("\\"):
            text += "\n" + next(rest)
        if here := re.search(r"<<'?(\w+)'?", text):
            for more in rest:
                text += "\n" + more
                if more == here[1]:
                    break
        if prompts and not text.startswith("$ "):
            continue  # what the command before it prints
        text = re.sub(r"\s+# .*$", "", text.removeprefix("$ "))
        if text and not text.startswith("#"):
            found.append(text)
    return found


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@cache
def pages() -> dict[str, Page]:
    """Every Markdown file of the repository by its path."""
    folders = [it for it in ROOT.iterdir() if it.is_dir() and not it.name.startswith(".")]
    files = [*ROOT.glob("*.md"), *(file for it in folders for file in it.rglob("*.md"))]
    paths = sorted(str(it.relative_to(ROOT)) for it in files if "node_modules" not in it.parts)
    return {path: Page(path) for path in paths}
