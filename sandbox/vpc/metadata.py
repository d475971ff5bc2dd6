"""A stand-in for EC2's metadata service: version 2, and what EC2 has on record of the machine."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from sandbox.aws import ACCOUNT, Account

VERSIONS: Final = ("latest", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23")
TOKEN_SECONDS: Final = 21_600


class Record:
    """The instance at an address, as the embedded EC2 knows it. Asked at every request."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._ec2 = account.client("ec2")
        self._lock = threading.Lock()
        self._credentials: dict[str, dict[str, str]] = {}

    def instance(self, address: str) -> dict[str, Any] | None:
        """The instance that has the interface of this address."""
        for reservation in self._ec2.describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                running = instance["State"]["Name"] == "running"
                if running and instance.get("PrivateIpAddress") == address:
                    return dict(instance)
        return None

    def user_data(self, instance: str) -> bytes:
        answer = self._ec2.describe_instance_attribute(InstanceId=instance, Attribute="userData")
        return base64.b64decode(answer["UserData"].get("Value", ""))

    def credentials(self, instance: str) -> dict[str, str]:
        """The role's; new ones a quarter of an hour before the end of the old."""
        with self._lock:
            kept = self._credentials.get(instance)
            if kept is None or _seconds_left(kept) < 900:
                kept = self._account.instance_credentials(instance)
                self._credentials[instance] = kept
            return kept

    def tree(self, instance: Mapping[str, Any]) -> dict[str, Any]:
        """What /latest holds: folders as dicts, documents as text."""
        [interface] = instance["NetworkInterfaces"]
        subnet, vpc = instance["SubnetId"], instance["VpcId"]
        subnets = self._ec2.describe_subnets(SubnetIds=[subnet])["Subnets"]
        vpcs = self._ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"]
        address, zone = interface["PrivateIpAddress"], instance["Placement"]["AvailabilityZone"]
        region = zone[:-1]
        name = f"ip-{address.replace('.', '-')}.{region}.compute.internal"
        groups = "\n".join(group["GroupName"] for group in interface["Groups"])
        profile = instance["IamInstanceProfile"]["Arn"]
        document = {
            "accountId": ACCOUNT,
            "architecture": instance["Architecture"],
            "availabilityZone": zone,
            "imageId": instance["ImageId"],
            "instanceId": instance["InstanceId"],
            "instanceType": instance["InstanceType"],
            "privateIp": address,
            "region": region,
            "version": "2017-09-30",
        }
        card = {
            "device-number": "0",
            "interface-id": interface["NetworkInterfaceId"],
            "local-hostname": name,
            "local-ipv4s": address,
            "mac": interface["MacAddress"],
            "owner-id": ACCOUNT,
            "security-groups": groups,
            "subnet-id": subnet,
            "subnet-ipv4-cidr-block": subnets[0]["CidrBlock"],
            "vpc-id": vpc,
            "vpc-ipv4-cidr-block": vpcs[0]["CidrBlock"],
        }
        return {
            "dynamic": {"instance-identity": {"document": json.dumps(document, indent=2)}},
            "meta-data": {
                "ami-id": instance["ImageId"],
                "ami-launch-index": "0",
                "hostname": name,
                "iam": {
                    "info": json.dumps({"Code": "Success", "InstanceProfileArn": profile}),
                    "security-credentials": {
                        profile.rsplit("/", 1)[-1]: lambda: json.dumps(
                            self.credentials(instance["InstanceId"])
                        )
                    },
                },
                "instance-id": instance["InstanceId"],
                "instance-life-cycle": "on-demand",
                "instance-type": instance["InstanceType"],
                "local-hostname": name,
                "local-ipv4": address,
                "mac": interface["MacAddress"],
                "network": {"interfaces": {"macs": {interface["MacAddress"]: card}}},
                "placement": {"availability-zone": zone, "region": region},
                "security-groups": groups,
                "services": {"domain": "amazonaws.com", "partition": "aws"},
            },
        }


def _seconds_left(credentials: Mapping[str, str]) -> float:
    end = datetime.strptime(credentials["Expiration"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return end.timestamp() - time.time()


def handler(record: Record) -> type[BaseHTTPRequestHandler]:
    """Answers requests, each with a line on standard output."""
    tokens: dict[str, float] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            if self.path != "/latest/api/token" or self.headers.get("X-Forwarded-For"):
                return self.reply(403)
            ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if not ttl.isdigit() or not 1 <= int(ttl) <= TOKEN_SECONDS:
                return self.reply(400)
            instance = record.instance(self.client_address[0])
            if instance is None:
                return self.reply(404)
            # the answer travels this many hops: not into a container of the machine
            hops = instance["MetadataOptions"]["HttpPutResponseHopLimit"]
            self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
            token = secrets.token_urlsafe(40)
            tokens[token] = time.time() + int(ttl)
            return self.reply(200, token)

        def do_GET(self) -> None:
            instance = record.instance(self.client_address[0])
            if instance is None:
                return self.reply(404)
            token = self.headers.get("X-aws-ec2-metadata-token")
            optional = instance["MetadataOptions"]["HttpTokens"] == "optional"
            if tokens.get(token or "", 0) < time.time() and not (optional and token is None):
                return self.reply(401)
            parts = urllib.parse.unquote(self.path.partition("?")[0]).split("/")
            version, *keys = [part for part in parts if part] or [""]
            if version not in VERSIONS:
                return self.reply(404)
            if keys == ["user-data"]:
                data = record.user_data(instance["InstanceId"])
                return self.reply(200 if data else 404, data)
            node: Any = record.tree(instance)
            for key in keys:
                if not isinstance(node, dict) or key not in node:
                    return self.reply(404)
                node = node[key]
            if isinstance(node, dict):
                node = "\n".join(f"{k}/" if isinstance(v, dict) else k for k, v in node.items())
            return self.reply(200, node() if callable(node) else node)

        def reply(self, status: int, body: str | bytes = b"") -> None:
            data = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_request(self, code: int | str = "-", *_: object) -> None:
            version = 2 if "X-aws-ec2-metadata-token" in self.headers else 1
            kind = "token" if self.command == "PUT" else f"v{version}"
            print(f"metadata {kind} {self.command} {self.path} {int(code)}", flush=True)

    return Handler
