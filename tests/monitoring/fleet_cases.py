"""What Prometheus sees of a fleet, and which alerts then fire: for one machine of two, for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from tests.monitoring.alert_cases import (
    CAUSE,
    CONFIG,
    DAY,
    END,
    GONE,
    LIMITS,
    MINUTES,
    TABLE,
    Case,
    Firing,
    Series,
    Value,
    World,
    always,
    during,
    machine,
    noise,
    proxy,
    series,
    since,
    up,
    workers,
)
from tests.monitoring.conftest import FLEET

FLEET_CONFIG: Final[dict[str, Any]] = {**CONFIG, **FLEET}
FLEET_TABLE: Final = {**TABLE, "SbaMachineDown": ("warning", 5)}
"""As `TABLE`."""

BALANCER: Final = "lb:9446"
ZONES: Final = ("a", "b")
A, B = ZONES


def of_zone(zone: str, it: Series) -> Series:
    """A machine's series as Prometheus has it by its zone's name."""
    return series(it[0], **{**dict(it[1]), "instance": f"{zone}.{BALANCER}", "zone": zone})


def healthy() -> World:
    world = noise()
    for zone in ZONES:
        world |= {of_zone(zone, it): line for it, line in machine("").items()}
    for endpoint in ("api", "workers"):
        world[up("sba-api", endpoint, BALANCER)] = always(1)
    for queue in LIMITS:
        world |= workers(queue, BALANCER)
    return world


API: Final = [it for it in healthy() if ("instance", BALANCER) in it[1]]
"""What scrapes of the endpoints bring, and whether they do."""


def down(zone: str, begin: int = CAUSE, end: int = MINUTES) -> World:
    """A machine does not answer in these minutes."""
    well = healthy()
    own = [it for it in well if ("zone", zone) in it[1]]
    return {
        it: since(begin, since(end, well[it], always(0 if it[0] == "up" else GONE)), well[it])
        for it in own
    }


def nothing(begin: int = CAUSE, end: int = MINUTES) -> World:
    """No scrape of an endpoint succeeds, either."""
    well = healthy()
    return {
        it: since(begin, since(end, well[it], always(0 if it[0] == "up" else GONE)), well[it])
        for it in API
    }


def on(zones: Sequence[str], it: Series, bad: Value, well: Value) -> World:
    """What machines of these zones say from the cause on."""
    return {of_zone(zone, it): since(CAUSE, bad, well) for zone in zones}


def by(zone: str, **labels: object) -> dict[str, object]:
    return {"instance": f"{zone}.{BALANCER}", "zone": zone, **labels}


def case(about: str, name: str, changes: World, *fires: tuple[Firing, int, int]) -> Case:
    until = {it: (begin, end) for it, begin, end in fires}
    return Case(
        name=f"fleet, {about}: {name}", about=about, changes=changes, fires=until, well=healthy
    )


def one_down() -> Iterable[Case]:
    about = "SbaMachineDown"
    for zone in ZONES:
        yield case(about, f"in {zone}", down(zone), during(about, 10, **by(zone)))
    yield case(about, "just too short", down(A, end=10))
    yield case(about, "is over", down(A, end=13), during(about, 10, 13, **by(A)))
    yield case(about, "one after the other", down(A, end=9) | down(B, begin=9, end=13))
    failing = {up("sba-api", "api", BALANCER): since(CAUSE, 0, 1)}
    other = during("SbaScrapeFailing", 15, instance=BALANCER, endpoint="api")
    yield case(about, "beside a scrape", down(A) | failing, during(about, 10, **by(A)), other)


def all_down() -> Iterable[Case]:
    about, warning = "SbaProxyDown", "SbaMachineDown"
    both = down(A) | down(B)
    yield case(about, "all is well", {})
    yield case(about, "all of them", both | nothing(), during(about, 10))
    yield case(about, "just too short", down(A, end=10) | down(B, end=10) | nothing(end=10))
    later = down(A) | down(B, begin=20) | nothing(begin=20)
    ends = during(warning, 10, 20, **by(A))
    yield case(about, "one, then the other", later, ends, during(about, 25))
    back = down(A, end=20) | down(B) | nothing(end=20)
    left = during(warning, 25, **by(B))
    yield case(about, "one comes back", back, during(about, 10, 20), left)
    gone = {it: since(CAUSE, GONE, line) for it, line in healthy().items() if it not in noise()}
    yield case(about, "nothing is scraped any more", gone, during(about, 10))


def said_by_machines() -> Iterable[Case]:
    status = proxy("upstream_http_status", endpoint="api")
    for bad, name in ((0, "SbaUpstreamDown"), (503, "SbaUpstreamDown"), (401, "SbaTokenRejected")):
        for zones in ([A], [B], [A, B]):
            who = (
                {"zone": zone, "endpoint": "api"}
                if name == "SbaUpstreamDown"
                else by(zone, endpoint="api")
                for zone in zones
            )
            fires = [during(name, 10, **each) for each in who]
            yield case(name, f"{bad} in {zones}", on(zones, status, bad, 200), *fires)
    # no token there, so what its API answers is no token's fault
    token = proxy("secret_info", secret="token", version="1")
    world = {of_zone(A, token): always(GONE), of_zone(A, status): since(CAUSE, 401, 200)}
    yield case("SbaTokenRejected", "where there is no token", world)
    for name, it, bad, well, begin, more in (
        ("SbaSyncFailing", proxy("sync_failed", reason="fetch_token"), 1, 0, 20, {}),
        ("SbaVersionRefused", proxy("sync_failed", reason="test"), 1, 0, 15, {}),
        ("SbaCertificateEnding", proxy(END), 10 * DAY, 200 * DAY, 10, {"threshold": 14}),
        ("SbaRebootPending", proxy("reboot_required"), 1, 0, 20, {}),
    ):
        labels = {**by(B), **more, **{k: v for k, v in it[1] if k == "reason"}}
        yield case(name, "in one zone", on([B], it, bad, well), during(name, begin, **labels))
    stopped: World = {of_zone(B, proxy("sync_timestamp_seconds")): always(60 * CAUSE - 481)}
    late = during("SbaSyncStopped", 10, **by(B, threshold=480))
    yield case("SbaSyncStopped", "in one zone", stopped, late)


FLEET_CASES: Final = [*one_down(), *all_down(), *said_by_machines()]
