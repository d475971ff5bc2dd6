"""A machine of its own for the commands of a page: mounts, network and processes, as root.

`python -m tests.docs.machine FOLDER SCRIPT` is run in namespaces of its own and prints what it
found as JSON. /etc is an overlay, /run and /dev are empty; beyond a veth are Prometheus, a stranger
and the API. systemd is stood in for by `systemctl` below, which knows what the page asks for.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from sandbox.processes import wait
from tests.behaviour.test_names import Resolver

PROXY: Final = "10.20.1.7"
PROMETHEUS: Final = "10.20.0.5"
STRANGER: Final = "192.0.2.5"
API: Final = "10.20.2.9"
USER: Final = "metrics-proxy"

NAMESPACES: Final = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]

SETUP: Final = f"""
mount -t tmpfs tmpfs "$1"
mkdir "$1/etc" "$1/work" "$1/dev" "$1/bin"
mount -t proc proc /proc
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" /etc
mount -t tmpfs -o mode=755 tmpfs /run
for name in null zero full random urandom tty; do
    touch "$1/dev/$name"
    mount --bind "/dev/$name" "$1/dev/$name"
done
ln -s /proc/self/fd "$1/dev/fd"
mount --rbind "$1/dev" /dev
mkdir -p /run/systemd /etc/systemd/system
echo "{API} api-internal" >> /etc/hosts
sysctl -qw net.ipv4.ping_group_range="1 0"
ip link set lo up
ip netns add outside
ip link add inner type veth peer name outer netns outside
ip address add {PROXY}/16 dev inner
ip link set inner up
ip route add {STRANGER} dev inner
ip -n outside link set lo up
ip -n outside link set outer up
for address in {PROMETHEUS} {API} {STRANGER}; do
    ip -n outside address add "$address/32" dev outer
done
ip -n outside route add {PROXY} dev outer
"""

SYSTEMCTL: Final = f"""#!/bin/bash -e
unit=/etc/systemd/system/metrics-proxy.service
value() {{ cat $unit $unit.d/*.conf 2> /dev/null | sed -n "s/^$1=//p"; }}
case "$*" in
daemon-reload) systemd-analyze verify --man=no --recursive-errors=yes $unit ;;
"enable --now metrics-proxy")
    before=$(value ExecStartPre)
    bash -c "${{before#+}}"
    setpriv --reuid {USER} --regid {USER} --init-groups --no-new-privs \\
        bash -c "cd /; exec $(value ExecStart)" > /run/server.log 2>&1 &
    echo $! > /run/server.pid
    for _ in $(seq 100); do
        if [ -n "$(ss -Hltn sport = 9446)" ]; then exit; fi
        sleep 0.1
    done
    cat /run/server.log >&2
    exit 1 ;;
"reload metrics-proxy") MAINPID=$(cat /run/server.pid) bash -c "$(value ExecReload)" ;;
*) echo "systemctl $*: not known here" >&2; exit 1 ;;
esac
"""

CURL: Final = f"""#!/bin/sh -e
exec ip netns exec outside /usr/bin/curl --silent --show-error --interface {PROMETHEUS} "$@"
"""

API_SERVER: Final = f"""
import http.server, pathlib, sys, threading
log = pathlib.Path(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with log.open("a") as file:
            file.write(f"{{self.path}} {{self.headers['Authorization']}}\\n")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"up_and_well 1\\n")
    def log_message(self, *_): pass
for port in (9464, 3002, 8000):
    server = http.server.ThreadingHTTPServer(("{API}", port), Handler)
    threading.Thread(target=server.serve_forever).start()
log.touch()
"""


def status(address: str) -> str:
    """How the proxy answers who comes from an address: HTTP's status, or curl's exit code."""
    url = f"https://{PROXY}:9446/metrics"
    curl = ["/usr/bin/curl", "-sk", "-m", "1", "-o", "/dev/null", "-w", "%{http_code}"]
    done = outside(*curl, "--interface", address, url)
    return done.stdout if done.returncode == 0 else f"curl {done.returncode}"


def outside(*command: str) -> subprocess.CompletedProcess[str]:
    inside = ["ip", "netns", "exec", "outside", *command]
    return subprocess.run(inside, capture_output=True, text=True, check=False)


def reaches(port: int) -> bool:
    """Whether the server's user may connect to the API's host."""
    connect = f"import socket; socket.create_connection(('{API}', {port}), 2)"
    user = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"]
    python = ["/usr/bin/python3", "-c", connect]
    return subprocess.run([*user, *python], capture_output=True, check=False).returncode == 0


def rules() -> str:
    """Every rule of the machine's firewall, without its counters; iptables' are nftables', too."""
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return re.sub(r"counter packets \d+ bytes \d+ ", "", done.stdout)


def main(folder: Path, script: Path) -> None:
    script_text, page = script.read_text(), folder / "page"
    subprocess.run(["bash", "-euc", SETUP, "setup", folder], check=True)
    shutil.copytree(Path("ops/proxy"), page)
    for name, text in {"systemctl": SYSTEMCTL, "curl": CURL}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    Resolver({"api-internal": API})
    log = folder / "api.log"
    api = ["ip", "netns", "exec", "outside", sys.executable, "-c", API_SERVER, str(log)]
    subprocess.Popen(api)
    wait(log.exists, "the API to listen")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script_text],
        cwd=page,
        env=environment,
        input="token-one\ntoken-two\n",
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, object] = {"returncode": done.returncode, "said": done.stdout + done.stderr}
    if done.returncode == 0:
        # the reload may still be going on: scrape until it is over
        wait(lambda: status(PROMETHEUS) == "200" and "token-two" in log.read_text(), "the reload")
        found |= {
            "requests": log.read_text().splitlines(),
            "left": [it.name for it in page.iterdir()],
        }
        found |= {"modes": modes(Path("/etc/metrics-proxy")), "stranger": status(STRANGER)}
        found |= {"reaches": {port: reaches(port) for port in (9464, 3002, 8000)}}
        before = rules()
        [drop_in] = Path("/etc/systemd/system/metrics-proxy.service.d").iterdir()
        again = drop_in.read_text().partition("ExecStartPre=+")[2]
        subprocess.run(shlex.split(again), check=True)
        found["repeatable"] = rules() == before
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        found["without"] = {"stranger": status(STRANGER), "reaches": reaches(8000)}
    print(json.dumps(found))


def modes(folder: Path) -> dict[str, str]:
    """Owner, group and mode of every file in a folder."""
    return {
        it.name: f"{it.owner()}:{it.group()} {it.stat().st_mode & 0o777:o}"
        for it in folder.iterdir()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
