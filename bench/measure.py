"""Servers side by side, what they cost, and how sure that is."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from bench.targets import HOST, TOKEN, Ours, Place, Target, certificate, packages
from sandbox.processes import free_port, listens, wait
from sandbox.tools import ROOT
from tests.behaviour.proxies import in_debian_13

Sample = dict[str, Any]
LOAD: Final = str(ROOT / ".cache/bench/load")


@dataclass(frozen=True)
class Server:
    """A target that runs; without a pid the API itself, whose CPU is not counted."""

    name: str
    url: str
    pid: int | None = None

    def _processes(self) -> list[Path]:
        found = [Path(f"/proc/{self.pid}")] if self.pid else []
        for process in found:  # which grows meanwhile
            for text in _read(process, "task/*/children").values():
                found += [Path(f"/proc/{pid}") for pid in text.split()]
        return found

    def cpu(self) -> dict[Path, int]:
        """Nanoseconds on a CPU, by task."""
        files = [_read(process, "task/*/schedstat") for process in self._processes()]
        return {task: int(text.split()[0]) for read in files for task, text in read.items()}

    def pss(self) -> float:
        """Megabytes."""
        files = [_read(process, "smaps_rollup") for process in self._processes()]
        texts = [text.partition("\nPss:")[2] for read in files for text in read.values()]
        return sum(int(text.split()[0]) for text in texts) / 1024


def _read(process: Path, pattern: str) -> dict[Path, str]:
    """Files of a process, those of what has ended meanwhile left out."""
    texts = {}
    for file in process.glob(pattern):
        with contextlib.suppress(OSError):
            texts[file] = file.read_text()
    return texts


def spent(before: Mapping[Path, int], after: Mapping[Path, int]) -> float | None:
    """Microseconds between two answers of `Server.cpu`; None if a task ended meanwhile."""
    if before.keys() - after.keys():
        return None
    return sum(ns - before.get(task, 0) for task, ns in after.items()) / 1000


class Child(subprocess.Popen[str]):
    """A program that answers each line with one."""

    def tell(self, line: str) -> None:
        print(line, file=self.stdin, flush=True)

    def answer(self) -> str:
        """Its next line; `RuntimeError` if it has ended."""
        if line := self.stdout and self.stdout.readline():
            return line
        raise RuntimeError(f"{self.args!r} ended")


class Bench:
    """A folder, the API, and the servers that were started; all of it ends with this."""

    def __enter__(self) -> Self:
        (ROOT / ".cache/bench").mkdir(exist_ok=True)
        subprocess.run(
            ["go", "build", "-buildvcs=false", "-o", LOAD, "."], cwd=ROOT / "bench/load", check=True
        )
        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        self._children: list[Child] = []
        address = f"{HOST}:{free_port(HOST)}"
        self._api = self._spawn([LOAD, "api", address, TOKEN])
        self.direct = Server("direct", f"http://{address}/metrics")
        self._address = address
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
        shutil.rmtree(self.folder)

    def _spawn(self, command: Sequence[str], folder: Path | None = None) -> Child:
        with (self.folder / "log").open("a") as log:
            child = Child(
                command,
                cwd=folder or self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if command[0] == LOAD else log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def start(self, name: str, target: Target | Ours) -> Server:
        """Start a target; it is there when it takes connections."""
        place = Place(self.folder / str(len(self._children)), free_port(HOST), self._address)
        command = target.prepare(place)
        if (place.folder / "dev").exists():
            self._spawn([LOAD, "log", "dev/log"], place.folder)
            wait((place.folder / "dev/log").exists, "a log")
        mounted = place.folder.with_suffix(".tree")
        above = [packages()] if isinstance(target, Target) else []
        child = self._spawn(in_debian_13(command, mounted, place.folder, *above))
        wait(lambda: child.poll() is not None or listens(HOST, place.port), name)
        if child.poll() is not None:
            raise RuntimeError(f"{name} ended: {(self.folder / 'log').read_text()[-500:]}")
        return Server(name, f"https://{HOST}:{place.port}{target.path}", child.pid)

    def body(self, size: int) -> None:
        """What the API answers from now on."""
        self._api.tell(str(size))
        self._api.answer()

    def load(self, server: Server, size: int, **how: Any) -> Child:
        """Clients, that `answer` when they have their connections."""
        how |= {"url": server.url.format(size=size), "size": size, "ca": certificate()[0]}
        how |= {} if server.pid else {"token": f"Bearer {TOKEN}"}
        return self._spawn([LOAD, "scrape", json.dumps(how)])

    def end(self, child: Child) -> None:
        self._children.remove(child)
        child.kill()
        child.communicate()

    def sample(self, server: Server, size: int, count: int, **how: Any) -> Sample:
        """Scrape so often; CPU in µs, times in ms."""
        load = self.load(server, size, **how)
        load.answer()
        before = server.cpu()
        load.tell(f"{count} 0")
        found = json.loads(load.answer())
        cpu = spent(before, server.cpu())
        self.end(load)
        return {"target": server.name, "cpu": cpu and cpu / count, **found}


def ratio(samples: Sequence[Sample], of: str, to: str) -> dict[str, float]:
    """The median of the rounds' ratios of CPU, and the middle 95 % of its bootstrap."""
    cpu = {(sample["target"], sample["round"]): sample["cpu"] for sample in samples}
    rounds = {number for name, number in cpu if cpu.get((of, number)) and cpu.get((to, number))}
    found = [cpu[of, number] / cpu[to, number] for number in rounds]
    if not found:
        return {}
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(found, k=len(found))) for _ in range(400))
    return {"ratio": statistics.median(found), "low": medians[10], "high": medians[-11]}
