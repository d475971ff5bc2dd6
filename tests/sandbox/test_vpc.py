"""Security groups as rules of the packet filter."""

from __future__ import annotations

import pytest

from sandbox.vpc import security_group


def test_a_rule_that_is_not_modelled_is_refused() -> None:
    rule = {"IsEgress": True, "IpProtocol": "tcp", "FromPort": 1, "ToPort": 2}
    with pytest.raises(ValueError, match="does not model"):
        security_group.ruleset([{**rule, "ReferencedGroupInfo": {"GroupId": "sg-1"}}])
    assert "ip daddr 10.0.0.0/8 tcp dport 1-2 accept" in security_group.ruleset(
        [{**rule, "CidrIpv4": "10.0.0.0/8"}]
    )
