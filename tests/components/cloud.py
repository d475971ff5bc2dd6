"""A strict recorder in place of the engine: an unknown type or a bad input fails the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pulumi.runtime import MockCallArgs, MockResourceArgs, Mocks
from pulumi.runtime.proto import resource_pb2
from pulumi.runtime.rpc import is_rpc_secret, unwrap_rpc_secret

from sandbox.providers import schema

Register = Callable[[resource_pb2.RegisterResourceRequest], Any]

ADDRESS = "10.20.0.10"

COMPUTED: dict[str, dict[str, Any]] = {
    "aws:ec2/instance:Instance": {},
    "aws:ec2/networkInterface:NetworkInterface": {"privateIp": ADDRESS},
    "aws:ec2/securityGroup:SecurityGroup": {},
    "aws:iam/instanceProfile:InstanceProfile": {"name": "the-profile"},
    "aws:iam/role:Role": {"name": "the-role"},
    "aws:iam/rolePolicy:RolePolicy": {},
    "aws:secretsmanager/secret:Secret": {},
    "aws:secretsmanager/secretVersion:SecretVersion": {"versionId": "the-version"},
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": {},
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": {},
    "grafana:alerting/ruleGroup:RuleGroup": {},
    "grafana:oss/dashboard:Dashboard": {"url": "https://grafana.example.com/d/sba"},
    "grafana:oss/folder:Folder": {},
    "tls:index/certRequest:CertRequest": {"certRequestPem": "REQUEST"},
    "tls:index/locallySignedCert:LocallySignedCert": {
        "certPem": "LEAF",
        "validityEndTime": "2027-11-27T12:00:00Z",
    },
    "tls:index/privateKey:PrivateKey": {"privateKeyPem": "KEY"},
    "tls:index/selfSignedCert:SelfSignedCert": {"certPem": "CA"},
}
"""What the providers compute, by type; a type that is missing here is unknown to the program."""

ARCHITECTURES = {
    "mac2.metal": ["arm64_mac"],
    "t2.micro": ["i386", "x86_64"],
    "t3.micro": ["x86_64"],
    "t4g.micro": ["arm64"],
    "t4g.small": ["arm64"],
}

Answers = dict[str, Callable[[dict[str, Any]], dict[str, Any]]]

ANSWERS: Answers = {
    "getRegion": lambda _: {"region": "eu-central-1"},
    "getCallerIdentity": lambda _: {"accountId": "123456789012"},
    "getSubnet": lambda _: {
        "vpcId": "vpc-1",
        "availabilityZone": "eu-central-1a",
        "cidrBlock": "10.20.0.0/24",
    },
    "getRouteTables": lambda asked: {
        "ids": ["rtb-main"] if asked["filters"][0]["name"] == "association.main" else []
    },
    "getRouteTable": lambda _: {
        "routes": [
            {"cidrBlock": "10.20.0.0/16", "gatewayId": "local"},
            {"cidrBlock": "0.0.0.0/0", "gatewayId": "", "natGatewayId": "nat-1"},
        ]
    },
    "getInstanceType": lambda asked: {
        "supportedArchitectures": ARCHITECTURES[asked["instanceType"]]
    },
    "getInstanceTypeOfferings": lambda asked: {"instanceTypes": asked["filters"][0]["values"]},
    "getAmi": lambda _: {"id": "ami-debian13", "architecture": "arm64"},
    "getManagedPrefixList": lambda _: {"addressFamily": "IPv4", "maxEntries": 5},
    "getSecret": lambda asked: {"arn": asked.get("arn", ""), "kmsKeyId": ""},
    "getSecurityGroup": lambda _: {"vpcId": "vpc-1"},
    "getNetworkInterfaces": lambda _: {"ids": []},
}
"""What AWS answers to what it is asked."""


class Cloud(Mocks):
    """What the program registered, as the engine would have got it."""

    def __init__(self, answers: Answers) -> None:
        self.answers = ANSWERS | answers
        self.resources: list[MockResourceArgs] = []
        self.calls: list[MockCallArgs] = []
        self.requests: dict[str, resource_pb2.RegisterResourceRequest] = {}
        self.urns: list[str] = []
        self.outputs: dict[str, Any] = {}
        self.secret_outputs: set[str] = set()

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        if args.typ == "pulumi:pulumi:Stack":
            return args.name, {}
        self.resources.append(args)
        if not args.custom:
            return f"{args.name}-id", dict(args.inputs)
        problems = list(schema.problems(args.typ, args.inputs))
        assert not problems, f"{args.typ} {args.name}: {problems}"
        arn = {"arn": f"arn:{args.name}"}
        return f"{args.name}-id", {**args.inputs, **arn, **COMPUTED[args.typ]}

    def recording(self, register: Register) -> Register:
        """The monitor's method, with its requests kept: `new_resource` is not told the options."""

        def record(request: resource_pb2.RegisterResourceRequest) -> Any:
            self.requests[request.name] = request
            return register(request)

        return record

    def call(self, args: MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        self.calls.append(args)
        try:
            answer = self.answers[args.token.rpartition(":")[2]](args.args)
        except RuntimeError as error:
            return {}, [("", str(error))]
        return {**args.args, **answer}, []

    def all(self, typ: str) -> list[dict[str, Any]]:
        """The inputs of every resource of a type, secrets still marked."""
        return [r.inputs for r in self.resources if r.typ == typ]

    def only(self, typ: str) -> dict[str, Any]:
        [inputs] = self.all(typ)
        return inputs


def reveal(value: Any) -> tuple[Any, bool]:
    """A recorded input's plain value, and whether it was marked secret."""
    return unwrap_rpc_secret(value), is_rpc_secret(value)
