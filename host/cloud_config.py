"""The VM's user data: a cloud-config of packages, users, units and the sync. It holds no secret.

Two parts, since EC2 takes 16 KB: what every machine with a server is made of, compressed once and
committed (`host/user-data/`), and behind it what follows from a stack's settings. A compressor's
bytes differ between its builds, and other bytes would replace the machines of all stacks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import struct
import textwrap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from config.settings import NAMESPACE, Settings, SettingsError
from host.proxy import APACHE, NGINX, PREFIX, SYNC_COMMANDS, templates

Tags = Mapping[str, str]
NO_TAGS: Final[Tags] = {}

USER_DATA_MAX: Final = 16_384
"""Bytes of raw user data that EC2 takes."""

COMMITTED: Final = Path(__file__).with_name("user-data")

STATE: Final = "/run/metrics-proxy/"
"""What the sync brought: generations, the link `current`, its own metrics. Empty at boot."""

SYNC: Final = "/opt/metrics-proxy/sync.py"
HEADERS: Final = "/opt/metrics-proxy/headers.lua"
SERVER_CONFIG: Final = "/etc/metrics-proxy/server.json"
SYNC_CONFIG: Final = "/etc/metrics-proxy/sync.json"
REBOOT: Final = "/etc/apt/apt.conf.d/91reboot"
INSTALLED: Final = "/var/lib/cloud/instance/metrics-proxy"
"""The mark of a machine whose installation has succeeded."""

INSTALL_UNIT: Final = "install-metrics-proxy.service"
"""Not of the name whose units are confined (`metrics-.service.d`)."""

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


def render(settings: Settings, region: str, bundle_secret: str, tags: Tags = NO_TAGS) -> bytes:
    """The user data, gzipped as cloud-init takes it; `SettingsError` if EC2 would not.

    `bundle_secret` is the bundle's name in `region`.
    """
    committed = (COMMITTED / f"{settings.server}.gz").read_bytes()
    data = committed + _stored(of_settings(settings, region, bundle_secret, tags).encode())
    if len(data) > USER_DATA_MAX:
        raise SettingsError(
            f"{NAMESPACE}: the user data has {len(data):,} bytes, "
            f"more than the {USER_DATA_MAX:,} of EC2"
        )
    return data


def described(settings: Settings, region: str, bundle_secret: str, tags: Tags = NO_TAGS) -> str:
    """The user data for people: what follows from the settings, and what identifies the rest."""
    name = f"{settings.server}.gz"
    digest = hashlib.sha256((COMMITTED / name).read_bytes()).hexdigest()
    # no comment: a preview shows two texts that differ in one only as two long lines
    first = f"- path: host/user-data/{name}\n  sha256: {digest}\n"
    return first + of_settings(settings, region, bundle_secret, tags)


def build(settings: Settings, region: str, bundle_secret: str, tags: Tags = NO_TAGS) -> str:
    """What the machine is made of, as a digest that it shows: of another one, it is another.

    `tags` are those of the provider that a fleet's template has.
    """
    committed = (COMMITTED / f"{settings.server}.gz").read_bytes()
    rest = _of_settings(settings, region, bundle_secret, build="")
    machine = f"{settings.instance_type} {settings.ami_id}\n"
    machine += json.dumps(tags, sort_keys=True) if tags else ""
    return hashlib.sha256(committed + machine.encode() + rest.encode()).hexdigest()[:12]


def of_settings(settings: Settings, region: str, bundle_secret: str, tags: Tags = NO_TAGS) -> str:
    """More items of `write_files`: the files that follow from the settings."""
    digest = build(settings, region, bundle_secret, tags)
    return _of_settings(settings, region, bundle_secret, build=digest)


def _of_settings(settings: Settings, region: str, bundle_secret: str, *, build: str) -> str:
    sync_config = {
        "region": region,
        "bundle_secret": bundle_secret,
        "interval": settings.sync_interval,
        "port": settings.port,
        "build": build,
    }
    reboot = f'Automatic-Reboot 1;Automatic-Reboot-Time "{settings.reboot_time}";'
    return _items(
        {
            SYNC_CONFIG: _json(sync_config),
            f"{_UNITS}/metrics-.service.d/port.conf": (
                f"[Service]\nSocketBindAllow=tcp:{settings.port}\n"
            ),
            f"{_UNITS}/{SYNC_TIMER}.d/interval.conf": (
                f"[Timer]\nOnUnitInactiveSec={settings.sync_interval}\n"
            ),
            **({REBOOT: f"Unattended-Upgrade{{{reboot}}};\n"} if settings.reboot_time else {}),
        }
    )


def of_server(server: str) -> str:
    """A cloud-config whose last key is `write_files`: all that a server's machines share."""
    document = {
        "bootcmd": [
            # what follows is done at every boot: a power failure may have lost what was written,
            # and not the mark that it was
            "cd /var/lib/cloud/instance/sem; "
            "rm -f config_write_files config_runcmd config_scripts_user",
            # the package must not start its own unit when it is installed; nothing listens but
            # the proxy
            [
                *("systemctl", "mask", "--now", f"{SERVERS[server]['package']}.service"),
                *("ssh.service", "ssh.socket"),
            ],
        ],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "start", "--no-block", INSTALL_UNIT],
        ],
    }
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=1000)
    return f"#cloud-config\n{text}write_files:\n{_items(_files(server))}"


def _files(server: str) -> dict[str, str]:
    """Files that do not depend on a stack's settings: path → text."""
    names = {
        "server": server,
        "packages": " ".join([SERVERS[server]["package"], *EVERYWHERE]),
        "restarted": " ".join(f"systemd-{name}" for name in RESTARTED),
        "installed": INSTALLED,
        "unit": SERVERS[server],
        "command": f"/usr/bin/python3 -I {SYNC} {SERVER_CONFIG} {SYNC_CONFIG}",
    }

    def template(name: str) -> str:
        # its comments stay in the repository: they are a tenth of what all this takes
        return re.sub(r"(?m)^ *(#|//|--).*\n", "", templates.get_template(name).render(names))

    commands = {**SYNC_COMMANDS[server], "reload": ["systemctl", "reload-or-restart", PROXY_UNIT]}
    return {
        SYNC: Path(__file__).with_name("sync.py").read_text(),
        SERVER_CONFIG: _json(commands),
        **({HEADERS: template("headers.lua")} if server == "apache" else {}),
        f"{_UNITS}/{INSTALL_UNIT}": template(f"{INSTALL_UNIT}.j2"),
        f"{_UNITS}/{PROXY_UNIT}": template(f"{PROXY_UNIT}.j2"),
        f"{_UNITS}/{SYNC_UNIT}": template(f"{SYNC_UNIT}.j2"),
        f"{_UNITS}/{SYNC_TIMER}": template(SYNC_TIMER),
        f"{_UNITS}/metrics-.service.d/hardening.conf": template("hardening.conf"),
        "/etc/apt/apt.conf.d/90metrics-proxy": f'DPkg::Post-Invoke {{"{_RESTART}";}};\n',
        "/etc/sysusers.d/metrics-proxy.conf": "u metrics-proxy\nu metrics-sync -:metrics-proxy\n",
        "/etc/polkit-1/rules.d/50-metrics-proxy.rules": template("polkit.rules"),
        # to the console: what our units say, and systemd of what was killed and what fails; not the
        # access log, nor each start of the sync
        "/etc/systemd/journald.conf.d/metrics-proxy.conf": "[Journal]\nForwardToConsole=yes\n"
        "MaxLevelConsole=warning\n",
        "/etc/systemd/resolved.conf.d/metrics-proxy.conf": "[Resolve]\nLLMNR=no\nMulticastDNS=no\n"
        "ResolveUnicastSingleLabel=yes\nStaleRetentionSec=1d\n",
        "/etc/systemd/timesyncd.conf.d/metrics-proxy.conf": "[Time]\nNTP=169.254.169.123\n",
    }


def _json(value: Mapping[str, Any]) -> str:
    """A JSON object, a line a key."""
    lines = [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    return "{" + ",\n ".join(lines) + "}\n"


def _items(files: Mapping[str, str]) -> str:
    """Items of `write_files`, in the order of their paths and no further to the right than need be:
    that alone is 200 bytes of what is compressed."""
    return "".join(
        f"-\n path: {path}\n content: |\n{textwrap.indent(text, '  ')}"
        for path, text in sorted(files.items())
    )


def _stored(text: bytes) -> bytes:
    """A gzip member (RFC 1952) of one stored block (RFC 1951): the same bytes everywhere."""
    size = struct.pack("<HH", len(text), len(text) ^ 0xFFFF)
    end = struct.pack("<II", zlib.crc32(text), len(text))
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\x01" + size + text + end


def main() -> None:
    """Write the committed part anew where it is not what `of_server` says: `make generate`."""
    # 4 % smaller than zlib's; not there where the program runs, and not needed there
    from zopfli.gzip import compress

    COMMITTED.mkdir(exist_ok=True)
    for server in SERVERS:
        file, text = COMMITTED / f"{server}.gz", of_server(server).encode()
        if not file.exists() or gzip.decompress(file.read_bytes()) != text:
            file.write_bytes(compress(text))


if __name__ == "__main__":
    main()
