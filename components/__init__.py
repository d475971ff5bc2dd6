"""The component resources of the program."""

from components.certificates import Certificates, CertificatesArgs
from components.monitoring import Monitoring, MonitoringArgs, before_aws, prometheus_rules
from components.preflight import ask
from components.proxy_host import ProxyHostArgs, proxy_host
from components.proxy_network import ProxyNetworkArgs, proxy_network
from components.proxy_secrets import ProxySecrets, ProxySecretsArgs, secret_names

__all__ = [
    "Certificates",
    "CertificatesArgs",
    "Monitoring",
    "MonitoringArgs",
    "ProxyHostArgs",
    "ProxyNetworkArgs",
    "ProxySecrets",
    "ProxySecretsArgs",
    "ask",
    "before_aws",
    "prometheus_rules",
    "proxy_host",
    "proxy_network",
    "secret_names",
]
