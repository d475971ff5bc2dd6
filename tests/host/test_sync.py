"""The sync against Secrets Manager (moto), a small API and nginx' own config test."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from config.settings import Settings
from host import cloud_config, proxy
from tests.certificates import DAY, self_signed

SYNC = Path(cloud_config.__file__).with_name("sync.py")


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Machine:
    """A host's folders, its secrets, and an API that takes `tokens`."""

    def __init__(self, folder: Path, moto_url: str) -> None:
        self.run_folder = folder / "run"
        self.run_folder.mkdir()
        self.reloads = folder / "reloads"
        self.reload_status = folder / "status"
        self.reload_status.write_text("0")
        self.tokens = {"first-token"}
        self.answers: dict[str, int] = {}
        self.asked: list[str] = []
        self._config = folder / "sync.json"
        self._environment = {
            "PATH": os.environ["PATH"],
            # a killed sync leaves its scratch folder behind; on the VM it goes with PrivateTmp=
            "TMPDIR": str(folder),
            "RUNTIME_DIRECTORY": str(self.run_folder),
            "AWS_ENDPOINT_URL": moto_url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.secrets = boto3.client(
            "secretsmanager",
            "eu-central-1",
            endpoint_url=moto_url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        machine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers["Authorization"].removeprefix("Bearer ")
                machine.asked.append(token)
                status = 200 if token in machine.tokens else 401
                self.send_response(machine.answers.get(token, status))
                if machine.answers.get(token) == 302:
                    self.send_header("Location", self.headers["Host"])
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.api.serve_forever, daemon=True).start()
        upstream = f"http://127.0.0.1:{self.api.server_port}/metrics"
        settings = Settings.parse(
            "dev",
            {
                "subnetId": "subnet-12345678",
                "prometheusCidrs": '["127.0.0.1/32"]',
                "apiCidrs": '["127.0.0.0/24"]',
                "endpoints": json.dumps([{"name": "api", "path": "/m", "upstream": upstream}]),
            },
            has_token=True,
        )
        self.bundle = proxy.bundle(settings, f"{folder.name}/token")
        self.bundle["certificate"], self.bundle["key"] = self_signed()
        reload = f'echo x >> {self.reloads}; exit "$(cat {self.reload_status})"'
        self._config.write_text(
            json.dumps(
                {
                    "region": "eu-central-1",
                    "token_secret": f"{folder.name}/token",
                    "bundle_secret": f"{folder.name}/bundle",
                    **proxy.SYNC_COMMANDS["nginx"],
                    "reload": ["sh", "-c", reload],
                }
            )
        )
        self.names = {s: f"{folder.name}/{s}" for s in ("token", "bundle")}
        for name in self.names.values():
            self.secrets.create_secret(Name=name)
        self.put(token="first-token", key=self.bundle["key"])

    def put(self, token: str | bytes | None = None, **bundle: Any) -> None:
        """New versions of the secrets."""
        if token is not None:
            kind = "SecretString" if isinstance(token, str) else "SecretBinary"
            self.secrets.put_secret_value(SecretId=self.names["token"], **{kind: token})
        if bundle:
            value = json.dumps({**self.bundle, **bundle})
            self.secrets.put_secret_value(SecretId=self.names["bundle"], SecretString=value)

    def sync(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", str(SYNC), str(self._config)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def in_use(self, name: str) -> str:
        return (self.run_folder / "current" / name).read_text()

    def token(self) -> str:
        return self.in_use("token.conf").partition("Bearer ")[2].partition('"')[0]

    def reloaded(self) -> int:
        return len(self.reloads.read_text().split()) if self.reloads.exists() else 0

    def reasons(self) -> set[str]:
        lines = (self.run_folder / "proxy.prom").read_text().splitlines()
        start = 'metrics_proxy_sync_failed{reason="'
        return {
            x[len(start) :].partition('"')[0]
            for x in lines
            if x.startswith(start) and x.endswith(" 1.0")
        }


@pytest.fixture
def machine(tmp_path: Path, moto_url: str) -> Iterator[Machine]:
    made = Machine(tmp_path, moto_url)
    yield made
    made.api.shutdown()
    made.api.server_close()


@pytest.fixture
def synced(machine: Machine) -> Machine:
    done = machine.sync()
    assert (done.returncode, done.stderr) == (0, "")
    return machine


def test_the_first_sync_brings_everything_with_one_reload(synced: Machine) -> None:
    assert synced.token() == "first-token"
    assert synced.in_use("proxy.conf") == synced.bundle["configuration"]
    assert synced.in_use("key.pem") == synced.bundle["key"]
    assert synced.reloaded() == 1
    assert synced.reasons() == set()


def test_nothing_new_is_no_reload(synced: Machine) -> None:
    generation = (synced.run_folder / "current").readlink()
    assert synced.sync().returncode == 0
    assert synced.reloaded() == 1
    assert (synced.run_folder / "current").readlink() == generation


def test_an_empty_run_folder_is_filled_again(synced: Machine) -> None:
    shutil.rmtree(synced.run_folder)
    synced.run_folder.mkdir()
    assert synced.sync().returncode == 0
    assert synced.token() == "first-token"


def test_a_token_may_be_wrapped_in_json(synced: Machine) -> None:
    synced.tokens.add("second-token")
    synced.put(token=json.dumps({"token": "second-token"}))
    assert synced.sync().returncode == 0
    assert synced.token() == "second-token"


@pytest.mark.parametrize(
    "token",
    [
        'a"; return 200 "',
        "a\r\nb",
        "a b",
        " ",
        "a\n",
        "$a",
        "x" * 3901,
        '{"other": "x"}',
        "{",
        b"x",
    ],
)
def test_a_malformed_token_is_refused_and_not_said(synced: Machine, token: str | bytes) -> None:
    synced.put(token=token)
    done = synced.sync()
    assert done.returncode == 1
    assert synced.token() == "first-token"
    assert synced.reasons() == {"token_invalid"}
    if len(token) > 2:
        assert str(token) not in done.stderr


def test_a_token_that_the_api_refuses_waits_until_it_is_taken(synced: Machine) -> None:
    synced.put(token="second-token")
    for _ in range(3):  # the reason stays as long as the version is refused: it can be alerted on
        done = synced.sync()
        assert synced.reasons() == {"token_refused"}
        assert "second-token" not in done.stderr
    assert synced.token() == "first-token"
    assert synced.reloaded() == 1
    synced.tokens.add("second-token")
    assert synced.sync().returncode == 0
    assert synced.token() == "second-token"


def test_a_revoked_token_gives_way_whatever_the_api_says_of_the_new_one(synced: Machine) -> None:
    synced.tokens.clear()
    synced.put(token="second-token")
    assert synced.sync().returncode == 0
    assert synced.token() == "second-token"


@pytest.mark.parametrize("status", [500, 302])
def test_an_error_or_a_redirect_is_no_refusal(synced: Machine, status: int) -> None:
    synced.answers["second-token"] = status
    synced.put(token="second-token")
    assert synced.sync().returncode == 0
    assert synced.token() == "second-token"
    assert synced.asked.count("second-token") == 1  # and the redirect was not followed


def test_without_a_good_token_the_proxy_is_closed_but_there(machine: Machine) -> None:
    machine.put(token="not a token")
    assert machine.sync().returncode == 1
    assert machine.in_use("token.conf") == "return 503;\n"
    assert machine.reloaded() == 1


BAD_CERTIFICATES = {
    "foreign key": (self_signed()[0], self_signed()[1]),
    "expired": self_signed(begin=-3 * DAY, end=-DAY),
    "not yet valid": self_signed(begin=DAY, end=3 * DAY),
    "not PEM": ("no certificate", self_signed()[1]),
}


@pytest.mark.parametrize("kind", BAD_CERTIFICATES)
def test_a_bad_certificate_is_refused_alone(synced: Machine, kind: str) -> None:
    good, key = BAD_CERTIFICATES[kind]
    synced.tokens.add("second-token")
    synced.put(token="second-token", certificate=good, key=key)
    assert synced.sync().returncode == 1
    assert synced.reasons() == {"certificate_invalid"}
    assert synced.in_use("certificate.pem") == synced.bundle["certificate"]
    assert synced.token() == "second-token"


def test_a_new_certificate_is_adopted(synced: Machine) -> None:
    new, key = self_signed()
    synced.put(certificate=new, key=key)
    assert synced.sync().returncode == 0
    assert synced.in_use("certificate.pem") == new


@pytest.mark.parametrize(
    ("configuration", "reason"), [("nonsense on;", "test"), ("", "configuration_invalid")]
)
def test_a_bad_configuration_is_refused_alone(
    synced: Machine, configuration: str, reason: str
) -> None:
    synced.tokens.add("second-token")
    synced.put(token="second-token", configuration=configuration)
    assert synced.sync().returncode == 1
    assert synced.reasons() == {reason}
    assert synced.in_use("proxy.conf") == synced.bundle["configuration"]
    assert synced.token() == "second-token"


def test_a_failed_reload_is_put_back(synced: Machine) -> None:
    before = (synced.run_folder / "current").readlink()
    synced.tokens.add("second-token")
    synced.put(token="second-token")
    synced.reload_status.write_text("1")
    assert synced.sync().returncode == 1
    assert synced.reasons() == {"reload"}
    assert (synced.run_folder / "current").readlink() == before
    assert synced.token() == "first-token"
    synced.reload_status.write_text("0")
    assert synced.sync().returncode == 0
    assert synced.token() == "second-token"


def test_a_missing_secret_leaves_what_is_in_use(synced: Machine) -> None:
    synced.secrets.delete_secret(SecretId=synced.names["token"], ForceDeleteWithoutRecovery=True)
    assert synced.sync().returncode == 1
    assert synced.reasons() == {"fetch_token"}
    assert synced.token() == "first-token"


def test_a_sync_killed_before_the_reload_heals(synced: Machine) -> None:
    state = synced.run_folder / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "loaded": False}))
    assert synced.sync().returncode == 0
    assert synced.reloaded() == 2
    assert synced.sync().returncode == 0
    assert synced.reloaded() == 2


def test_old_generations_go(synced: Machine) -> None:
    for number in range(4):
        synced.tokens.add(f"token-{number}")
        synced.put(token=f"token-{number}")
        assert synced.sync().returncode == 0
    assert len(list(synced.run_folder.glob("gen-*"))) == 2


def test_the_token_is_in_the_include_alone(synced: Machine) -> None:
    holders = {
        file.name
        for file in synced.run_folder.rglob("*")
        if file.is_file() and b"first-token" in file.read_bytes()
    }
    assert holders == {"token.conf"}
    for file in (synced.run_folder / "current" / "token.conf", synced.run_folder / "proxy.prom"):
        assert file.stat().st_mode & 0o007 == 0
