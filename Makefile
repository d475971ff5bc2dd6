.PHONY: help setup demo down test check generate dashboard behaviour bench bench-quick
PYTHON := .venv/bin/python

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install and build what demo and test need
	@tools/setup.sh test

demo: ## run the whole system on this machine
	@tools/setup.sh demo
	@$(PYTHON) -m sandbox up --detach

down: ## end the demo and remove its state
	@$(PYTHON) -m sandbox down

# Scrapes are counted at one a second: on a machine of unknown load, one test at a time.
test: ## run every test
	@tools/setup.sh test
	@$(PYTHON) -m pytest $(if $(CI),,-n 5)

check: ## ruff and mypy
	@tools/setup.sh test
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

dashboard: ## render the program's sections into ops/grafana/dashboard-sba.json, with default limits
	@$(PYTHON) -m monitoring.dashboard ops/grafana/dashboard-sba.json

generate: dashboard ## render what is committed in ops/: the dashboard, the alerts, the proxy configurations
	@$(PYTHON) -m monitoring.alerts ops/prometheus/rules.yml
	@$(PYTHON) -m host.proxy ops/proxy

behaviour: ## write docs/behaviour.md, as the suite finds it
	@tools/setup.sh test
	@$(PYTHON) -m tests.behaviour.document

bench: ## measure all of it beside what people would use instead, and write docs/benchmarks.md (10 min)
	@tools/setup.sh test
	@$(PYTHON) -m bench

bench-quick: ## the same with fewer rounds (2 min)
	@tools/setup.sh test
	@$(PYTHON) -m bench --quick
