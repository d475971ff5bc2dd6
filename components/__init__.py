"""The component resources of the program."""

from components.certificates import Certificates, CertificatesArgs
from components.monitoring import Monitoring, MonitoringArgs, before_aws, prometheus_rules
from components.preflight import ask
from components.proxy_host import ProxyHost, ProxyHostArgs
from components.proxy_network import ProxyNetwork, ProxyNetworkArgs
from components.proxy_secrets import ProxySecrets, ProxySecretsArgs, secret_names

__all__ = [
    "Certificates",
    "CertificatesArgs",
    "Monitoring",
    "MonitoringArgs",
    "ProxyHost",
    "ProxyHostArgs",
    "ProxyNetwork",
    "ProxyNetworkArgs",
    "ProxySecrets",
    "ProxySecretsArgs",
    "ask",
    "before_aws",
    "prometheus_rules",
    "secret_names",
]
