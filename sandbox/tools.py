"""Where the programs are that no package index brings: from $PATH, else built by `make setup`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / ".cache" / "bin"
"""What `make setup` built from tools/*/go.mod."""

DEBIAN = BUILT / "debian"
"""What the machine's tree brought beside it: Debian 13's own Prometheus."""

PROMETHEUS_MIN = (2, 43)
"""The first Prometheus with `scrape_config_files`."""


def search_path() -> str:
    """$PATH with what was built behind it, so that the user's own programs win."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(path if str(BUILT) in path else [*path, str(BUILT)])


def find(name: str) -> str:
    """The path of a program; `FileNotFoundError` says how to get it."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise FileNotFoundError(f"{name} is neither on $PATH nor built; run: make setup")
    return found


def prometheus(name: str = "prometheus") -> str:
    """`prometheus` or `promtool`, new enough: from $PATH, else as it was built, else Debian's."""
    on_path = shutil.which(name)
    if on_path is not None and _version(on_path) >= PROMETHEUS_MIN:
        return on_path
    for found in (BUILT / name, DEBIAN / name):
        if found.exists():
            return str(found)
    raise FileNotFoundError(
        f"no {name} of version {'.'.join(map(str, PROMETHEUS_MIN))} or newer; run: make setup"
    )


def _version(program: str) -> tuple[int, ...]:
    """What `--version` says; a build without version information says nothing and counts as old."""
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+)\.(\d+)", output.stdout + output.stderr)
    return tuple(map(int, found.groups())) if found else (0, 0)
