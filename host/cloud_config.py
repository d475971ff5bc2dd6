"""The VM's user data: a cloud-config of packages, users, units and the sync. It holds no secret."""

from __future__ import annotations

import io
import json
import re
import tokenize
from pathlib import Path
from typing import Any, Final

import yaml

from config.settings import NAMESPACE, Settings, SettingsError
from host.proxy import NGINX, PREFIX, SYNC_COMMANDS, templates

USER_DATA_MAX: Final = 16_384
"""Bytes of raw user data that EC2 takes."""

STATE: Final = "/run/metrics-proxy/"
"""What the sync brought: generations, the link `current`, its own metrics. Empty at boot."""

SYNC: Final = "/usr/local/lib/metrics-proxy/sync.py"
SYNC_CONFIG: Final = "/etc/metrics-proxy/sync.json"
PROXY_UNIT: Final = "metrics-proxy.service"
SYNC_UNIT: Final = "metrics-proxy-sync.service"
SYNC_TIMER: Final = "metrics-proxy-sync.timer"

PACKAGES: Final = {"nginx": ["nginx"]}
"""Debian packages of each server."""

_UNITS: Final = "/etc/systemd/system"
_SYNC_SOURCE: Final = Path(__file__).with_name("sync.py")


def render(settings: Settings, region: str, secrets: tuple[str, str]) -> str:
    """The cloud-config: deterministic, readable, and `SettingsError` if EC2 would not take it.

    `secrets` are the names of token and bundle in `region`; a token of somebody else's is known by
    the settings.
    """
    document = {
        "package_update": True,
        "packages": [
            *PACKAGES[settings.server],
            "polkitd",
            "python3-boto3",
            "python3-prometheus-client",
        ],
        "users": [
            "default",
            {
                "name": "metrics-proxy",
                "system": True,
                "no_create_home": True,
                "shell": "/usr/sbin/nologin",
            },
            {
                "name": "metrics-sync",
                "system": True,
                "no_create_home": True,
                "no_user_group": True,
                "primary_group": "metrics-proxy",
                "shell": "/usr/sbin/nologin",
            },
        ],
        # The package must not start its own unit when it is installed; nothing listens but
        # the proxy.
        "bootcmd": [
            [
                *("cloud-init-per", "once", "mask", "systemctl", "mask", "--now"),
                *(f"{settings.server}.service", "ssh.service", "ssh.socket"),
            ]
        ],
        "write_files": [
            _file(path, text) for path, text in _files(settings, region, *secrets).items()
        ],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "restart", "systemd-resolved.service", "systemd-timesyncd.service"],
            ["systemctl", "enable", "--now", SYNC_TIMER],
        ],
    }
    text = "#cloud-config\n" + yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True
    )
    size = len(text.encode())
    if size > USER_DATA_MAX:
        raise SettingsError(
            f"{NAMESPACE}: the user data has {size:,} bytes, more than the {USER_DATA_MAX:,} of EC2"
        )
    return text


def _files(
    settings: Settings, region: str, token_secret: str, bundle_secret: str
) -> dict[str, str]:
    """Every file of the VM: path → text."""
    sync_config = {
        "region": region,
        "token_secret": settings.admin_token_secret_arn or token_secret,
        "bundle_secret": bundle_secret,
        **SYNC_COMMANDS[settings.server],
        "reload": ["systemctl", "reload-or-restart", PROXY_UNIT],
    }
    names = {
        "interval": settings.sync_interval,
        "nginx": NGINX,
        "port": settings.port,
        "prefix": PREFIX,
        "state": STATE,
        "sync": SYNC,
        "sync_config": SYNC_CONFIG,
    }

    def unit(template: str) -> str:
        text = templates.get_template(f"{template}.j2").render(names)
        # comments stay in the repository: user data has 16 KB
        return re.sub(r"(?m)^(#|//).*\n", "", text)

    return {
        SYNC: compact(_SYNC_SOURCE.read_text()),
        SYNC_CONFIG: json.dumps(sync_config, indent=0) + "\n",
        f"{_UNITS}/{PROXY_UNIT}": unit(PROXY_UNIT),
        f"{_UNITS}/{SYNC_UNIT}": unit(SYNC_UNIT),
        f"{_UNITS}/{SYNC_TIMER}": unit(SYNC_TIMER),
        f"{_UNITS}/metrics-.service.d/hardening.conf": unit("hardening.conf"),
        "/etc/polkit-1/rules.d/50-metrics-proxy.rules": unit("polkit.rules"),
        "/etc/systemd/resolved.conf.d/metrics-proxy.conf": "[Resolve]\nLLMNR=no\nMulticastDNS=no\n"
        "ResolveUnicastSingleLabel=yes\nStaleRetentionSec=1d\n",
        "/etc/systemd/timesyncd.conf.d/metrics-proxy.conf": "[Time]\nNTP=169.254.169.123\n",
    }


def compact(source: str) -> str:
    """Python without comments, docstrings and blank lines, a block indented by one space.

    The same program in three quarters of the bytes, still text that one can read; and, unlike what
    a compressor writes, the same on every machine, so that nobody's tools replace the VM.
    """
    lines = source.splitlines()
    keep = [bool(line.strip()) for line in lines]
    inside: set[int] = set()  # lines that begin within a string: their indentation is its text
    fresh = True  # at the beginning of a statement
    skipped = (tokenize.COMMENT, tokenize.NL)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for number, token in enumerate(tokens):
        (first, column), (last, _) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[first - 1] = lines[first - 1][:column].rstrip()
            keep[first - 1] = bool(lines[first - 1])
        elif token.type == tokenize.STRING:
            inside.update(range(first, last))
            after = next(t.type for t in tokens[number + 2 :] if t.type not in skipped)
            keep[first - 1 : last] = [True] * (last - first + 1)
            if fresh and token.string.startswith('"""') and after != tokenize.DEDENT:
                keep[first - 1 : last] = [False] * (last - first + 1)
        if token.type not in skipped:
            fresh = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return "".join(
        (
            line
            if number in inside
            else " " * ((len(line) - len(line.lstrip())) // 4) + line.lstrip()
        )
        + "\n"
        for number, line in enumerate(lines)
        if keep[number]
    )


def _file(path: str, text: str) -> dict[str, Any]:
    """A `write_files` entry. cloud-init's own default mode is 0644, owner root."""
    return {"path": path, "content": text}


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it is, in block style."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
