"""python -m sandbox: the whole system on one machine."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sandbox.engine import ProgramError
from sandbox.machines.vm.fleet import MOST
from sandbox.machines.vm.machine import obstacle
from sandbox.system import Sandbox, SandboxError
from sandbox.tools import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    progress = Terminal()
    try:
        machines = getattr(options, "machines", None)
        sandbox = Sandbox(options.folder, progress.step, _kind(options), machines or 1)
        if machines not in (None, sandbox.machines):
            raise SandboxError(f"{sandbox.machines} machines are up; run: down, then up")
        if options.command != "up" and not sandbox.exists:
            if options.command == "down":
                print("nothing is up")
                return 0
            raise SandboxError("nothing is up; run: python -m sandbox up")
        with sandbox.locked():
            return int(COMMANDS[options.command](sandbox, options) or 0)
    except (SandboxError, ProgramError, TimeoutError, FileNotFoundError) as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1


def _kind(options: argparse.Namespace) -> str:
    """The kind of a new sandbox's machine: it boots where it can."""
    wanted = getattr(options, "host", "process")
    reason = obstacle() if wanted in ("vm", "auto") else None
    if wanted == "vm" and reason:
        raise SandboxError(f"--host vm: {reason}")
    if (getattr(options, "machines", None) or 1) > 1 and (reason or wanted == "process"):
        why = reason or "--host is process"
        raise SandboxError(f"--machines {options.machines} takes machines that boot: {why}")
    if reason:
        print(f"The host runs as plain processes; it cannot boot here: {reason}.", file=sys.stderr)
    return "process" if reason or wanted == "process" else "vm"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".sandbox", help="the sandbox's state (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring everything up, or up to date")
    up.add_argument("--host", choices=["auto", "vm", "process"], default="auto")
    up.add_argument("--server", choices=["nginx", "apache"], help="nginx, if the sandbox is new")
    up.add_argument(
        "--machines",
        type=int,
        choices=range(1, MOST + 1),
        help="1, if the sandbox is new; more are a fleet, in a zone each",
    )
    up.add_argument("--detach", action="store_true", help="leave it running and return")
    up.add_argument("--json", action="store_true", help="print where everything is as JSON")
    up.add_argument("--verbose", action="store_true", help="show what pulumi prints")
    commands.add_parser("status", help="show what is up, and where")
    commands.add_parser("rotate-token", help="rotate the admin token without a lost scrape")
    preview = commands.add_parser("dashboard-preview", help="draw the dashboard from Prometheus")
    preview.add_argument("--output", type=Path, help="a PNG (dashboard.png in the state's folder)")
    commands.add_parser("down", help="end everything and remove the state")
    return parser


def _up(sandbox: Sandbox, options: argparse.Namespace) -> None:
    sandbox.up(options.server, output=_to_stderr if options.verbose else None)
    if options.json:
        print(json.dumps(sandbox.contract()), flush=True)
    else:
        _table(sandbox)
    if not options.detach:
        print("Ctrl-C ends it all.", file=sys.stderr, flush=True)
        try:
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        finally:
            sandbox.down()


def _status(sandbox: Sandbox, _: argparse.Namespace) -> int:
    down = [name for name in sandbox.state["processes"] if sandbox.process(name) is None]
    if down:
        raise SandboxError(f"not running: {', '.join(down)} (logs in {sandbox.logs})")
    return _table(sandbox)


def _rotate(sandbox: Sandbox, _: argparse.Namespace) -> None:
    sandbox.rotate_token()


def _preview(sandbox: Sandbox, options: argparse.Namespace) -> int:
    """Draw what is deployed; 1 if a query of a panel finds nothing."""
    from sandbox.draw import draw  # half a second of imports, for this command alone

    output = options.output or sandbox.folder / "dashboard.png"
    for file in sandbox.engine.provisioning.glob("dashboards/*/*.json"):
        empty = draw(json.loads(file.read_text()), sandbox.prometheus_url, output)
        print(f"{output}: a preview, not Grafana")
        for query in empty:
            print(f"no data for {query}", file=sys.stderr)
        return 1 if empty else 0
    raise SandboxError("no dashboard is deployed (grafana.enabled)")


def _down(sandbox: Sandbox, _: argparse.Namespace) -> None:
    sandbox.down()


COMMANDS = {
    "up": _up,
    "status": _status,
    "rotate-token": _rotate,
    "dashboard-preview": _preview,
    "down": _down,
}


class Terminal:
    """Progress on standard error; colours only where somebody sees them."""

    def step(self, what: str, seconds: float) -> None:
        print(
            f"{_paint('✓', 32, sys.stderr)} {what} ({seconds:.1f} s)", file=sys.stderr, flush=True
        )


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _paint(text: str, color: int, stream: object = sys.stdout) -> str:
    return f"\033[{color}m{text}\033[0m" if getattr(stream, "isatty", bool)() else text


def _table(sandbox: Sandbox) -> int:
    """What is where, and how to look; 1 if a scrape fails."""
    contract, scrapes = sandbox.contract(), sandbox.scrapes()
    proxy, aws = contract["proxy"], contract["aws"]
    ca = Path(proxy["ca_file"])
    here = Path.cwd()
    shown = ca.relative_to(here) if ca.is_relative_to(here) else ca
    rows = [
        (f"scrape {name}", _paint("up", 32) if up else _paint("down", 31), "")
        for name, up in scrapes.items()
    ]
    rows += [
        ("proxy", proxy["server"], proxy["url"]),
        ("host", sandbox.kind, sandbox.machine.what),
        ("Prometheus", "real", contract["prometheus"]["url"]),
        ("AWS", "moto", aws["endpoint_url"]),
        ("Pulumi", f"stack {contract['pulumi']['stack']}", contract["pulumi"]["backend"]),
        ("Grafana", "files", contract["grafana"]["provisioning"]),
        ("logs", "", str(sandbox.logs)),
    ]
    rows[-6:-6] = [
        (it["zone"], it["health"], f"{it['instance']} {it['address']}")
        for it in contract["machines"]
        if "zone" in it
    ]
    width = max(16, *(len(name) + 2 for name, _, _ in rows))
    for name, state, where in rows:
        print(f"{name:<{width}}{state:<{14 + len(state) - len(_plain(state))}}{where}".rstrip())
    print("\nLook, with the CA and without a token:")
    port, name = proxy["port"], proxy["server_name"]
    for endpoint in contract["endpoints"]:
        print(f"  curl --cacert {shown} --resolve {name}:{port}:{proxy['address']} \\")
        print(f"       https://{name}:{port}{endpoint['path']}")
    print("Then: .venv/bin/python -m sandbox status | rotate-token | dashboard-preview | down")
    return 0 if all(scrapes.values()) else 1


def _plain(text: str) -> str:
    return text.removeprefix("\033[32m").removeprefix("\033[31m").removesuffix("\033[0m")


if __name__ == "__main__":
    sys.exit(main())
