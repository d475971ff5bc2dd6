"""Two machines behind the balancer's stand-in: replaced, broken and rotated under load."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from config.settings import NAMESPACE
from sandbox import api
from sandbox.aws import BAKED
from sandbox.engine import ProgramError
from sandbox.machines.vm import power
from sandbox.machines.vm.fleet import Fleet, Member
from sandbox.processes import wait
from sandbox.system import Sandbox, SandboxError
from sandbox.vpc.network import MIRROR_SERVERS
from tests.vm.conftest import boot
from tests.vm.test_causes import edited, shortened
from tests.vm.test_lifecycle import processes, traces

PATIENCE = 400  # seconds, for two machines to boot on busy processors
ENDPOINTS = 2
DOWN = "SbaMachineDown"
PROMETHEUS = "10.9.48.10"


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Two machines, up; when they are down, nothing of them is left."""
    made = boot(tmp_path_factory.mktemp("fleet"), machines=2)
    try:
        assert len(traces(made, made.fleet.network.name if made.fleet else "")) >= 6
        yield made
    finally:
        made.down()
    wait(lambda: not processes(made.folder), "its processes to end", 10)
    assert made.fleet
    assert traces(made, made.fleet.network.name) == set()


@pytest.fixture
def fleet(booted: Sandbox) -> Fleet:
    assert booted.fleet
    wait(partial(healthy, booted), "both machines to be healthy", PATIENCE)
    return booted.fleet


def healthy(booted: Sandbox) -> bool:
    """Whether each zone has one machine, and it is well."""
    assert booted.fleet
    members = [it.health for it in booted.fleet.members()]
    return members == ["healthy"] * 2 and all(booted.scrapes().values())


def lost(booted: Sandbox, since: float, job: str = "sba-api") -> tuple[int, int]:
    """Scrapes that failed since a moment, and all scrapes."""
    found = booted.query(f'up{{job="{job}"}}[{int(time.time() - since) + 2}s]')
    values = [up for series in found for when, up in series["values"] if when >= since]
    return values.count("0"), len(values)


@contextmanager
def under_load(booted: Sandbox) -> Iterator[dict[str, dict[str, int]]]:
    """What eight clients of each kind were answered meanwhile, once it is over."""
    assert booted.fleet
    address = booted.engine.outputs()["proxyUrl"].removeprefix("https://")
    name, _, port = address.partition(":")
    command = [
        *booted.fleet.resolving(),
        sys.executable,
        str(Path(__file__).with_name("clients.py")),
    ]
    command += [name, port, booted.proxy()["ca_file"], "8"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    answers: dict[str, dict[str, int]] = {}
    try:
        yield answers
    finally:
        output, _ = running.communicate(timeout=30)
        answers.update(json.loads(output))


def instances(fleet: Fleet) -> dict[str, Member]:
    return {it.instance: it for it in fleet.members()}


def console(booted: Sandbox, instance: str) -> str:
    log = booted.logs / f"host-{instance}.log"
    return log.read_text(errors="replace") if log.exists() else ""


def asked(fleet: Fleet, instance: str) -> bool:
    """Whether a request of Prometheus' place has come to a machine."""
    journal = fleet.guest(instance).inside("journalctl", "--no-pager", "-o", "cat")
    return PROMETHEUS in journal.stdout


def grace(booted: Sandbox, seconds: int) -> None:
    """Judge machines by their health from that age on: Auto Scaling's own wait is ten minutes."""
    group, _ = booted.auto_scaling()
    booted.account.client("autoscaling").update_auto_scaling_group(
        AutoScalingGroupName=group["AutoScalingGroupName"], HealthCheckGracePeriod=seconds
    )


@contextmanager
def dropped(fleet: Fleet, *rules: str) -> Iterator[None]:
    """Rules of the packet filter, for what passes the VPC, comes to it and leaves it."""
    hooks = ("forward", "input", "output")
    lines = "\n".join(rules)
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority filter + 10\n{lines}\n}}\n"
        for hook in hooks
    )
    fleet.network.nft(f"table inet faults {{\n{chains}}}\n")
    try:
        yield
    finally:
        fleet.network.nft("delete table inet faults\n")


def shown(booted: Sandbox, zone: str, line: str) -> bool:
    return line in (booted.proxy_metrics(zone) or "")


def test_rotations_lose_no_scrape(booted: Sandbox, fleet: Fleet) -> None:
    """Ten of them; the first as users do it, and that waits for each machine."""
    began = time.time()
    secrets = booted.account.client("secretsmanager")
    with under_load(booted) as answers:
        booted.rotate_token()
        version = booted.current_version()
        line = f'metrics_proxy_secret_info{{secret="token",version="{version}"}} 1.0'
        assert all(shown(booted, it.zone, line) for it in fleet.members())
        last = secrets.get_secret_value(SecretId=booted.engine.outputs()["tokenSecretArn"])
        for number in range(9):
            token = last["SecretString"] if number == 8 else f"rotation-{number}"
            api.accept(booted.api, [*api.accepted(booted.api), api.digest(token)])
            secrets.put_secret_value(
                SecretId=booted.engine.outputs()["tokenSecretArn"], SecretString=token
            )
            version = booted.current_version()
            line = f'metrics_proxy_secret_info{{secret="token",version="{version}"}} 1.0'
            for zone in booted.zones():
                wait(partial(shown, booted, zone, line), f"{zone} to adopt a token")
            api.accept(booted.api, [api.digest(token)])
    failed, scrapes = lost(booted, began)
    assert (failed, lost(booted, began, "sba-proxy")[0]) == (0, 0)
    assert scrapes > ENDPOINTS
    assert all(set(outcomes) == {"200"} for outcomes in answers.values()), answers


def test_machines_that_never_become_healthy_get_no_connection(
    booted: Sandbox, fleet: Fleet
) -> None:
    began, old = time.time(), instances(fleet)
    iam = booted.account.client("iam")
    [profile] = iam.list_instance_profiles()["InstanceProfiles"]
    role = {"RoleName": profile["Roles"][0]["RoleName"]}
    [name] = iam.list_role_policies(**role)["PolicyNames"]
    document = iam.get_role_policy(**role, PolicyName=name)["PolicyDocument"]

    def fails(interval: int, why: str, console_says: str) -> None:
        """Other machines are asked for, and come to nothing."""
        booted.engine.configure({"syncInterval": interval})
        booted.engine.up()
        wait(lambda: len(instances(fleet)) == 4, "new machines beside the old", PATIENCE)
        new = instances(fleet).keys() - old.keys()

        def named() -> bool:
            return all(
                re.search(why, it.why) and re.search(console_says, console(booted, it.instance))
                for it in fleet.members()
                if it.instance in new
            )

        wait(named, f"{why} and {console_says}", PATIENCE)
        assert not any(asked(fleet, it) for it in new)
        assert all(asked(fleet, it) for it in old)
        grace(booted, 1)
        with pytest.raises(SandboxError, match=rf"the old machines stay.*{why}") as refused:
            booted.up()
        assert "\n" not in str(refused.value)
        wait(lambda: instances(fleet).keys() == old.keys(), "the new ones to be gone", PATIENCE)

    with under_load(booted) as answers:
        with dropped(fleet, f"ip daddr {MIRROR_SERVERS} reject with tcp reset"):
            fails(3, "refused", "Could not connect to")
        # the bundle may still be read, so that there is a server
        token = booted.engine.outputs()["tokenSecretArn"]
        denied = json.dumps(document).replace(json.dumps(token), '"arn:aws:s3:::none"')
        assert token not in denied
        iam.put_role_policy(**role, PolicyName=name, PolicyDocument=denied)
        try:
            fails(4, "503", "AccessDenied")
        finally:
            iam.put_role_policy(**role, PolicyName=name, PolicyDocument=json.dumps(document))
        booted.engine.configure({"amiId": "ami-00000000000000000"})
        with pytest.raises(ProgramError, match="amiId"):
            booted.engine.up()
    assert lost(booted, began)[0] == 0
    assert instances(fleet).keys() == old.keys()
    assert all(set(outcomes) == {"200"} for outcomes in answers.values()), answers


@contextmanager
def killed(_: Sandbox, fleet: Fleet, it: Member) -> Iterator[None]:
    """Its power fails."""
    power.kill(fleet.guest(it.instance).name)
    yield


@contextmanager
def cut_off(booted: Sandbox, fleet: Fleet, it: Member) -> Iterator[None]:
    """Nothing reaches its zone, and nothing comes from there."""
    bridge = f"zone-{it.zone[-1]}"
    with dropped(fleet, f"iifname {bridge} drop", f"oifname {bridge} drop"):
        yield
        # whoever comes in its place has to be reached
        grace(booted, 0)
        wait(lambda: it.instance not in serving(booted), "Auto Scaling to give it up", PATIENCE)


@contextmanager
def unhealthy(booted: Sandbox, fleet: Fleet, it: Member) -> Iterator[None]:
    """It has no token any more, and nobody brings one: it answers 503."""
    guest = fleet.guest(it.instance)
    script = (
        "systemctl stop metrics-proxy-sync.timer metrics-proxy-sync.service; "
        "echo 'return 503;' > /run/metrics-proxy/current/token.conf; "
        "systemctl reload metrics-proxy"
    )
    done = guest.inside("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    yield
    grace(booted, 0)


def serving(booted: Sandbox) -> set[str]:
    """The machines that Auto Scaling holds for well."""
    group, _ = booted.auto_scaling()
    return {it["InstanceId"] for it in group["Instances"] if it["HealthStatus"] == "Healthy"}


@pytest.mark.parametrize("fault", [killed, cut_off, unhealthy], ids=lambda it: it.__name__)
def test_a_machine_that_is_lost_costs_the_scrapes_under_way(
    booted: Sandbox, fleet: Fleet, fault: Any, record_property: Any
) -> None:
    grace(booted, 600)
    victim = fleet.members()[-1]
    rules = shortened((booted.prometheus_folder / "rules.yml").read_text())

    def firing() -> list[str]:
        found = booted.query('ALERTS{alertstate="firing"}')
        return [it["metric"].get("zone", "") for it in found if it["metric"]["alertname"] == DOWN]

    with edited(booted, "rules.yml", rules):
        began = time.time()
        with fault(booted, fleet, victim):
            if fault is not unhealthy:
                wait(lambda: firing() == [victim.zone], f"{DOWN} to name the zone", PATIENCE)
            else:
                wait(
                    lambda: {it.health for it in fleet.members()} == {"healthy", "unhealthy"},
                    "the balancer to see it",
                )
        wait(lambda: victim.instance not in serving(booted), "Auto Scaling to give it up", PATIENCE)
        grace(booted, 600)
        wait(partial(healthy, booted), "the group to bring it back", PATIENCE)
        wait(lambda: not firing(), "the alert to be over", PATIENCE)
    assert victim.instance not in instances(fleet)
    failed, scrapes = lost(booted, began)
    record_property("scrapes lost", f"{failed} of {scrapes}")
    print(f"{fault.__name__}: {failed} of {scrapes} scrapes lost")
    assert failed <= 4 * ENDPOINTS


CHANGES: list[dict[str, Any]] = [
    # another image, with the packages; what the units and the sync are told
    {"amiId": BAKED["arm64" if platform.machine() == "aarch64" else "x86_64"], "syncInterval": 2},
    {"server": "apache"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_change_of_what_machines_are_made_of_loses_no_scrape(
    booted: Sandbox, fleet: Fleet, change: dict[str, Any]
) -> None:
    began, old = time.time(), instances(fleet)
    booted.engine.configure(change)
    with under_load(booted) as answers:
        booted.up()
        wait(partial(healthy, booted), "the old ones to be gone", PATIENCE)
    assert not instances(fleet).keys() & old.keys()
    assert {it.zone for it in fleet.members()} == {it.zone for it in old.values()}
    failed, scrapes = lost(booted, began)
    assert (failed, lost(booted, began, "sba-proxy")[0]) == (0, 0)
    assert scrapes > ENDPOINTS
    assert all(set(outcomes) == {"200"} for outcomes in answers.values()), answers
    server = booted.engine.config[f"{NAMESPACE}:server"]
    for it in fleet.members():
        running = fleet.guest(it.instance).inside("ps", "-eo", "comm").stdout
        assert {"nginx": "nginx", "apache": "apache2"}[server] in running
