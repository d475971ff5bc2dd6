"""The machine that booted: as declared, confined, reachable for Prometheus alone."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from sandbox.machines.vm.machine import VirtualMachine
from sandbox.processes import wait
from sandbox.system import Sandbox
from sandbox.vpc.network import ADDRESSES, METADATA
from tests.leaks import holds, spellings
from tests.vm.conftest import CANARY

PROXY, SYNC = "metrics-proxy.service", "metrics-proxy-sync.service"
INSTALL = "install-metrics-proxy.service"
UNITS = (PROXY, SYNC, "metrics-proxy-sync.timer", INSTALL)
IN_UNIT = 'echo $$ > "/sys/fs/cgroup/system.slice/$0/cgroup.procs"; exec "$@"'
"""A shell's script: what it runs is held by what systemd enforces on the unit's control group."""


def said(machine: VirtualMachine, *command: str, user: str = "root") -> str:
    """Output of a command in the machine that must succeed."""
    done = machine.inside(*command, user=user)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def in_unit(machine: VirtualMachine, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command among the proxy's processes, as the proxy's user."""
    return machine.inside(
        "sh", "-c", IN_UNIT, PROXY, "runuser", "-u", "metrics-proxy", "--", *command
    )


def test_cloud_init_took_the_user_data_of_ec2(vm: Sandbox, machine: VirtualMachine) -> None:
    wait(lambda: "status: running" not in machine.inside("cloud-init", "status").stdout, "the end")
    status = json.loads(said(machine, "cloud-init", "status", "--format=json"))
    assert (status["status"], status["errors"], status["recoverable_errors"]) == ("done", [], {})
    assert said(machine, "cloud-init", "query", "platform").strip() == "ec2"
    schema = said(machine, "cloud-init", "schema", "--system")
    assert "Valid schema user-data" in schema
    instance = vm.engine.outputs()["instanceId"]
    answer = vm.account.client("ec2").describe_instance_attribute(
        InstanceId=instance, Attribute="userData"
    )
    given = said(machine, "base64", "-w0", f"/var/lib/cloud/instances/{instance}/user-data.txt")
    assert given == answer["UserData"]["Value"]


def test_systemd_is_content(machine: VirtualMachine) -> None:
    assert said(machine, "systemctl", "--failed", "--no-legend", "--plain") == ""
    files = [f"/etc/systemd/system/{unit}" for unit in UNITS]
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes"]
    done = machine.inside(*verify, *files)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # without the flag above, a misspelt key would pass
    typo = "/run/systemd/system/typo.service"
    said(
        machine,
        "sh",
        "-c",
        f"mkdir -p {typo.rpartition('/')[0]}; cat > {typo} <<E\n[Service]\nExecStrat=/bin/true\nE",
    )
    try:
        assert machine.inside(*verify, typo).returncode != 0
    finally:
        said(machine, "rm", typo)


@pytest.mark.parametrize("unit", [PROXY, SYNC])
def test_units_are_confined(vm: Sandbox, machine: VirtualMachine, unit: str) -> None:
    assert vm.get("/metrics")[0] == 200
    score = said(machine, "systemd-analyze", "security", "--json=short", "--no-pager", unit)
    assert json.loads(score)
    overall = said(machine, "systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
    found = re.search(r"([\d.]+) OK", overall)
    assert found, overall
    assert float(found[1]) <= 1.3
    user = said(machine, "systemctl", "show", "-P", "User", unit).strip()
    assert user == {PROXY: "metrics-proxy", SYNC: "metrics-sync"}[unit]


def test_no_process_of_ours_is_root(machine: VirtualMachine) -> None:
    lines = said(machine, "ps", "-eo", "uid,cgroup:80,args").splitlines()
    ours = [line for line in lines if "metrics-proxy" in line]
    assert len(ours) >= 3  # nginx' master and workers
    assert not [line for line in ours if line.split()[0] == "0"]


def test_one_port_listens(machine: VirtualMachine) -> None:
    lines = said(machine, "ss", "-Hlntu").splitlines()
    addresses = {line.split()[4] for line in lines}
    beyond = {a for a in addresses if not a.startswith("127.") and not a.endswith("%ens5:68")}
    assert beyond == {f"0.0.0.0:{machine.ports.proxy}"}


def connects(machine: VirtualMachine, place: str, address: str, port: int) -> str:
    """What a TCP connection from somewhere comes to: `open`, `refused` or `silence`."""
    with machine.at(place):
        try:
            socket.create_connection((address, port), timeout=2).close()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"
    return "open"


def test_the_security_group_is_enforced(vm: Sandbox, machine: VirtualMachine) -> None:
    address, port = vm.engine.outputs()["privateIp"], machine.ports.proxy
    assert connects(machine, "prometheus", address, port) == "open"
    assert connects(machine, "api", address, port) == "silence"
    for closed in (22, 80, 5355):
        assert connects(machine, "prometheus", address, closed) == "silence"
    probe = ["timeout", "2", "bash", "-c", 'exec 3<>"/dev/tcp/$0/$1"']
    assert machine.inside(*probe, ADDRESSES.api, str(machine.ports.api)).returncode == 0
    for peer, closed in ((ADDRESSES.api, 22), ("10.9.48.10", machine.ports.prometheus)):
        assert machine.inside(*probe, peer, str(closed)).returncode == 124, (peer, closed)


def dns_reached(machine: VirtualMachine, address: str) -> set[str]:
    """By which protocols the machine reaches a DNS server there."""
    with machine.at("api"):
        tcp = socket.create_server((address, 53))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with tcp, udp:
        udp.bind((address, 53))
        udp.settimeout(2)
        ask = ["timeout", "2", "bash", "-c", 'echo x > "/dev/$0/$1/53"']
        found = {
            name for name in ("tcp", "udp") if not machine.inside(*ask, name, address).returncode
        }
        try:
            udp.recv(10)
        except TimeoutError:
            found -= {"udp"}  # sent, and lost
    return found


def test_what_is_added_to_the_settings_is_let_through_by_up(
    vm: Sandbox, machine: VirtualMachine
) -> None:
    address, port = vm.engine.outputs()["privateIp"], machine.ports.proxy
    instance = vm.engine.outputs()["instanceId"]
    assert dns_reached(machine, ADDRESSES.api) == set()
    more = [ADDRESSES.prometheus_cidr, ADDRESSES.api_cidr]
    vm.engine.configure({"prometheusCidrs": more, "dnsServers": [ADDRESSES.api]})
    try:
        vm.up()
        assert connects(machine, "api", address, port) == "open"
        assert dns_reached(machine, ADDRESSES.api) == {"tcp", "udp"}
    finally:
        vm.engine.configure({"prometheusCidrs": more[:1], "dnsServers": None})
        vm.up()
    assert connects(machine, "api", address, port) == "silence"
    assert dns_reached(machine, ADDRESSES.api) == set()
    assert vm.engine.outputs()["instanceId"] == instance


def test_the_proxy_cannot_reach_the_metadata_service(machine: VirtualMachine) -> None:
    ask = ["curl", "-sS", "-m", "2", "-X", "PUT", f"http://{METADATA}/latest/api/token"]
    ask += ["-H", "X-aws-ec2-metadata-token-ttl-seconds: 60"]
    assert said(machine, *ask)
    done = in_unit(machine, *ask)
    assert (done.returncode != 0, done.stdout) == (True, ""), done


def test_the_proxy_cannot_listen_elsewhere_nor_read_what_is_not_its_own(
    machine: VirtualMachine,
) -> None:
    listen = "import socket, sys; socket.create_server(('', int(sys.argv[1])))"
    assert machine.inside("python3", "-c", listen, "9999", user="metrics-proxy").returncode == 0
    assert "PermissionError" in in_unit(machine, "python3", "-c", listen, "9999").stderr
    for file in ("/etc/shadow", "/run/metrics-proxy/state.json", "/run/metrics-proxy/lock"):
        owner, mode = said(machine, "stat", "-c", "%U:%G %a", file).split()
        readable = machine.inside("cat", file, user="metrics-proxy").returncode == 0
        # its group may read what the sync keeps, but not hold its lock; others may not, and nobody
        # but the sync may write
        kept = owner == "metrics-sync:metrics-proxy" and not file.endswith("lock")
        assert readable == kept, (file, owner, mode)
        assert mode.endswith("0"), (file, mode)
        assert machine.inside("sh", "-c", f": >> {file}", user="metrics-proxy").returncode != 0


def test_the_sync_may_reload_one_unit(machine: VirtualMachine) -> None:
    def may(*verb: str) -> bool:
        return machine.inside("systemctl", *verb, user="metrics-sync").returncode == 0

    assert may("reload-or-restart", PROXY)
    for refused in (
        ("restart", PROXY),
        ("stop", PROXY),
        ("reload-or-restart", "systemd-resolved.service"),
        ("restart", SYNC),
        ("daemon-reload",),
        ("mask", "--runtime", PROXY),
        ("poweroff",),
    ):
        assert not may(*refused), refused
    assert machine.inside("systemctl", "reload-or-restart", PROXY, user="metrics-proxy").returncode


def test_the_role_reads_two_secrets(vm: Sandbox, machine: VirtualMachine) -> None:
    secrets = vm.account.client("secretsmanager")
    secrets.create_secret(Name="another", SecretString="x")
    role = vm.account.instance_credentials(vm.engine.outputs()["instanceId"])
    client = boto3.client(
        "secretsmanager",
        endpoint_url=vm.account.endpoint_url,
        region_name=vm.account.region,
        aws_access_key_id=role["AccessKeyId"],
        aws_secret_access_key=role["SecretAccessKey"],
        aws_session_token=role["Token"],
    )
    for name in ("tokenSecretArn", "bundleSecretArn"):
        assert client.get_secret_value(SecretId=vm.engine.outputs()[name])["SecretString"]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.get_secret_value(SecretId="another")
    # ... and so it is inside, with what the metadata service hands out and under AWS' own name
    asked = machine.inside(
        *("aws", "secretsmanager", "get-secret-value", "--secret-id", "another"),
        *("--region", vm.account.region, "--endpoint-url"),
        f"https://secretsmanager.{vm.account.region}.amazonaws.com",
    )
    assert "AccessDenied" in asked.stderr


def test_metadata_is_asked_in_version_2_only(vm: Sandbox, machine: VirtualMachine) -> None:
    log = (vm.logs / "services.log").read_text()
    assert "metadata token PUT /latest/api/token 200" in log
    assert "/user-data 200" in log
    assert "metadata v1" not in log
    version_1 = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
    assert said(machine, *version_1, f"http://{METADATA}/latest/meta-data/") == "401"


def files_with(token: str, folders: Iterable[Path]) -> set[str]:
    """Files below the folders that hold it in some spelling."""
    grep = ["grep", "-rlaF", "--devices=skip", "-f", "-", *map(str, folders)]
    done = subprocess.run(
        grep, input=b"\n".join(spellings(token)), capture_output=True, check=False
    )
    return set(done.stdout.decode().splitlines())


def test_the_token_is_in_the_include_and_nowhere_else(vm: Sandbox, machine: VirtualMachine) -> None:
    root = machine.root
    folders = [f for f in root.iterdir() if f.name not in ("proc", "sys", "dev") and f.is_dir()]
    folders = [folder for folder in folders if not folder.is_symlink()]
    assert {"run", "var", "etc", "tmp", "usr"} <= {folder.name for folder in folders}
    include = said(machine, "realpath", "/run/metrics-proxy/current/token.conf").strip()
    generations = "/run/metrics-proxy/gen-"
    planted = root / "var" / "planted"
    planted.write_text(f"x{base64.b64encode(b'y' + CANARY.encode() + b'z').decode()}")
    try:
        found = {name.removeprefix(str(root)) for name in files_with(CANARY, folders)}
    finally:
        planted.unlink()
    assert {include, "/var/planted"} <= found
    # the last good generation is kept to go back to
    beside = {n for n in found if not re.fullmatch(rf"{generations}\d+/token\.conf", n)}
    assert beside == {"/var/planted"}
    assert said(machine, "stat", "-c", "%U:%G %a", include) == "metrics-sync:metrics-proxy 640\n"

    shown = [machine.console, (vm.logs / "services.log").read_text()]
    shown.append(said(machine, "journalctl", "-o", "export", "--no-pager"))
    shown.append(said(machine, "systemctl", "show", PROXY, SYNC))
    shown.append(said(machine, "sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline"))
    for text in shown:
        assert text
        assert not holds(text.encode(), CANARY)


def test_an_update_of_the_server_restarts_the_proxy_and_no_other_does(
    vm: Sandbox, machine: VirtualMachine
) -> None:
    def running() -> str:
        return said(machine, "systemctl", "show", "-P", "MainPID", PROXY).strip()

    def reinstall(package: str) -> None:
        said(
            machine,
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-qy",
            "--reinstall",
            "install",
            package,
        )

    before = running()
    reinstall("python3-six")
    assert running() == before
    reinstall("nginx")
    after = running()
    assert after not in ("0", before)
    assert said(machine, "readlink", f"/proc/{after}/exe") == "/usr/sbin/nginx\n"
    wait(lambda: vm.proxy_metrics(), "the proxy to answer")


def test_a_killed_server_leaves_no_core(machine: VirtualMachine) -> None:
    pid = said(machine, "systemctl", "show", "-P", "MainPID", PROXY).strip()
    limits = said(machine, "cat", f"/proc/{pid}/limits")
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_a_worker_may_have_the_files_that_its_connections_take(machine: VirtualMachine) -> None:
    pid = said(machine, "systemctl", "show", "-P", "MainPID", PROXY).strip()
    [worker, *_] = said(machine, "cat", f"/proc/{pid}/task/{pid}/children").split()
    limits = said(machine, "cat", f"/proc/{worker}/limits")
    assert re.search(r"Max open files +8192 ", limits)
    assert said(machine, "systemctl", "show", "-P", "TasksMax", PROXY) == "5000\n"
    assert "setrlimit" not in machine.console


def test_the_console_alone_tells_how_it_went(machine: VirtualMachine) -> None:
    for line in ("Cloud-init v.", "Setting up nginx", "start worker processes"):
        assert line in machine.console
