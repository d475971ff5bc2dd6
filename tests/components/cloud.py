"""A strict stand-in for the Pulumi engine: it records what the program asks for."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from pulumi.runtime import MockCallArgs, MockResourceArgs, Mocks
from pulumi.runtime.mocks import MockMonitor
from pulumi.runtime.rpc import is_rpc_secret, unwrap_rpc_secret

from sandbox.providers import schema

ADDRESS = "10.20.1.7"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"
ARCHITECTURES = {"t4g.micro": ["arm64"], "t4g.small": ["arm64"], "t3.micro": ["x86_64"]}

# What each provider computes. A type missing here fails the test that meets it.
COMPUTED: dict[str, dict[str, Any]] = {
    "aws:ec2/instance:Instance": {},
    "aws:ec2/networkInterface:NetworkInterface": {"privateIp": ADDRESS},
    "aws:ec2/securityGroup:SecurityGroup": {},
    "aws:iam/instanceProfile:InstanceProfile": {"name": "profile"},
    "aws:iam/role:Role": {"name": "role"},
    "aws:iam/rolePolicy:RolePolicy": {},
    "aws:secretsmanager/secret:Secret": {},
    "aws:secretsmanager/secretVersion:SecretVersion": {},
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": {},
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": {},
    "grafana:oss/dashboard:Dashboard": {"url": "https://grafana.example.com/d/sba"},
    "grafana:oss/folder:Folder": {},
    "tls:index/certRequest:CertRequest": {"certRequestPem": "REQUEST"},
    "tls:index/locallySignedCert:LocallySignedCert": {"certPem": "LEAF"},
    "tls:index/privateKey:PrivateKey": {},
    "tls:index/selfSignedCert:SelfSignedCert": {"certPem": "CA"},
}


class Resource(NamedTuple):
    urn: str
    type: str
    name: str
    inputs: dict[str, Any]
    protect: bool
    replace_on_changes: list[str]
    ignore_changes: list[str]
    delete_before_replace: bool


class Cloud(Mocks):
    """The resources and invokes of one run of the program, and its outputs."""

    def __init__(self) -> None:
        self.resources: list[Resource] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.outputs: dict[str, Any] = {}

    def new_resource(self, args: MockResourceArgs) -> tuple[str, dict[str, Any]]:
        if not args.custom:
            return "", args.inputs
        computed = dict(COMPUTED[args.typ])
        wrong = [f"{path} {problem}" for path, problem in schema.problems(args.typ, args.inputs)]
        assert not wrong, f"{args.typ} {args.name}: {', '.join(wrong)}"
        if args.typ == "aws:secretsmanager/secret:Secret":
            computed["arn"] = f"{ARN}{args.inputs['name']}-a1b2c3"
        if args.typ == "tls:index/privateKey:PrivateKey":
            computed["privateKeyPem"] = f"PRIVATE {args.name}"
        return args.name + "-id", {**args.inputs, **computed}

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], None]:
        self.calls.append((args.token, args.args))
        match args.token:
            case "aws:index/getRegion:getRegion":
                return {"id": "eu-central-1", "region": "eu-central-1"}, None
            case "aws:ec2/getSubnet:getSubnet":
                return {"id": args.args["id"], "vpcId": "vpc-1"}, None
            case "aws:ec2/getInstanceType:getInstanceType":
                kind = args.args["instanceType"]
                return {"supportedArchitectures": ARCHITECTURES[kind]}, None
            case "aws:ec2/getAmi:getAmi":
                return {"id": "ami-0aaaaaaaaaaaaaaa1"}, None
        raise AssertionError(f"unexpected provider call {args.token}")

    def all(self, kind: str) -> list[Resource]:
        """The resources of a type such as `Instance`."""
        return [r for r in self.resources if r.type.endswith(f":{kind}")]

    def only(self, kind: str) -> Resource:
        """The program's one resource of a type."""
        [resource] = self.all(kind)
        return resource

    def named(self, name: str) -> Resource:
        [resource] = [r for r in self.resources if r.name == name]
        return resource


class Monitor(MockMonitor):
    """The mock monitor, with what it forgets: duplicate URNs, options, the program's outputs."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(cloud)
        self.cloud = cloud

    def RegisterResource(self, request: Any) -> Any:  # the name is gRPC's
        urn = self.make_urn(request.parent, request.type, request.name)
        assert urn not in self.resources, f"duplicate resource {urn}"
        answer = super().RegisterResource(request)
        if request.custom:
            self.cloud.resources.append(
                Resource(
                    urn=urn,
                    type=request.type,
                    name=request.name,
                    inputs=self.resources[urn].state,
                    protect=request.protect,
                    replace_on_changes=list(request.replaceOnChanges),
                    ignore_changes=list(request.ignoreChanges),
                    delete_before_replace=request.deleteBeforeReplace,
                )
            )
        return answer


def reveal(value: Any) -> Any:
    """A recorded value without Pulumi's marks of a secret."""
    return unwrap_rpc_secret(value) if is_rpc_secret(value) else value
