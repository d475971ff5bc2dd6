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
        for name, value in (("queue_depth", 1_000_000), ("error_rate", 1)):
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
    well: Callable[[], World] = healthy
    """The world but for the changes."""

    @property
    def world(self) -> World:
        return self.well() | dict(self.changes)


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
    values = " ".join(str(value) for value in it.loud.values() if not callable(value))
    label = f"{name} {' '.join(sorted(value for _, value in it.fires[1]))} {values}"

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


def special(about: str, name: str, changes: World, *fires: tuple[Firing, int, int]) -> Case:
    """A case by hand."""
    until = {it: (begin, end) for it, begin, end in fires}
    return Case(name=f"{about}: {name}", about=about, changes=changes, fires=until)


def during(
    name: str, begin: int, end: int = MINUTES, /, **labels: object
) -> tuple[Firing, int, int]:
    return alert(name, **labels), begin, end


def second_down() -> World:
    """A second machine, which is down."""
    return machine(B) | {up("sba-proxy", instance=B): since(CAUSE, 0, 1)}


def proxy_cases() -> Iterable[Case]:
    about = "SbaProxyDown"
    yield special(about, "all is well", {})
    yield special(about, "fires", _down(*EVERYTHING), during(about, 10, **ON_A))
    yield special(about, "just too short", _down(*EVERYTHING, end=10))
    yield special(about, "a scrape is missed", _down(PROXY_UP, end=6))
    again = missing(_down(*EVERYTHING, end=9), PROXY_UP, range(10, 14))
    yield special(about, "two restarts", again)
    gone = _removed(*EVERYTHING, *PROXY, *API)
    yield special(about, "nothing is scraped any more", gone, during(about, 10))
    yield special(about, "no longer scraped", _removed(PROXY_UP, *PROXY), during(about, 10))
    yield special(about, "one of two", second_down(), during(about, 10, instance=B))


def scrape_cases() -> Iterable[Case]:
    about = "SbaScrapeFailing"
    failing = during(about, 15, **ON_A, endpoint="api")
    fails = lines({API_UP: 0})
    yield special(about, "fires", fails, failing)
    yield special(about, "just too short", lines({API_UP: 0}, end=15))
    for kind, minutes in {"a scrape": range(7, 8), "four": range(7, 11)}.items():
        yield special(
            about, f"{kind} of the proxy missed", missing(fails, PROXY_UP, minutes), failing
        )
    vanishes = {API_UP: since(20, GONE, fails[API_UP])}
    ends = during(about, 15, 20, **ON_A, endpoint="api")
    yield special(about, "its series vanishes", vanishes, ends)
    down = during("SbaProxyDown", 10, instance=B)
    yield special(about, "one machine of two down", second_down() | fails, down, failing)
    for status in (200, 302, 400, 402, 404, 499):
        world = lines(
            {
                API_UP: 0,
                proxy("upstream_up", endpoint="api"): 0,
                proxy("upstream_http_status", endpoint="api"): status,
            }
        )
        yield special(about, f"the API answers {status}", world, failing)
    there = lines({proxy("upstream_http_status", endpoint="workers"): 404})
    yield special(
        about,
        "the workers' document is not there",
        missing(there, WORKERS_UP, range(CAUSE, MINUTES)),
        during(about, 15, **ON_A, endpoint="workers"),
    )
    # what is another endpoint's is no excuse
    for status, name in ((503, "SbaUpstreamDown"), (401, "SbaTokenRejected")):
        world = lines(
            {API_UP: 0, WORKERS_UP: 0, proxy("upstream_http_status", endpoint="workers"): status}
        )
        other = during(name, 10, **ON_A, endpoint="workers")
        yield special(about, f"beside a {status}", world, failing, other)


def absence_cases() -> Iterable[Case]:
    about = "SbaWorkerMetricsAbsent"
    absent = during(about, 19)
    silent = lines(dict.fromkeys(API, GONE))
    yield special(about, "fires", silent, absent)
    yield special(about, "just too short", lines(dict.fromkeys(API, GONE), end=19))
    for kind, minutes in {"a scrape is missed": range(12, 13), "a restart": range(12, 16)}.items():
        yield special(about, kind, missing(silent, WORKERS_UP, minutes), absent)
    yield special(about, "no longer scraped", _removed(WORKERS_UP, *API), absent)
    part = [it for it in API if ("queue_name", "sms") in it[1]]
    yield special(about, "a queue vanishes", lines(dict.fromkeys(part, GONE)))
    twice = silent | {up("sba-api", "workers", B): since(CAUSE, 0, 1)}
    other = during("SbaScrapeFailing", 15, instance=B, endpoint="workers")
    yield special(about, "one target of two", twice, absent, other)


def api_cases() -> Iterable[Case]:
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
        both = [during(name, 11, **ON_A, endpoint=it) for it in ("api", "workers")]
        yield special(name, f"all of the API answers {status}", world, *both)
        on_b = {proxy("upstream_http_status", B, endpoint="api"): since(CAUSE, status, 200)}
        one = during(name, 10, instance=B, endpoint="api")
        yield special(name, f"one machine of two sees {status}", machine(B) | on_b, one)

    about = "SbaTokenRejected"
    token = [it for it in PROXY if it[0].endswith("secret_info") and ("secret", "token") in it[1]]
    unauthorized = {proxy("upstream_http_status", endpoint=it): 401 for it in ("api", "workers")}
    for reason, name, begin in (
        ("fetch_token", "SbaSyncFailing", 20),
        ("token_invalid", "SbaVersionRefused", 15),
    ):
        nothing = {**unauthorized, API_UP: 0, proxy("sync_failed", reason=reason): 1}
        world = lines({**nothing, **dict.fromkeys(token, GONE)}, 0)
        world[proxy("sync_failed", reason=reason)] = since(CAUSE, 1, 0)
        yield special(
            about,
            f"there is no token, {reason}",
            missing(world, WORKERS_UP, range(MINUTES)),
            during(name, begin, **ON_A, reason=reason),
        )
    revoked = lines({proxy("upstream_http_status", endpoint="api"): 401})
    revoked |= {it: since(20, GONE, 1) for it in token}
    ends = during(about, 10, 24, **ON_A, endpoint="api")
    yield special(about, "until there is none", revoked, ends)
    here = lines(unauthorized, 0) | {it: always(GONE) for it in token}
    yield special(about, "no token on one machine of two", machine(B) | here)


def high(queue: str, begin: int = 15, end: int = MINUTES) -> tuple[Firing, int, int]:
    labels = {"queue_name": queue, "threshold": LIMITS[queue][0]}
    return during("SbaQueueDepthHigh", begin, end, **labels)


def far(queue: str, begin: int = 10, end: int = MINUTES) -> tuple[Firing, int, int]:
    labels = {"queue_name": queue, "threshold": LIMITS[queue][1]}
    return during("SbaQueueDepthCritical", begin, end, **labels)


def stalled(queue: str, begin: int = 15, end: int = MINUTES) -> tuple[Firing, int, int]:
    return during("SbaWorkerStalled", begin, end, queue_name=queue)


def idle(queue: str) -> dict[Series, Value | Line]:
    return {worker(name, queue): 0 for name in ("throughput", "active_jobs")}


def depth_cases() -> Iterable[Case]:
    for queue, (warning, critical) in LIMITS.items():
        depth = worker("queue_depth", queue)
        at = lines({depth: critical})
        yield special("SbaQueueDepthHigh", f"{queue} at its critical limit", at, high(queue))
        filling: World = {depth: since(20, critical + 1, since(CAUSE, warning + 1, 10))}
        both = high(queue, 15, 24), far(queue, 25)
        yield special("SbaQueueDepthHigh", f"{queue} goes on filling", filling, *both)
        beyond = lines({depth: 5_000})
        yield special("SbaQueueDepthCritical", f"{queue} far beyond", beyond, far(queue))
        for begin, limit, own in (
            (CAUSE, warning, high(queue, CAUSE + 10)),
            (CAUSE + 6, critical, far(queue, CAUSE + 11)),
        ):
            world = lines(idle(queue)) | {depth: since(begin, limit + 1, 10)}
            kind = f"{queue} fills up to {limit} meanwhile"
            yield special("SbaWorkerStalled", kind, world, stalled(queue))
            for metric in ("throughput", "active_jobs"):
                some = world | {worker(metric, queue): always(1)}
                yield special(own[0][0], f"{queue} over {limit} with some {metric}", some, own)
    email, sms = worker("queue_depth", "email"), worker("queue_depth", "sms")
    further = lines({email: 2001, sms: 101})
    yield special("SbaQueueDepthHigh", "another is further", further, far("email"), high("sms"))
    for value, own in ((101, high("sms")), (501, far("sms"))):
        world = lines({**idle("email"), sms: value})
        yield special(own[0][0], "another is stalled", world, stalled("email"), own)
    late = lines(idle("sms"), begin=18) | {sms: since(CAUSE, 101, 10)}
    both = high("sms", 15, 27), stalled("sms", 28)
    yield special("SbaQueueDepthHigh", "a full queue is stalled later", late, *both)
    errors = lines({worker("error_rate", queue): 0.02 for queue in LIMITS})
    own_errors = (
        during("SbaErrorRateHigh", 15, queue_name=queue, threshold="0.01") for queue in LIMITS
    )
    yield special("SbaErrorRateHigh", "of two queues", errors, *own_errors)


def stalled_cases() -> Iterable[Case]:
    about, depth = "SbaWorkerStalled", worker("queue_depth", "sms")
    yield special(about, "one long job", lines({worker("throughput", "sms"): 0}))
    yield special(about, "idle and done at once", lines({worker("active_jobs", "sms"): 0}))
    empty_b = dict.fromkeys(workers("sms", B), always(0))
    for name in ("throughput", "active_jobs"):
        for kind, works in {
            "another exporter shows": empty_b | {worker(name, "sms", B): always(2)},
            "now and then": {worker(name, "sms"): since(CAUSE, lambda minute: minute % 2, 2)},
        }.items():
            world = lines(idle("sms")) | works
            yield special(about, f"{kind} {name}", world)
            for value, own in ((101, high("sms")), (501, far("sms"))):
                full = world | lines({depth: value})
                yield special(own[0][0], f"full, and {kind} {name}", full, own)
    a_job = lines(idle("sms"), 0) | {depth: since(25, 0, since(CAUSE, 1, 0))}
    yield special(about, "while there is a job", a_job, stalled("sms", 15, 25))
    one_more: World = {worker("queue_depth", "sms", B): always(0)}
    shown = one_more | lines({**idle("sms"), depth: 1})
    yield special(about, "another exporter shows no job", shown, stalled("sms"))


def certificate_cases() -> Iterable[Case]:
    def expiring(begin: int, end: int = MINUTES) -> tuple[Firing, int, int]:
        return during("SbaCertificateExpiring", begin, end, **ON_A, threshold=60)

    def ending(begin: int, instance: str = "a:9446") -> tuple[Firing, int, int]:
        return during("SbaCertificateEnding", begin, instance=instance, threshold=14)

    crossing = lines({proxy(END): 14 * DAY + 60 * 22})
    yield special(
        "SbaCertificateExpiring", "until it is about to end", crossing, expiring(20, 23), ending(28)
    )
    exactly = lines({proxy(END): lambda minute: 60 * minute + 14 * DAY})
    yield special("SbaCertificateEnding", "its limit to the second", exactly, expiring(20))
    yield special("SbaCertificateEnding", "has ended", lines({proxy(END): 60}), ending(10))
    two = machine(B) | lines({proxy(END): 30 * DAY}) | {proxy(END, B): always(10 * DAY)}
    yield special("SbaCertificateExpiring", "of two machines", two, expiring(20), ending(5, B))


CASES: Final = [
    *(case for it in CAUSES for case in _cases_of(it)),
    *proxy_cases(),
    *scrape_cases(),
    *absence_cases(),
    *api_cases(),
    *depth_cases(),
    *stalled_cases(),
    *certificate_cases(),
]
