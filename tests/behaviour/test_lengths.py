"""The longest path and upstream that the settings accept are served, whatever they are made of."""

from __future__ import annotations

import json
import re

import pytest

from config.settings import URL_MAX, Settings
from host import proxy
from tests.behaviour.proxies import OURS, Proxy
from tests.behaviour.table import request
from tests.behaviour.wire import CLIENT, SERVER, SERVER_NAME, exchange

LONGEST = {
    "letters": "/" + "a" * (URL_MAX - 1),
    # each of them has a backslash before it in a regular expression
    "marks": "/" + "a.-~" * (URL_MAX // 4 - 1) + "~~~",
}


@pytest.mark.parametrize("kind", OURS)
def test_the_longest_path_and_upstream_are_served(kind: str) -> None:
    def edit(text: str) -> str:
        """The configuration of other endpoints at the same API."""
        found = re.search(r"[Ll]isten (?:[\d.]+:)?(\d+)", text)
        api = re.search(rf"http://{SERVER}:\d+", text)
        assert found
        assert api
        endpoints = [
            {"name": n, "path": p, "upstream": f"{api[0]}/{n}"} for n, p in LONGEST.items()
        ]
        endpoints += [
            # the same first 1,900 characters, and more than Apache's names of workers hold
            {"name": f"up-{n}", "path": f"/{n}", "upstream": f"{api[0]}{LONGEST[name][:-40]}{n}"}
            for name in LONGEST
            for n in (f"{name}-1", f"{name}-2")
        ]
        config = {
            "subnetId": "subnet-00000000",
            "prometheusCidrs": json.dumps([f"{CLIENT}/32"]),
            "apiCidrs": '["127.0.0.0/16"]',
            "server": kind,
            "port": found[1],
            "serverName": SERVER_NAME,
            "endpoints": json.dumps(endpoints),
        }
        paths.update({e["path"]: e["upstream"].removeprefix(api[0]) for e in endpoints})
        return proxy.render(Settings.parse("test", config, has_token=True))

    paths: dict[str, str] = {}
    running = Proxy(kind, edit=edit)
    try:
        for path, target in paths.items():
            since = running.api.mark()
            exchange(running.port, request(path))
            [received] = running.api.received(since)
            assert received.line == f"GET {target} HTTP/1.1"
    finally:
        running.stop()
    assert max(map(len, paths)) == URL_MAX
