"""A stand-in for `pulumi-resource-tls`: real keys and certificates, kept in the state alone.

Follows terraform-provider-tls: every input but `earlyRenewalHours` replaces, and a certificate
inside its early-renewal window is replaced by any `up`.
"""

import base64
import hashlib
import ipaddress
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers import base
from sandbox.providers.base import Existing, Kind, Problems, UserError, Values, known

CURVES: dict[str, type[ec.EllipticCurve]] = {
    "P224": ec.SECP224R1,
    "P256": ec.SECP256R1,
    "P384": ec.SECP384R1,
    "P521": ec.SECP521R1,
}
KEY_USAGES = (  # in the order of x509.KeyUsage
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "cert_signing", "crl_signing", "encipher_only", "decipher_only"),
)
EXTENDED = {
    "any_extended": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    "server_auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client_auth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "code_signing": ExtendedKeyUsageOID.CODE_SIGNING,
    "email_protection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "timestamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "ocsp_signing": ExtendedKeyUsageOID.OCSP_SIGNING,
}
SUBJECT = {
    "commonName": NameOID.COMMON_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizationalUnit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "province": NameOID.STATE_OR_PROVINCE_NAME,
    "country": NameOID.COUNTRY_NAME,
    "postalCode": NameOID.POSTAL_CODE,
    "serialNumber": NameOID.SERIAL_NUMBER,
}


def now() -> datetime:
    """The time; $SANDBOX_TLS_NOW (ISO 8601) lets a rehearsal look into the future."""
    told = os.environ.get("SANDBOX_TLS_NOW")
    return datetime.fromisoformat(told) if told else datetime.now(UTC)


def load_key(pem: str) -> Any:
    """A private key from its PEM."""
    try:
        return serialization.load_pem_private_key(pem.encode(), None)
    except ValueError:
        raise UserError("the private key is no PEM that can be read") from None


def algorithm(key: Any) -> str:
    """A key's algorithm as Terraform calls it."""
    for cls, name in ((rsa.RSAPrivateKey, "RSA"), (ec.EllipticCurvePrivateKey, "ECDSA")):
        if isinstance(key, cls):
            return name
    return "ED25519"


def signature_hash(key: Any) -> hashes.SHA256 | None:
    """Ed25519 hashes by itself."""
    return None if algorithm(key) == "ED25519" else hashes.SHA256()


def to_name(subject: Values | None) -> x509.Name:
    """The distinguished name of a subject."""
    subject = subject or {}
    return x509.Name(
        [x509.NameAttribute(oid, subject[key]) for key, oid in SUBJECT.items() if key in subject]
    )


def to_alternatives(inputs: Values) -> x509.SubjectAlternativeName | None:
    """The subject alternative names, if there are any."""
    names: list[x509.GeneralName] = [x509.DNSName(one) for one in inputs.get("dnsNames", [])]
    names += [
        x509.IPAddress(ipaddress.ip_address(address)) for address in inputs.get("ipAddresses", [])
    ]
    names += [x509.UniformResourceIdentifier(uri) for uri in inputs.get("uris", [])]
    return x509.SubjectAlternativeName(names) if names else None


def check_names(inputs: Values) -> Problems:
    """Addresses are addresses, names are names, and a subject is made of what is modelled."""
    for index, address in enumerate(inputs.get("ipAddresses", [])):
        try:
            if address != UNKNOWN:
                ipaddress.ip_address(address)
        except ValueError:
            yield f"ipAddresses[{index}]", f"{address!r} is no IP address"
    for index, name in enumerate(inputs.get("dnsNames", [])):
        if name != UNKNOWN and (not name.isascii() or set(name) & set("/: ")):
            yield f"dnsNames[{index}]", f"{name!r} is no DNS name"
    for key in sorted((inputs.get("subject") or {}).keys() - SUBJECT.keys()):
        yield f"subject.{key}", "is not modelled by the sandbox"


class _InState(Kind):
    """What exists nowhere but in the state."""

    def read(self, it: Existing) -> Values:
        return it.state

    def update(self, it: Existing) -> Values:
        return it.inputs

    def delete(self, it: Existing) -> None:
        """Nothing is left of it once it is out of the state."""


class PrivateKey(_InState):
    """tls.PrivateKey."""

    type = "tls:index/privateKey:PrivateKey"
    replaces = frozenset({"algorithm", "ecdsaCurve", "rsaBits"})
    secret = frozenset({"privateKeyPem", "privateKeyPemPkcs8", "privateKeyOpenssh"})
    computed = secret | {"publicKeyPem", "publicKeyOpenssh", "publicKeyFingerprintSha256"}
    computed |= {"publicKeyFingerprintMd5"}
    defaults: ClassVar[Values] = {"ecdsaCurve": "P224", "rsaBits": 2048}

    def check(self, inputs: Values) -> Problems:
        if inputs["algorithm"] not in ("RSA", "ECDSA", "ED25519", UNKNOWN):
            yield "algorithm", "must be RSA, ECDSA or ED25519"
        if inputs["ecdsaCurve"] not in (*CURVES, UNKNOWN):
            yield "ecdsaCurve", f"must be one of {', '.join(CURVES)}"

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Generate it; the id is the hash of the public key."""
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
        if inputs["algorithm"] == "RSA":
            key = rsa.generate_private_key(65537, inputs["rsaBits"])
        elif inputs["algorithm"] == "ECDSA":
            key = ec.generate_private_key(CURVES[inputs["ecdsaCurve"]]())
        else:
            key = ed25519.Ed25519PrivateKey.generate()

        def private(layout: serialization.PrivateFormat) -> str:
            encoding = serialization.Encoding.PEM
            return key.private_bytes(encoding, layout, serialization.NoEncryption()).decode()

        public = key.public_key().public_bytes
        info = serialization.PublicFormat.SubjectPublicKeyInfo

        pkcs8 = private(serialization.PrivateFormat.PKCS8)
        der = public(serialization.Encoding.DER, info)
        outputs = {
            "privateKeyPem": pkcs8,
            "privateKeyPemPkcs8": pkcs8,
            "publicKeyPem": public(serialization.Encoding.PEM, info).decode(),
            "privateKeyOpenssh": "",
            "publicKeyOpenssh": "",
            "publicKeyFingerprintMd5": "",
            "publicKeyFingerprintSha256": "",
        }
        if inputs["algorithm"] != "ED25519":
            outputs["privateKeyPem"] = private(serialization.PrivateFormat.TraditionalOpenSSL)
        if (inputs["algorithm"], inputs["ecdsaCurve"]) != ("ECDSA", "P224"):  # OpenSSH has none
            line = public(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            blob = base64.b64decode(line.split()[1])
            md5 = hashlib.md5(blob, usedforsecurity=False).hexdigest()
            sha = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
            outputs["privateKeyOpenssh"] = private(serialization.PrivateFormat.OpenSSH)
            outputs["publicKeyOpenssh"] = f"{line.decode()}\n"
            outputs["publicKeyFingerprintMd5"] = ":".join(md5[i : i + 2] for i in range(0, 32, 2))
            outputs["publicKeyFingerprintSha256"] = f"SHA256:{sha}"
        return hashlib.sha1(der, usedforsecurity=False).hexdigest(), outputs


class CertRequest(_InState):
    """tls.CertRequest."""

    type = "tls:index/certRequest:CertRequest"
    replaces = frozenset({"dnsNames", "ipAddresses", "privateKeyPem", "subject", "uris"})
    computed = frozenset({"certRequestPem", "keyAlgorithm"})

    def check(self, inputs: Values) -> Problems:
        if inputs.get("privateKeyPem") is None:
            yield "privateKeyPem", "is required"
        yield from check_names(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Sign it."""
        key = load_key(inputs["privateKeyPem"])
        builder = x509.CertificateSigningRequestBuilder().subject_name(
            to_name(inputs.get("subject"))
        )
        if (alternatives := to_alternatives(inputs)) is not None:
            builder = builder.add_extension(alternatives, critical=False)
        pem = builder.sign(key, signature_hash(key)).public_bytes(serialization.Encoding.PEM)
        outputs = {"certRequestPem": pem.decode(), "keyAlgorithm": algorithm(key)}
        return hashlib.sha1(pem, usedforsecurity=False).hexdigest(), outputs


class _Certificate(_InState):
    updates = frozenset({"earlyRenewalHours"})
    computed = frozenset({"certPem", "validityStartTime", "validityEndTime"})
    defaults: ClassVar[Values] = {
        "earlyRenewalHours": 0,
        "isCaCertificate": False,
        "setSubjectKeyId": False,
    }

    def check(self, inputs: Values) -> Problems:
        for key in ("validityPeriodHours", "earlyRenewalHours"):
            if inputs[key] != UNKNOWN and inputs[key] < 0:
                yield key, "must not be negative"
        for index, use in enumerate(inputs["allowedUses"]):
            if use not in (*KEY_USAGES, *EXTENDED, UNKNOWN):
                yield f"allowedUses[{index}]", f"{use!r} is no use that the sandbox knows"
        yield from check_names(inputs)

    def ready(self, values: Values) -> bool:
        """Whether the certificate is inside its early-renewal window, or past its end."""
        end = datetime.fromisoformat(values["validityEndTime"])
        return now() >= end - timedelta(hours=values["earlyRenewalHours"])

    def forces(self, state: Values, inputs: Values) -> set[str]:
        """A certificate that is ready for renewal is replaced by whatever `up` comes next."""
        early = inputs["earlyRenewalHours"]
        ready = known(early) and self.ready({**state, "earlyRenewalHours": early})
        return {"readyForRenewal"} if ready else set()

    def read(self, it: Existing) -> Values:
        """Only time changes a certificate."""
        return {**it.state, "readyForRenewal": self.ready(it.state)}

    def issue(
        self,
        inputs: Values,
        request: x509.CertificateSigningRequest,
        authority: x509.Certificate | None,
        key: CertificateIssuerPrivateKeyTypes,
    ) -> tuple[str, Values]:
        """The certificate for a request, signed by `key`."""
        start = now().replace(microsecond=0)
        end = start + timedelta(hours=inputs["validityPeriodHours"])
        ca = inputs["isCaCertificate"]
        if ca and not request.subject:
            raise UserError("subject: a CA needs at least one name")
        builder = x509.CertificateBuilder(
            issuer_name=authority.subject if authority else request.subject,
            subject_name=request.subject,
            public_key=request.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=start,
            not_valid_after=end,
        )
        for extension, critical in self._extensions(inputs, request, authority, ca):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(key, signature_hash(key))
        return str(certificate.serial_number), {
            "certPem": certificate.public_bytes(serialization.Encoding.PEM).decode(),
            "readyForRenewal": False,
            "validityStartTime": start.isoformat(),
            "validityEndTime": end.isoformat(),
        }

    @staticmethod
    def _extensions(
        inputs: Values,
        request: x509.CertificateSigningRequest,
        authority: x509.Certificate | None,
        ca: bool,
    ) -> Iterator[tuple[x509.ExtensionType, bool]]:
        uses, length = inputs["allowedUses"], inputs.get("maxPathLength", -1)
        yield x509.BasicConstraints(ca, length if ca and length >= 0 else None), True
        if any(use in KEY_USAGES for use in uses):
            yield x509.KeyUsage(*(use in uses for use in KEY_USAGES)), True
        if extended := [EXTENDED[use] for use in uses if use in EXTENDED]:
            yield x509.ExtendedKeyUsage(extended), False
        own = x509.SubjectKeyIdentifier.from_public_key(request.public_key())
        if ca or inputs["setSubjectKeyId"]:
            yield own, False
        if authority is None:
            if inputs["setAuthorityKeyId"]:
                yield x509.AuthorityKeyIdentifier(own.digest, None, None), False
        elif identifier := extension_of(authority, x509.SubjectKeyIdentifier):
            yield x509.AuthorityKeyIdentifier(identifier.digest, None, None), False
        if (alternatives := extension_of(request, x509.SubjectAlternativeName)) is not None:
            yield alternatives, False


def extension_of(holder: Any, kind: Any) -> Any:
    """An extension of a certificate or request, or None."""
    try:
        return holder.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


class SelfSignedCert(_Certificate):
    """tls.SelfSignedCert."""

    type = "tls:index/selfSignedCert:SelfSignedCert"
    replaces = frozenset(
        {"allowedUses", "dnsNames", "ipAddresses", "isCaCertificate", "maxPathLength"}
        | {"privateKeyPem", "setAuthorityKeyId", "setSubjectKeyId", "subject", "uris"}
        | {"validityPeriodHours"}
    )
    computed = _Certificate.computed | {"keyAlgorithm"}
    defaults: ClassVar[Values] = {**_Certificate.defaults, "setAuthorityKeyId": False}

    def check(self, inputs: Values) -> Problems:
        if inputs.get("privateKeyPem") is None:
            yield "privateKeyPem", "is required"
        yield from super().check(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """A request of its own, signed by its own key."""
        key = load_key(inputs["privateKeyPem"])
        _, made = CertRequest().create(inputs)
        request = x509.load_pem_x509_csr(made["certRequestPem"].encode())
        number, outputs = self.issue(inputs, request, None, key)
        return number, {**outputs, "keyAlgorithm": algorithm(key)}


class LocallySignedCert(_Certificate):
    """tls.LocallySignedCert."""

    type = "tls:index/locallySignedCert:LocallySignedCert"
    replaces = frozenset(
        {"allowedUses", "caCertPem", "caPrivateKeyPem", "certRequestPem", "isCaCertificate"}
        | {"maxPathLength", "setSubjectKeyId", "validityPeriodHours"}
    )
    computed = _Certificate.computed | {"caKeyAlgorithm"}

    def check(self, inputs: Values) -> Problems:
        if inputs.get("caPrivateKeyPem") is None:
            yield "caPrivateKeyPem", "is required"
        yield from super().check(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Signed by the CA; names come from the request alone."""
        key = load_key(inputs["caPrivateKeyPem"])
        try:
            request = x509.load_pem_x509_csr(inputs["certRequestPem"].encode())
            authority = x509.load_pem_x509_certificate(inputs["caCertPem"].encode())
        except ValueError:
            raise UserError("certRequestPem or caCertPem is no PEM that can be read") from None
        if authority.public_key() != key.public_key():
            raise UserError("caPrivateKeyPem is not the key of caCertPem")
        number, outputs = self.issue(inputs, request, authority, key)
        return number, {**outputs, "caKeyAlgorithm": algorithm(key)}


class Tls(base.Provider):
    """The provider; it has nothing to configure."""

    package = "tls"

    def __init__(self) -> None:
        super().__init__()
        kinds: list[Kind] = [PrivateKey(), CertRequest(), SelfSignedCert(), LocallySignedCert()]
        self.kinds = {kind.type: kind for kind in kinds}


if __name__ == "__main__":
    base.main(Tls())
