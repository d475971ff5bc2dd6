"""What the program gives to Grafana, read back from it.

Grafana is a real one where `GRAFANA_URL` and `GRAFANA_AUTH` (`user:password`, or a service
account's token) name it, reached by the real plugin: one on $PATH, or Pulumi fetches it. Else the
files of the stand-in are served as Grafana would.

    GRAFANA_URL=https://grafana.example GRAFANA_AUTH=glsa_… pytest -m grafana
"""

from __future__ import annotations

import base64
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from config.settings import NAMESPACE
from monitoring.panels import OWN
from sandbox import aws
from sandbox.engine import STACK, Engine
from sandbox.tools import ROOT

Read = Callable[[str], Any]
"""What Grafana answers to a GET of a path below /api, None for a 404."""

NAMED = all(map(os.environ.get, ("GRAFANA_URL", "GRAFANA_AUTH")))
REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.grafana,
        pytest.mark.skipif(not NAMED, reason="GRAFANA_URL and GRAFANA_AUTH name no Grafana"),
    ],
)


def reader(url: str, auth: str) -> Read:
    kind = "Basic" if ":" in auth else "Bearer"
    word = base64.b64encode(auth.encode()).decode() if kind == "Basic" else auth

    def read(path: str) -> Any:
        request = urllib.request.Request(
            f"{url.rstrip('/')}/api/{path}", headers={"Authorization": f"{kind} {word}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise

    return read


def provisioned(folder: Path, path: str) -> Any:
    """What Grafana would say of the stand-in's files."""
    kind, _, uid = path.rpartition("/")
    if kind == "folders":
        file = folder / "dashboards" / f"{uid}.yaml"
        if not file.exists():
            return None
        return {"uid": uid, "title": yaml.safe_load(file.read_text())["providers"][0]["folder"]}
    if kind == "dashboards/uid":
        for file in folder.glob(f"dashboards/*/{uid}.json"):
            meta = {"folderUid": file.parent.name}
            return {"dashboard": json.loads(file.read_text()), "meta": meta}
        return None
    files = (folder / "alerting").glob("*.yaml")
    return [
        {**rule, "folderUID": file.name.partition(".")[0]}
        for file in files
        for rule in yaml.safe_load(file.read_text())["groups"][0]["rules"]
    ]


@contextmanager
def double(folder: Path) -> Iterator[str]:
    """Serve the stand-in's files as Grafana's API would; the value is the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = provisioned(folder, self.path.removeprefix("/api/"))
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def use_real_plugin(engine: Engine, folder: Path) -> None:
    """Leave Grafana's stand-in out of the engine's $PATH."""
    stand_ins = ROOT / "sandbox" / "providers" / "bin"
    folder.mkdir()
    for name in ("aws", "tls"):
        script = folder / f"pulumi-resource-{name}"
        script.write_text(f'#!/bin/sh\nexec "{stand_ins / script.name}" "$@"\n')
        script.chmod(0o755)
    workspace = engine.stack.workspace
    path = workspace.env_vars["PATH"].replace(str(stand_ins), str(folder))
    fetch = {"PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "false"}
    workspace.env_vars = {**workspace.env_vars, "PATH": path, **fetch}


@pytest.fixture(params=["double", REAL])
def deployed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, Read]]:
    """A stack that is up, with names of its own in Grafana, and its Grafana."""
    process, account = aws.start(
        tmp_path, region="eu-central-1", vpc_cidr="10.20.0.0/16", subnet_cidr="10.20.1.0/24"
    )
    try:
        engine = Engine(tmp_path, account)
        name = f"metrics-proxy-test-{uuid4().hex[:8]}"
        engine.configure(
            {
                "aws:region": account.region,
                "subnetId": account.subnet_id,
                "prometheusCidrs": ["10.20.2.0/24"],
                "apiSecurityGroupId": account.api_security_group_id,
                "instanceType": "t3.micro",
                "grafana": {"folderTitle": name, "dashboardUid": name},
            }
        )
        engine.set_secret("adminToken", "engine-test-token")
        if request.param == "real":
            use_real_plugin(engine, tmp_path / "bin")
            yield engine, reader(os.environ["GRAFANA_URL"], os.environ["GRAFANA_AUTH"])
        else:
            with double(engine.provisioning) as url:
                yield engine, reader(url, "user:password")
    finally:
        process.terminate()
        process.wait(20)


def inputs(engine: Engine, kind: str) -> list[dict[str, Any]]:
    """What the program said of its resources of a type, out of the state, secrets too."""
    state = engine.stack.export_stack().deployment or {}
    return [
        {k: json.loads(v["plaintext"]) if "plaintext" in v else v for k, v in r["inputs"].items()}
        for r in state["resources"]
        if r["type"] == kind
    ]


def holds(found: Any, wanted: Any) -> bool:
    """Whether all that was said is there: Grafana may add keys of its own."""
    if isinstance(wanted, dict):
        return all(key in found and holds(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(holds, found, wanted))
    return bool(found == wanted)


def test_grafana_has_what_the_program_says(deployed: tuple[Engine, Read]) -> None:
    engine, read = deployed
    grafana = engine.config[f"{NAMESPACE}:grafana"]
    folder, dashboard = f"folders/sba-{STACK}", f"dashboards/uid/{grafana['dashboardUid']}"
    assert read(folder) is None, "there is a folder of that uid: not this test's to touch"
    try:
        engine.up()
        assert read(folder)["title"] == grafana["folderTitle"]
        found = read(dashboard)
        assert found["meta"]["folderUid"] == f"sba-{STACK}"
        [said] = inputs(engine, "grafana:oss/dashboard:Dashboard")
        wanted = json.loads(said["configJson"])
        assert found["dashboard"]["title"] == wanted["title"]
        assert holds(found["dashboard"]["templating"], wanted["templating"])
        assert holds(found["dashboard"]["panels"], wanted["panels"])
        assert {panel["id"] for panel in found["dashboard"]["panels"]} >= set(OWN)
        groups = inputs(engine, "grafana:alerting/ruleGroup:RuleGroup")
        rules = [rule for rule in read("v1/provisioning/alert-rules") or () if _in(folder, rule)]
        assert {rule["uid"]: rule["title"] for rule in rules} == {
            rule["uid"]: rule["name"] for group in groups for rule in group["rules"]
        }
        assert set(engine.preview()) == {"same"}
    finally:
        engine.destroy()
    assert read(folder) is None
    assert read(dashboard) is None


def _in(folder: str, rule: dict[str, Any]) -> bool:
    return bool(folder == f"folders/{rule['folderUID']}")
