"""What Prometheus sees, minute by minute, and exactly which alerts then fire and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from host.sync import REASONS
from monitoring.alerts import REFUSED

MINUTES: Final = 32
"""Length of a case. Scrapes and rules are a minute apart."""

CAUSE: Final = 5
"""The minute in which what is wrong begins."""

LIMITS: Final = {"email": (150, 2000), "sms": (100, 500)}
"""Warning and critical; `sms` has the defaults."""

CONFIG: Final[dict[str, Any]] = {
    "workers": {"queues": {"email": {"warning": 150, "critical": 2000}}},
    "alerts": {"reboot": "15m"},
}
"""The settings of the rules under test."""

TABLE: Final = {
    "SbaQueueDepthHigh": ("warning", 10),
    "SbaQueueDepthCritical": ("critical", 5),
    "SbaErrorRateHigh": ("critical", 10),
    "SbaWorkerStalled": ("critical", 10),
    "SbaWorkerMetricsAbsent": ("warning", 10),
    "SbaProxyDown": ("critical", 5),
    "SbaUpstreamDown": ("critical", 5),
    "SbaTokenRejected": ("critical", 5),
    "SbaScrapeFailing": ("warning", 10),
    "SbaSyncFailing": ("warning", 15),
    "SbaVersionRefused": ("warning", 10),
    "SbaSyncStopped": ("warning", 5),
    "SbaCertificateExpiring": ("warning", 15),
    "SbaCertificateEnding": ("critical", 5),
    "SbaRebootPending": ("warning", 15),
}
"""Alert → severity, and minutes for which its cause has to last."""

DAY: Final = 86_400
GONE: Final = None
"""No sample, and a marker that there is none."""

Value = float | None
Line = Callable[[int], Value]
"""A series: minute → value."""
Series = tuple[str, frozenset[tuple[str, str]]]
World = dict[Series, Line]
Firing = tuple[str, frozenset[tuple[str, str]]]
"""An alert that fires: its name, and its labels but for severity and service."""


def series(name: str, **labels: str) -> Series:
    return name, frozenset(labels.items())


def up(job: str, endpoint: str = "", instance: str = "a:9446") -> Series:
    own = {"endpoint": endpoint} if endpoint else {}
    return series("up", job=job, instance=instance, **own)


def proxy(name: str, instance: str = "a:9446", job: str = "sba-proxy", **labels: str) -> Series:
    return series(f"metrics_proxy_{name}", job=job, instance=instance, **labels)


def worker(name: str, queue: str, instance: str = "a:9446", job: str = "sba-api") -> Series:
    own = {"endpoint": "workers", "instance": instance, "queue_name": queue}
    return series(f"sba_worker_{name}", job=job, **own)


def always(value: Value) -> Line:
    return lambda _: value


def since(minute: int, value: Value | Line, before: Value | Line) -> Line:
    """A line that changes."""

    def line(now: int) -> Value:
        it = value if now >= minute else before
        return it(now) if callable(it) else it

    return line


def machine(instance: str) -> World:
    """A proxy that is well."""
    versions = [
        proxy("secret_info", instance, secret=secret, version="1") for secret in ("token", "bundle")
    ]
    reasons = {*REASONS, *REFUSED, "busy", "probe"}
    return {
        up("sba-proxy", instance=instance): always(1),
        **dict.fromkeys(versions, always(1)),
        **{proxy("sync_failed", instance, reason=reason): always(0) for reason in reasons},
        proxy("sync_timestamp_seconds", instance): lambda minute: 60 * minute,
        proxy("certificate_not_after_timestamp_seconds", instance): always(200 * DAY),
        proxy("reboot_required", instance): always(0),
        **{
            proxy(name, instance, endpoint=endpoint): always(value)
            for endpoint in ("api", "workers")
            for name, value in (("upstream_up", 1), ("upstream_http_status", 200))
        },
    }


def workers(queue: str, instance: str = "a:9446") -> World:
    """A queue that is well."""
    values = {"queue_depth": 10, "throughput": 2, "active_jobs": 1, "error_rate": 0.001}
    return {worker(name, queue, instance): always(value) for name, value in values.items()}


def noise() -> World:
    """Somebody else's series, as bad as can be, and as good."""
    bad, good = "other", "another"
    world: World = {
        up(bad, "api"): always(0),
        up(bad): always(0),
        up(good): always(1),
        up(good, "workers"): always(1),
    }
    for endpoint in ("api", "workers"):
        for status in (0, 401, 403, 503):
            it = proxy("upstream_http_status", job=f"answers {status}", endpoint=endpoint)
            world[it] = always(status)
    for name, value in (("sync_timestamp_seconds", 0), ("reboot_required", 1)):
        world[proxy(name, job=bad)] = always(value)
    for job, days in ((bad, 1), (good, 30)):
        world[proxy("certificate_not_after_timestamp_seconds", job=job)] = always(days * DAY)
    world[proxy("secret_info", job=good, secret="token", version="1")] = always(1)
    for reason in ("fetch_token", "test"):
        world[proxy("sync_failed", job=bad, reason=reason)] = always(1)
    for queue in LIMITS:
        for name, value in (("queue_depth", 1e6), ("error_rate", 1)):
            world[worker(name, queue, job=bad)] = always(value)
        for name in ("throughput", "active_jobs"):
            world[worker(name, queue, job=good)] = always(5)
    return world


def healthy() -> World:
    world = noise() | machine("a:9446")
    for endpoint in ("api", "workers"):
        world[up("sba-api", endpoint)] = always(1)
    for queue in LIMITS:
        world |= workers(queue)
    return world


@dataclass(frozen=True, kw_only=True)
class Case:
    """A world, and when which alert fires in it: `{alert: (from, to)}`, `to` excluded."""

    name: str
    about: str
    """The alert that it is a case of; mutants of that one meet it first."""
    changes: Mapping[Series, Line]
    fires: Mapping[Firing, tuple[int, int]]

    @property
    def world(self) -> World:
        return healthy() | dict(self.changes)


def alert(name: str, **labels: object) -> Firing:
    return name, frozenset((key, str(value)) for key, value in labels.items())


def of(world: Iterable[Series], prefix: str, **labels: str) -> list[Series]:
    """The series of a world whose name begins so and that have these labels."""
    return [it for it in world if it[0].startswith(prefix) and set(labels.items()) <= it[1]]


API: Final = of(healthy(), "sba_worker_", job="sba-api")
"""What a scrape of the workers' endpoint brings."""
PROXY: Final = of(healthy(), "metrics_proxy_", job="sba-proxy")
"""What a scrape of the proxy's own document brings."""


def missing(world: Mapping[Series, Line], target: Series, minutes: range) -> World:
    """A target's scrapes fail in these minutes: `up` is 0, and its other series have no sample."""
    brought = PROXY if target == up("sba-proxy") else API
    lines = healthy() | dict(world)

    def gap(line: Line, value: Value) -> Line:
        return lambda minute: value if minute in minutes else line(minute)

    return {
        **world,
        **{it: gap(lines[it], GONE) for it in brought},
        target: gap(lines[target], 0),
    }


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What makes a single alert fire, and what just does not."""

    fires: Firing
    loud: Mapping[Series, Value | Line]
    quiet: Mapping[Series, Value | Line]
    target: Series
    """Whose scrape brings it."""
    only: str = ""
    """The one kind of case that is made of it, where another cause of the alert has all."""


def cause(
    name: str,
    labels: Mapping[str, object],
    target: Series,
    values: Mapping[Series, tuple[Value | Line, Value | Line]],
    only: str = "",
) -> Cause:
    """`values`: series → loud and quiet value."""
    return Cause(
        fires=alert(name, **labels),
        loud={it: pair[0] for it, pair in values.items()},
        quiet={it: pair[1] for it, pair in values.items()},
        target=target,
        only=only,
    )


def stamp(age: float) -> float:
    """A time that is `age` seconds ago in the minute in which the cause begins."""
    return 60 * CAUSE - age


ON_A: Final = {"instance": "a:9446"}
B: Final = "b:9446"
API_UP: Final = up("sba-api", "api")
WORKERS_UP: Final = up("sba-api", "workers")
PROXY_UP: Final = up("sba-proxy")
END: Final = "certificate_not_after_timestamp_seconds"


def _causes() -> Iterable[Cause]:
    for queue, (warning, critical) in LIMITS.items():
        for name, limit in (("High", warning), ("Critical", critical)):
            yield cause(
                f"SbaQueueDepth{name}",
                {"queue_name": queue, "threshold": limit},
                WORKERS_UP,
                # at the critical limit the warning goes on: that is a case of its own
                {worker("queue_depth", queue): (limit + 1, warning)},
            )
    yield cause(
        "SbaErrorRateHigh",
        {"queue_name": "sms", "threshold": "0.01"},
        WORKERS_UP,
        {worker("error_rate", "sms"): (0.0105, 0.01)},
    )
    stalled = {"queue_depth": (1, 0), "throughput": (0, 0), "active_jobs": (0, 0)}
    yield cause(
        "SbaWorkerStalled",
        {"queue_name": "sms"},
        WORKERS_UP,
        {worker(name, "sms"): pair for name, pair in stalled.items()},
    )
    for status in (0, 500, 503):
        yield cause(
            "SbaUpstreamDown",
            {**ON_A, "endpoint": "api"},
            PROXY_UP,
            {proxy("upstream_http_status", endpoint="api"): (status, 499)},
            only="fires" if status == 503 else "",
        )
    for status, other in ((401, 402), (403, 402)):
        yield cause(
            "SbaTokenRejected",
            {**ON_A, "endpoint": "api"},
            PROXY_UP,
            {proxy("upstream_http_status", endpoint="api"): (status, other)},
        )
    for reason in sorted({*REASONS, *REFUSED, "busy", "probe", "of a later sync"}):
        yield cause(
            "SbaVersionRefused" if reason in REFUSED else "SbaSyncFailing",
            {**ON_A, "reason": reason},
            PROXY_UP,
            {proxy("sync_failed", reason=reason): (1, 0)},
            only="" if reason in ("fetch_token", "test") else "fires",
        )
    # more than 480 s after it the sync is late, and one evaluation earlier it was not
    yield cause(
        "SbaSyncStopped",
        {**ON_A, "threshold": 480},
        PROXY_UP,
        {proxy("sync_timestamp_seconds"): (stamp(481), lambda minute: 60 * minute - 480)},
    )
    for name, days in (("Expiring", 60), ("Ending", 14)):
        yield cause(
            f"SbaCertificate{name}",
            {**ON_A, "threshold": days},
            PROXY_UP,
            # at the critical limit the warning goes on: that is a case of its own
            {proxy(END): (days * DAY + stamp(1), lambda minute: 60 * minute + 60 * DAY)},
        )
    yield cause("SbaRebootPending", ON_A, PROXY_UP, {proxy("reboot_required"): (1, 0)})


CAUSES: Final = list(_causes())


def lines(values: Mapping[Series, Value | Line], begin: int = CAUSE, end: int = MINUTES) -> World:
    """A world that is well but for these values in these minutes."""
    well = healthy()
    return {
        it: since(begin, since(end, well.get(it, always(GONE)), value), well.get(it, always(GONE)))
        for it, value in values.items()
    }


def _cases_of(it: Cause) -> Iterable[Case]:
    """Fires; just quiet; over again; a scrape missed; a restart; the series gone."""
    name = it.fires[0]
    begin = CAUSE + TABLE[name][1]
    loud = lines(it.loud)
    label = f"{name} {' '.join(sorted(value for _, value in it.fires[1]))}"

    def case(kind: str, changes: World, fires: tuple[int, int] | None) -> Case:
        expected = {it.fires: fires} if fires else {}
        return Case(name=f"{label}: {kind}", about=name, changes=changes, fires=expected)

    yield case("fires", loud, (begin, MINUTES))
    if it.only:
        return
    yield case("just quiet", lines(it.quiet), None)
    yield case("just too short", lines(it.loud, end=begin), None)
    yield case("is over", lines(it.loud, end=begin + 3), (begin, begin + 3))
    for kind, minutes in {
        "a scrape is missed before": range(CAUSE + 2, CAUSE + 3),
        "a scrape is missed meanwhile": range(begin + 2, begin + 3),
        "a restart": range(CAUSE + 1, CAUSE + 3),
        "four scrapes are missed": range(CAUSE + 1, CAUSE + 5),
    }.items():
        yield case(kind, missing(loud, it.target, minutes), (begin, MINUTES))
    # the last value counts for five minutes
    for vanished in it.loud:
        gone = loud | {vanished: since(begin + 5, GONE, loud[vanished])}
        yield case(f"{vanished[0]} vanishes", gone, (begin, begin + 9))
    if name.startswith(("SbaQueueDepth", "SbaErrorRate")):
        [(_, labels)] = it.loud
        other = workers(dict(labels)["queue_name"], B)
        yield case("another exporter of the queue is well", other | loud, (begin, MINUTES))


def _down(*targets: Series, begin: int = CAUSE, end: int = MINUTES) -> World:
    world: World = {}
    for target in targets:
        world = missing(world, target, range(begin, end))
    return world


def _removed(*targets: Series) -> World:
    return {it: since(CAUSE, GONE, line) for it, line in healthy().items() if it in targets}


EVERYTHING: Final = (PROXY_UP, WORKERS_UP, API_UP)


def _special() -> Iterable[Case]:
    """Where an alert is about a scrape itself, and where one alert has to leave it to another."""

    def case(about: str, name: str, changes: World, *fires: tuple[Firing, int]) -> Case:
        until = {it: (begin, MINUTES) for it, begin in fires}
        return Case(name=f"{about}: {name}", about=about, changes=changes, fires=until)

    yield case("SbaProxyDown", "all is well", {})

    down = alert("SbaProxyDown", **ON_A)
    yield case("SbaProxyDown", "fires", _down(*EVERYTHING), (down, 10))
    yield case("SbaProxyDown", "just too short", _down(*EVERYTHING, end=10))
    yield case("SbaProxyDown", "a scrape is missed", _down(PROXY_UP, end=6))
    again = missing(_down(*EVERYTHING, end=9), PROXY_UP, range(10, 14))
    yield case("SbaProxyDown", "two restarts", again)
    gone = _removed(*EVERYTHING, *PROXY, *API)
    yield case("SbaProxyDown", "no longer scraped", gone, (alert("SbaProxyDown"), 10))
    yield case("SbaProxyDown", "only that", _removed(PROXY_UP, *PROXY), (alert("SbaProxyDown"), 10))

    second = machine(B)
    broken = second | _removed() | {up("sba-proxy", instance=B): since(CAUSE, 0, 1)}
    yield case("SbaProxyDown", "one of two", broken, (alert("SbaProxyDown", instance=B), 10))

    failing = alert("SbaScrapeFailing", **ON_A, endpoint="api")
    fails = lines({API_UP: 0})
    yield case("SbaScrapeFailing", "fires", fails, (failing, 15))
    yield case("SbaScrapeFailing", "just too short", lines({API_UP: 0}, end=15))
    for kind, minutes in {"a scrape": range(7, 8), "four": range(7, 11)}.items():
        world = missing(fails, PROXY_UP, minutes)
        yield case("SbaScrapeFailing", f"{kind} of the proxy missed", world, (failing, 15))
    yield Case(
        name="SbaScrapeFailing: its series vanishes",
        about="SbaScrapeFailing",
        changes={API_UP: since(20, GONE, fails[API_UP])},
        fires={failing: (15, 20)},
    )
    one_down = broken | fails
    both = ((alert("SbaProxyDown", instance=B), 10), (failing, 15))
    yield case("SbaScrapeFailing", "one machine of two down", one_down, *both)
    for status in (200, 302, 400, 402, 404, 499):
        world = lines(
            {
                API_UP: 0,
                proxy("upstream_up", endpoint="api"): 0,
                proxy("upstream_http_status", endpoint="api"): status,
            }
        )
        yield case("SbaScrapeFailing", f"the API answers {status}", world, (failing, 15))
    world = missing(
        lines({proxy("upstream_http_status", endpoint="workers"): 404}),
        WORKERS_UP,
        range(CAUSE, MINUTES),
    )
    own = alert("SbaScrapeFailing", **ON_A, endpoint="workers")
    yield case("SbaScrapeFailing", "the workers' document is not there", world, (own, 15))

    absent = alert("SbaWorkerMetricsAbsent")
    silent = lines(dict.fromkeys(API, GONE))
    yield case("SbaWorkerMetricsAbsent", "fires", silent, (absent, 19))
    short = lines(dict.fromkeys(API, GONE), end=19)
    yield case("SbaWorkerMetricsAbsent", "just too short", short)
    one = missing(silent, WORKERS_UP, range(12, 13))
    yield case("SbaWorkerMetricsAbsent", "a scrape is missed", one, (absent, 19))
    four = missing(silent, WORKERS_UP, range(12, 16))
    yield case("SbaWorkerMetricsAbsent", "a restart", four, (absent, 19))
    unscraped = _removed(WORKERS_UP, *API)
    yield case("SbaWorkerMetricsAbsent", "no longer scraped", unscraped, (absent, 19))
    part = lines(dict.fromkeys([it for it in API if ("queue_name", "sms") in it[1]], GONE))
    yield case("SbaWorkerMetricsAbsent", "a queue vanishes", part)
    twice = silent | {up("sba-api", "workers", B): since(CAUSE, 0, 1)}
    two = alert("SbaScrapeFailing", instance=B, endpoint="workers")
    yield case("SbaWorkerMetricsAbsent", "one target of two", twice, (absent, 19), (two, 15))

    # what is another endpoint's is no excuse
    for status, name in ((503, "SbaUpstreamDown"), (401, "SbaTokenRejected")):
        world = lines(
            {API_UP: 0, WORKERS_UP: 0, proxy("upstream_http_status", endpoint="workers"): status}
        )
        other = (alert(name, **ON_A, endpoint="workers"), 10)
        yield case("SbaScrapeFailing", f"beside a {status}", world, (failing, 15), other)

    for status, name in (
        (0, "SbaUpstreamDown"),
        (500, "SbaUpstreamDown"),
        (503, "SbaUpstreamDown"),
        (401, "SbaTokenRejected"),
        (403, "SbaTokenRejected"),
    ):
        # the sync sees it a minute later than Prometheus
        statuses = {
            proxy(metric, endpoint=endpoint): value
            for endpoint in ("api", "workers")
            for metric, value in (("upstream_http_status", status), ("upstream_up", 0))
        }
        world = missing(lines(statuses, CAUSE + 1), WORKERS_UP, range(CAUSE, MINUTES))
        world[API_UP] = since(CAUSE, 0, 1)
        expected = [(alert(name, **ON_A, endpoint=it), 11) for it in ("api", "workers")]
        yield case(name, f"all of the API answers {status}", world, *expected)
        # ... and one of two machines only
        part = second | lines({proxy("upstream_http_status", B, endpoint="api"): status})
        part[proxy("upstream_http_status", B, endpoint="api")] = since(CAUSE, status, 200)
        one_only = (alert(name, instance=B, endpoint="api"), 10)
        yield case(name, f"one machine of two sees {status}", part, one_only)

    token = [it for it in PROXY if it[0].endswith("secret_info") and ("secret", "token") in it[1]]
    for reason, name, begin in (
        ("fetch_token", "SbaSyncFailing", 20),
        ("token_invalid", "SbaVersionRefused", 15),
    ):
        world = missing(
            {
                **{
                    proxy("upstream_http_status", endpoint=it): always(401)
                    for it in ("api", "workers")
                },
                **dict.fromkeys(token, always(GONE)),
                proxy("sync_failed", reason=reason): since(CAUSE, 1, 0),
                API_UP: since(CAUSE, 0, 1),
            },
            WORKERS_UP,
            range(CAUSE, MINUTES),
        )
        expected = (alert(name, **ON_A, reason=reason), begin)
        yield case("SbaTokenRejected", f"there is no token, {reason}", world, expected)
    revoked = {it: since(20, GONE, always(1)) for it in token}
    revoked[proxy("upstream_http_status", endpoint="api")] = since(CAUSE, 401, 200)
    yield Case(
        name="SbaTokenRejected: until there is none",
        about="SbaTokenRejected",
        changes=revoked,
        fires={alert("SbaTokenRejected", **ON_A, endpoint="api"): (10, 24)},
    )
    here = second | {it: always(GONE) for it in token}
    here[proxy("upstream_http_status", endpoint="api")] = always(401)
    yield case("SbaTokenRejected", "no token on one machine of two", here)

    for queue, (warning, critical) in LIMITS.items():
        depth = worker("queue_depth", queue)
        high = alert("SbaQueueDepthHigh", queue_name=queue, threshold=warning)
        far = alert("SbaQueueDepthCritical", queue_name=queue, threshold=critical)
        yield case(
            "SbaQueueDepthHigh",
            f"{queue} at its critical limit",
            lines({depth: critical}),
            (high, 15),
        )
        yield Case(
            name=f"SbaQueueDepthHigh: {queue} goes on filling",
            about="SbaQueueDepthHigh",
            changes={depth: since(20, critical + 1, since(CAUSE, warning + 1, 10))},
            fires={high: (15, 24), far: (25, MINUTES)},
        )
        yield case("SbaQueueDepthCritical", f"{queue} far beyond", lines({depth: 5_000}), (far, 10))
        stalled = alert("SbaWorkerStalled", queue_name=queue)
        for begin, full in ((CAUSE, warning), (CAUSE + 6, critical)):
            world = lines({worker("throughput", queue): 0, worker("active_jobs", queue): 0})
            world[depth] = since(begin, full + 1, 10)
            yield case(
                "SbaWorkerStalled", f"{queue} fills up to {full} meanwhile", world, (stalled, 15)
            )
            for metric in ("throughput", "active_jobs"):
                slow = dict(world)
                slow[worker(metric, queue)] = always(1)
                name = "SbaQueueDepthHigh" if full == warning else "SbaQueueDepthCritical"
                fires = high if full == warning else far
                start = begin + TABLE[name][1]
                yield case(name, f"{queue} over {full} with some {metric}", slow, (fires, start))
    yield case("SbaWorkerStalled", "one long job", lines({worker("throughput", "sms"): 0}))
    yield case(
        "SbaWorkerStalled", "idle and done at once", lines({worker("active_jobs", "sms"): 0})
    )
    late = lines({worker("throughput", "sms"): 0, worker("active_jobs", "sms"): 0}, begin=18)
    late[worker("queue_depth", "sms")] = since(CAUSE, 101, 10)
    yield Case(
        name="SbaWorkerStalled: a full queue is stalled later",
        about="SbaQueueDepthHigh",
        changes=late,
        fires={
            alert("SbaQueueDepthHigh", queue_name="sms", threshold=100): (15, 27),
            alert("SbaWorkerStalled", queue_name="sms"): (28, MINUTES),
        },
    )

    full = lines({worker("queue_depth", "email"): 2001, worker("queue_depth", "sms"): 101})
    far_email = alert("SbaQueueDepthCritical", queue_name="email", threshold=2000)
    high_sms = alert("SbaQueueDepthHigh", queue_name="sms", threshold=100)
    yield case("SbaQueueDepthHigh", "another is further", full, (far_email, 10), (high_sms, 15))
    idle_email = {worker(name, "email"): 0 for name in ("throughput", "active_jobs")}
    email = alert("SbaWorkerStalled", queue_name="email")
    far_sms = alert("SbaQueueDepthCritical", queue_name="sms", threshold=500)
    for value, fires in ((101, (high_sms, 15)), (501, (far_sms, 10))):
        world = lines({**idle_email, worker("queue_depth", "sms"): value})
        yield case(fires[0][0], "another is stalled", world, (email, 15), fires)
    every = lines({worker("error_rate", queue): 0.02 for queue in ("email", "sms")})
    errors = [
        alert("SbaErrorRateHigh", queue_name=queue, threshold="0.01") for queue in ("email", "sms")
    ]
    yield case("SbaErrorRateHigh", "of two queues", every, *((it, 15) for it in errors))

    sms = alert("SbaWorkerStalled", queue_name="sms")
    idle = {worker(name, "sms"): 0 for name in ("throughput", "active_jobs")}
    for name in ("throughput", "active_jobs"):
        for value, instance, kind in ((2, B, "another exporter shows"), (0, "", "now and then")):

            def pulse(minute: int) -> Value:
                return float(minute % 2)

            stuck = lines(idle)
            if instance:
                stuck |= dict.fromkeys(workers("sms", B), always(0))
            it = worker(name, "sms", instance or "a:9446")
            stuck[it] = always(value) if instance else since(CAUSE, pulse, 2)
            yield case("SbaWorkerStalled", f"{kind} {name}", stuck)
            for about, full_, fires in (
                ("SbaQueueDepthHigh", 101, (high_sms, 15)),
                ("SbaQueueDepthCritical", 501, (far_sms, 10)),
            ):
                busy = stuck | lines({worker("queue_depth", "sms"): full_})
                yield case(about, f"full, and {kind} {name}", busy, fires)
    empty = {it: always(0) for it in idle}
    empty[worker("queue_depth", "sms")] = since(25, 0, since(CAUSE, 1, 0))
    yield Case(
        name="SbaWorkerStalled: while there is a job",
        about="SbaWorkerStalled",
        changes=empty,
        fires={sms: (15, 25)},
    )
    idle_b = {it: line for it, line in workers("sms", B).items() if it[0].endswith("depth")}
    empty_b = dict.fromkeys(idle_b, always(0)) | lines({**idle, worker("queue_depth", "sms"): 1})
    yield case("SbaWorkerStalled", "another exporter shows no job", empty_b, (sms, 15))

    ending = 14 * DAY + 60 * 22
    yield Case(
        name="SbaCertificateExpiring: until it is about to end",
        about="SbaCertificateExpiring",
        changes=lines({proxy(END): ending}),
        fires={
            alert("SbaCertificateExpiring", **ON_A, threshold=60): (20, 23),
            alert("SbaCertificateEnding", **ON_A, threshold=14): (28, MINUTES),
        },
    )
    exactly = lines({proxy(END): lambda minute: 60 * minute + 14 * DAY})
    expiring = alert("SbaCertificateExpiring", **ON_A, threshold=60)
    yield case("SbaCertificateEnding", "its limit to the second", exactly, (expiring, 20))
    ended = lines({proxy(END): 60})
    expected = (alert("SbaCertificateEnding", **ON_A, threshold=14), 10)
    yield case("SbaCertificateEnding", "has ended", ended, expected)
    two_machines = second | lines({proxy(END): 30 * DAY})
    two_machines[proxy(END, B)] = always(10 * DAY)
    yield case(
        "SbaCertificateExpiring",
        "another on each machine",
        two_machines,
        (alert("SbaCertificateExpiring", **ON_A, threshold=60), 20),
        (alert("SbaCertificateEnding", instance=B, threshold=14), 5),
    )


CASES: Final = [*(case for it in CAUSES for case in _cases_of(it)), *_special()]
