"""README's "Try it", as a newcomer types it into a fresh copy, and what the runbook asks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sandbox.engine import PASSPHRASE, STACK
from sandbox.tools import ROOT, search_path
from tests.docs.commands import DEMO, Run, every
from tests.docs.pages import Command, lines, pages

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "node_modules")


class Newcomer:
    """A copy of the repository after `make setup`, and a shell in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        (folder / ".cache").symlink_to(ROOT / ".cache")
        (folder / ".venv").mkdir()
        for it in (ROOT / ".venv").iterdir():
            if it.name != "stamp":
                (folder / ".venv" / it.name).symlink_to(it)
        stamp = "cat requirements-dev.txt | sha256sum > .venv/stamp"
        subprocess.run(["bash", "-c", stamp], cwd=folder, check=True)

    def types(self, command: str, folder: str = ".", **environment: str) -> str:
        """Standard output; in a terminal's width, and without one's colours."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder / folder,
            env={**os.environ, "PATH": search_path(), "COLUMNS": "80", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    someone = Newcomer(tmp_path / "copy")
    yield someone
    someone.types("make down")


def test_the_demo_is_what_readme_says(newcomer: Newcomer) -> None:
    told = every(lambda it: it == Run(DEMO))
    first, last = "make demo", "make down"
    texts = [
        it.text for it in told if it.page == "README.md" and it.text.startswith((".venv", "make"))
    ]
    assert texts[0] == first
    assert last in texts

    shown = newcomer.types(first)
    assert "\x1b" not in shown
    assert re.search(r"(?m)^scrape api +up$", shown)
    asked = [it for it in lines(shown.replace("\n  curl", "\ncurl")) if it.startswith("curl")]
    assert len(asked) == 2
    for curl in asked:
        assert newcomer.types(f"{curl} --fail --silent").startswith("# HELP")

    printed = shown
    for command in told:
        if command.text not in (first, last):
            printed += newcomer.types(*here(command, shown), **stack(newcomer))

    # what README shows is what is printed, but for the ports and where no machine can boot
    [block] = [it.text for it in pages()["README.md"].blocks if it.text.startswith(f"$ {first}")]
    for line in re.sub(r"\\\n", "", block).splitlines():
        if not line.startswith(("$", "…", "host")):
            assert re.sub(r"\d{4,5}", "PORT", line) in re.sub(r"\d{4,5}", "PORT", printed)

    # edited and run again
    file = newcomer.folder / ".sandbox/project/config/Pulumi.local.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["config"]["metrics-proxy:workers"] = {"errorRate": 0.05}
    file.write_text(yaml.safe_dump(settings))
    newcomer.types(first)
    [dashboard] = (newcomer.folder / ".sandbox/grafana").glob("dashboards/*/*.json")
    assert "0.05" in dashboard.read_text()

    newcomer.types(last)
    assert not (newcomer.folder / ".sandbox").exists()


def here(command: Command, shown: str) -> tuple[str, str]:
    """A command with what the sandbox has in place of the page's names, and its folder."""
    folder = ".sandbox/project" if command.text.startswith("pulumi") else "."
    [address] = set(re.findall(r"--resolve prometheus-api\.local:\d+:(\S+)", shown))
    [port] = set(re.findall(r"https://prometheus-api\.local:(\d+)/", shown))
    [ca] = set(re.findall(r"--cacert (\S+)", shown))
    text = re.sub(r"(?<=prometheus-api\.local:)\d+", port, command.text)
    text = re.sub(r"(?<=--cacert )\S+", ca, text).replace("ADDRESS", address)
    return text, folder


def stack(newcomer: Newcomer) -> dict[str, str]:
    """What leads Pulumi to the sandbox's stack."""
    return {
        "PULUMI_BACKEND_URL": (newcomer.folder / ".sandbox/pulumi").as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
        "PULUMI_STACK": STACK,
    }
