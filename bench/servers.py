"""What the servers cost: a scrape, memory, growth. Rounds go on until the seconds are used."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from bench.measure import Bench, Sample, Server, ratio, spent
from bench.targets import Ours, with_endpoints
from config.settings import SettingsError
from host import proxy

SIZES: Final = {"2 KB": 2_000, "20 KB": 20_000, "2 MB": 2_000_000, "20 MB": 20_000_000}
QUEUE: Final = 480
"""Bytes that a queue adds to the document of the workers."""

MODES: Final[dict[str, tuple[float, Sequence[int], dict[str, Any]]]] = {
    "scrape-like": (0.45, (100, 100, 8, 2), {}),
    "flood": (0.3, (600, 600, 32, 16), {"clients": 16}),
    "new TLS": (0.1, (40, 40, 8, 2), {"fresh": True}),
}
"""Share of the time, scrapes of a round by size, options of `load scrape`."""


def _rounds(
    bench: Bench, servers: Sequence[Server], size: int, count: int, seconds: float, **how: Any
) -> list[Sample]:
    """Every server once a round, in another order each."""
    samples: list[Sample] = []
    until = time.monotonic() + seconds
    bench.body(size)
    while not samples or time.monotonic() < until:
        number = len(samples)
        for server in random.sample(servers, len(servers)):
            samples.append({"round": number, **bench.sample(server, size, count, **how)})
    return samples


def _summary(samples: Sequence[Sample], reference: str) -> dict[str, dict[str, Any]]:
    """By target: medians, failures, and the ratio of CPU to the reference with its spread."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({sample["target"] for sample in samples}):
        own = [sample for sample in samples if sample["target"] == name]
        medians = {
            key: round(median([s[key] for s in own if s[key] is not None] or [0]), 3)
            for key in ("cpu", "p50", "p99", "bytes")
        }
        failed = sum(sample["failed"] for sample in own)
        found[name] = medians | {"failed": failed, "rounds": len(own)}
        found[name] |= ratio(samples, name, reference)
    return found


def scrapes(bench: Bench, servers: Sequence[Server], seconds: float) -> dict[str, Any]:
    """Mode → size → target → figures."""
    found: dict[str, Any] = {}
    for mode, (share, counts, how) in MODES.items():
        for (label, size), count in zip(SIZES.items(), counts, strict=True):
            each = seconds * share / len(SIZES)
            samples = _rounds(bench, [bench.direct, *servers], size, count, each, **how)
            found.setdefault(mode, {})[label] = _summary(samples, "required nginx")
    each = seconds * (1 - sum(share for share, *_ in MODES.values())) / len(SIZES)
    found["paced"] = {
        label: _summary(_paced(bench, servers, size, max(2, int(each / 2))), "required nginx")
        for label, size in SIZES.items()
    }
    return found


def _paced(bench: Bench, servers: Sequence[Server], size: int, count: int) -> list[Sample]:
    """All at the same time, each scraped once in two seconds; the CPU of idling is in it."""
    bench.body(size)
    loads = {server: bench.load(server, size) for server in servers}
    for load in loads.values():
        load.answer()
    before = {server: server.cpu() for server in servers}
    for load in loads.values():
        load.tell(f"{count} 2000")
        time.sleep(2 / len(loads))
    samples = []
    for server, load in loads.items():
        found, cpu = json.loads(load.answer()), spent(before[server], server.cpu())
        samples.append({"target": server.name, "round": 0, "cpu": cpu and cpu / count, **found})
        bench.end(load)
    return samples


def memory(bench: Bench, servers: Sequence[Server]) -> dict[str, Any]:
    """Target → megabytes (PSS): idle, after floods, and with slow readers of 20 MB."""
    found = {server.name: {"idle": server.pss()} for server in servers}
    for server in servers:
        own = found[server.name]
        bench.body(SIZES["20 KB"])
        for clients in (1, 8, 64):
            bench.sample(server, SIZES["20 KB"], 10 * clients, clients=clients)
            own[f"{clients} clients"] = server.pss()
        bench.body(SIZES["20 MB"])
        for clients in (8, 60):
            load = bench.load(server, SIZES["20 MB"], clients=clients, slow=True)
            load.answer()
            time.sleep(1)
            own[f"{clients} slow"] = server.pss()
            bench.end(load)
    return found


def fit(server: str, api: str = "10.0.0.1:9464", name: str = "token") -> int:
    """As many endpoints as one secret holds; `name` is that of the one with the token."""
    few, many = 2, 2_000
    while many - few > 1:
        half = (few + many) // 2
        try:
            proxy.bundle(with_endpoints(server, half, api=api), name)
            few = half
        except SettingsError:
            many = half
    return few


def growth(bench: Bench, seconds: float) -> dict[str, Any]:
    """The last of many endpoints, to that of two; CPU a byte, by queues."""
    found: dict[str, Any] = {}
    for server in ("nginx", "apache"):
        numbers = (2, 20, 80, fit(server))
        many = [bench.start(f"{n}", Ours(server, n, f"/more-{n - 1}")) for n in numbers]
        last = _summary(_rounds(bench, many, 2_000, 100, seconds / 3), "2")
        found[f"{server}, endpoints"] = {f"{n}": {"the last, 2 KB": last[f"{n}"]} for n in numbers}
    found["nginx, queues"] = {}
    one = bench.start("nginx", Ours("nginx"))
    for queues in (5, 50, 500, 5_000):
        size, count = queues * QUEUE, max(4, 2_000 // queues)
        own = _summary(_rounds(bench, [one], size, count, seconds / 12), "")["nginx"]
        byte = own["cpu"] * 1000 / size
        found["nginx, queues"][f"{queues}"] = {"a scrape": own, "ns a byte": byte}
    return found
