"""`make bench` itself works; what it measures is asserted nowhere."""

from __future__ import annotations

import os

import pytest

from bench.measure import Bench, ratio
from bench.targets import Ours
from sandbox.machines.vm.machine import obstacle


def test_one_round_of_one_target() -> None:
    if reason := obstacle():
        assert "CI" not in os.environ, reason
        pytest.skip(f"no tree of Debian 13 here: {reason}")
    with Bench() as bench:
        nginx = bench.start("nginx", Ours("nginx", 3, "/more-2"))
        bench.body(20_000)
        right = bench.sample(nginx, 20_000, 10, clients=2)
        load = bench.load(nginx, 20_000)
        load.answer()
        bench.body(10)
        load.tell("3 0")
        assert '"failed":3' in load.answer()
        assert nginx.pss() > 1
    assert right["failed"] == 0
    assert right["cpu"] > 1
    assert right["bytes"] > 20_000


def test_a_ratio_is_of_rounds() -> None:
    rounds = [(1, 2.0, 1.0), (2, 30.0, 10.0), (3, 20.0, 2.0)]
    samples = [
        {"target": name, "round": number, "cpu": cpu}
        for number, ours, theirs in rounds
        for name, cpu in (("ours", ours), ("theirs", theirs))
    ]
    samples.append({"target": "ours", "round": 4, "cpu": None})
    assert ratio(samples, "ours", "theirs") == {"ratio": 3.0, "low": 2.0, "high": 10.0}
    assert ratio(samples, "ours", "absent") == {}
