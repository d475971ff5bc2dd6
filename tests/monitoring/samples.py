"""Hours of what the workers and two proxies would have shown, for a Prometheus without targets."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from subprocess import run

Series = tuple[str, Mapping[str, str], float]

PARTS = ("error4xx_rate", "error5xx_rate", "timeout_rate")
MACHINES = ("10.0.1.5:9446", "10.0.2.5:9446")
ENDPOINTS = ("api", "workers")
VERSIONS = {
    "token": "3f2a9d61-8c1e-4a57-9b0f-2d6c7e1a5b90",
    "bundle": "b81c04e7-55d2-4f0c-a1de-90f3c2b7e614",
}
REASONS = (
    *("fetch_token", "fetch_bundle", "token_invalid", "token_refused", "certificate_invalid"),
    *("configuration_invalid", "test", "reload", "write", "internal"),
)


def queues(number: int) -> list[str]:
    """Return the names of so many queues."""
    return [*("email", "reports", "sms"), *(f"queue-{n:02}" for n in range(number))][:number]


def workers(names: Collection[str], now: float) -> Iterator[Series]:
    """Yield the workers' gauges of a moment."""
    for number, queue in enumerate(names):
        wave = (1 + math.sin(now / 1500 + 2 * number)) / 2
        burst = max(0.0, math.sin(now / 4000 + number)) ** 8
        parts = (0.002 + 0.002 * wave, 0.001 + 0.015 * burst, 0.001 * wave)
        values = {
            **dict(zip(PARTS, parts, strict=True)),
            "error_rate": sum(parts),
            "throughput": (8 - number % 7) * (0.8 + 0.4 * wave),
            "queue_depth": round((60 - number) * (1 + wave + 8 * burst)),
            "active_jobs": round(6 * (0.5 + wave)),
        }
        for name, value in values.items():
            yield f"sba_worker_{name}", {"job": "sba-api", "queue_name": queue}, value


def proxies(now: float, end: float) -> Iterator[Series]:
    """Yield what Prometheus and the sync of each machine say of a moment; hard times in between."""
    hard = 9000 < end - now < 10800
    for machine in MACHINES:
        down = hard and machine == MACHINES[0]
        own = {"job": "sba-proxy", "instance": machine}
        yield "up", own, 1
        for endpoint in ENDPOINTS:
            one = own | {"endpoint": endpoint}
            yield "up", one | {"job": "sba-api"}, float(not down)
            yield "metrics_proxy_upstream_up", one, float(not down)
            yield "metrics_proxy_upstream_http_status", one, 401 if down else 200
            seconds = 0.012 + 0.008 * math.sin(now / 700 + len(endpoint))
            yield "metrics_proxy_upstream_duration_seconds", one, seconds
        for reason in REASONS:
            failed = float(down and reason == "token_refused")
            yield "metrics_proxy_sync_failed", own | {"reason": reason}, failed
        for secret, version in VERSIONS.items():
            labels = own | {"secret": secret}
            seen = now - 12 - (600 if down else 0)
            yield "metrics_proxy_secret_last_success_timestamp_seconds", labels, seen
            yield "metrics_proxy_secret_info", labels | {"version": version}, 1
        yield "metrics_proxy_secret_sync_ok", own, float(not down)
        yield "metrics_proxy_sync_timestamp_seconds", own, now - 12
        what = {"sha256": "9f86d081884c7d65" * 4, "build": "60303ae22b99"}
        yield "metrics_proxy_configuration_info", own | what, 1
        yield "metrics_proxy_certificate_not_after_timestamp_seconds", own, end + 312.4 * 86400
        yield "metrics_proxy_reboot_required", own, float(machine == MACHINES[1])


def fill(
    promtool: str,
    data: Path,
    end: int,
    *,
    queues: Collection[str],
    hours: float = 6,
    step: int = 60,
    without: str = "",
) -> None:
    """Fill Prometheus' folder `data` with all but the metric `without`, up to `end`."""
    lines: dict[str, list[str]] = {}
    for at in range(end - int(hours * 3600), end + 1, step):
        for name, labels, value in [*workers(queues, at), *proxies(at, end)]:
            text = ",".join(f'{key}="{label}"' for key, label in labels.items())
            lines.setdefault(name, []).append(f"{name}{{{text}}} {value} {at}\n")
    samples = data.with_suffix(".om")
    with samples.open("w") as file:
        for name, some in lines.items():
            if name != without:
                file.write(f"# TYPE {name} gauge\n")
                file.writelines(some)
        file.write("# EOF\n")
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(samples), str(data)]
    run(command, check=True, timeout=120, capture_output=True)
