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
    """A classic dashboard as `monitoring.dashboard.deployable` makes it; its uid is kept."""


class Monitoring(pulumi.ComponentResource):
    """The folder's uid is pinned, or its permissions and history would be lost with a new one."""

    dashboard: grafana.oss.Dashboard
    dashboard_url: pulumi.Output[str]

    def __init__(
        self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:Monitoring", name, None, opts)
        settings = args.settings.grafana
        child = pulumi.ResourceOptions(parent=self)
        folder_uid: pulumi.Input[str]
        if settings.folder_uid is not None:
            folder_uid = settings.folder_uid
        else:
            uid = f"sba-{args.settings.stack}".replace(".", "-")
            folder_uid = grafana.oss.Folder(
                f"{name}-folder",
                uid=uid,
                title=settings.folder_title,
                opts=pulumi.ResourceOptions(
                    parent=self, import_=uid if settings.adopt_folder else None
                ),
            ).uid
        self.dashboard = grafana.oss.Dashboard(
            f"{name}-dashboard",
            folder=folder_uid,
            # secret only to keep it out of every preview, which shows all of it: outputs of the
            # program show what changes
            config_json=pulumi.Output.secret(json.dumps(args.dashboard, sort_keys=True)),
            message="pulumi up",
            overwrite=settings.overwrite_dashboard,
            opts=child,
        )
        if settings.alerts:
            grafana.alerting.RuleGroup(
                f"{name}-alerts",
                name=f"metrics-proxy-{args.settings.stack}",
                folder_uid=folder_uid,
                interval_seconds=alerts.INTERVAL,
                rules=pulumi.Output.secret(  # the same
                    [
                        grafana.alerting.RuleGroupRuleArgs(**rule)
                        for rule in alerts.grafana(args.settings, args.dashboard)
                    ]
                ),
                opts=child,
            )
        self.dashboard_url = self.dashboard.url
        self.register_outputs({"dashboard_url": self.dashboard_url})


def prometheus_rules(settings: Settings, dashboard: Mapping[str, Any] | None) -> pulumi.Output[str]:
    """The alerts as a file for Prometheus; secret where Grafana has them, only to keep it out of
    every preview."""
    text = alerts.rules_file(settings, dashboard)
    if settings.grafana.enabled and settings.grafana.alerts:
        return pulumi.Output.secret(text)
    return pulumi.Output.from_input(text)


def before_aws(resource: pulumi.Resource) -> None:
    """Let everything of AWS that is declared from here on wait for `resource`.

    Where Grafana refuses it, there is nothing half built to be paid for.
    """

    def wait(
        args: pulumi.ResourceTransformationArgs,
    ) -> pulumi.ResourceTransformationResult | None:
        if not args.type_.startswith("aws:"):
            return None
        opts = pulumi.ResourceOptions.merge(
            args.opts, pulumi.ResourceOptions(depends_on=[resource])
        )
        return pulumi.ResourceTransformationResult(args.props, opts)

    pulumi.runtime.register_stack_transformation(wait)
