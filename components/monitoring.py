"""What people look at, and what calls them: Grafana folder, dashboard and alerts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumiverse_grafana as grafana

from config.settings import Settings
from monitoring import alerts


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    settings: Settings
    dashboard: Mapping[str, Any]
    """A classic dashboard with its Workers section; its uid is kept."""


class Monitoring(pulumi.ComponentResource):
    """The folder's uid is pinned, or its permissions and history would be lost with a new one."""

    dashboard_url: pulumi.Output[str]

    def __init__(
        self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:Monitoring", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        folder = grafana.oss.Folder(
            f"{name}-folder",
            uid=f"sba-{args.settings.stack}".replace(".", "-"),
            title=args.settings.grafana.folder_title,
            opts=child,
        )
        dashboard = grafana.oss.Dashboard(
            f"{name}-dashboard",
            folder=folder.uid,
            config_json=json.dumps(args.dashboard, sort_keys=True),
            message="pulumi up",
            opts=child,
        )
        if args.settings.grafana.alerts:
            grafana.alerting.RuleGroup(
                f"{name}-alerts",
                name="metrics-proxy",
                folder_uid=folder.uid,
                interval_seconds=alerts.INTERVAL,
                rules=[
                    grafana.alerting.RuleGroupRuleArgs(**rule)
                    for rule in alerts.grafana(args.settings, args.dashboard)
                ],
                opts=child,
            )
        self.dashboard_url = dashboard.url
        self.register_outputs({"dashboard_url": self.dashboard_url})
