"""The metrics proxy: settings, five components, outputs."""

from pathlib import Path

import pulumi

import components as c
from config import stack
from host import cloud_config, proxy
from monitoring import preview, scrape
from monitoring.dashboard import of_stack

with stack.refusals():
    settings, token = stack.load()
    own_secret, bundle_secret = c.secret_names(settings)
    bundle = proxy.bundle(settings, own_secret)
    place = c.ask(settings, bundle_secret)
    user_data = cloud_config.render(settings, place.region, bundle_secret)
    dashboard = of_stack(settings, Path(__file__).parent)

if dashboard is not None:
    seen = c.Monitoring("monitoring", c.MonitoringArgs(settings=settings, dashboard=dashboard))
    c.before_aws(seen.dashboard)
    pulumi.export("dashboardUrl", seen.dashboard_url)
network = c.ProxyNetwork("network", c.ProxyNetworkArgs(settings=settings, vpc_id=place.vpc_id))
tls = c.Certificates("tls", c.CertificatesArgs(settings=settings, ip_address=network.private_ip))
what = c.ProxySecretsArgs(
    settings=settings, region=place.region, token=token, bundle=bundle, certificates=tls
)
secrets = c.ProxySecrets("secrets", what)
machine = c.ProxyHostArgs(
    settings=settings,
    ami=place.ami,
    user_data=user_data,
    interface_id=network.interface_id,
    instance_profile=secrets.instance_profile,
)
host = c.ProxyHost("proxy", machine)
address = pulumi.Output.concat(network.private_ip, f":{settings.port}")
pulumi.export("proxyUrl", pulumi.Output.concat("https://", address))
pulumi.export("proxyTargets", [{"address": address}])
pulumi.export("privateIp", network.private_ip)
pulumi.export("caCertificate", tls.ca_certificate)
target = pulumi.Output.all(network.private_ip, tls.ca_certificate)
forms = target.apply(lambda it: scrape.forms(settings, *it))
for form in scrape.FORMS:
    pulumi.export(form, forms[form])
pulumi.export("prometheusRules", c.prometheus_rules(settings, dashboard))
for name, text in preview.texts(settings, dashboard).items():
    pulumi.export(name, text)
pulumi.export("proxyConfiguration", bundle["configuration"])
pulumi.export("userData", cloud_config.described(settings, place.region, bundle_secret))
build = cloud_config.build(settings, place.region, bundle_secret)
pulumi.export("declared", {"build": build, "syncLate": settings.sync_late, **secrets.declared})
pulumi.export("tokenSecretArn", secrets.token_secret_arn)
pulumi.export("bundleSecretArn", secrets.bundle_secret_arn)
pulumi.export("securityGroupId", network.security_group_id)
pulumi.export("roleArn", secrets.role_arn)
pulumi.export("instanceId", host.instance_id)
