"""docs/benchmarks.md and its chart: what bench/results.json holds, for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.servers import SIZES
from sandbox.tools import ROOT

RESULTS: Final = Path(__file__).with_name("results.json")
PAGE: Final = ROOT / "docs/benchmarks.md"
PEERS: Final = ("HAProxy", "Caddy", "exporter_exporter")
WHY: Final = {
    "nginx, ": "at 2 KB, 32 rounds on a busy computer: 1.34 to the required nginx, 1.16 without "
    "its log, 1.23 without limits, 1.25 with `pcre_jit`, which the confinement refuses. Its "
    "system calls are the required ones and one for the log. Tried at 2 and 20 MB: buffers of 16 "
    "to 128 KB, other ciphers; the same body from a file is the floor",
    "nginx: ": "a regular expression for each endpoint is tried in turn",
    "apache: ": "a rule for each endpoint is tried in turn; the path is looked at first, which "
    "made 1.13 to 1.05 in another run of 18 rounds",
    "Apache, ": "mod_lua 7 %, the process that writes the log 6 %, and with it a message and two "
    "switches a scrape; the name is looked up for each (7 system calls). Tried: the log through "
    "`cat` (no gain to be seen), a kept address (7 %, where scrapes are closer than its 2 s)",
    "memory of nginx, 1 to 64": "a connection's TLS and buffers, kept by the allocator",
    "imports": "pydantic, Jinja, YAML: they check and render",
    "rotation": "a run of the sync with a token (trial, reload, checks) takes as long as below, "
    "and begins up to `syncInterval` and a run at rest later",
    "boot": "cloud-init takes most of it, then the packages are installed",
    "sync": "Debian's boto3: importing it and making a client take 0.20 s and 51 MB by themselves. "
    "Tried: no garbage collection meanwhile (no gain). Taken: one TLS context for all questions to "
    "the own server, so that Debian's list of CAs is not read for each",
}
"""By how a goal begins: what stands in its way, as measured, and what was tried."""


def goals(found: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """What is asked for, what was found, and the most that it may be."""
    like, flood = found["scrapes"]["scrape-like"], found["scrapes"]["flood"]["20 KB"]

    def to(size: str, other: str, name: str = "nginx") -> float:
        return float(like[size][name]["ratio"] / like[size][other]["ratio"])

    for size, most in zip(SIZES, (1, 1, 0.75, 0.75), strict=True):
        yield f"nginx, {size}, to the required nginx", to(size, "required nginx"), most
    for size in SIZES:
        yield f"nginx, {size}, to the best peer", max(to(size, peer) for peer in PEERS), 1.05
    means = [math.prod(to(size, peer) for size in SIZES) ** 0.25 for peer in PEERS]
    yield "nginx, geometric mean of all sizes, to the best peer", max(means), 1
    for size in SIZES:
        yield f"nginx, {size}, to `proxy_pass` and TLS alone", to(size, "floor: proxy_pass"), 1.15
    for size, most in zip(SIZES, (1.1, 1.1, 1, 1), strict=True):
        ratio = to(size, "required Apache", "Apache")
        yield f"Apache, {size}, to the required Apache", ratio, most
    best = min(flood[name]["p99"] for name in (*PEERS, "required nginx", "required Apache"))
    yield "nginx, p99 of 16 clients at 20 KB, to the best", flood["nginx"]["p99"] / best, 1.1
    sizes = [size for mode in found["scrapes"].values() for size in mode.values()]
    yield "failed scrapes", sum(cell["failed"] for size in sizes for cell in size.values()), 0
    memory = found["memory"]["nginx"]
    yield "memory of nginx, 8 slow readers, MB", memory["8 slow"], 12
    yield "memory of nginx, 60 slow readers, MB", memory["60 slow"], 25
    yield "memory of nginx, 1 to 64 clients", memory["64 clients"] / memory["1 clients"], 1.1
    for server in ("nginx", "apache"):
        last = found["growth"][f"{server}, endpoints"]["80"]["the last, 2 KB"]["ratio"]
        yield f"{server}: the last of 80 endpoints, to that of 2", last, 1.05
    queues = found["growth"]["nginx, queues"]
    ratio = queues["5000"]["ns a byte"] / queues["500"]["ns a byte"]
    yield "nginx: CPU a byte, 5,000 queues to 500", ratio, 1
    mocks = found["program"]["under mocks, endpoints"]
    yield "imports, to the SDKs' own", found["program"]["imports"]["ratio"], 1.15
    yield "program under mocks, 2 endpoints, s", mocks["2"], 0.15
    yield "program under mocks, 80 endpoints to 40 times 2", mocks["80"] / mocks["2"] / 40, 1
    yield "rotation, s (half of `syncInterval`, and 2)", found["rotation"]["token"]["median"], 3
    yield "rotation, failed scrapes", found["rotation"]["token"]["failed"], 0
    failed = found["replacement"]["both machines"]["failed"]
    yield "replacement of a fleet's machines, failed scrapes", failed, 0
    yield "boot, s to the first 200", found["boot"]["seconds"]["first 200"], 12
    sync = found["sync"]["nothing to do, 2 endpoints"]
    yield "sync with nothing to do, s of CPU", sync["cpu"], 0.2
    yield "sync with nothing to do, MB", sync["MB"], 45


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    if not isinstance(value, Mapping):
        return f"{value:,}" if isinstance(value, int) else str(value)
    spread = "{ratio:.2f} ({low:.2f}-{high:.2f}), " if "ratio" in value else ""
    failed = "; {failed} failed" if value["failed"] else ""
    return f"{spread}{{cpu:,.0f}} µs; {{p50:.3g}}, {{p99:.3g}} ms{failed}".format(**value)


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[title, *columns], ["---"] * (len(columns) + 1)]
    lines += [[n, *(_cell(row[c]) if c in row else "" for c in columns)] for n, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _page(found: Mapping[str, Any]) -> str:
    asked = {
        what: {
            "found": float(value),
            "at most": float(most),
            "": "met" if value <= most else "**not met**",
        }
        for what, value, most in goals(found)
    }
    missed = [what for what, row in asked.items() if row[""] != "met"]
    why = [
        f"- *{begin.strip(' ,')}*: {why}.\n"
        for begin, why in WHY.items()
        if any(what.startswith(begin) for what in missed)
    ]
    scrapes = [
        _table(mode, {name: {s: sizes[s][name] for s in sizes} for name in sizes["2 KB"]})
        for mode, sizes in found["scrapes"].items()
    ]
    like = found["scrapes"]["scrape-like"]
    moved = {name: {size: int(like[size][name]["bytes"]) for size in like} for name in like["2 KB"]}
    parts = [TEXT.format(**found), _table("goal", asked), "".join(why), SCRAPES, *scrapes]
    parts += [_table("bytes of a scrape", moved), MEMORY, _table("MB", found["memory"]), GROWTH]
    parts += [_table(what, rows) for what, rows in found["growth"].items()]
    parts += [
        MACHINE,
        *(_table(it, found[it]) for it in ("boot", "rotation", "replacement", "sync")),
    ]
    parts += [PROGRAM, *(_table(part, {"s": row}) for part, row in found["program"].items())]
    return "\n".join(parts)


TEXT: Final = """# Benchmarks

For whoever wants to know what a scrape costs, and what grows with what.

Written by `make {command}`, in {seconds:.0f} s on {cpu} ({cores} cores, {kernel}), at a load (1,
5 and 15 minutes) of {before} before and {after} after. Servers of Debian 13, side by side and
interleaved on loopback, in the tree that the machine boots from: {versions}. Ratios count, times do
not.

![CPU of a scrape](benchmarks.png)

## Goals

Where one is not met, what stands in the way is below, as profiles and variants have shown it.
"""
SCRAPES: Final = """## A scrape

The server's processes: the ratio of their CPU to the required nginx' in the same round (median, and
the middle 95 % of its bootstrap), µs of CPU; p50 and p99. *scrape-like*: one client that keeps its
connection; a new connection to the API each. *flood*: 16 clients. *new TLS*: a connection each.
*paced*: one in two seconds, idling counted. Ours writes a line of log for each, Apache through a
process of its own, which is counted.
"""
MEMORY: Final = """## Memory

PSS: at rest, after floods of so many clients, with so many slow readers of 20 MB.
"""
GROWTH: Final = "## Growth\n\nOf endpoints, the most is what one secret holds.\n"
MACHINE: Final = """## The machine

Seconds from the start of systemd until a unit had ended, or was up; *first 200*: of the boot. The
sync: one run. `syncInterval` is 2 s. The replacement: from `pulumi up` to the end of the old
machines; new ones warm up and old ones drain in a thirtieth of the time that it takes in AWS.
"""
PROGRAM: Final = "## The program\n\nSeconds: of CPU for imports and under mocks.\n"


def write(found: Mapping[str, Any]) -> None:
    """Results, page and chart."""
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(RESULTS.read_text())
    PAGE.write_text(_page(found))
    mpl.use("agg")
    figure, panels = plt.subplots(1, len(SIZES), figsize=(12, 3), sharey=True)
    for panel, (size, cells) in zip(panels, found["scrapes"]["scrape-like"].items(), strict=True):
        cells = {name: cell for name, cell in cells.items() if cell.get("ratio")}
        ratios = [cell["ratio"] for cell in cells.values()]
        low = [cell["ratio"] - cell["low"] for cell in cells.values()]
        high = [cell["high"] - cell["ratio"] for cell in cells.values()]
        ours = ["tab:blue" if name in ("nginx", "Apache") else "lightgrey" for name in cells]
        panel.barh(list(cells), ratios, xerr=[low, high], color=ours)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(size)
    panels[0].invert_yaxis()
    figure.suptitle("CPU of a scrape; the required nginx' is 1")
    figure.tight_layout()
    figure.savefig(PAGE.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    write(json.loads(RESULTS.read_text()))
