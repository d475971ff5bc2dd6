"""The embedded AWS: moto in a process of its own, with signatures and IAM policies checked.

`python -m sandbox.aws --vpc 127.9.0.0/16 --subnet 127.9.46.0/24 --ready FILE` serves until it is
terminated. Everything is in that process's memory; FILE tells how to reach it (see `Account`).
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import boto3

from sandbox import autoscaling
from sandbox import organisation as policies

REGION: Final = "eu-central-1"
DEBIAN = "136693071363"  # the account that publishes Debian's images
ACCOUNT: Final = "123456789012"  # moto's
BAKED: Final = {"x86_64": f"ami-0{'c' * 15}0", "arm64": f"ami-0{'c' * 15}1"}
"""An image of one's own that has the packages, by architecture."""

REFUSED_ONCE: Final = "sandbox:refused-once"
"""A tag of an interface: the error code with which the next start of a machine on it is refused."""

EC2 = "ec2.amazonaws.com"  # an IAM user of this name stands for the EC2 service itself


@dataclass(frozen=True, kw_only=True)
class Account:
    """How to reach the embedded AWS, and what it was seeded with."""

    endpoint_url: str
    region: str
    access_key_id: str
    secret_access_key: str
    service_access_key_id: str
    service_secret_access_key: str
    vpc_id: str
    subnet_id: str
    api_security_group_id: str

    @classmethod
    def read(cls, file: Path) -> "Account":
        """The account that a serving process wrote to its `--ready` file."""
        return cls(**json.loads(file.read_text()))

    def environment(self) -> dict[str, str]:
        """The variables by which programs and provider plugins speak to this AWS as its admin."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            # neither a profile of the user nor the metadata service of the machine is to be asked
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str) -> Any:
        """A boto3 client of the admin."""
        return _client(self, service, self.access_key_id, self.secret_access_key)

    def another_subnet(self, cidr: str, zone: str = "b") -> str:
        """Make one more private subnet, in the zone of that letter, and return its id."""
        made = self.client("ec2").create_subnet(
            VpcId=self.vpc_id, CidrBlock=cidr, AvailabilityZone=f"{self.region}{zone}"
        )
        return str(made["Subnet"]["SubnetId"])

    def instance_credentials(self, instance_id: str) -> dict[str, str]:
        """What the metadata service of this instance would answer for its role.

        Refused by STS unless the role's trust policy names ec2.amazonaws.com.
        """
        keys = self.service_access_key_id, self.service_secret_access_key
        ec2, iam, sts = (_client(self, service, *keys) for service in ("ec2", "iam", "sts"))
        [reservation] = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        profile = reservation["Instances"][0]["IamInstanceProfile"]["Arn"].rsplit("/", 1)[-1]
        profile = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]
        [role] = profile["Roles"]
        answer = sts.assume_role(RoleArn=role["Arn"], RoleSessionName=instance_id)["Credentials"]
        return {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "AccessKeyId": answer["AccessKeyId"],
            "SecretAccessKey": answer["SecretAccessKey"],
            "Token": answer["SessionToken"],
            "Expiration": f"{answer['Expiration']:%Y-%m-%dT%H:%M:%SZ}",
        }


def _client(account: Account, service: str, key_id: str, secret: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=account.endpoint_url,
        region_name=account.region,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
    )


def start(
    folder: Path,
    *,
    region: str,
    vpc_cidr: str,
    subnet_cidr: str,
    host: str = "127.0.0.1",
    port: int = 0,
    prefix: Iterable[str] = (),
    organisation: bool = False,
    pace: float = autoscaling.PACE,
) -> tuple["subprocess.Popen[bytes]", Account]:
    """Start the embedded AWS and wait for it; `prefix` is put before the command (a namespace).

    `organisation`: with the policies of `sandbox/organisation.py`. `pace`: how many seconds of Auto
    Scaling's warm-up and draining pass in one.
    """
    ready = folder / "aws.json"
    ready.unlink(missing_ok=True)
    options = {"host": host, "port": str(port), "region": region, "ready": str(ready)}
    options |= {"vpc": vpc_cidr, "subnet": subnet_cidr, "pace": str(pace)}
    command = [*prefix, sys.executable, "-m", "sandbox.aws"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    command += ["--organisation"] if organisation else []
    with (folder / "aws.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60  # it takes 2 s on an idle machine
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError(f"the embedded AWS did not start:\n{log_tail(folder / 'aws.log')}")
        time.sleep(0.05)
    return process, Account.read(ready)


def log_tail(file: Path) -> str:
    """The last lines of a log, for an error message."""
    return "\n".join(file.read_text(errors="replace").splitlines()[-20:])


# What follows runs in the serving process only: moto is imported inside the functions because it
# takes a second that callers of `start` need not spend.


def _mend(scaling: Callable[[], autoscaling.AutoScaling], folder: Path) -> None:
    """Make moto refuse what AWS refuses, where this project depends on it (moto 5.2.5)."""
    from moto.core.exceptions import AccessDeniedError, JsonRESTError
    from moto.core.types import Base64EncodedString
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import EC2Backend
    from moto.ec2.models.amis import Ami, AmiBackend
    from moto.ec2.models.instances import Instance
    from moto.ec2.models.security_groups import SecurityGroupRule
    from moto.ec2.models.subnets import Subnet
    from moto.ec2.responses import instances as responses
    from moto.iam.access_control import (
        IAMPolicy,
        IAMPolicyStatement,
        IAMRequest,
        PermissionResult,
        create_access_key,
    )
    from moto.iam.responses import IamResponse
    from moto.secretsmanager.models import (
        FakeSecret,
        SecretsManagerBackend,
        secretsmanager_backends,
    )
    from moto.secretsmanager.responses import SecretsManagerResponse

    def determine_resource(self: SecretsManagerResponse) -> str:
        """Policies name secrets by ARN; moto compares with `*` only."""
        name = self._get_param("SecretId") or self._get_param("Name") or "*"
        secrets = secretsmanager_backends[self.current_account][self.region].secrets
        if name in secrets:
            return str(secrets[name].arn)
        if name == "*" or name.startswith("arn:"):
            return str(name)
        return f"arn:aws:secretsmanager:{self.region}:{self.current_account}:secret:{name}"

    def determine_iam_resource(self: IamResponse) -> str:
        """moto knows the ARN of a role that is there, and nothing else."""
        for key, kind, things in (
            ("InstanceProfileName", "instance-profile", self.backend.get_instance_profiles),
            ("RoleName", "role", self.backend.get_roles),
        ):
            if name := self._get_param(key):
                path = (self._get_param("Path") or "/") + name
                arns = [str(one.arn) for one in things() if one.name == name]
                return [*arns, f"arn:aws:iam::{self.current_account}:{kind}{path}"][0]
        return "*"

    def match(pattern: str, text: str) -> Any:
        """`?` is a wildcard of IAM too (the six random characters of a secret's ARN)."""
        wild = {"*": ".*", "?": "."}
        return re.fullmatch("".join(wild.get(c) or re.escape(c) for c in pattern), text, re.DOTALL)

    def check_principal(self: IAMPolicyStatement, principal: str) -> bool:
        """A trust policy may name a service; moto knows ARNs only, and fails on others."""
        trusted = self._statement.get("Principal") or {}
        if trusted == "*":
            return True
        service = principal.endswith(f":user/{EC2}")
        names = trusted.get("Service" if service else "AWS", [])
        names = [names] if isinstance(names, str) else names
        return (EC2 if service else principal) in names or (not service and "*" in names)

    read_secret = SecretsManagerResponse.get_secret_value

    def get_secret_value(self: SecretsManagerResponse) -> str:
        """Who reads what a customer's key encrypts has to decrypt with it; moto encrypts nothing.

        The key's own policy is not modelled: it is taken to leave this to IAM.
        """
        arn = determine_resource(self)
        secrets = secretsmanager_backends[self.current_account][self.region].secrets
        key = getattr(secrets[arn], "kms_key_id", None) if arn in secrets else None
        if key and key.startswith("arn:"):
            context = {
                "kms:ViaService": f"secretsmanager.{self.region}.amazonaws.com",
                "kms:EncryptionContext:SecretARN": arn,
            }
            caller = self.headers["Authorization"].partition("Credential=")[2].split("/")[0]
            who = create_access_key(self.current_account, self.partition, caller, self.headers)
            if PermissionResult.PERMITTED not in [
                IAMPolicy(policy).is_action_permitted("kms:Decrypt", key, None, context)
                for policy in who.collect_policies()
            ]:
                raise JsonRESTError("AccessDeniedException", "Access to KMS is not allowed")
        return read_secret(self)

    move_stage = SecretsManagerBackend.update_secret_version_stage

    def update_secret_version_stage(
        self: SecretsManagerBackend,
        secret_id: str,
        version_stage: str,
        *versions: str,
        **named: str,
    ) -> tuple[str, str]:
        """The version that becomes AWSCURRENT is what is read from then on, too."""
        answer = move_stage(self, secret_id, version_stage, *versions, **named)
        secret = self.secrets[secret_id]
        for version, held in secret.versions.items():
            if isinstance(secret, FakeSecret) and "AWSCURRENT" in held["version_stages"]:
                secret.set_default_version_id(version)
        return answer

    def refuse(name: str, json_code: str) -> Callable[..., None]:
        """Services that speak JSON get their refusals in JSON, with the codes AWS uses."""
        original = getattr(IAMRequest, name)

        def raise_refusal(self: IAMRequest, *arguments: Any) -> None:
            if self._service != "secretsmanager":
                original(self, *arguments)
            message = "The key, token or signature of the request is not valid"
            if name == "_raise_access_denied":
                message = AccessDeniedError(self._access_key.arn, self._action).message
            raise JsonRESTError(json_code, message)

        return raise_refusal

    def parse_user_data(value: Any) -> Any:
        """ModifyInstanceAttribute hands over decoded bytes, which moto takes for base64."""
        if isinstance(value, bytes):
            return Base64EncodedString.from_raw_bytes(value)
        return Base64EncodedString(value) if value else None

    stop = Instance.terminate

    def terminate(self: Instance) -> Any:
        """moto leaves the interfaces of a terminated instance in use for ever, and none goes."""
        state = stop(self)
        for interface in self.nics.values():
            interface.instance = interface.attachment_id = interface.attach_time = None
            interface.status = "available"
            if interface.delete_on_termination:
                self.ec2_backend.enis.pop(interface.id, None)
        return state

    def del_subnet_ip(self: Subnet, ip: str) -> None:
        """An address is free, but not the next to be given: whoever had it may hold its lease."""
        self._subnet_ips.pop(ip, None)

    run = EC2Backend.run_instances

    def run_instances(self: EC2Backend, image_id: str, *arguments: Any, **options: Any) -> Any:
        """What a machine is made of is looked at when it is started, and not before."""
        [image] = self.describe_images(ami_ids=[image_id])
        [found] = self.describe_instance_types([options["instance_type"]])
        runs = found["ProcessorInfo"]["SupportedArchitectures"]
        if image.architecture not in runs:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"The architecture '{', '.join(runs)}' of the specified instance type does not "
                f"match the architecture '{image.architecture}' of the specified AMI.",
            )
        for named in filter(None, (n.get("NetworkInterfaceId") for n in options.get("nics", ()))):
            interface = self.get_network_interface(named)
            if interface.status == "in-use":
                raise EC2ClientError(
                    "InvalidNetworkInterface.InUse", f"Interface: [{named}] in use."
                )
            tags = {tag["key"]: tag["value"] for tag in interface.get_tags()}
            if code := tags.get(REFUSED_ONCE):
                self.delete_tags([named], {REFUSED_ONCE: code})
                raise EC2ClientError(code, f"{code}: for once, says the tag {REFUSED_ONCE}")
        return run(self, image_id, *arguments, **options)

    make_rule = SecurityGroupRule.__init__

    def init_rule(self: SecurityGroupRule, *arguments: Any, **options: Any) -> None:
        """moto forgets the description of a rule for a group or a prefix list."""
        make_rule(self, *arguments, **options)
        for source in arguments:
            if isinstance(source, dict) and "Description" in source:
                self.ip_range = {**self.ip_range, "Description": source["Description"]}

    def load_amis(self: AmiBackend) -> None:
        """Debian's images instead of the thousand that moto brings, none of which is Debian's."""
        for number, (architecture, own) in enumerate(BAKED.items()):
            debian = f"debian-13-{'amd64' if architecture == 'x86_64' else architecture}"
            for ami_id, owner, name, date in (
                (f"ami-0{'a' * 15}{number}", DEBIAN, f"{debian}-20250814-2204", "20250814"),
                (f"ami-0{'b' * 15}{number}", DEBIAN, f"{debian}-20251117-2299", "20251117"),
                # newer, and nothing to build on
                (f"ami-0{'d' * 15}{number}", DEBIAN, f"{debian}-daily-20251201-2313", "20251201"),
                (f"ami-0{'e' * 15}{number}", DEBIAN, f"{debian}-dev-20251202-2314", "20251202"),
                (own, ACCOUNT, f"metrics-proxy-{architecture}", "20251118"),
            ):
                self.amis[ami_id] = Ami(
                    self,
                    ami_id,
                    name=name,
                    description=f"{name} ({date})",
                    owner_id=owner,
                    public=owner == DEBIAN,
                    virtualization_type="hvm",
                    architecture=architecture,
                    creation_date=datetime.strptime(date, "%Y%m%d").replace(tzinfo=UTC),
                    image_location=f"{owner}/{name}",
                    hypervisor="xen",
                    root_device_type="ebs",
                    root_device_name="/dev/xvda",
                )

    for owner, name, mend in (
        (IamResponse, "_determine_resource", determine_iam_resource),
        (SecretsManagerResponse, "_determine_resource", determine_resource),
        (SecretsManagerResponse, "get_secret_value", get_secret_value),
        (SecretsManagerBackend, "update_secret_version_stage", update_secret_version_stage),
        (IAMPolicyStatement, "_match", staticmethod(match)),
        (IAMPolicyStatement, "_check_principal", check_principal),
        *(
            (IAMRequest, name, refuse(name, code))
            for name, code in {
                "_raise_access_denied": "AccessDeniedException",
                "_raise_invalid_access_key": "UnrecognizedClientException",
                "_raise_signature_does_not_match": "InvalidSignatureException",
            }.items()
        ),
        (Instance, "terminate", terminate),
        (Subnet, "del_subnet_ip", del_subnet_ip),
        (EC2Backend, "run_instances", run_instances),
        (SecurityGroupRule, "__init__", init_rule),
        (AmiBackend, "_load_amis", load_amis),
        (responses, "parse_user_data", parse_user_data),
        *autoscaling.mend(scaling, folder),
    ):
        setattr(owner, name, mend)


def _seed(url: str, region: str, vpc_cidr: str, subnet_cidr: str) -> Account:
    """The admin, the EC2 service and a network, made before signatures are checked."""
    session = boto3.Session("none", "none", region_name=region)
    iam, ec2 = (session.client(service, endpoint_url=url) for service in ("iam", "ec2"))

    def user(name: str, actions: str | list[str]) -> tuple[str, str]:
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="allow", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    admin = user("admin", "*")
    service = user(EC2, ["ec2:DescribeInstances", "iam:GetInstanceProfile", "sts:AssumeRole"])
    vpc = ec2.create_vpc(CidrBlock=vpc_cidr)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=subnet_cidr, AvailabilityZone=f"{region}a")[
        "Subnet"
    ]["SubnetId"]
    group = ec2.create_security_group(GroupName="api", Description="The API", VpcId=vpc)
    return Account(
        endpoint_url=url,
        region=region,
        access_key_id=admin[0],
        secret_access_key=admin[1],
        service_access_key_id=service[0],
        service_secret_access_key=service[1],
        vpc_id=vpc,
        subnet_id=subnet,
        api_security_group_id=group["GroupId"],
    )


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--region", default="eu-central-1")
    parser.add_argument("--vpc", required=True, help="CIDR of the VPC")
    parser.add_argument("--subnet", required=True, help="CIDR of the private subnet")
    parser.add_argument("--ready", type=Path, required=True, help="written when it answers (JSON)")
    parser.add_argument(
        "--organisation", action="store_true", help="refuse what an organisation's policies do"
    )
    parser.add_argument("--pace", type=float, default=autoscaling.PACE)
    arguments = parser.parse_args()

    started: list[autoscaling.AutoScaling] = []
    _mend(lambda: started[0], arguments.ready.parent)
    from moto import settings
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            """No line per request: a sync every two seconds would fill the log."""

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # moto's own API can switch the checks off and empty the account; nobody is to reach it.
        # On a request without a signature moto fails instead of refusing it.
        signed = environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4-HMAC-SHA256 ")
        if not signed or environ["PATH_INFO"].startswith("/moto-api"):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"the request is not signed\n"]
        strict = arguments.organisation and settings.INITIAL_NO_AUTH_ACTION_COUNT == 0
        if strict and (refused := policies.refusal(environ)):
            start_response("403 Forbidden", [("Content-Type", "text/xml")])
            return [refused]
        answer: Iterable[bytes] = moto(environ, start_response)
        return answer

    # blocked before there are threads, so that they are left to sigwait
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    server = make_server(
        arguments.host, arguments.port, application, threaded=True, request_handler=Quiet
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://{arguments.host}:{server.server_port}"
    account = _seed(url, arguments.region, arguments.vpc, arguments.subnet)
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from here on every request is checked
    started.append(autoscaling.AutoScaling(account.client, arguments.ready.parent, arguments.pace))
    threading.Thread(target=started[0].run, daemon=True).start()
    part = arguments.ready.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_text(json.dumps(asdict(account)))
    part.replace(arguments.ready)  # at once, so that nobody reads half of it
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
