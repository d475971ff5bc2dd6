"""The VM's user data: a cloud-config of packages, users, units and the sync. It holds no secret."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Final

import yaml

from config.settings import NAMESPACE, Settings, SettingsError
from host.compact import compact
from host.proxy import APACHE, NGINX, PREFIX, SYNC_COMMANDS, templates

USER_DATA_MAX: Final = 16_384
"""Bytes of raw user data that EC2 takes."""

STATE: Final = "/run/metrics-proxy/"
"""What the sync brought: generations, the link `current`, its own metrics. Empty at boot."""

SYNC: Final = "/opt/metrics-proxy/sync.py"
HEADERS: Final = "/opt/metrics-proxy/headers.lua"
WORKER: Final = "/opt/metrics-proxy/worker.sh"
SYNC_CONFIG: Final = "/etc/metrics-proxy/sync.json"
PROXY_UNIT: Final = "metrics-proxy.service"
SYNC_UNIT: Final = "metrics-proxy-sync.service"
SYNC_TIMER: Final = "metrics-proxy-sync.timer"

SERVERS: Final = {
    "nginx": {
        "package": "nginx",
        "start": f"{NGINX} -p {PREFIX} -c {STATE}current/proxy.conf -g 'daemon off;'",
        "reload": "HUP",
        "stop": "SIGQUIT",
    },
    "apache": {
        "package": "apache2",
        "start": f"{APACHE} -D FOREGROUND -d {STATE}current -f proxy.conf",
        "reload": "USR1",
        "stop": "SIGWINCH",
    },
}
"""What the unit has to know of a server. The package's own unit has the package's name."""

EVERYWHERE: Final = ["polkitd", "python3-boto3", "python3-prometheus-client"]
"""Debian packages of every host."""

RESTARTED: Final = ("journald", "resolved", "timesyncd")
"""Daemons of systemd that the files below configure."""

_RESTART: Final = (
    "! grep -qs '/usr/.*(deleted)' /proc/$(systemctl show -P MainPID metrics-proxy)/maps"
    "||systemctl restart metrics-proxy"
)
"""Restarts the proxy if what it runs, program or library, was replaced on disk."""

_UNITS: Final = "/etc/systemd/system"
_SYNC_SOURCE: Final = Path(__file__).with_name("sync.py")


def render(settings: Settings, region: str, bundle_secret: str) -> str:
    """The cloud-config: deterministic, readable, and `SettingsError` if EC2 would not take it.

    `bundle_secret` is a name in `region`; which secret holds the token, the bundle says.
    """
    package = SERVERS[settings.server]["package"]
    document = {
        # The package must not start its own unit when it is installed; nothing listens but
        # the proxy.
        "bootcmd": [
            [
                *("cloud-init-per", "once", "mask", "systemctl", "mask", "--now"),
                *(f"{package}.service", "ssh.service", "ssh.socket"),
            ]
        ],
        "runcmd": [
            # cloud-init's own "packages" is given up when the mirror does not answer at once
            f"export DEBIAN_FRONTEND=noninteractive; until apt-get -q update && "
            f"apt-get -qy install {' '.join([package, *EVERYWHERE])}; do sleep 9; done",
            ["systemd-sysusers"],
            ["systemctl", "daemon-reload"],
            ["systemctl", "restart", *(f"systemd-{name}" for name in RESTARTED)],
            ["systemctl", "enable", "--now", SYNC_TIMER],
        ],
    }
    text = "#cloud-config\n" + yaml.safe_dump(
        document, sort_keys=False, default_flow_style=None, width=1000
    )
    text += "write_files:\n"
    for path, content in _files(settings, region, bundle_secret).items():
        # the least indentation that YAML allows, down to an item that begins on its second line:
        # user data has 16 KB
        block = textwrap.indent(content, "  ")
        text += f"-\n path: {path}\n content: |\n{block}"
    size = len(text.encode())
    if size > USER_DATA_MAX:
        raise SettingsError(
            f"{NAMESPACE}: the user data has {size:,} bytes, more than the {USER_DATA_MAX:,} of EC2"
        )
    return text


def _files(settings: Settings, region: str, bundle_secret: str) -> dict[str, str]:
    """Every file of the VM: path → text."""
    sync_config = {
        "region": region,
        "bundle_secret": bundle_secret,
        **SYNC_COMMANDS[settings.server],
        "reload": ["systemctl", "reload-or-restart", PROXY_UNIT],
    }
    lines = [
        f'"{key}":{json.dumps(value, separators=(",", ":"))}' for key, value in sync_config.items()
    ]
    names = {
        "interval": settings.sync_interval,
        "port": settings.port,
        "server": settings.server,
        "sync": SYNC,
        "sync_config": SYNC_CONFIG,
        "unit": SERVERS[settings.server],
        "worker": WORKER,
    }

    def unit(template: str) -> str:
        text = templates.get_template(template).render(names)
        # comments and wide indentation stay in the repository: user data has 16 KB
        text = re.sub(r"(?m)^ *(#|//|--).*\n", "", text)
        return re.sub(r"(?m)^(?: {4})+", lambda found: " " * (len(found[0]) // 4), text)

    return {
        SYNC: compact(_SYNC_SOURCE.read_text()),
        SYNC_CONFIG: "{" + ",\n".join(lines) + "}\n",
        WORKER: unit("worker.sh"),
        **({HEADERS: unit("headers.lua")} if settings.server == "apache" else {}),
        f"{_UNITS}/{PROXY_UNIT}": unit(f"{PROXY_UNIT}.j2"),
        f"{_UNITS}/{SYNC_UNIT}": unit(f"{SYNC_UNIT}.j2"),
        f"{_UNITS}/{SYNC_TIMER}": unit(f"{SYNC_TIMER}.j2"),
        f"{_UNITS}/metrics-.service.d/hardening.conf": unit("hardening.conf.j2"),
        "/etc/apt/apt.conf.d/90metrics-proxy": f'DPkg::Post-Invoke {{"{_RESTART}";}};\n',
        "/etc/sysusers.d/metrics-proxy.conf": "u metrics-proxy\nu metrics-sync -:metrics-proxy\n",
        "/etc/polkit-1/rules.d/50-metrics-proxy.rules": unit("polkit.rules.j2"),
        # to the console: what our units say, and systemd of what was killed and what fails; not the
        # access log, nor each start of the sync
        "/etc/systemd/journald.conf.d/metrics-proxy.conf": "[Journal]\nForwardToConsole=yes\n"
        "MaxLevelConsole=warning\n",
        "/etc/systemd/resolved.conf.d/metrics-proxy.conf": "[Resolve]\nLLMNR=no\nMulticastDNS=no\n"
        "ResolveUnicastSingleLabel=yes\nStaleRetentionSec=1d\n",
        "/etc/systemd/timesyncd.conf.d/metrics-proxy.conf": "[Time]\nNTP=169.254.169.123\n",
    }
