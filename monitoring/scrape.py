"""What tells Prometheus and its relatives to scrape the endpoints through the proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from config.settings import PROXY_PATH, Settings
from monitoring.text import dump_yaml

Json = dict[str, Any]
Zones = Mapping[str, str]
"""Of a fleet: its zones, each with the name by which its machine is asked."""

_HEADER: Final = """\
# Scrape jobs of the metrics proxy, stack {stack}, generated. For Prometheus 2.45 or newer:
# 1. Save this as metrics-proxy-{stack}.yml and name it in prometheus.yml, relative to that file:
#      scrape_config_files: [metrics-proxy-{stack}.yml]
# 2. Run promtool check config prometheus.yml and reload Prometheus.
# Of stacks in the same Prometheus no two jobs may have one name, or it refuses the second.
# Neither token nor file belongs here: the proxy adds the token, and its CA stands below.
"""


def scrape_config(settings: Settings, address: str, zones: Zones, ca: str) -> str:
    """Return a file for `scrape_config_files`.

    `address` is the proxy's, without the port; `ca` the PEM of the CA that its certificate is of.
    """
    head = _HEADER.format(stack=settings.stack)
    return head + dump_yaml({"scrape_configs": jobs(settings, address, zones, ca)})


def scrape_config_list(settings: Settings, address: str, zones: Zones, ca: str) -> str:
    """Return the same jobs as a bare list.

    For vmagent's `scrape_config_files` and for `additionalScrapeConfigs` of Prometheus' operator.
    """
    return dump_yaml(jobs(settings, address, zones, ca))


def scrape_config_objects(settings: Settings, address: str, zones: Zones, ca: str) -> str:
    """Return the same jobs as Kubernetes objects for `kubectl apply`.

    They are two `ScrapeConfig`s of Prometheus' operator, which names the job itself and sets the
    label, and the `ConfigMap` with their CA, which they cannot hold.
    """
    name = re.sub(r"[^a-z0-9]+", "-", f"metrics-proxy-{settings.stack}".lower()).strip("-")
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"ca.pem": ca},
    }
    scrapes = [
        _scrape_config_object(f"{name}-{role}", name, job)
        for role, job in zip(("api", "proxy"), jobs(settings, address, zones, ca), strict=True)
    ]
    return dump_yaml(config_map, *scrapes)


def targets(settings: Settings, address: str, zones: Zones) -> list[Json]:
    """Return where to ask each machine: `address` with the port and, of a fleet, `zone`."""
    port = settings.port
    fleet = [{"address": f"{name}:{port}", "zone": zone} for zone, name in zones.items()]
    return fleet or [{"address": f"{address}:{port}"}]


def jobs(settings: Settings, address: str, zones: Zones, ca: str) -> list[Json]:
    """Return one job for all endpoints, and one for the machines' own metrics.

    Of a fleet, any machine answers for the endpoints, and each for itself.
    """
    target = f"{address}:{settings.port}"
    # One job with a label per endpoint: two jobs relabelled to one name, or one job without the
    # label, would be a single `up` that flips between the endpoints.
    endpoints = [
        {
            "targets": [target],
            "labels": {"__metrics_path__": endpoint.path, "endpoint": endpoint.name},
        }
        for endpoint in settings.endpoints
    ]
    fallback = settings.fallback_scrape_protocol
    common = {
        "scheme": "https",
        "tls_config": {"ca": ca, "server_name": settings.server_name, "min_version": "TLS12"},
        "follow_redirects": False,
    }
    # without `scrape_interval`, so that Prometheus' global one applies
    return [
        {
            "job_name": settings.job,
            **common,
            **({"fallback_scrape_protocol": fallback} if fallback else {}),
            "static_configs": endpoints,
        },
        {
            "job_name": settings.proxy_job,
            **common,
            "metrics_path": PROXY_PATH,
            "static_configs": [
                {
                    "targets": [machine["address"]],
                    **({"labels": {"zone": machine["zone"]}} if "zone" in machine else {}),
                }
                for machine in targets(settings, address, zones)
            ],
        },
    ]


_FIELDS: Final = {
    "metrics_path": "metricsPath",
    "fallback_scrape_protocol": "fallbackScrapeProtocol",
}
"""What a job may have, and how a `ScrapeConfig` calls it."""


def _scrape_config_object(name: str, config_map: str, job: Json) -> Json:
    tls = job["tls_config"]
    # It has no field for follow_redirects: Prometheus follows one, with nothing that it could lose.
    return {
        "apiVersion": "monitoring.coreos.com/v1alpha1",
        "kind": "ScrapeConfig",
        "metadata": {"name": name},
        "spec": {
            "jobName": job["job_name"],
            "scheme": job["scheme"].upper(),
            "tlsConfig": {
                "ca": {"configMap": {"name": config_map, "key": "ca.pem"}},
                "serverName": tls["server_name"],
                "minVersion": tls["min_version"],
            },
            **{to: job[key] for key, to in _FIELDS.items() if key in job},
            "staticConfigs": job["static_configs"],
        },
    }


FORMS: Final[dict[str, Callable[[Settings, str, Zones, str], str]]] = {
    "scrapeConfig": scrape_config,
    "scrapeConfigList": scrape_config_list,
    "scrapeConfigObjects": scrape_config_objects,
}
"""The stack's outputs, and what renders each."""


def forms(settings: Settings, address: str, zones: Zones, ca: str) -> dict[str, str]:
    """Return the text of each of `FORMS`, which trust `previousCaCertificate`, too."""
    trusted = "".join(f"{pem.strip()}\n" for pem in (ca, settings.previous_ca_certificate) if pem)
    return {name: render(settings, address, zones, trusted) for name, render in FORMS.items()}
