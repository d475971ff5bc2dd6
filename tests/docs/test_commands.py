"""Every command of README and docs is in the table, and what is not run names what is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

import pytest

from config.settings import NAMESPACE, Settings
from monitoring import dashboard, scrape
from sandbox import __main__ as sandbox
from sandbox.tools import find
from tests.docs import aws_cli
from tests.docs.commands import TABLE, Checked, Not, Run, every, how, row
from tests.docs.pages import ROOT, SHELL, Command, lines, pages

SETTINGS: Final = {field.alias for field in Settings.model_fields.values()} | {"adminToken"}


def calls(command: str, program: str) -> list[list[str]]:
    """The words of every call of a program in a line of shell, its name left out."""
    inner = re.findall(r"\$\(([^()]*)\)", command)
    found = [words for text in inner for words in calls(text, program)]
    lexer = shlex.shlex(re.sub(r"\$\([^()]*\)", "X", command), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("|&;"):
            words.append(word)
            continue
        if words and words[0] == program:
            end = next((n for n, it in enumerate(words) if it.startswith(">")), len(words))
            found.append(words[1:end])
        words = []
    return found


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Pulumi CLI says of all its commands, a file for each."""
    folder = tmp_path_factory.mktemp("cli")
    environment = {"PULUMI_HOME": str(folder / "home"), "PULUMI_SKIP_UPDATE_CHECK": "true"}
    command = [find("pulumi"), "gen-markdown", str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder


def pulumi(command: str, cli: Path) -> None:
    """Its subcommands, options, settings and outputs are there."""
    found = calls(command, "pulumi")
    assert found
    for words in found:
        page = cli / "pulumi.md"
        while words and (deeper := subcommand(page, words[0])):
            page, words = deeper, words[1:]
        assert page.stem != "pulumi", f"no such command: {words}"
        names, rest = [], list(words)
        while rest:
            word, _, value = rest.pop(0).partition("=")
            if not word.startswith("-"):
                names.append(word)
                continue
            option = re.search(
                rf"(?m)^ +(-\w, )?{re.escape(word)}(?: (\w+)(\[=.*\])?)?   ", page.read_text()
            )
            assert option, word
            if option[2] and not (option[3] or value):
                del rest[:1]
        if page.stem in ("pulumi_config_set", "pulumi_config_rm") and names:
            key = names[0].removeprefix(f"{NAMESPACE}:")
            assert ":" in key or re.split(r"[.\[]", key)[0] in SETTINGS, key
        if page.stem == "pulumi_stack_output" and names:
            assert names[0] in outputs(), names[0]


@cache
def subcommand(page: Path, word: str) -> Path | None:
    """The page of a command below another, by its name or another name that it has."""
    if not re.fullmatch(r"[a-z-]+", word) or not any(page.parent.glob(f"{page.stem}_*.md")):
        return None
    named = page.with_name(f"{page.stem}_{word}.md")
    if named.exists():
        return named
    command = [find("pulumi"), *page.stem.split("_")[1:], word, "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    [real, *others] = re.findall(r"(?m)^(?:Usage|Aliases):\n  (.*)$", said) or [""]
    if not others or word not in others[0].split(", "):
        return None
    return page.with_name("_".join(real.split()[: len(command) - 1]) + ".md")


def outputs() -> set[str]:
    text = (ROOT / "__main__.py").read_text()
    parts = "".join(it.read_text() for it in (ROOT / "components").glob("*.py"))
    named = re.findall(r'pulumi\.export\("(\w+)"', text)
    return {*named, *re.findall(r'self\.exports = \{"(\w+)"', parts), *scrape.FORMS}


def make(command: str) -> None:
    [words] = calls(command, "make")
    [target] = [it for it in words if "=" not in it]
    text = (ROOT / "Makefile").read_text()
    assert re.search(rf"(?m)^{target}:.*##", text), f"no target {target} that `make help` shows"
    stack = [] if "STACK=" in command else ["STACK=dev"]  # of those that want one
    subprocess.run(["make", "-n", *words, *stack], cwd=ROOT, check=True, capture_output=True)


def in_sandbox(command: str) -> None:
    words = shlex.split(command)
    sandbox._parser().parse_args(words[words.index("sandbox") + 1 :])


def in_dashboard(command: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "FILE"
        file.write_text((ROOT / "ops/grafana/dashboard-sba.json").read_text())
        words = shlex.split(command.replace("FILE", str(file)))
        dashboard.main(words[words.index("monitoring.dashboard") + 1 :])


def in_pytest(command: str) -> None:
    marker = shlex.split(command)[-1]
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert marker in [it.partition(":")[0] for it in options["markers"]]


def in_aws(command: str) -> None:
    for words in calls(command, "aws"):
        aws_cli.parse(shlex.join(["aws", *words]))


CHECKS: Final[dict[str, Callable[[str], None]]] = {
    "aws": in_aws,
    "make": make,
    "monitoring.dashboard": in_dashboard,
    "pytest": in_pytest,
    "sandbox": in_sandbox,
}


def test_every_command_is_in_the_table_and_every_row_has_one() -> None:
    commands = every()
    assert {row(it) for it in commands} == set(range(len(TABLE)))


def test_what_a_command_names_is_there(cli: Path) -> None:
    checks: dict[str, Callable[[str], None]] = {**CHECKS, "pulumi": partial(pulumi, cli=cli)}
    wrong = []
    for command in every(lambda it: isinstance(it, Checked)):
        way = how(command)
        assert isinstance(way, Checked)
        try:
            checks[way.program](command.text)
        except (AssertionError, ValueError, SystemExit, subprocess.CalledProcessError) as error:
            wrong.append(f"{command}: {error}")
    assert wrong == []


def test_what_runs_a_command_reads_its_page() -> None:
    """Or another page with the same command; some read all pages."""
    commands = every(lambda it: isinstance(it, Run))
    for command in commands:
        way = how(command)
        assert isinstance(way, Run)
        text = (ROOT / way.test).read_text()
        names = {Path(it.page).name for it in commands if it.text == command.text}
        assert any(name in text for name in {*names, "every("}), command


def test_shell_is_shell() -> None:
    for page in pages().values():
        for block in page.blocks:
            if block.language in SHELL:
                script = "\n".join(lines(block.text))
                subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("pulumi config set adminTokens x", "pulumi"),
        ("pulumi config set grafanas.folderUid x --path", "pulumi"),
        ("pulumi stack output scrapeConfigs > x.yml", "pulumi"),
        ("pulumi up --replaces x", "pulumi"),
        ("pulumi staack init", "pulumi"),
        ("pulumi preview | pulumi up --nope", "pulumi"),
        ("aws ec2 get-console-outputs", "aws"),
        ("aws ec2 get-console-output --newest --instance-id i-0", "aws"),
        ("aws ec2 get-console-output --latest", "aws"),
        ('aws ec2 reboot-instances --instance-ids "$(aws ec2 nothing)"', "aws"),
        ("make demos", "make"),
        ("python -m sandbox up --server caddy", "sandbox"),
        ("python -m monitoring.dashboard", "monitoring.dashboard"),
        ("pytest -m grafanas", "pytest"),
    ],
)
def test_what_is_not_there_is_seen(cli: Path, command: str, program: str) -> None:
    checks: dict[str, Callable[[str], None]] = {**CHECKS, "pulumi": partial(pulumi, cli=cli)}
    with pytest.raises((AssertionError, SystemExit)):
        checks[program](command)


def test_help_fits_into_a_terminal() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert [line for line in said.stdout.splitlines() if len(line) > 80] == []


def test_a_command_of_no_row_is_named() -> None:
    with pytest.raises(AssertionError, match=r"docs/x\.md:3: frobnicate --all: in no row"):
        row(Command("docs/x.md", 3, "frobnicate --all"))


def test_a_reason_is_given_for_what_is_not_run() -> None:
    assert all(it.reason for *_, it in TABLE if isinstance(it, Not))
