"""docs/previews.md: what `pulumi preview --diff` says in the sandbox, of the example for dev.

`python -m sandbox.previews` writes it: `make previews`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, Final

from config.files import replace
from config.settings import DEFAULT_ENDPOINTS
from sandbox import aws
from sandbox.engine import copied
from sandbox.tools import ROOT

FILE: Final = ROOT / "docs/previews.md"

BILLING: Final = {
    "name": "billing",
    "path": "/metrics/billing",
    "upstream": "http://billing-internal:8080/metrics",
}

CHANGES: Final[dict[str, dict[str, Any]]] = {
    "first": {},
    "second": {},
    "limit": {"workers": {"errorRate": 0.05}},
    "endpoint": {
        "workers": None,
        "endpoints": [*(e.model_dump(exclude={"ca"}) for e in DEFAULT_ENDPOINTS), BILLING],
    },
}
"""What is set before each preview; behind the first one is an `up`."""

_HEAD: Final = """# Previews

For whoever reviews a change. Written by `make previews`; a test runs it again and compares.

This is what `pulumi preview --diff` prints for `config/examples/Pulumi.dev.yaml`, filled in, out of
the real engine and the real program. The provider plugins behind it are the sandbox's stand-ins for
AWS, TLS and Grafana: [sandbox/providers](../sandbox/providers/README.md) lists where the real ones
print more. Left out are the lines `[id=…]` and `[provider=…]` and the digits of ids, hashes, times
and certificates, and resources are in the order of their names; Pulumi has none.

## What to look for

- `proxy-instance: (replace)`: **a new machine**. The old one is ended first, and until the new one
  has booted and installed its packages, every scrape fails and nothing can be looked at; the alert
  SbaProxyDown has `alerts.proxyDown` (5 minutes) until it tells. The output `userData` shows why,
  unless it is `instanceType` or `amiId`: then the line is in the resource. A changed `sha256` in it
  is another `sync.py`, unit or package list, out of this repository. Do it when nobody needs the
  metrics for some minutes.
- `proxy-template: (update)` and with it `proxy-group: (update)`, of a fleet: **new machines**, all
  of them. The new ones come first, after the `up` has ended, and no scrape is lost.
- `secrets-bundle-value: (replace)` or `secrets-token-value: (replace)`: **no loss**. It is a new
  version of the same secret, which the machine fetches within `syncInterval`, tests, and puts back
  when it does not serve. The output `proxyConfiguration` shows what changes in it.
- `tls-leaf` or `tls-ca: (replace)`: a renewal, or another `serverName` or address. After one of
  `tls-ca` Prometheus needs the new `scrapeConfig`.
- `network-interface: (replace)` or a `secret: (replace)`: **another address, or secrets of another
  name**. Every scrape fails until Prometheus has the new `scrapeConfig`. With `protect: true` an
  `up` that would delete an address, a key or a secret is refused; if that is meant, see
  [docs/stacks.md](stacks.md#remove-a-protected-stack).
- `delete-replaced`, `(delete)`: what is deleted, and whether something of the same name comes.
- `scrapeConfig` among the outputs: Prometheus needs it, or it does not scrape what is new.
- `[secret] => [secret]`: a token, key or bundle, which nobody is shown; or user data, dashboard and
  rules, which are only too long. What changes in these three is in the outputs `userData`,
  `dashboard` and `alerts`: each line has the name of its panel or alert.
- A preview of what is there already is empty. If it is not, somebody has changed the program, the
  stack file or, with `--refresh`, what is deployed.
"""

_SECTIONS: Final = {
    "first": """## First deploy

All is created. What only AWS knows is `[unknown]`; of texts, three lines are shown.
""",
    "limit": """## A changed limit

`pulumi config set --path metrics-proxy:workers.errorRate 0.05`: one panel and one alert. Nothing of
AWS.
""",
    "endpoint": """## A new endpoint

A third document, of another host and port: the security group opens the port, and the proxy's
configuration comes as a new version of the bundle. No machine is replaced. Prometheus needs the new
`scrapeConfig`, of which there are three forms.
""",
}


def found(folder: Path) -> dict[str, str]:
    """What the previews of `CHANGES` print; `folder` is for the state."""
    process, account = aws.start(
        folder, region=aws.REGION, vpc_cidr="10.20.0.0/16", subnet_cidr="10.20.1.0/24"
    )
    texts = {}
    try:
        engine = copied(folder, account, "dev")
        engine.set_secret("adminToken", "token-of-the-sandbox")
        for name, values in CHANGES.items():
            engine.configure(values)
            lines: list[str] = []
            engine.preview(lines.append, diff=True)
            texts[name] = stable("\n".join(lines))
            if name == "first":
                engine.up()
    finally:
        process.terminate()
        process.wait(20)
    return texts


def stable(text: str) -> str:
    """A preview without what is different in every run."""
    text = re.sub(r"(?m)^( +\[(id|provider)=|@ ).*\n?", "", text)
    text = re.sub(r"\b(subnet|sg|vpc|ami)-[0-9a-f]{17}\b", r"\1-…", text)
    text = re.sub(r"\"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\"", '"…"', text)  # versions
    text = re.sub(r"\"\d{4}-\d\d-\d\dT[\d:+]+\"", '"…"', text)
    text = re.sub(r"(-----BEGIN CERTIFICATE-----\\n)[^\"]*", r"\1…", text)
    text = re.sub(r"\b[0-9a-f]{64}\b|(?<=-)[0-9a-f]{7}(?=\")", "…", text)  # also of names
    head, *blocks = re.split(r"(?m)^(?= {4,}[-+~]{1,2} ?[^\s:]+:\S+: \([\w-]+\)$)", text)
    *blocks, last = blocks or [""]
    last, tail, rest = last.partition("    --outputs:--\n")
    if not tail:
        last, tail, rest = last.partition("Resources:\n")
    # components before what is in them
    blocks = sorted([*blocks, last], key=lambda one: one.partition("[urn=")[2].replace("$", "~"))
    return (head + "".join(blocks) + tail + rest).strip("\n")


def page(texts: dict[str, str]) -> str:
    """The document."""
    parts = [f"{said}\n```text\n{texts[name]}\n```\n" for name, said in _SECTIONS.items()]
    return "\n".join([_HEAD, *parts])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        replace(FILE, page(found(Path(folder))))


if __name__ == "__main__":
    main()
