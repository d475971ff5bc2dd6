"""What the Markdown files point at is there, and README leads to all of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import DATA, ROOT, SHELL, Page, anchor, pages

FOLDERS: Final = {it.name for it in ROOT.iterdir() if it.is_dir() and not it.name.startswith(".")}

MADE: Final = r"config/Pulumi\.[\w*]+\.yaml"
"""Paths within the repository that stand for files of whoever reads."""


def target(page: Page, link: str) -> tuple[str, str]:
    """The file from the repository's root, and the anchor in it."""
    path, _, fragment = link.partition("#")
    file = os.path.normpath(Path(page.path).parent / path) if path else page.path
    return file, fragment


@pytest.fixture(params=pages())
def page(request: pytest.FixtureRequest) -> Page:
    return pages()[request.param]


def broken(page: Page) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for link in page.links:
        if urlsplit(link).scheme:
            continue
        file, fragment = target(page, link)
        known = pages().get(file)
        if not (ROOT / file).exists() or (fragment and known and fragment not in known.anchors):
            found.append(link)
    return found


def missing(page: Page) -> list[str]:
    """Paths of the repository, in code within a line, that are not there."""
    found = []
    for _, span in page.spans:
        for word in re.findall(r"(?<![\w./~-])(?:\./)?([a-z][\w-]*/[\w./*-]*\w[\w./*-]*)", span):
            path = word.rstrip(".")
            if path.split("/")[0] not in FOLDERS or re.fullmatch(MADE, path):
                continue
            if not any(ROOT.glob(path)):
                found.append(path)
    return found


def test_links_and_anchors_resolve(page: Page) -> None:
    assert broken(page) == []


def test_files_that_are_named_are_there(page: Page) -> None:
    assert missing(page) == []


def test_tests_that_are_named_are_there(page: Page) -> None:
    for _, span in page.spans:
        if found := re.fullmatch(r"(tests/\S+\.py)::(\w+)", span):
            assert f"def {found[2]}(" in (ROOT / found[1]).read_text(), span


def test_every_block_has_a_language(page: Page) -> None:
    """So that it is known whether it holds commands."""
    assert {it.language for it in page.blocks} <= SHELL | DATA


def test_every_page_says_who_it_is_for() -> None:
    """In the first words below its title, in the language of the page."""
    for path, page in pages().items():
        if path.startswith(("docs/", "ops/")) and path not in GENERATED:
            assert page.first_paragraph.startswith(("For who", "Untuk siapa")), path


GENERATED: Final = {"docs/README.md"}


def test_readme_leads_to_every_page() -> None:
    seen, todo = set(), ["README.md"]
    while todo:
        page = pages()[todo.pop()]
        seen.add(page.path)
        for link in page.links:
            file, _ = target(page, link)
            if file in pages() and file not in seen:
                todo.append(file)
    assert seen == set(pages())
    assert f"docs/{'README.md'}" in {
        target(pages()["README.md"], it)[0] for it in pages()["README.md"].links
    }


def test_the_index_names_every_page_of_docs() -> None:
    index = pages()["docs/README.md"]
    named = {target(index, link)[0] for link in index.links}
    assert {path for path in pages() if path.startswith("docs/")} - {index.path} <= named


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("401 or 403", "401-or-403"),
        ("What is promised, and how it is shown", "what-is-promised-and-how-it-is-shown"),
        ("`make verify`: a name_with", "make-verify-a-name_with"),
        ("One / Two", "one--two"),
    ],
)
def test_anchors_are_githubs(heading: str, slug: str) -> None:
    assert anchor(heading) == slug
