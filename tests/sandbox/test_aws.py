"""The embedded AWS: signatures and policies are checked, and it refuses what AWS refuses."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from sandbox import aws

NETWORK: dict[str, Any] = {
    "region": "eu-central-1",
    "vpc_cidr": "127.9.0.0/16",
    "subnet_cidr": "127.9.46.0/24",
}
ARM_AMI = "ami-0aaaaaaaaaaaaaaa1"


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aws.Account]:
    process, account = aws.start(tmp_path_factory.mktemp("aws"), **NETWORK)
    yield account
    process.terminate()
    assert process.wait(10) == 0


def run_instance(account: aws.Account, **options: Any) -> str:
    interface = {"DeviceIndex": 0, "SubnetId": account.subnet_id, "DeleteOnTermination": True}
    request = {"NetworkInterfaces": [interface], "InstanceType": "t4g.micro", **options}
    ec2 = account.client("ec2")
    [made] = ec2.run_instances(ImageId=ARM_AMI, MinCount=1, MaxCount=1, **request)["Instances"]
    return str(made["InstanceId"])


def make_role(account: aws.Account, name: str, service: str, resources: list[str]) -> str:
    """A role of this service that may read these secrets, its profile, and an instance with it."""
    iam = account.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    allow = {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": resources}
    trust_policy, policy = (
        json.dumps({"Version": "2012-10-17", "Statement": [one]}) for one in (trust, allow)
    )
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust_policy)
    iam.put_role_policy(RoleName=name, PolicyName="read", PolicyDocument=policy)
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return run_instance(account, IamInstanceProfile={"Name": name})


def code(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def test_the_role_reads_its_two_secrets_and_nothing_else(account: aws.Account) -> None:
    manager = account.client("secretsmanager")
    arns = {
        name: manager.create_secret(Name=name, SecretString=f"value of {name}")["ARN"]
        for name in ("proxy/token", "proxy/bundle", "proxy/other")
    }
    # one named in full, one with IAM's wildcards for the six random characters
    allowed = [arns["proxy/token"], arns["proxy/bundle"][:-6] + "??????"]
    keys = account.instance_credentials(make_role(account, "reader", aws.EC2, allowed))
    session = boto3.Session(
        keys["AccessKeyId"], keys["SecretAccessKey"], keys["Token"], account.region
    )
    mine = session.client("secretsmanager", endpoint_url=account.endpoint_url)
    for name in ("proxy/token", "proxy/bundle"):
        assert mine.get_secret_value(SecretId=name)["SecretString"] == f"value of {name}"
        assert mine.get_secret_value(SecretId=arns[name])["SecretString"] == f"value of {name}"
    for secret in ("proxy/other", arns["proxy/other"], arns["proxy/other"][:-7], "proxy/nowhere"):
        assert code(mine.get_secret_value, SecretId=secret) == "AccessDeniedException"
    token = {"SecretId": "proxy/token"}
    assert code(mine.list_secrets) == "AccessDeniedException"
    assert code(mine.batch_get_secret_value, SecretIdList=["proxy/token"]) == (
        "AccessDeniedException"
    )
    assert code(mine.put_secret_value, **token, SecretString="x") == "AccessDeniedException"
    assert code(mine.delete_secret, **token) == "AccessDeniedException"
    ec2, iam = (session.client(s, endpoint_url=account.endpoint_url) for s in ("ec2", "iam"))
    assert code(ec2.describe_instances) == "AccessDenied"
    assert code(iam.list_users) == "AccessDenied"


def test_a_withdrawn_policy_works_at_once(account: aws.Account) -> None:
    arn = account.client("secretsmanager").create_secret(Name="proxy/brief", SecretString="x")
    keys = account.instance_credentials(make_role(account, "brief", aws.EC2, [arn["ARN"]]))
    session = boto3.Session(
        keys["AccessKeyId"], keys["SecretAccessKey"], keys["Token"], account.region
    )
    mine = session.client("secretsmanager", endpoint_url=account.endpoint_url)
    assert mine.get_secret_value(SecretId="proxy/brief")["SecretString"] == "x"
    account.client("iam").delete_role_policy(RoleName="brief", PolicyName="read")
    assert code(mine.get_secret_value, SecretId="proxy/brief") == "AccessDeniedException"


def test_only_a_role_that_trusts_ec2_serves_an_instance(account: aws.Account) -> None:
    instance = make_role(account, "function", "lambda.amazonaws.com", ["*"])
    assert code(account.instance_credentials, instance_id=instance) == "AccessDenied"


def test_a_role_of_ec2_is_not_the_admins_to_assume(account: aws.Account) -> None:
    make_role(account, "machine", aws.EC2, ["*"])
    arn = account.client("iam").get_role(RoleName="machine")["Role"]["Arn"]
    assume = account.client("sts").assume_role
    assert code(assume, RoleArn=arn, RoleSessionName="admin") == "AccessDenied"


@pytest.mark.parametrize(
    ("service", "call", "wrong_secret", "unknown_key"),
    [
        (
            *("secretsmanager", "list_secrets"),
            *("InvalidSignatureException", "UnrecognizedClientException"),
        ),
        ("ec2", "describe_vpcs", "AuthFailure", "AuthFailure"),
        ("iam", "list_users", "SignatureDoesNotMatch", "InvalidClientTokenId"),
        ("sts", "get_caller_identity", "SignatureDoesNotMatch", "InvalidClientTokenId"),
    ],
)
def test_a_bad_signature_is_refused(
    account: aws.Account, service: str, call: str, wrong_secret: str, unknown_key: str
) -> None:
    for keys, wanted in (
        ((account.access_key_id, "wrong"), wrong_secret),
        (("AKIANOBODY0000000000", account.secret_access_key), unknown_key),
    ):
        session = boto3.Session(*keys, region_name=account.region)
        client = session.client(service, endpoint_url=account.endpoint_url)
        assert code(getattr(client, call)) == wanted


@pytest.mark.parametrize(
    ("path", "signature"),
    [
        ("/", None),
        ("/", "Basic YTpi"),
        ("/moto-api/reset-auth", None),
        ("/moto-api/reset-auth", "AWS4-HMAC-SHA256 Credential=x/y/z/ec2/aws4_request"),
        ("/moto-api/data.json", "AWS4-HMAC-SHA256 Credential=x/y/z/ec2/aws4_request"),
    ],
)
def test_what_is_not_signed_is_refused(
    account: aws.Account, path: str, signature: str | None
) -> None:
    headers = {"Authorization": signature} if signature else {}
    address = account.endpoint_url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", path, body=b"0", headers=headers)
        assert connection.getresponse().status == 403
    finally:
        connection.close()


def test_a_terminated_instance_lets_go_of_its_interface(account: aws.Account) -> None:
    ec2 = account.client("ec2")
    made = ec2.create_network_interface(SubnetId=account.subnet_id)["NetworkInterface"]
    own = {"DeviceIndex": 0, "NetworkInterfaceId": made["NetworkInterfaceId"]}
    instance = run_instance(account, NetworkInterfaces=[own])

    def interface() -> dict[str, Any]:
        answer = ec2.describe_network_interfaces(NetworkInterfaceIds=[made["NetworkInterfaceId"]])
        return dict(answer["NetworkInterfaces"][0])

    assert interface()["Status"] == "in-use"
    ec2.terminate_instances(InstanceIds=[instance])
    assert interface()["Status"] == "available"
    assert "Attachment" not in interface()
    assert interface()["PrivateIpAddress"] == made["PrivateIpAddress"]


def test_user_data_is_the_machines_also_after_a_change(account: aws.Account) -> None:
    ec2 = account.client("ec2")
    instance = run_instance(account, UserData="#cloud-config\n# ä\n")

    def data() -> str:
        answer = ec2.describe_instance_attribute(InstanceId=instance, Attribute="userData")
        return str(answer["UserData"]["Value"])

    assert data() == "I2Nsb3VkLWNvbmZpZwojIMOkCg=="
    ec2.stop_instances(InstanceIds=[instance])
    ec2.modify_instance_attribute(InstanceId=instance, UserData={"Value": b"#new\n"})
    assert data() == "I25ldwo="


def test_debian_publishes_both_architectures(account: aws.Account) -> None:
    images = account.client("ec2").describe_images(
        Owners=[aws.DEBIAN], Filters=[{"Name": "name", "Values": ["debian-13-arm64-*"]}]
    )["Images"]
    assert {image["Architecture"] for image in images} == {"arm64"}
    everything = account.client("ec2").describe_images()["Images"]
    assert {image["Architecture"] for image in everything} == {"arm64", "x86_64"}
    own = {image["ImageId"] for image in everything if image["OwnerId"] == aws.ACCOUNT}
    assert own == set(aws.BAKED.values())
    assert {image["OwnerId"] for image in everything} == {"136693071363", aws.ACCOUNT}


def test_the_network_is_the_callers(account: aws.Account) -> None:
    ec2 = account.client("ec2")
    [subnet] = ec2.describe_subnets(SubnetIds=[account.subnet_id])["Subnets"]
    [vpc] = ec2.describe_vpcs(VpcIds=[account.vpc_id])["Vpcs"]
    [group] = ec2.describe_security_groups(GroupIds=[account.api_security_group_id])[
        "SecurityGroups"
    ]
    assert (vpc["CidrBlock"], subnet["CidrBlock"]) == ("127.9.0.0/16", "127.9.46.0/24")
    assert subnet["VpcId"] == group["VpcId"] == account.vpc_id
    assert not subnet["MapPublicIpOnLaunch"]


def test_nothing_is_kept_but_how_to_reach_it(tmp_path: Path) -> None:
    process, account = aws.start(tmp_path, **NETWORK)
    try:
        account.client("secretsmanager").create_secret(Name="a", SecretString="canary-1f6e")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["aws.json", "aws.log"]
        assert (tmp_path / "aws.json").stat().st_mode & 0o777 == 0o600
        assert not any("canary-1f6e" in file.read_text() for file in tmp_path.iterdir())
        assert aws.Account.read(tmp_path / "aws.json") == account
    finally:
        process.terminate()
        assert process.wait(10) == 0
    with pytest.raises(EndpointConnectionError):
        account.client("sts").get_caller_identity()


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"InvalidVpc\.Range"):
        aws.start(tmp_path, **{**NETWORK, "vpc_cidr": "127.9.0.0/8"})


def test_the_version_that_becomes_current_is_the_one_that_is_read(account: aws.Account) -> None:
    """As when somebody takes a rotation back."""
    secrets = account.client("secretsmanager")
    made = secrets.create_secret(Name="taken-back", SecretString="good")
    bad = secrets.put_secret_value(SecretId="taken-back", SecretString="bad")["VersionId"]
    moved = {"MoveToVersionId": made["VersionId"], "RemoveFromVersionId": bad}
    secrets.update_secret_version_stage(SecretId=made["ARN"], VersionStage="AWSCURRENT", **moved)
    read = secrets.get_secret_value(SecretId=made["ARN"])
    assert (read["SecretString"], read["VersionId"]) == ("good", made["VersionId"])
