"""The proxy configuration: what the server on the VM is told, rendered from the settings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from config.files import replace
from config.settings import HEALTH_PATH, NAMESPACE, PROXY_PATH, Endpoint, Settings, SettingsError

SECRET_MAX: Final = 65_536
"""Bytes that one Secrets Manager secret can hold (AWS quota)."""

CERTIFICATE_ROOM: Final = 4_096
"""Bytes kept free in the bundle for a P-256 certificate (~800), its key (~230) and the JSON."""

PREFIX: Final = "/run/metrics-proxy-server/"
"""The server's own folder: pid file and temporary files."""

NGINX: Final = "/usr/sbin/nginx"
APACHE: Final = "/usr/sbin/apache2"

SYSTEM_CA: Final = "/etc/ssl/certs/ca-certificates.crt"
"""The CAs that Debian trusts, for `https` upstreams without a `ca` of their own."""

LOOPBACK: Final = "127.0.0.1/32"
"""The machine itself, which asks its proxy after a reload whether it serves."""

SYNC_COMMANDS: Final[dict[str, dict[str, Any]]] = {
    "nginx": {
        "test": [NGINX, "-t", "-q", "-p", "{scratch}/server/", "-c", "{generation}/proxy.conf"],
        "trial": [
            *(NGINX, "-p", "{scratch}/server/", "-c", "{generation}/trial.conf"),
            *("-g", "daemon off;"),
        ],
        "token_line": 'proxy_set_header Authorization "Bearer {token}";\n',
        "no_token_line": "return 503;\n",
        "generation_line": "add_header Metrics-Proxy-Generation {generation};\n",
    },
    "apache": {
        "test": [APACHE, "-t", "-d", "{generation}", "-f", "proxy.conf"],
        "trial": [
            *(APACHE, "-D", "FOREGROUND", "-d", "{generation}", "-f", "trial.conf"),
            *("-c", "PidFile {scratch}/apache.pid"),
        ],
        "token_line": 'RequestHeader set Authorization "Bearer {token}"\n',
        "no_token_line": 'RewriteRule "^" "-" [R=503]\n',
        "generation_line": "Header set Metrics-Proxy-Generation {generation}\n",
    },
}
"""What the sync has to know of a server: its config test, how it serves for a trial, and the lines
of its includes: with and without token, and the header by which it says what it serves."""

HEADER: Final = "Rendered by the Pulumi program metrics-proxy."

templates: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=select_autoescape(()),  # plain text: nothing here is HTML
)
templates.filters["regex"] = re.escape


def upstream_url(endpoint: Endpoint, search_domain: str | None) -> str:
    """The upstream with the search domain appended to a host of a single label."""
    url = urlsplit(endpoint.upstream)
    host = endpoint.full_host(search_domain)
    if host == endpoint.host:
        return endpoint.upstream
    port = "" if url.port is None else f":{url.port}"
    return url._replace(netloc=f"{host}{port}").geturl()


def limits(endpoints: int) -> dict[str, int]:
    """What one client may ask of the API; more gets a 429. nginx only: Apache has no such limits.

    A pair of Prometheus behind one address may have every endpoint hanging at the same time and
    scrape each of them every second; 64 connections and 100 requests a second are for others.
    """
    rate = 100 + 2 * endpoints
    return {"connections": 64 + 2 * endpoints, "rate": rate, "burst": 10 * rate}


def render(settings: Settings, balancer: Sequence[str] = (), *, on_host: bool = True) -> str:
    """The configuration of the stack's server.

    `balancer`: the networks in which a fleet's load balancer is, which may ask for its health.
    `on_host`: the sync runs beside it, so its own document is served, and paths are a generation's.
    """
    return templates.get_template(f"{settings.server}.conf.j2").render(
        header=HEADER,
        on_host=on_host,
        port=settings.port,
        server_name=settings.server_name,
        proxy_path=PROXY_PATH,
        health_path=HEALTH_PATH,
        balancer=balancer,
        allowed=[*settings.prometheus_cidrs, *([LOOPBACK] if on_host else [])],
        system_ca=SYSTEM_CA,
        limits=limits(len(settings.endpoints)),
        endpoints=[
            {
                "name": e.name,
                "path": e.path,
                "url": upstream_url(e, settings.search_domain),
                "ca": e.ca and f"ca-{e.name}.pem",  # written by the sync
            }
            for e in settings.endpoints
        ],
    )


def bundle(settings: Settings, own_secret: str, balancer: Sequence[str] = ()) -> dict[str, Any]:
    """The bundle less certificate and key: `configuration`, the `endpoints` to probe, the `token`.

    `token` names the secret that holds it, `own_secret` or somebody else's, and the key in its JSON
    if the settings do. `balancer` is as in `render`. Raises `SettingsError` if it would not fit
    into one secret.
    """
    fallback = settings.fallback_scrape_protocol
    document = {
        "token": {
            "secret": settings.token_secret or own_secret,
            **({"key": settings.token_key} if settings.token_key else {}),
        },
        "configuration": render(settings, balancer),
        "endpoints": [
            {
                "name": e.name,
                "path": e.path,
                "upstream": upstream_url(e, settings.search_domain),
                **({"ca": e.ca} if e.ca else {}),
                **({"fallback_scrape_protocol": fallback} if fallback else {}),
            }
            for e in settings.endpoints
        ],
    }
    size = len(json.dumps(document).encode()) + CERTIFICATE_ROOM
    if size > SECRET_MAX:
        raise SettingsError(
            f"{NAMESPACE}:endpoints: {len(settings.endpoints)} endpoints and "
            f"{len(settings.prometheus_cidrs)} prometheusCidrs make a bundle of {size:,} bytes, "
            f"more than the {SECRET_MAX:,} that Secrets Manager can hold"
        )
    return document


def by_hand(server: str) -> str:
    """The configuration for people without Pulumi; they put their own addresses into it."""
    config = {
        "subnetId": "subnet-00000000",
        "prometheusCidrs": '["10.20.0.0/16"]',
        "apiCidrs": '["10.0.0.0/16"]',
        "server": server,
    }
    return render(Settings.parse("by-hand", config, has_token=True), on_host=False)


def main() -> None:
    """Write what people without Pulumi need into a folder: `make generate`."""
    for server in SYNC_COMMANDS:
        replace(Path(sys.argv[1], f"{server}-prometheus-auth.conf"), by_hand(server))
    replace(Path(sys.argv[1], "headers.lua"), templates.get_template("headers.lua").render())


if __name__ == "__main__":
    main()
