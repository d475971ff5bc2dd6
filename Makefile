.PHONY: help setup demo down test check verify generate dashboard previews behaviour picture lock \
	stacks install preview deploy renew drift bench bench-quick
PYTHON := .venv/bin/python
LOCK = $(PYTHON) -m uv pip compile --quiet $(UPGRADE) --generate-hashes --universal --python-version=3.11

# asked for by the targets that work on a stack, and by no other
stack = --stack "$(or $(STACK),$(error which stack? make $@ STACK=dev))"
CERTIFICATES := tls-ca tls-leaf
BUNDLE := secrets-bundle-value

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install and build what demo and test need
	@tools/setup.sh test

demo: ## run the whole system on this machine
	@tools/setup.sh demo
	@$(PYTHON) -m sandbox up --detach

down: ## end the demo and remove its state
	@$(PYTHON) -m sandbox down

# Scrapes are counted at one a second: on a machine of unknown load, fewer tests beside each other.
test: ## run every test
	@tools/setup.sh test
	@$(PYTHON) -m pytest -n $(if $(CI),2,5)

check: ## ruff, mypy, shellcheck, actionlint, zizmor
	@tools/setup.sh test
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@.venv/bin/shellcheck --severity=warning tools/*.sh .ci/run
	@.cache/bin/actionlint -shellcheck .venv/bin/shellcheck
	@.venv/bin/zizmor --offline --quiet .github

verify: ## say whether STACK is in force [WAIT=seconds] [PROMETHEUS_URL=…]
	@$(PYTHON) -m monitoring.verify $(if $(STACK),--stack $(STACK)) $(if $(WAIT),--wait $(WAIT))

dashboard: ## render the program's sections into ops/grafana/dashboard-sba.json
	@$(PYTHON) -m monitoring.dashboard ops/grafana/dashboard-sba.json

generate: dashboard ## render what is committed: dashboard, alerts, what machines get
	@$(PYTHON) -m monitoring.alerts ops/prometheus/rules.yml
	@$(PYTHON) -m host.proxy ops/proxy
	@$(PYTHON) -m host.cloud_config

previews: ## write docs/previews.md, as the engine finds it
	@tools/setup.sh demo
	@$(PYTHON) -m sandbox.previews

behaviour: ## write docs/behaviour.md, as the suite finds it
	@tools/setup.sh test
	@$(PYTHON) -m tests.behaviour.document

picture: ## draw docs/dashboard.png, over six hours of sample values
	@tools/setup.sh test
	@$(PYTHON) -m tests.monitoring.picture docs/dashboard.png

lock: ## pin all of requirements*.in, with hashes, in requirements*.txt
	@$(LOCK) --output-file=requirements.txt requirements.in
	@$(LOCK) --output-file=requirements-dev.txt requirements-dev.in

stacks: ## list the stacks that have a file in config/, as JSON
	@ls config | sed -n 's/^Pulumi\.\([A-Za-z0-9_.-]*\)\.yaml$$/"\1"/p' | paste -sd, - | sed 's/.*/[&]/'

install: ## install what the program needs, and its providers
	@pulumi install

preview: ## say what deploy would change in STACK
	@pulumi preview --diff $(stack)

deploy: ## deploy STACK
	@pulumi up --yes $(stack)

# What the bundle holds beside the certificate comes from the project as it is here, and is deployed
# with somebody's approval: a difference there ends this before anything is renewed.
renew: ## renew the certificates of STACK that are due
	@pulumi preview --expect-no-changes $(stack) --target '**::$(BUNDLE)'
	@pulumi up --yes --skip-preview $(stack) $(patsubst %,--target '**::%',$(CERTIFICATES) $(BUNDLE))

# Certificates are in the state alone: nothing but their renewal can differ.
drift: ## fail if STACK is not as the project says
	@pulumi preview --refresh --expect-no-changes --diff $(stack) \
		$(patsubst %,--exclude '**::%',$(CERTIFICATES))

bench: ## measure it beside its peers, and write docs/benchmarks.md (10 min)
	@tools/setup.sh test
	@$(PYTHON) -m bench

bench-quick: ## the same with fewer rounds (2 min)
	@tools/setup.sh test
	@$(PYTHON) -m bench --quick
