"""The alerts: one table, and its rules for Prometheus and for Grafana.

`python -m monitoring.alerts FILE` writes the rules for the default settings.

Every expression has a value above 0 exactly when there is something to tell: Grafana fires on the
value, not on there being one. One cause is one alert: what another alert says is left out by a
clause of its own line (`and`, `unless`), which the tests take away one by one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from config.files import replace
from config.settings import Limits, Settings
from monitoring import panels as p
from monitoring.text import dump_yaml, quoted, selector

Json = dict[str, Any]

WORKERS: Final = "workers"
"""The endpoint whose document has the `sba_worker_*` gauges."""

REFUSED: Final = (
    *("token_invalid", "token_refused", "certificate_invalid", "configuration_invalid"),
    *("test", "trial", "reload", "check"),
)
"""Reasons of `metrics_proxy_sync_failed` where a newer version was brought and is not used. All
others, those of a later sync too, keep a newer version from being seen at all."""

LOOKBACK: Final = "5m"
"""A scrape that was missed does not reset an alert. Below every `for` that another scrape's result
guards: what went down together is then seen to be down before it is told apart."""

INTERVAL: Final = 60
"""Seconds between two evaluations."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One row of the table."""

    name: str
    """In CamelCase; in small letters it is the anchor in the runbook."""
    severity: Literal["warning", "critical"]
    hold: str
    """How long the expression has to have a value: `for`."""
    expr: str
    """PromQL, one clause a line."""
    summary: str
    description: str
    """`$value` is the expression's. Templates that Prometheus and Grafana have in common."""
    panel: int
    """The id of the panel to look at."""
    threshold: float | None = None
    """The label, where the expression does not set it."""


def alerts(settings: Settings) -> Iterator[Alert]:
    """Return the table, as `settings` have it."""
    limits, when, job = settings.workers, settings.alerts, settings.job

    def queue(metric: str, *matchers: str, over: str = f"last_over_time {LOOKBACK}") -> str:
        """One value per queue, however many workers export it."""
        function, window = over.split()
        series = selector(f"sba_worker_{metric}", *matchers, job=job)
        return f"max by (queue_name) ({function}({series}[{window}]))"

    def depth(above: Callable[[Limits, str], str], limit: Callable[[Limits], int]) -> str:
        """Queues over their own limits, which stand in the label `threshold`."""
        others = [f"queue_name!={quoted(name)}" for name in sorted(limits.queues)]
        own = [
            ([f"queue_name={quoted(name)}"], each) for name, each in sorted(limits.queues.items())
        ]
        parts = " or ".join(
            f"label_replace({above(each, queue('queue_depth', *matchers))}, "
            f'"threshold", "{limit(each)}", "", "")'
            for matchers, each in [*own, (others, limits.queue_depth)]
        )
        return f"({parts})"

    def high(limit: Limits, now: str) -> str:
        """Not once it has been critical for long enough to be told."""
        least = queue("queue_depth", over=f"min_over_time {when.queue_depth.critical}")
        return f"{now} > {limit.warning} unless {least} > {limit.critical}"

    def proxy(metric: str, *matchers: str, over: str = f"last_over_time {LOOKBACK}") -> str:
        """What the sync last said, by machine."""
        function, window = over.split()
        series = selector(f"metrics_proxy_{metric}", *matchers, job=settings.proxy_job)
        return f"{function}({series}[{window}])"

    def answers(status: str) -> tuple[str, str]:
        """No answer or a broken one; a token that is refused."""
        return f"{status} == 0 or {status} >= 500", f"{status} == 401 or {status} == 403"

    proxy_up = selector("up", job=settings.proxy_job)
    fleet = settings.subnet_ids is not None
    status = selector("metrics_proxy_upstream_http_status", job=settings.proxy_job)
    no_answer, rejected = answers(proxy("upstream_http_status"))
    in_use = proxy("secret_info", 'secret="token"', over=f"present_over_time {LOOKBACK}")
    refused = "|".join(REFUSED)
    idle = [queue(m, over=f"max_over_time {when.stalled}") for m in ("throughput", "active_jobs")]
    stalled = f"unless on (queue_name) ({idle[0]} == 0 and {idle[1]} == 0)"
    days = when.certificate_days
    left = f"({proxy('certificate_not_after_timestamp_seconds')} - time()) / 86400"
    late = settings.sync_late

    yield Alert(
        name="SbaQueueDepthHigh",
        severity="warning",
        hold=when.queue_depth.warning,
        expr=_lines(depth(high, lambda limit: limit.warning), stalled),
        summary="Queue {{ $labels.queue_name }} is filling up",
        description="{{ $value }} jobs wait in {{ $labels.queue_name }}, "
        "more than {{ $labels.threshold }}.",
        panel=p.QUEUE_DEPTH,
    )
    yield Alert(
        name="SbaQueueDepthCritical",
        severity="critical",
        hold=when.queue_depth.critical,
        expr=_lines(
            depth(lambda limit, now: f"{now} > {limit.critical}", lambda limit: limit.critical),
            stalled,
        ),
        summary="Queue {{ $labels.queue_name }} is far behind",
        description="{{ $value }} jobs wait in {{ $labels.queue_name }}, "
        "more than {{ $labels.threshold }}.",
        panel=p.QUEUE_DEPTH,
    )
    yield Alert(
        name="SbaErrorRateHigh",
        severity="critical",
        hold=when.error_rate,
        expr=f"{queue('error_rate')} > {limits.error_rate!r}",
        summary="Jobs of queue {{ $labels.queue_name }} fail",
        description="{{ $value | humanizePercentage }} of the jobs in {{ $labels.queue_name }} "
        f"fail, more than {limits.error_rate * 100:g} %.",
        panel=p.ERROR_RATE,
        threshold=limits.error_rate,
    )
    yield Alert(
        name="SbaWorkerStalled",
        severity="critical",
        hold=when.stalled,
        expr=_lines(
            f"{queue('queue_depth')} > 0",
            f"and {queue('throughput')} == 0",
            f"and {queue('active_jobs')} == 0",
        ),
        summary="Nobody works on queue {{ $labels.queue_name }}",
        description="{{ $value }} jobs wait in {{ $labels.queue_name }}, none is being worked on "
        "and none was finished.",
        panel=p.ACTIVE_JOBS,
    )
    if any(endpoint.name == WORKERS for endpoint in settings.endpoints):
        workers_up = selector("up", job=job, endpoint=WORKERS)
        yield Alert(
            name="SbaWorkerMetricsAbsent",
            severity="warning",
            hold="10m",
            expr=_lines(
                f"absent_over_time({selector('sba_worker_queue_depth', job=job)}[{LOOKBACK}])",
                f"unless on () max(max_over_time({workers_up}[{LOOKBACK}])) == 0",
                f"unless on () absent({proxy_up})",
            ),
            summary="There are no metrics of the workers",
            description="No sba_worker_queue_depth, and no scrape that fails: the exporter shows "
            "none, or Prometheus no longer scrapes it.",
            panel=p.QUEUE_DEPTH,
        )
    yield Alert(
        name="SbaProxyDown",
        severity="critical",
        hold=when.proxy_down,
        expr=_lines(
            f"1 - {f'max({proxy_up})' if fleet else proxy_up} > 0", f"or absent({proxy_up})"
        ),
        summary="The metrics proxy does not answer",
        description="Prometheus cannot scrape the proxy's own metrics: the machine, its server, "
        "the security group, or the certificate and Prometheus' CA.",
        panel=p.SCRAPES,
    )
    if fleet:
        yield Alert(
            name="SbaMachineDown",
            severity="warning",
            hold=when.proxy_down,
            expr=_lines(f"1 - {proxy_up} > 0", f"and on () max({proxy_up}) == 1"),
            summary="The proxy's machine in {{ $labels.zone }} does not answer",
            description="Scrapes through its zone failed for up to a minute and a half, then went "
            "on by the others. Auto Scaling replaces a machine that does not serve: if this goes "
            "on, it cannot.",
            panel=p.SCRAPES,
        )
    yield Alert(
        name="SbaUpstreamDown",
        severity="critical",
        hold="5m",
        expr=f"count by ({settings.machine_label}, endpoint) ({no_answer})",
        summary="The API does not answer the proxy on {{ $labels.endpoint }}",
        description="The proxy works; {{ $labels.endpoint }} refuses connections, takes too long, "
        "or answers with a 5xx.",
        panel=p.UPSTREAM_STATUS,
    )
    yield Alert(
        name="SbaTokenRejected",
        severity="critical",
        hold="5m",
        expr=_lines(f"({rejected})", f"and on ({settings.machine_label}) {in_use}"),
        summary="The API rejects the admin token on {{ $labels.endpoint }}",
        description="{{ $labels.endpoint }} answers {{ $value }} to the token in use: it was "
        "revoked, has expired, or is not an admin's.",
        panel=p.UPSTREAM_STATUS,
    )
    yield Alert(
        name="SbaScrapeFailing",
        severity="warning",
        hold="10m",
        expr=_lines(
            f"1 - {selector('up', job=job)} > 0",
            *(f"unless on (endpoint) ({it})" for it in answers(status)),
            f"and on () max(max_over_time({proxy_up}[{LOOKBACK}])) == 1",
        ),
        summary="Scrapes of {{ $labels.endpoint }} fail",
        description="The proxy's sync is answered by the API, which takes the token: look at "
        "Prometheus' own error for the target (status, Content-Type, timeout, size, no metrics).",
        panel=p.SCRAPES,
    )
    yield Alert(
        name="SbaSyncFailing",
        severity="warning",
        hold="15m",
        expr=f"{proxy('sync_failed', f'reason!~{quoted(refused)}')} == 1",
        summary="The proxy's sync fails: {{ $labels.reason }}",
        description="Newer tokens, certificates and configurations are not seen. The last good "
        "ones stay in use.",
        panel=p.SYNC_FAILURES,
    )
    yield Alert(
        name="SbaVersionRefused",
        severity="warning",
        hold="10m",
        expr=f"{proxy('sync_failed', f'reason=~{quoted(refused)}')} == 1",
        summary="The proxy does not take a newer version: {{ $labels.reason }}",
        description="A newer token, certificate or configuration was refused or put back. The last "
        "good one stays in use.",
        panel=p.SYNC_FAILURES,
    )
    yield Alert(
        name="SbaSyncStopped",
        severity="warning",
        hold="5m",
        expr=f"time() - {proxy('sync_timestamp_seconds')} > {late}",
        summary="The proxy's sync does not run",
        description="Its last run was {{ $value | humanizeDuration }} ago. A token that is rotated "
        "now does not reach the proxy.",
        panel=p.LAST_SYNC,
        threshold=late,
    )
    yield Alert(
        name="SbaCertificateExpiring",
        severity="warning",
        hold="15m",
        expr=f"{left} < {days.warning} >= {days.critical}",
        summary=f"The proxy's certificate ends in less than {days.warning} days",
        description='{{ $value | printf "%.0f" }} days are left. Any pulumi up of its last 90 days '
        "would have renewed it.",
        panel=p.CERTIFICATE,
        threshold=days.warning,
    )
    yield Alert(
        name="SbaCertificateEnding",
        severity="critical",
        hold="5m",
        expr=f"{days.critical} - {left} > 0",
        summary=f"The proxy's certificate ends in less than {days.critical} days",
        description="When it has ended, every scrape fails.",
        panel=p.CERTIFICATE,
        threshold=days.critical,
    )
    yield Alert(
        name="SbaRebootPending",
        severity="warning",
        hold=when.reboot,
        expr=f"{proxy('reboot_required')} == 1",
        summary="The proxy's machine waits for a reboot",
        description="Security updates, of the kernel as a rule, are installed and not in use.",
        panel=p.REBOOT,
    )


def _lines(*clauses: str) -> str:
    return "\n".join(clauses)


def prometheus(settings: Settings, dashboard: Mapping[str, Any] | None = None) -> Json:
    """Return a rule file for Prometheus as a dict."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.hold,
            "labels": _labels(settings, alert),
            "annotations": _annotations(settings, alert, dashboard),
        }
        for alert in alerts(settings)
    ]
    # no interval: Prometheus' own evaluation_interval applies
    return {"groups": [{"name": "metrics-proxy", "rules": rules}]}


def rules_file(settings: Settings, dashboard: Mapping[str, Any] | None = None) -> str:
    """Return the text of a rule file for Prometheus."""
    return _HEADER + dump_yaml(prometheus(settings, dashboard))


_HEADER: Final = """\
# Alerts of the metrics proxy, generated. For prometheus.yml: rule_files: [THIS FILE]
# docs/runbook.md says of each what to do. Not beside the same alerts in Grafana.
"""


def grafana(settings: Settings, dashboard: Mapping[str, Any]) -> list[Json]:
    """Return the rules of a Grafana rule group, keys as in the SDK's `RuleGroupRuleArgsDict`."""
    return [_grafana_rule(settings, alert, dashboard) for alert in alerts(settings)]


def _grafana_rule(settings: Settings, alert: Alert, dashboard: Mapping[str, Any]) -> Json:
    query: Json = {"refId": "A", "expr": alert.expr, "instant": True, "range": False}
    last = {"refId": "B", "type": "reduce", "expression": "A", "reducer": "last"}
    fires = {"refId": "C", "type": "math", "expression": "$B > 0"}
    sources = [(query, settings.grafana.alert_datasource), (last, "__expr__"), (fires, "__expr__")]
    annotations = {
        key: text.replace("$value", "$values.B.Value")
        for key, text in _annotations(settings, alert, dashboard).items()
    }
    if "uid" in dashboard:
        annotations |= {"__dashboardUid__": dashboard["uid"], "__panelId__": str(alert.panel)}
    contact = settings.grafana.contact_point
    return {
        "uid": _uid(settings, alert),
        "name": _title(settings, alert),
        "condition": "C",
        "for_": alert.hold,
        "datas": [
            {
                "ref_id": model["refId"],
                "datasource_uid": uid,
                "relative_time_range": {"from_": 600, "to": 0},
                "model": json.dumps(model, sort_keys=True),
            }
            for model, uid in sources
        ],
        "labels": _labels(settings, alert),
        "annotations": annotations,
        # An expression without a result is the good case: absence has alerts of its own.
        "no_data_state": "OK",
        # One alert, not all of them, when Prometheus cannot be asked.
        "exec_err_state": "Error" if alert.name == "SbaProxyDown" else "OK",
        **({"notification_settings": {"contact_point": contact}} if contact else {}),
    }


def _title(settings: Settings, alert: Alert) -> str:
    """Grafana has a title once in a folder, which other stacks may be in if it is not our own."""
    shared = settings.grafana.folder_uid is not None
    return f"{alert.name} ({settings.stack})" if shared else alert.name


def _uid(settings: Settings, alert: Alert) -> str:
    """A uid of its own for each stack, in the 40 characters that Grafana allows."""
    return f"{alert.name}-{hashlib.sha256(settings.stack.encode()).hexdigest()[:8]}"


def _labels(settings: Settings, alert: Alert) -> dict[str, str]:
    threshold = {} if alert.threshold is None else {"threshold": f"{alert.threshold:g}"}
    return {"severity": alert.severity, "service": settings.job, **threshold}


def _annotations(
    settings: Settings, alert: Alert, dashboard: Mapping[str, Any] | None
) -> dict[str, str]:
    runbook = settings.grafana.runbook_url
    uid = (dashboard or {}).get("uid")
    return {
        "summary": alert.summary,
        "description": alert.description,
        **({"runbook_url": f"{runbook}#{alert.name.lower()}"} if runbook else {}),
        **({"dashboard": uid} if uid else {}),
        "panel": p.OWN[alert.panel][0],
    }


def main(path: str) -> None:
    """Write the rules for the default settings, which do not need the required ones."""
    settings = Settings.model_construct(stack="", subnet_id="", prometheus_cidrs=())
    replace(path, rules_file(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
