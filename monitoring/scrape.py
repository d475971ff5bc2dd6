"""The file that tells Prometheus to scrape the endpoints through the proxy."""

from __future__ import annotations

from typing import Any, Final

import yaml

from config.settings import PROXY_JOB, PROXY_PATH, Settings

CA_FILE: Final = "metrics-proxy-ca.pem"
"""The name under which the scrape config expects the proxy's CA certificate, beside itself."""

_HEADER: Final = f"""\
# Scrape jobs of the metrics proxy, generated. For Prometheus 2.43 or newer:
# 1. Save this as metrics-proxy.yml, and the output caCertificate as {CA_FILE}
#    in the same folder: Prometheus looks for it beside this file, not beside prometheus.yml.
# 2. Name this file in prometheus.yml, relative to it:
#      scrape_config_files: [metrics-proxy.yml]
# 3. Run promtool check config prometheus.yml and reload Prometheus. promtool does not look for
#    the CA: without it Prometheus logs "unable to read CA cert", and the targets do not appear.
# No token belongs here: the proxy adds it.
"""


def scrape_config(settings: Settings, address: str) -> str:
    """Return a file for `scrape_config_files`; `address` is the proxy's, without the port."""
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
    jobs = [
        _job(
            settings.job,
            settings.server_name,
            **({"fallback_scrape_protocol": fallback} if fallback else {}),
            static_configs=endpoints,
        ),
        _job(
            PROXY_JOB,
            settings.server_name,
            metrics_path=PROXY_PATH,
            static_configs=[{"targets": [target]}],
        ),
    ]
    return _HEADER + yaml.safe_dump({"scrape_configs": jobs}, sort_keys=False)


def _job(name: str, server_name: str, **rest: Any) -> dict[str, Any]:
    """Return a job without `scrape_interval`, so that Prometheus' global one applies."""
    return {
        "job_name": name,
        "scheme": "https",
        "tls_config": {"ca_file": CA_FILE, "server_name": server_name, "min_version": "TLS12"},
        "follow_redirects": False,
        **rest,
    }
