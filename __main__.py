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
    place = c.ask(settings, bundle_secret)
    bundle = proxy.bundle(settings, own_secret, [subnet.cidr for subnet in place.fleet])
    machine = (settings, place.region, bundle_secret, place.default_tags)
    user_data = cloud_config.render(*machine)
    dashboard = of_stack(settings, Path(__file__).parent)

if dashboard is not None:
    seen = c.Monitoring("monitoring", c.MonitoringArgs(settings=settings, dashboard=dashboard))
    c.before_aws(seen.dashboard)
    pulumi.export("dashboardUrl", seen.dashboard_url)
network = c.proxy_network("network", c.ProxyNetworkArgs(settings=settings, place=place))
tls = c.Certificates("tls", c.CertificatesArgs(settings=settings, network=network))
secrets = c.ProxySecrets(
    "secrets",
    c.ProxySecretsArgs(
        settings=settings, region=place.region, token=token, bundle=bundle, certificates=tls
    ),
)
host = c.proxy_host(
    "proxy",
    c.ProxyHostArgs(
        settings=settings, place=place, user_data=user_data, profile=secrets.instance_profile
    ),
    network,
)
pulumi.export("proxyUrl", pulumi.Output.concat("https://", network.address, f":{settings.port}"))
pulumi.export("caCertificate", tls.ca_certificate)
where = pulumi.Output.all(network.address, network.zones, tls.ca_certificate)
pulumi.export("proxyTargets", where.apply(lambda it: scrape.targets(settings, *it[:2])))
forms = where.apply(lambda it: scrape.forms(settings, *it))
texts = {form: forms[form] for form in scrape.FORMS}
for name, value in {**network.exports, **host.exports, **texts}.items():
    pulumi.export(name, value)
pulumi.export("prometheusRules", c.prometheus_rules(settings, dashboard))
for name, text in preview.texts(settings, dashboard).items():
    pulumi.export(name, text)
pulumi.export("proxyConfiguration", bundle["configuration"])
pulumi.export("userData", cloud_config.described(*machine))
build = cloud_config.build(*machine)
pulumi.export("declared", {"build": build, "syncLate": settings.sync_late, **secrets.declared})
pulumi.export("tokenSecretArn", secrets.token_secret_arn)
pulumi.export("bundleSecretArn", secrets.bundle_secret_arn)
pulumi.export("securityGroupId", network.security_group_id)
pulumi.export("roleArn", secrets.role_arn)
