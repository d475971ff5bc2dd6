"""The sync killed (-9) at any moment of five scenarios: it converges, and leaves nothing behind.

A killed process leaves what it did outside itself: files, and the server. So of all the lines that
a run executes one is tried for each state of those: the first line after every change of the
folder, and the first of every step, before and while servers and commands run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.machines.process import NOT_ROOT
from tests.certificates import self_signed
from tests.host.machine import (
    PYTHON,
    Machine,
    configure,
    generations,
    machine,
    moto_url,
    ok,
    synced,
)
from tests.host.test_sync_trial import NGINX

__all__ = ["machine", "moto_url", "synced"]

STEPS = "command trial check resume restore adopt _lacks"

DRIVER = """
import collections, json, os, pathlib, runpy, signal, sys
import boto3, prometheus_client, http.client, concurrent.futures, tempfile, urllib.parse
boto3.client("secretsmanager", "eu-central-1")
script, folder, steps = sys.argv[1], pathlib.Path(sys.argv[-2]), sys.argv[-1].split()
del sys.argv[0], sys.argv[-2:]

def outside():
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            status = path.lstat()
        except OSError:
            continue
        link = os.readlink(path) if path.is_symlink() else ""
        found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns, link))
    return found

def run(kill):
    counts, points, last, entered = collections.Counter(), [], [None], []

    def line(frame, event, argument):
        if event != "line":
            return line
        counts[frame.f_lineno] += 1
        key = [frame.f_lineno, counts[frame.f_lineno]]
        if kill is None:
            now = outside()
            if now != last[0] or entered:
                last[0] = now
                entered.clear()
                points.append(key)
        elif key == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame, event, argument):
        if frame.f_code.co_filename != script:
            return None
        if frame.f_code.co_name in steps:
            entered.append(frame)
        return line

    def end(status):
        sys.settrace(None)
        sys.stderr.flush()
        if kill is None:
            pathlib.Path(os.environ["POINTS"]).write_text(json.dumps(points))
        leave(status)

    leave, os._exit = os._exit, end
    sys.settrace(call)
    runpy.run_path(script, run_name="__main__")

for request in sys.stdin:
    kill, environment = json.loads(request)
    child = os.fork()
    if not child:
        os.environ.update(environment)
        run(kill if kill else None if kill is None else [0, 0])
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Runs the sync in forks of a process that has its modules: at a line killed, or noting the lines
to kill it at (null), or to its end ([])."""


class Runs:
    """The sync of a machine, in forks."""

    def __init__(self, host: Machine) -> None:
        self._points = host.folder / "points"
        self._environment = {"POINTS": str(self._points)}
        *_, script, server, sync = host.sync_command
        command = [*NOT_ROOT, PYTHON, "-c", DRIVER, script, server, sync]
        self._driver = subprocess.Popen(
            [*command, str(host.run_folder), STEPS],
            env=host._environment,
            cwd=host.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(host.folder / "said").open("w"),
            text=True,
        )

    def __call__(self, kill: list[int] | None, **environment: str) -> int:
        """A wait status."""
        assert self._driver.stdin
        assert self._driver.stdout
        request = json.dumps([kill, self._environment | environment])
        self._driver.stdin.write(f"{request}\n")
        self._driver.stdin.flush()
        return int(self._driver.stdout.readline())

    def points(self) -> list[list[int]]:
        assert os.WIFEXITED(self(None))
        return [list(point) for point in json.loads(self._points.read_text())]

    def end(self) -> None:
        assert self._driver.stdin
        self._driver.stdin.close()
        assert self._driver.wait(10) == 0
        assert self._driver.stdout
        self._driver.stdout.close()


@pytest.fixture
def runs(machine: Machine) -> Iterator[Runs]:
    made = Runs(machine)
    yield made
    made.end()


def trials(host: Machine) -> list[int]:
    """Servers that a killed sync left behind; on the machine they end with the unit."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = file.read_bytes()
            if b"trial.conf" in text and str(host.folder).encode() in text:
                found.append(int(file.parent.name))
    return found


def end_trials(host: Machine) -> None:
    for pid in trials(host):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def whole(host: Machine) -> bool:
    """Whether the link is there, with all of a generation behind it."""
    link = host.run_folder / "current"
    if not os.path.lexists(link):
        return False
    names = {path.name for path in link.iterdir()}
    assert {"proxy.conf", "token.conf", "certificate.pem", "key.pem"} <= names, "dangling or half"
    return True


State = Callable[[Machine, int], None]


def new_token(host: Machine, number: int) -> None:
    host.tokens = {host.token(), f"token-{number}"}
    host.put(f"token-{number}")


def all_parts(host: Machine, number: int) -> None:
    new_token(host, number)
    host.bundle["certificate"], host.bundle["key"] = self_signed()
    text = host.bundle["configuration"].partition("# number")[0]
    host.bundle["configuration"] = f"{text}# number {number}\n"
    host.put(configuration=host.bundle["configuration"])


def a_bad_part(host: Machine, number: int) -> None:
    new_token(host, number)
    bad = NGINX["listen without ssl"](host.bundle["configuration"])
    host.put(configuration=f"{bad}# number {number}\n")


def a_put_back(host: Machine, number: int) -> None:
    """The first reload of each does nothing."""
    new_token(host, number)
    once = host.folder / f"once-{number}"
    script = f"if ! [ -e {once} ]; then touch {once}; exit 0; fi"
    configure(host, reload=["sh", "-c", f"{script}\n{host.reload_script}"])


def first_boot(host: Machine, number: int) -> None:
    host.tokens = {f"token-{number}"}
    host.put(f"token-{number}")
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((host.folder / "pid").read_text()), signal.SIGKILL)
    for path in host.run_folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


SCENARIOS: dict[str, State] = {
    "a token": new_token,
    "all parts": all_parts,
    "a bad part": a_bad_part,
    "a put-back": a_put_back,
    "first boot": first_boot,
}
NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_sync_is_killed(synced: Machine, runs: Runs, scenario: str) -> None:
    host, change = synced, SCENARIOS[scenario]
    # SERVE_SECONDS would be a minute of waiting here, for the reload that does nothing
    script = Path(host.sync_command[-3])
    text = script.read_text()
    script.write_text(text.replace("SERVE_SECONDS = 10 ", "SERVE_SECONDS = 2 "))
    assert script.read_text() != text
    change(host, 0)
    points = runs.points()
    assert len(points) > 15
    killed = 0
    for number, point in enumerate(points, 1):
        change(host, number)
        status = runs(point)
        where = f"killed at {point}"
        if os.WIFSIGNALED(status):
            killed += 1
        end_trials(host)
        there = whole(host)
        assert scenario == "first boot" or there, where
        if scenario != "a put-back" and there and scenario != "first boot":
            assert host.scrape(verify=False) == 200, where

        # Secrets Manager is not there: what serves goes on, what is good comes back
        assert os.waitstatus_to_exitcode(runs([], AWS_ENDPOINT_URL=NOWHERE)) == 1, where
        assert host.reasons() >= {"fetch_bundle", "fetch_token"}, where
        assert whole(host) == there, where
        if there:
            assert host.scrape() == 200, where
            assert host.scrape("/metrics/proxy") == 200, where

        # it is there again
        status = os.waitstatus_to_exitcode(runs([]))
        if scenario == "a put-back" and status:
            assert host.reasons() == {"check"}, where
            file = host.run_folder / "state.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"failures": {}}))
            status = os.waitstatus_to_exitcode(runs([]))
        expected = {"trial"} if scenario == "a bad part" else set()
        assert (host.reasons(), status) == (expected, len(expected)), where
        assert host.token() == f"token-{number}", where
        assert host.scrape() == 200, where
        assert len(generations(host)) == 1, where
        assert not trials(host), where
    assert killed > 0.8 * len(points), (killed, len(points))
    print(f"{scenario}: killed at {killed} of {len(points)} moments")


def test_a_killed_trial_is_seen(synced: Machine) -> None:
    """The search for what a killed sync leaves behind finds it."""
    trial: list[str] = json.loads(synced._config.read_text())["trial"]
    configure(
        synced, trial=["sh", "-c", f"kill -9 $PPID; exec {' '.join(trial[:-2])} -g 'daemon off;'"]
    )
    new_token(synced, 1)
    assert synced.sync().returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    while not trials(synced) and time.monotonic() < end:
        time.sleep(0.05)
    assert trials(synced)
    end_trials(synced)
    configure(synced, trial=trial)
    ok(synced)
    assert synced.token() == "token-1"
