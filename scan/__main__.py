"""Run the three scanners over the templates of every stage, and print what each has found.

Exit code 0: nothing but what is acknowledged in ``stacks``; 1: a finding; 2: a scanner could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("CDK_VALIDATION", "false")  # the rules that CDK brings along; `make synth` has them on

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from app import add_stacks
from stacks.acknowledgments import acknowledgments

CLONE = Path(__file__).parent.parent


class ScanError(RuntimeError):
    """A scanner could not run; the message is one sentence for a person."""


@dataclass(frozen=True)
class Finding:
    """What a scanner has found: its rule, where, and what it says."""

    rule: str
    where: str
    said: str


def cdk_nag(out: Path, _: Path) -> list[Finding]:
    """The AwsSolutions rules, which were asked while the templates were made."""
    report = out / "validation-report.json"
    if not report.exists():
        raise ScanError("cdk-nag has left no report.")
    return [
        Finding(violation["ruleName"], construct["constructPath"], violation["description"])
        for plugin in json.loads(report.read_text())["pluginReports"]
        for violation in plugin["violations"]
        for construct in violation["violatingConstructs"]
    ]


def cfn_lint(out: Path, tools: Path) -> list[Finding]:
    """cfn-lint: whether CloudFormation would take the templates."""
    found = json.loads(_output(tools, "cfn-lint", "--format=json", "--", *_templates(out)) or "[]")
    return [Finding(one["Rule"]["Id"], f"{Path(one['Filename']).name}:{_start(one)}", one["Message"]) for one in found]


def checkov(out: Path, tools: Path) -> list[Finding]:
    """Checkov: what is insecure in the templates. Nothing is sent to its makers, and nothing is fetched from them."""
    files = [f"--file={template}" for template in _templates(out)]
    options = ["--framework=cloudformation", "--skip-download", "--quiet", "--compact", "--output=json"]
    found = json.loads(_output(tools, "checkov", *options, *files))
    if found["summary"]["parsing_errors"]:
        raise ScanError("checkov could not read a template.")
    return [
        Finding(one["check_id"], f"{Path(one['file_path']).name}: {one['resource']}", one["check_name"])
        for one in found["results"]["failed_checks"]
    ]


SCANNERS = {"cdk-nag": cdk_nag, "cfn-lint": cfn_lint, "checkov": checkov}


def main() -> int:
    """Scan; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--tools", type=Path, default=CLONE / ".venv-scan" / "bin", help="where cfn-lint and checkov are"
    )
    parser.add_argument("--out", type=Path, default=CLONE / ".local" / "scan", help="where the templates are written")
    arguments = parser.parse_args()
    # What an earlier scan has left there is no template of this app.
    shutil.rmtree(arguments.out, ignore_errors=True)
    app = cdk.App(outdir=str(arguments.out), context=json.loads((CLONE / "cdk.json").read_text())["context"])
    add_stacks(app)
    print("Making the templates of every stage, with cdk-nag ...", flush=True)
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    try:
        app.synth()
    except RuntimeError as error:
        # What has been found stands in the report.
        if "ValidationFailed" not in str(error):
            raise
    found = {}
    try:
        for name, scanner in SCANNERS.items():
            print(f"{name} ...", flush=True)
            found[name] = scanner(arguments.out, arguments.tools)
    except ScanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rules = Counter(one.scanner for one in acknowledgments(app))
    print(f"\n{'scanner':<10} {'templates':>9} {'findings':>9} {'acknowledged':>13}")
    for name, findings in found.items():
        print(f"{name:<10} {len(_templates(arguments.out)):>9} {len(findings):>9} {rules[name]:>13}")
    for name, findings in found.items():
        for one in findings:
            print(f"\n{name} {one.rule} in {one.where}\n  {one.said}")
    return 1 if any(found.values()) else 0


def _templates(out: Path) -> list[str]:
    return sorted(str(template) for template in out.glob("*.template.json"))


def _start(match: dict[str, dict[str, dict[str, int]]]) -> int:
    return match["Location"]["Start"]["LineNumber"]


def _output(tools: Path, command: str, *arguments: str) -> str:
    try:
        done = subprocess.run([str(tools / command), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ScanError(f"{command} is not installed in {tools}: run `make scan`, which installs it.") from None
    # With findings they exit with other codes than 0; what could not run has written nothing.
    if not done.stdout.strip() and done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ScanError(f"{command} could not run: {said[-1]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
