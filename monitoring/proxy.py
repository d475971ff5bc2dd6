"""The Proxy section: what Prometheus and the proxy's sync say, for each machine (`instance`)."""

from __future__ import annotations

from typing import Final

from config.settings import Settings
from monitoring import panels as p
from monitoring.panels import Json
from monitoring.text import selector

_GREEN, _ORANGE, _RED = "green", "orange", "red"

_UP: Final = p.mappings({1: ("up", _GREEN), 0: ("down", _RED)})
_SYNC: Final = p.mappings({1: ("in sync", _GREEN), 0: ("failing", _RED)})
_REBOOT: Final = p.mappings({0: ("not needed", _GREEN), 1: ("pending", _ORANGE)})
_STATUS: Final = p.mappings(
    {0: ("no answer", _RED), 401: ("401 token rejected", _RED), 403: ("403 token rejected", _RED)},
    (200, 299, _GREEN),
    (300, 499, _ORANGE),
    (500, 599, _RED),
)


def section(settings: Settings, y: int) -> list[Json]:
    """Return the row and its panels: the machines' state on top, its history and reasons below."""

    def said(metric: str) -> str:
        return selector(f"metrics_proxy_{metric}", job=settings.proxy_job)

    interval, days = settings.sync_interval, settings.alerts.certificate_days
    end = said("certificate_not_after_timestamp_seconds")
    age = f"(time() - {said('secret_last_success_timestamp_seconds')})"
    return [
        p.row(p.PROXY, y),
        p.stat(
            p.panel(
                settings,
                p.LAST_SYNC,
                "stat",
                f"Since the last sync, which runs every {interval} s. Yellow: it is late. "
                "Red: it does not run, and no new token reaches the proxy.",
                at=(0, y + 1, 6, 4),
                queries={f"time() - {said('sync_timestamp_seconds')}": "{{instance}}"},
                unit="s",
                decimals=0,
                color=p.BY_LEVEL,
                thresholds=p.thresholds(
                    _GREEN, ("yellow", 3 * interval), (_RED, settings.sync_late)
                ),
            )
        ),
        p.stat(
            p.panel(
                settings,
                p.IN_SYNC,
                "stat",
                "Whether all that Secrets Manager holds is in use. Sync Failures says why not; "
                "the last good token, certificate and configuration stay in use.",
                at=(6, y + 1, 6, 4),
                queries={said("secret_sync_ok"): "{{instance}}"},
                unit="none",
                color=p.PLAIN,
                mappings=_SYNC,
            )
        ),
        p.stat(
            p.panel(
                settings,
                p.CERTIFICATE,
                "stat",
                "Days until the proxy's certificate ends. Any pulumi up of its last 90 days "
                "renews it.",
                at=(12, y + 1, 6, 4),
                queries={f"floor(({end} - time()) / 86400)": "{{instance}}"},
                unit="suffix: days",
                decimals=0,
                color=p.BY_LEVEL,
                thresholds=p.thresholds(_RED, ("yellow", days.critical), (_GREEN, days.warning)),
            )
        ),
        p.stat(
            p.panel(
                settings,
                p.REBOOT,
                "stat",
                "Whether a security update waits for a reboot of the machine.",
                at=(18, y + 1, 6, 4),
                queries={said("reboot_required"): "{{instance}}"},
                unit="none",
                color=p.PLAIN,
                mappings=_REBOOT,
            )
        ),
        p.states(
            p.panel(
                settings,
                p.SCRAPES,
                "state-timeline",
                "What works: scrapes as Prometheus sees them, and below each upstream as the proxy "
                "sees it. A scrape is down and its upstream is up: look at Prometheus' own error "
                "for the target.",
                at=(0, y + 5, 8, 8),
                queries={
                    selector("up", job=settings.job): "scrape {{endpoint}} {{instance}}",
                    selector("up", job=settings.proxy_job): "scrape proxy {{instance}}",
                    said("upstream_up"): "upstream {{endpoint}} {{instance}}",
                },
                unit="none",
                color=p.PLAIN,
                mappings=_UP,
            ),
            show="never",
        ),
        p.states(
            p.panel(
                settings,
                p.UPSTREAM_STATUS,
                "state-timeline",
                "What the API answers to the token in use. 401 and 403: the token was revoked or "
                "is not an admin's.",
                at=(8, y + 5, 8, 8),
                queries={said("upstream_http_status"): "{{endpoint}} {{instance}}"},
                unit="none",
                color=p.PLAIN,
                mappings=_STATUS,
            ),
            show="auto",
        ),
        p.history(
            p.panel(
                settings,
                p.UPSTREAM_SECONDS,
                "timeseries",
                "Seconds until the API's headers are there, asked by the proxy's sync.",
                at=(16, y + 5, 8, 8),
                queries={said("upstream_duration_seconds"): "{{endpoint}} {{instance}}"},
                unit="s",
                color=p.BY_SERIES,
            )
        ),
        p.history(
            p.panel(
                settings,
                p.SYNC_FAILURES,
                "timeseries",
                "High while the sync fails for a reason; what failed is on top of the list. The "
                "machine's console (aws ec2 get-console-output) says it in words.",
                at=(0, y + 13, 8, 8),
                queries={said("sync_failed"): "{{reason}} {{instance}}"},
                unit="none",
                decimals=0,
                color=p.BY_SERIES,
                max=1,
            ),
            sort="Max",
            lineInterpolation="stepAfter",
            fillOpacity=20,
            axisPlacement="hidden",
        ),
        p.table(
            p.panel(
                settings,
                p.SECRETS,
                "table",
                "The versions in use, as Secrets Manager names them, and how long ago a sync last "
                "found the secret in use.",
                at=(8, y + 13, 9, 8),
                queries={
                    "sum by (instance, secret, version) "
                    f"({age} * on (instance, secret) group_right {said('secret_info')})": (
                        "{{instance}} {{secret}} {{version}}"
                    )
                },
                overrides=[p.override("byName", "Last Seen", unit="s", decimals=0)],
            ),
            {
                "instance": "Machine",
                "secret": "Secret",
                "version": "Version",
                "Value": "Last Seen",
            },
        ),
        p.table(
            p.panel(
                settings,
                p.CONFIGURATION,
                "table",
                "Of each machine, SHA-256 of the proxy configuration in use, the stack's output "
                "proxyConfiguration, and what it is made of: build in the output declared.",
                at=(17, y + 13, 7, 8),
                queries={
                    f"count by (instance, sha256, build) ({said('configuration_info')})": (
                        "{{instance}} {{sha256}} {{build}}"
                    )
                },
            ),
            {"instance": "Machine", "sha256": "Configuration", "build": "Build"},
        ),
    ]
