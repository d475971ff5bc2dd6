"""What the program relies on in AWS, asked before anything is touched."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_aws as aws

from config.settings import RULES_MAX, Peer, Settings, SettingsError, one_line

DEBIAN: Final = "136693071363"
"""Debian's AWS account (wiki.debian.org/Cloud/AmazonEC2Image)."""

_ARCHITECTURES: Final = {"arm64": "arm64", "x86_64": "amd64"}
"""AWS' name of an architecture → Debian's."""

_GONE: Final = re.compile("couldn't find|NotFound")
"""How the provider says that AWS does not have something."""


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A subnet that machines are to be in."""

    id: str
    zone: str
    cidr: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the machines are to be, and the image that they are made of."""

    region: str
    vpc_id: str
    subnets: Sequence[Subnet]
    """One, or one in each of a fleet's zones."""
    ami: str
    root_device: str
    """The image's name of the device that it starts from."""
    default_tags: Mapping[str, str]
    """The provider's, which it puts on all that it makes itself. Asked for a fleet only, whose
    machines it does not make."""

    @property
    def fleet(self) -> Sequence[Subnet]:
        """The subnets of a fleet; none for one machine."""
        return self.subnets if len(self.subnets) > 1 else ()


def ask(settings: Settings, bundle_secret: str) -> Place:
    """Ask AWS about all that the settings name, and about the `bundle_secret` of the last `up`.

    Raises `SettingsError` for the first thing that would end an `up` half-way, some of it when the
    old machine is gone already; also when AWS gives no answer.
    """
    try:
        region = aws.get_region().region
        settings.check_region(region)
        aws.get_caller_identity()
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"aws: set aws:region and log in (AWS_PROFILE, ...): {_words(error)}"
        ) from None
    if settings.token_secret is not None:
        with _about("adminTokenSecretArn", settings.token_secret):
            _check_secret(settings)
    _check_key(settings, bundle_secret)
    subnets = _subnets(settings)
    vpc_id = subnets[0].vpc_id
    with _about("instanceType", settings.instance_type):
        runs = _architectures(settings.instance_type)
        for subnet in subnets:
            _check_offered(settings.instance_type, subnet.availability_zone)
    if settings.ami_id is None:
        hint = " (where an account allows some images only, name one of them)"
        with _about("amiId", "the newest image of Debian 13", hint):
            image = newest_debian(runs)
    else:
        with _about("amiId", settings.ami_id):
            image = _named_image(settings.ami_id, settings.instance_type, runs)
    for key, group in (
        ("apiSecurityGroupId", settings.api_security_group_id),
        ("prometheusSecurityGroupId", settings.prometheus_security_group_id),
    ):
        if group is not None:
            with _about(key, group):
                vpc = aws.ec2.get_security_group(id=group).vpc_id
                if vpc != vpc_id:
                    raise ValueError(f"is in {vpc}, and the subnet in {vpc_id}")
    _check_prefix_lists("prometheusPrefixListIds", settings.prometheus)
    _check_prefix_lists("httpsPrefixListIds", settings.https)
    if settings.private_ip is not None:
        with _about("privateIp", settings.private_ip):
            _check_address(settings, settings.private_ip, subnets[0])
    with _about("protect", str(settings.protect).lower()):
        _check_kept(settings)
    return Place(
        region=region,
        vpc_id=vpc_id,
        subnets=[
            Subnet(id=one.id, zone=one.availability_zone, cidr=one.cidr_block) for one in subnets
        ],
        ami=image.id,
        root_device=image.root_device_name,
        default_tags=aws.get_default_tags().tags if settings.subnet_ids else {},
    )


def _words(error: Exception) -> str:
    """What a provider says, in one line and without the names of who passed it on."""
    said = " ".join(str(error).split())
    return re.sub(
        r"^((invoke of|invocation of|invoking) \S+ (failed: |returned an error: )?)+", "", said
    )


@contextmanager
def _about(key: str, value: str, hint: str = "") -> Iterator[None]:
    """Say what goes wrong in here in one line; a `ValueError` is of our own."""
    try:
        yield
    except ValueError as error:
        raise SettingsError(one_line(key, value, str(error))) from None
    except Exception as error:
        raise SettingsError(one_line(key, value, f"is not found{hint}: {_words(error)}")) from None


def _check_secret(settings: Settings) -> None:
    """A name that ends like `-secret` looks like a whole ARN, but the role's policy needs that."""
    try:
        found = aws.secretsmanager.get_secret(arn=settings.token_secret)
    except Exception as error:
        if "AccessDenied" in str(error):
            return  # it is somebody else's: the machine has to read it, not who deploys
        raise
    if found.arn != settings.token_secret:
        raise ValueError(f"is only a part of an ARN, which is {found.arn}")
    # an alias does not tell which key it is
    unnamed = settings.admin_token_kms_key_arn is None
    if unnamed and found.kms_key_id and not _names(found.kms_key_id, settings.kms_key_arn):
        raise ValueError(f"is encrypted with {found.kms_key_id}: set adminTokenKmsKeyArn")


def _check_key(settings: Settings, bundle_secret: str) -> None:
    """AWS keeps a secret's key when none is named, and old versions may stay under an old one."""
    key = settings.kms_key_arn
    with _about("kmsKeyArn", key or "(none)"):
        try:
            found = aws.secretsmanager.get_secret(name=bundle_secret).kms_key_id
        except Exception as error:
            if _GONE.search(str(error)):
                return  # the first `up`
            raise
        if found and key is None:
            raise ValueError(f"leaves the secrets under {found}: AWS keeps a key; name one")
        if found and not _names(found, key, settings.previous_kms_key_arn):
            raise ValueError(f"leaves what is under {found} unread: set previousKmsKeyArn to it")


def _names(key: str, *arns: str | None) -> bool:
    """Whether one of the ARNs is this key's; AWS may tell its id alone."""
    return key.rpartition("/")[2] in [arn.rpartition("/")[2] for arn in arns if arn]


def _check_prefix_lists(key: str, peers: Iterable[Peer]) -> None:
    """AWS counts a list as the entries that it may have."""
    rules = 0
    for kind, value in peers:
        rules += 1
        if kind == "prefix_list_id":
            with _about(key, value):
                found = aws.ec2.get_managed_prefix_list(id=value)
                if found.address_family != "IPv4":
                    raise ValueError(f"is of {found.address_family}")
                rules += (found.max_entries or 1) - 1
                if rules > RULES_MAX:
                    raise ValueError(f"has {found.max_entries} entries, and a group {RULES_MAX}")


def _subnets(settings: Settings) -> list[aws.ec2.GetSubnetResult]:
    """The subnets of the settings, of one VPC and each in a zone of its own."""
    found: list[aws.ec2.GetSubnetResult] = []
    for value in settings.subnets:
        with _about("subnetIds" if settings.subnet_ids else "subnetId", value):
            subnet = aws.ec2.get_subnet(id=value)
            if _is_public(subnet):
                raise ValueError("is a public subnet, in which the machine has no route out")
            for other in found:
                if subnet.vpc_id != other.vpc_id:
                    raise ValueError(f"is in {subnet.vpc_id}, and {other.id} in {other.vpc_id}")
                if subnet.availability_zone == other.availability_zone:
                    raise ValueError(f"is in {subnet.availability_zone}, as {other.id} is")
            found.append(subnet)
    return found


def _is_public(subnet: aws.ec2.GetSubnetResult) -> bool:
    """Whether its default route goes to an internet gateway. An interface of our own gets no public
    address, so nothing would come back from there."""
    # the subnet's own table, else the main one of the VPC
    for name, value in (("association.subnet-id", subnet.id), ("association.main", "true")):
        filters = [aws.ec2.GetRouteTablesFilterArgs(name=name, values=[value])]
        if ids := aws.ec2.get_route_tables(vpc_id=subnet.vpc_id, filters=filters).ids:
            routes = aws.ec2.get_route_table(route_table_id=ids[0]).routes
            return any(
                route.cidr_block == "0.0.0.0/0" and route.gateway_id.startswith("igw-")
                for route in routes
            )
    return False


def _architectures(instance_type: str) -> list[str]:
    """What code a type runs that Debian has an image for, the one to prefer first."""
    supported = aws.ec2.get_instance_type(instance_type=instance_type).supported_architectures
    if not (runs := [name for name in supported if name in _ARCHITECTURES]):
        raise ValueError(
            f"is {', '.join(supported)}; Debian 13 needs {' or '.join(_ARCHITECTURES)}"
        )
    return runs


def _check_offered(instance_type: str, zone: str) -> None:
    filters = [
        aws.ec2.GetInstanceTypeOfferingsFilterArgs(name="instance-type", values=[instance_type]),
        aws.ec2.GetInstanceTypeOfferingsFilterArgs(name="location", values=[zone]),
    ]
    offered = aws.ec2.get_instance_type_offerings(
        location_type="availability-zone", filters=filters
    ).instance_types
    if instance_type not in offered:
        raise ValueError(f"is not offered in {zone}, where the subnet is")


def newest_debian(architectures: list[str]) -> aws.ec2.GetAmiResult:
    """The newest release of Debian 13, of the first of these architectures."""
    wanted = architectures[0]
    # releases have a date there; dailies and builds of developers have a word
    filters = {"name": f"debian-13-{_ARCHITECTURES[wanted]}-20*", "architecture": wanted}
    return aws.ec2.get_ami(
        owners=[DEBIAN],
        most_recent=True,
        filters=[
            aws.ec2.GetAmiFilterArgs(name=name, values=[value]) for name, value in filters.items()
        ],
    )


def _named_image(ami: str, instance_type: str, runs: list[str]) -> aws.ec2.GetAmiResult:
    filters = [aws.ec2.GetAmiFilterArgs(name="image-id", values=[ami])]
    image = aws.ec2.get_ami(filters=filters, include_deprecated=True)
    if image.architecture not in runs:
        raise ValueError(f"is {image.architecture}, and {instance_type} is {', '.join(runs)}")
    return image


def _interfaces(**filters: str) -> Sequence[str]:
    return aws.ec2.get_network_interfaces(
        filters=[
            aws.ec2.GetNetworkInterfacesFilterArgs(name=name, values=[value])
            for name, value in filters.items()
        ]
    ).ids


def _interface(one: str) -> aws.ec2.GetNetworkInterfaceResult | None:
    """None for one that has gone since: a fleet's machines come and go by themselves."""
    try:
        return aws.ec2.get_network_interface(id=one)
    except Exception as error:
        if _GONE.search(str(error)):
            return None
        raise


def _own(settings: Settings) -> Sequence[str]:
    """The interfaces of this stack's earlier runs."""
    return _interfaces(**{f"tag:{key}": value for key, value in settings.tags.items()})


def _check_address(settings: Settings, address: str, subnet: aws.ec2.GetSubnetResult) -> None:
    network = ipaddress.IPv4Network(subnet.cidr_block)
    if ipaddress.IPv4Address(address) not in network:
        raise ValueError(f"is not in the subnet, which is {network}")
    if address in map(str, (*(network[n] for n in range(4)), network[-1])):
        raise ValueError(f"is one of the five addresses of {network} that AWS keeps for itself")
    taken = _interfaces(**{"subnet-id": subnet.id, "addresses.private-ip-address": address})
    if others := set(taken) - set(_own(settings)):
        raise ValueError(f"is taken, by {others.pop()}")


def _check_kept(settings: Settings) -> None:
    """Say what another address costs. Pulumi protects what was protected before this run: without
    the refusal it would replace the interface or the load balancer."""
    kept = [it for one in _own(settings) if (it := _interface(one)) is not None]
    # a fleet's have a machine's tags, and are where its load balancer is
    made = [one for one in kept if settings.machine_tags.items() <= one.tags.items()]
    fleet = {one.subnet_id for one in made}
    single = [one for one in kept if one not in made]
    if settings.subnet_ids:
        stays = bool(fleet) and fleet <= set(settings.subnet_ids)
    else:
        stays = any(
            one.subnet_id == settings.subnet_id and settings.private_ip in (None, one.private_ip)
            for one in single
        )
    if stays or not kept:
        return
    if fleet:
        old, keys = f"the load balancer in {' and '.join(sorted(fleet))}", "subnetIds"
    else:
        old = f"the interface with {single[0].private_ip} in {single[0].subnet_id}"
        keys = "subnetId and privateIp"
    if settings.protect:
        raise ValueError(f"keeps {old}: set {keys} back, or protect to false")
    pulumi.log.warn(
        f"{old} is replaced: every scrape fails until Prometheus has the new scrapeConfig"
    )
