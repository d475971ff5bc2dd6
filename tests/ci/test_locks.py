"""What pip installs is what requirements*.in ask for, with hashes, from any index."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("requirements", "requirements-dev")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(name: str) -> dict[str, str]:
    """Package → version, of an input alone."""
    lines = (ROOT / f"{name}.in").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)(?:\[.*\])?==(\S+)", line) for line in lines if line[0] != "-"]
    assert all(found), name
    return {canonical(one[1]): one[2] for one in found if one}


def locked(name: str) -> dict[str, tuple[str, str]]:
    """Package → version and all that follows, hashes and who asks for it."""
    text = (ROOT / f"{name}.txt").read_text()
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
    found = [re.match(r"([\w.-]+)==(\S+)((?s:.*))", block) for block in blocks]
    assert all(found), name
    return {canonical(one[1]): (one[2], one[3]) for one in found if one}


@pytest.mark.parametrize("name", NAMES)
def test_the_lock_is_that_of_its_input(name: str) -> None:
    lock = locked(name)
    # `-r requirements.in` is what the second input begins with
    pins = {name: asked(name) for name in NAMES[: NAMES.index(name) + 1]}
    for source, packages in pins.items():
        by = {
            package
            for package, (_, rest) in lock.items()
            if re.search(rf"(via|#) +-r {source}\.in$", rest, re.M)
        }
        assert by == packages.keys(), source
        assert {package: lock[package][0] for package in packages} == packages


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_hashes_and_nothing_says_where_it_is_from(name: str) -> None:
    for package, (_, rest) in locked(name).items():
        assert "--hash=sha256:" in rest, package
    text = (ROOT / f"{name}.txt").read_text()
    assert not re.search(r"://|^ *--(?!hash)|@ ", text, re.M)


def test_both_locks_agree() -> None:
    program, everything = (locked(name) for name in NAMES)
    assert {name: everything[name][0] for name in program} == {
        name: version for name, (version, _) in program.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_lock_says_how_make_lock_made_it(name: str) -> None:
    """Renovate runs the command that the lock's head has."""
    said = re.findall(r"^#    (uv .*)", (ROOT / f"{name}.txt").read_text(), re.M)
    command = ["make", "--dry-run", "lock"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    run = [shlex.split(line)[2:] for line in lines.splitlines() if line.endswith(f" {name}.in")]
    assert [[word for word in words if word != "--quiet"] for words in run] == [
        shlex.split(line) for line in said
    ]
