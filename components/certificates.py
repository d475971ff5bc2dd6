"""A private CA and the proxy's certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_tls as tls

from config.settings import Settings

LEAF_DAYS: Final = 365
LEAF_RENEWAL_DAYS: Final = 90
"""Any `pulumi up` in the leaf's last 90 days renews it: with a weekly run, twelve chances."""

CA_DAYS: Final = 5 * 365
CA_RENEWAL_DAYS: Final = LEAF_DAYS
"""The CA is renewed a leaf's life before its end, so that no leaf outlives it."""


@dataclass(frozen=True, kw_only=True)
class CertificatesArgs:
    settings: Settings
    """`server_name` is what Prometheus verifies; `protect` guards the keys. Certificates are never
    protected: they could not renew."""
    ip_address: pulumi.Input[str]
    """The proxy's private address, for clients that verify the address."""


class Certificates(pulumi.ComponentResource):
    """ECDSA P-256 throughout. Keys stay when certificates are renewed."""

    ca_certificate: pulumi.Output[str]
    """PEM; what clients trust."""
    certificate: pulumi.Output[str]
    """PEM; what the proxy shows."""
    key: pulumi.Output[str]
    """PEM, secret; the key of `certificate`."""
    end: pulumi.Output[str]
    """When `certificate` ends, as RFC 3339 has it."""

    def __init__(
        self, name: str, args: CertificatesArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:Certificates", name, None, opts)
        settings = args.settings
        child = pulumi.ResourceOptions(parent=self)
        kept = pulumi.ResourceOptions(parent=self, protect=settings.protect)

        ca_key = tls.PrivateKey(f"{name}-ca-key", algorithm="ECDSA", ecdsa_curve="P256", opts=kept)
        ca = tls.SelfSignedCert(
            f"{name}-ca",
            private_key_pem=ca_key.private_key_pem,
            subject=tls.SelfSignedCertSubjectArgs(common_name=f"metrics-proxy {settings.stack} CA"),
            is_ca_certificate=True,
            set_subject_key_id=True,
            allowed_uses=["cert_signing", "crl_signing"],
            validity_period_hours=CA_DAYS * 24,
            early_renewal_hours=CA_RENEWAL_DAYS * 24,
            opts=child,
        )
        key = tls.PrivateKey(f"{name}-key", algorithm="ECDSA", ecdsa_curve="P256", opts=kept)
        request = tls.CertRequest(
            f"{name}-request",
            private_key_pem=key.private_key_pem,
            subject=tls.CertRequestSubjectArgs(common_name=settings.server_name),
            dns_names=[settings.server_name],
            ip_addresses=[args.ip_address],
            opts=child,
        )
        leaf = tls.LocallySignedCert(
            f"{name}-leaf",
            cert_request_pem=request.cert_request_pem,
            ca_private_key_pem=ca_key.private_key_pem,
            ca_cert_pem=ca.cert_pem,
            allowed_uses=["digital_signature", "server_auth"],
            validity_period_hours=LEAF_DAYS * 24,
            early_renewal_hours=LEAF_RENEWAL_DAYS * 24,
            opts=child,
        )
        self.ca_certificate = ca.cert_pem
        self.certificate, self.end = leaf.cert_pem, leaf.validity_end_time
        # the provider marks it secret; said again, because nothing here may depend on that
        self.key = pulumi.Output.secret(key.private_key_pem)
        self.register_outputs(
            {
                "ca_certificate": self.ca_certificate,
                "certificate": self.certificate,
                "key": self.key,
                "end": self.end,
            }
        )
