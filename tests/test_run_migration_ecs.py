"""``run_migration_ecs.sh`` with the real ``aws`` command: against a deployed DevStack, and where AWS refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from local_aws import application, release
from local_aws.machine import CLONE, REGION
from local_aws.postgres import HOST, free_port
from migration_runner.cli import COMMANDS, EXIT_CODES
from migration_runner.errors import ExitCode
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

ALL_COMMANDS = "upgrade, contract, reopen, downgrade, stamp, status, plan, history"
SCRIPT = CLONE / "run_migration_ecs.sh"
CREATED, RENAMED = "48871d03964b", "49871d03964c"
GROUP = "/ecs/dev/migration-task"
LINK = (
    f"https://{REGION}.console.aws.amazon.com/cloudwatch/home?region={REGION}#logsV2:log-groups/log-group/"
    "$252Fecs$252Fdev$252Fmigration-task/log-events/migration$252Fmigration$252F"
)
NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-1"], "securityGroups": ["sg-1"], "assignPublicIp": "DISABLED"}}

Environment = dict[str, str]


@dataclass(frozen=True)
class Ended:
    """What a run of the script left: its exit code, the task's log, and its own words."""

    exit_code: int
    log: str
    words: str

    @property
    def link(self) -> str:
        """The address of the log stream that it shows."""
        return next((line for line in self.words.splitlines() if line.startswith("https://")), "")


def start(environment: Environment, *arguments: str, script: Path = SCRIPT) -> subprocess.Popen[str]:
    """As a shell starts it at a terminal: a process group of its own, which Ctrl-C reaches as a whole."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [script, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def end(started: subprocess.Popen[str], log: str = "") -> Ended:
    try:
        more, words = started.communicate(timeout=120)
    finally:
        started.kill()
    return Ended(started.returncode, log + more, words)


def run(environment: Environment, *arguments: str, script: Path = SCRIPT) -> Ended:
    return end(start(environment, *(arguments or ("dev", REGION)), script=script))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """This release, deployed: its schema is at the head."""
    made = World(tmp_path_factory.mktemp("world"))
    try:
        made.aws.start()
        release.copy(made.app)
        deployment = made.deploy()
        assert deployment.exit_code == 0, deployment.output
        yield made
    finally:
        made.aws.destroy()


@pytest.fixture(scope="module")
def dev(world: World) -> Environment:
    return world.aws.environment


@pytest.fixture(scope="module")
def up_to_date(dev: Environment) -> Ended:
    return run(dev)


@pytest.fixture(scope="module")
def taken_back(dev: Environment, up_to_date: Ended) -> Ended:  # noqa: ARG001  # what came before
    return run(dev, "dev", REGION, "downgrade", "-1")


@pytest.fixture(scope="module")
def pending(world: World, taken_back: Ended) -> Ended:  # noqa: ARG001
    """As ``make migrate-local`` runs it."""
    return migrate_local(world.aws.root.parent, "status")


def migrate_local(folder: Path, *arguments: str) -> Ended:
    command = [sys.executable, "-m", "local_aws", "--folder", str(folder), "migrate", *arguments]
    done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def planned(dev: Environment, pending: Ended) -> Ended:  # noqa: ARG001
    return run(dev, "dev", REGION, "plan")


@pytest.fixture(scope="module")
def as_json(dev: Environment, pending: Ended) -> Ended:  # noqa: ARG001
    return run(dev, "dev", REGION, "history", "--output-format", "json")


@pytest.fixture(scope="module")
def failed(world: World, dev: Environment, planned: Ended) -> Ended:  # noqa: ARG001
    execute(world, "ALTER TABLE parent_items RENAME name TO label")
    ended = run(dev)
    execute(world, "ALTER TABLE parent_items RENAME label TO name")
    return ended


@dataclass(frozen=True)
class Interruption:
    """A script that got a Ctrl-C, and its task: just after it, and when the command was run that the script showed."""

    script: Ended
    task: dict[str, Any]
    stopped: dict[str, Any]
    revision: str


@pytest.fixture(scope="module")
def interrupted(world: World, dev: Environment, failed: Ended) -> Interruption:  # noqa: ARG001
    with locked_table(world):
        started, first = start_upgrade(dev)
        os.killpg(started.pid, signal.SIGINT)
        ended = end(started, first)
        task = newest_task(world)
        [command] = [line for line in ended.words.splitlines() if line.startswith("  aws ecs stop-task")]
        subprocess.run(command, shell=True, env=dev, stdout=subprocess.DEVNULL, check=True)
        stopped = eventually(lambda: newest_task(world), lambda seen: bool(seen["lastStatus"] == "STOPPED"))
    return Interruption(ended, task, stopped, application.revision(world.aws))


@pytest.fixture(scope="module")
def side_by_side(world: World, dev: Environment, interrupted: Interruption) -> tuple[Ended, Ended]:  # noqa: ARG001
    """A run whose task somebody stops, and one that has met it before."""
    with locked_table(world):
        started, first = start_upgrade(dev)
        task = newest_task(world)["taskArn"]
        second = run(dev, "dev", REGION, "upgrade", "--lock-wait", "0")
        world.aws.client("ecs").stop_task(cluster=application.CLUSTER, task=task, reason="it is in the way")
        return end(started, first), second


@pytest.fixture(scope="module")
def upgraded(dev: Environment, side_by_side: tuple[Ended, Ended]) -> Ended:  # noqa: ARG001
    return run(dev, "dev", REGION, "upgrade", RENAMED)


@pytest.fixture(scope="module")
def without_image(world: World, dev: Environment, upgraded: Ended) -> Ended:  # noqa: ARG001
    ecs = world.aws.client("ecs")
    container = {"name": "migration", "image": "registry.example/inventory:gone"}
    ecs.register_task_definition(
        family="imageless", networkMode="awsvpc", cpu="256", memory="512", containerDefinitions=[container]
    )
    return run({**dev, "TASK_DEFINITION": "imageless"})


def execute(world: World, statement: str) -> None:
    with closing(world.aws.postgres.connect("inventory")) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


@contextmanager
def locked_table(world: World) -> Iterator[None]:
    """A session that keeps every migration of the table waiting."""
    with closing(world.aws.postgres.connect("inventory")) as connection, connection.cursor() as cursor:
        connection.autocommit = False
        cursor.execute("LOCK TABLE parent_items IN ACCESS SHARE MODE")
        yield


def start_upgrade(environment: Environment) -> tuple[subprocess.Popen[str], str]:
    """An upgrade, and the first line of its log, which was there while it ran."""
    started = start(environment, "dev", REGION)
    assert started.stdout
    first = started.stdout.readline()
    assert started.poll() is None, end(started, first)
    return started, first


def newest_task(world: World) -> dict[str, Any]:
    return application.migration_tasks(world.aws)[-1]


def eventually(look: Callable[[], dict[str, Any]], is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while not is_it(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    return seen


def test_an_upgrade_with_nothing_to_do_says_so_in_a_sentence(up_to_date: Ended) -> None:
    assert up_to_date.exit_code == 0
    assert f"Nothing to do: the schema is at {RENAMED}." in up_to_date.log
    assert "{" not in up_to_date.log
    assert "Starting dev-migration-task:1: python -m migration_runner upgrade\n" in up_to_date.words


def test_the_log_alone_is_on_standard_output(planned: Ended, failed: Ended) -> None:
    for ended, first in ((planned, "plan: the image is at"), (failed, "upgrade: the image is at")):
        assert ended.log.startswith(first)
        assert ended.words.startswith("Looking for dev-inventory-service in dev-inventory-cluster (us-west-2) ...\n")


def test_every_run_shows_where_its_log_is(
    up_to_date: Ended, failed: Ended, interrupted: Interruption, upgraded: Ended
) -> None:
    for ended in (up_to_date, failed, interrupted.script, upgraded):
        assert re.fullmatch(re.escape(LINK) + r"[0-9a-f-]{36}", ended.link)


def test_a_downgrade_takes_one_revision_back_and_an_upgrade_brings_it_again(
    taken_back: Ended, pending: Ended, upgraded: Ended
) -> None:
    assert (taken_back.exit_code, upgraded.exit_code) == (0, 0)
    assert f"The schema is at {CREATED}." in taken_back.log
    assert re.search(rf"^current +{CREATED}$", pending.log, re.MULTILINE)
    assert f"The schema is at {RENAMED}." in upgraded.log


def test_a_status_with_pending_revisions_ends_with_1_and_names_them(pending: Ended) -> None:
    assert pending.exit_code == 1
    assert re.search(rf"^  {RENAMED} +rename name to sku$", pending.log, re.MULTILINE)


def test_a_plan_is_sql_to_read(planned: Ended) -> None:
    assert planned.exit_code == 0
    assert "ALTER TABLE parent_items RENAME name TO sku" in planned.log


def test_a_log_in_json_is_there_for_who_asks_for_it(as_json: Ended) -> None:
    assert as_json.exit_code == 0
    assert [json.loads(line)["event"] for line in as_json.log.splitlines()][-1] == "migration.result"


def test_a_failing_migration_ends_with_its_code_and_says_why(failed: Ended) -> None:
    assert failed.exit_code == 1
    assert f'{RENAMED} failed: UndefinedColumn: column "name" does not exist.' in failed.log
    assert f"The schema is at {CREATED}." in failed.log
    assert failed.words.endswith("python -m migration_runner upgrade: exit code 1.\n")


def test_ctrl_c_ends_the_script_alone_and_it_shows_what_stops_the_task(interrupted: Interruption) -> None:
    assert interrupted.script.exit_code == -signal.SIGINT
    assert interrupted.script.log.startswith("upgrade: the image is at")
    assert "Interrupted: the task goes on." in interrupted.script.words
    assert "Traceback" not in interrupted.script.words
    assert interrupted.task["lastStatus"] == "RUNNING"
    assert (interrupted.stopped["stopCode"], interrupted.stopped["containers"][0]["exitCode"]) == ("UserInitiated", 143)
    assert interrupted.revision == CREATED


def test_a_task_that_somebody_stops_ends_with_143_and_the_reason(side_by_side: tuple[Ended, Ended]) -> None:
    stopped, _ = side_by_side
    assert stopped.exit_code == 143
    assert "told to stop (SIGTERM); what was under way was rolled back" in stopped.log
    assert "ECS says: it is in the way\n" in stopped.words


def test_a_run_beside_another_one_names_it(side_by_side: tuple[Ended, Ended]) -> None:
    _, second = side_by_side
    assert second.exit_code == 4
    assert re.search(r"MigrationLocked: Another migration has held the lock for 0 s: session \d+", second.log)


def test_a_container_that_never_ran_has_a_code_of_its_own_and_the_reason_of_ecs(without_image: Ended) -> None:
    assert without_image.exit_code == 71
    reason = "CannotPullContainerError: registry.example/inventory:gone: not found"
    assert without_image.words.endswith(f"error: the container did not run: {reason}\n")


def test_the_trigger_of_a_deployment_does_not_take_these_tasks_for_its_own(world: World, upgraded: Ended) -> None:
    assert upgraded.exit_code == 0
    deployed, *by_hand = application.migration_tasks(world.aws)
    for task in by_hand:
        # What ECS allows: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RunTask.html
        assert re.fullmatch(r"run_migration_ecs/[0-9-]{1,18}", task["startedBy"])
        assert task["startedBy"] != deployed["startedBy"]


def test_no_run_shows_the_password(
    world: World, failed: Ended, planned: Ended, side_by_side: tuple[Ended, Ended]
) -> None:
    secrets = world.aws.client("secretsmanager")
    secret = secrets.get_secret_value(SecretId="dev/inventory-management/database")["SecretString"]
    for ended in (failed, planned, *side_by_side):
        assert json.loads(secret)["password"] not in ended.log + ended.words


@dataclass(frozen=True)
class Checked:
    """An AWS that checks permissions, with what DevStack has of ECS, and a user who may do nothing yet."""

    endpoint: str
    root: Environment

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def as_user(self, *actions: str) -> Environment:
        """The credentials of a user who may do only this."""
        iam, name = self.client("iam"), f"user-{time.monotonic_ns()}"
        iam.create_user(UserName=name)
        if actions:
            statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            iam.put_user_policy(UserName=name, PolicyName="some", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {
            **self.root,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    folder, port = tmp_path_factory.mktemp("checked"), free_port()
    own = {"HOME": str(folder), "TMPDIR": str(folder), "PATH": os.environ["PATH"]}
    server = {"GATEWAY_PORT": str(port), "BIND_HOST": HOST, "MINISTACK_HOST": HOST, "MINISTACK_REGION": REGION}
    off = {"IOT_MTLS_ENABLED": "0", "SFTP_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ministack"],
        cwd=folder,
        env={**own, **server, **off, "AUTH": "true", "S3_DATA_DIR": str(folder / "s3")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://{HOST}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    made = Checked(endpoint, {**own, **keys, **path, "AWS_ENDPOINT_URL": endpoint})
    try:
        wait_for(endpoint)
        ecs = made.client("ecs")
        ecs.create_cluster(clusterName="dev-inventory-cluster")
        options = {"awslogs-group": GROUP, "awslogs-stream-prefix": "migration", "awslogs-region": REGION}
        container = {
            "name": "migration",
            "image": "x",
            "logConfiguration": {"logDriver": "awslogs", "options": options},
        }
        for family, containers in {"dev-migration-task": [container], "other": [{**container, "name": "app"}]}.items():
            ecs.register_task_definition(
                family=family, networkMode="awsvpc", cpu="256", memory="512", containerDefinitions=containers
            )
        for name, network in {"dev-inventory-service": {"networkConfiguration": NETWORK}, "bridged": {}}.items():
            ecs.create_service(
                cluster="dev-inventory-cluster",
                serviceName=name,
                taskDefinition="dev-migration-task",
                desiredCount=0,
                **network,
            )
        yield made
    finally:
        process.terminate()
        process.wait()


def wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the emulator did not start")


@pytest.mark.parametrize(
    ("variables", "exit_code", "sentence"),
    [
        ({"CLUSTER": "gone"}, 66, "there is no cluster gone in us-west-2; another is named with CLUSTER=NAME."),
        ({"SERVICE": "gone"}, 66, "there is no service gone in dev-inventory-cluster; another is named with SERVICE="),
        ({"SERVICE": "bridged"}, 66, "the service bridged has no network configuration of its own to run the task in;"),
        ({"TASK_DEFINITION": "gone"}, 66, "there is no task definition gone in us-west-2; another is named with TASK_"),
        ({"TASK_DEFINITION": "other"}, 66, "/other:1 has no container migration; another is named with TASK_DEFINIT"),
        ({"AWS_ACCESS_KEY_ID": "AKIAGONE"}, 77, "AWS has no valid credentials of you: UnrecognizedClientException:"),
        ({"AWS_PROFILE": "gone"}, 77, "AWS has no valid credentials of you: The config profile (gone) could not be"),
        ({"AWS_ENDPOINT_URL": f"http://{HOST}:1", "AWS_MAX_ATTEMPTS": "1"}, 69, "AWS can't be reached from here: "),
    ],
    ids=["cluster", "service", "network", "task definition", "container", "credentials", "profile", "endpoint"],
)
def test_what_is_not_there_is_one_sentence_and_a_code(
    checked: Checked, variables: Environment, exit_code: int, sentence: str
) -> None:
    assert_refused(run({**checked.root, **variables}), exit_code, sentence)


def test_without_credentials_it_says_so(checked: Checked) -> None:
    bare = {name: value for name, value in checked.root.items() if "KEY" not in name}
    assert_refused(run(bare), 77, "AWS has no valid credentials of you: ")


@pytest.mark.parametrize(
    ("permitted", "missing"),
    [
        ([], "ecs:DescribeServices"),
        (["ecs:DescribeServices"], "ecs:DescribeTaskDefinition"),
        (["ecs:DescribeServices", "ecs:DescribeTaskDefinition"], "ecs:RunTask"),
    ],
    ids=["services", "definition", "task"],
)
def test_a_permission_that_is_missing_is_named(checked: Checked, permitted: list[str], missing: str) -> None:
    assert_refused(run(checked.as_user(*permitted)), 77, f"your credentials lack the permission {missing}; ask")


def test_a_log_that_may_not_be_read_is_named_and_the_task_is_watched_on(checked: Checked) -> None:
    # given a user who may do all but read the log; the tasks of this AWS run until they are stopped
    started = start(checked.as_user("ecs:*", "iam:PassRole"), "dev", REGION, "status")
    assert started.stderr
    words = ""
    while "logs:GetLogEvents" not in words:
        line = started.stderr.readline()
        assert line, words
        words += line
    # when the task ends
    ecs = checked.client("ecs")
    [task] = ecs.list_tasks(cluster="dev-inventory-cluster")["taskArns"]
    ecs.stop_task(cluster="dev-inventory-cluster", task=task)
    ended = end(started)
    # then that was said once, the log is still named, and no such end is a success
    assert f"The log can't be shown: your credentials lack the permission logs:GetLogEvents on {GROUP}.\n" in words
    assert "logs:GetLogEvents" not in ended.words
    assert ended.link.startswith(LINK)
    assert ended.exit_code == 71


def assert_refused(ended: Ended, exit_code: int, sentence: str) -> None:
    assert ended.exit_code == exit_code, ended.words
    *_, last = ended.words.splitlines()
    assert last.startswith("error: ")
    assert sentence in last
    assert ended.words.count("error: ") == 1
    assert ended.log == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["dev"],
            "ENVIRONMENT and REGION are needed, such as: ./run_migration_ecs.sh dev us-west-2 (--help tells more).",
        ),
        (["dev stage", REGION], "ENVIRONMENT is 'dev stage', but must be a name such as dev."),
        (["dev", "west"], "REGION is 'west', but must be a region such as us-west-2."),
        (
            ["dev", REGION, "migrate"],
            f"COMMAND is 'migrate', but must be one of: {ALL_COMMANDS}.",
        ),
        (["dev", REGION, "downgrade"], "downgrade needs a revision: one of `history`, -1 for one step back, or base."),
        (["dev", REGION, "reopen"], "reopen needs a revision: the newest one of the older release, or base."),
        (["dev", REGION, "stamp"], "stamp needs a revision: one of `history`, head or base."),
        (["dev", REGION, "upgrade", "a\nb"], "an ARGUMENT holds a line break or another control character."),
        (["dev", REGION, "downgrade", ""], "an ARGUMENT is empty."),
        *(
            (
                ["dev", REGION, command],
                f"COMMAND is '{command}', but must be one of: {ALL_COMMANDS}.",
            )
            for command in ("status plan", "", "-1")
        ),
        (["--dev", REGION], "ENVIRONMENT is '--dev', but must be a name such as dev."),
        (["dev", "-west-2"], "REGION is '-west-2', but must be a region such as us-west-2."),
        # no beginning, no end, half a surrogate pair, and what would be a whole without the letter between
        *(
            (["dev", REGION, "upgrade", os.fsdecode(b"a" + wrong)], f"'a{'?' * len(wrong)}' is not UTF-8.")
            for wrong in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80")
        ),
        (["dev", REGION, "upgrade", os.fsdecode(b"\xc3a\xa9")], "'?a?' is not UTF-8."),
        ([os.fsdecode(b"d\xe9v"), REGION], "'d?v' is not UTF-8."),
    ],
)
def test_wrong_arguments_are_refused_before_aws_is_asked(arguments: list[str], sentence: str) -> None:
    ended = run({"PATH": "/usr/bin:/bin"}, *arguments)
    assert (ended.exit_code, ended.log, ended.words) == (64, "", f"error: {sentence}\n")


@pytest.mark.parametrize("variable", ["CLUSTER", "SERVICE", "TASK_DEFINITION"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("--debug", "{} is '--debug', but must be a name or an ARN."),
        ("a b", "{} is 'a b', but must be a name or an ARN."),
        (os.fsdecode(b"a\xff"), "'a?' is not UTF-8."),
    ],
)
def test_a_variable_that_is_no_name_is_refused_before_aws_is_asked(variable: str, value: str, sentence: str) -> None:
    ended = run({"PATH": "/usr/bin:/bin", variable: value})
    assert ended == Ended(64, "", f"error: {sentence.format(variable)}\n")


def test_without_a_local_aws_it_is_told_how_to_start_one(tmp_path: Path) -> None:
    sentence = "error: The local AWS does not run: `make deploy-local` starts it.\n"
    assert migrate_local(tmp_path) == Ended(1, "", sentence)


def test_without_the_aws_command_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    for tool in ("sed", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    assert_refused(run({"PATH": str(tmp_path)}), 69, "there is no aws command: install the AWS CLI,")


def test_help_names_every_command_of_the_runner_that_asks_the_database() -> None:
    ended = run({"PATH": "/usr/bin:/bin"}, "--help")
    assert (ended.exit_code, ended.words) == (0, "")
    listed = re.search(r"COMMAND is (.*);", ended.log)
    assert listed
    named = re.findall(r"\w+", listed[1].replace(" (the default)", "").replace(" or ", " "))
    assert sorted([*named, "check"]) == sorted(command for command, *_ in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["-h"], ["dev", "--help"], ["dev", REGION, "--help"], ["dev", REGION, "-h"]], ids=" ".join
)
def test_help_is_shown_wherever_no_command_stands_before_it(arguments: list[str]) -> None:
    ended = run({"PATH": "/usr/bin:/bin"}, *arguments)
    assert (ended.exit_code, ended.words) == (0, "")
    assert ended.log.startswith("usage: ./run_migration_ecs.sh ENVIRONMENT REGION")


def test_help_tells_every_exit_code_of_the_runner_in_its_words() -> None:
    words = run({"PATH": "/usr/bin:/bin"}, "--help").log
    told, known = exit_codes(words.partition("exit codes:")[2]), exit_codes(EXIT_CODES)
    assert known.keys() == set(ExitCode)
    # Of 130 the script says that it means itself.
    assert {code: told.get(code) for code in known if code != 130} == {c: w for c, w in known.items() if c != 130}
    assert re.search(r"^ +129, 130 and 143 also when this script itself is interrupted", words, re.MULTILINE)
    # and no code of its own is one of the runner's
    [own] = re.findall("readonly (USAGE=.*)", SCRIPT.read_text())
    assert {int(code) for code in re.findall(r"\d+", own)} == told.keys() - known.keys() - {137, 141}


def exit_codes(text: str) -> dict[int, str]:
    return {int(code): words for code, words in re.findall(r"^ +(\d+)  (.*)", text, re.MULTILINE)}


# What the emulator never answers: the first lines are the answers to the script's queries.
FAKE = """\
#!/bin/sh
printf '%s' "$NOISE"
case "$*" in
  *describe-services*) printf '%b' "$NETWORK" ;;
  *describe-task-definition*) printf 'arn:aws:ecs:us-west-2:0:task-definition/t:7\\nmigration\\tg\\tp\\tus-west-2\\n' ;;
  *run-task*)
    printf '%s\\n' "$@" >"$ARGUMENTS"
    if test "$RUN_TASK" = refused; then printf '\\naws: [ERROR]: %s\\n' "$REFUSAL" >&2; exit 254; fi
    printf '%s\\n' "$RUN_TASK" ;;
  *describe-tasks*) printf '%b' "$TASK" ;;
  *get-log-events*)
    if test -n "$LOG_REFUSAL"; then printf '\\naws: [ERROR]: %s\\n' "$LOG_REFUSAL" >&2; exit 254; fi
    printf "$LOG" $$ ;;
esac
"""
STARTED = "arn:aws:ecs:us-west-2:0:task/c/0123\tNone\tNone"
RUNNING = "RUNNING\\nNone\\nNone\\nNone\\nNone\\n"
STOPPED = "STOPPED\\nEssentialContainerExited\\nEssential container in task exited\\n0\\nNone\\n"
STOP = "  aws ecs stop-task --region us-west-2 --cluster dev-inventory-cluster --task 0123\n"
THROTTLED = (
    "An error occurred (ThrottlingException) when calling the {} operation (reached max retries: 4): Rate exceeded"
)


@pytest.fixture
def faked(tmp_path: Path) -> Environment:
    """An ``aws`` on PATH that answers what no emulator does."""
    (tmp_path / "aws").write_text(FAKE)
    (tmp_path / "aws").chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ARGUMENTS": str(tmp_path / "arguments"),
        "NETWORK": "ACTIVE\\t{}\\n",
        "RUN_TASK": "None",
        "TASK": "None\\n",
        "LOG": "None\\n",
    }


def test_a_task_that_ecs_has_no_room_for_is_told_with_its_reason(faked: Environment) -> None:
    ended = run({**faked, "RUN_TASK": "None\tRESOURCE:ENI\tNone"})
    assert_refused(ended, 71, "ECS did not start the task: RESOURCE:ENI; nothing was changed.")


def test_a_role_that_may_not_be_passed_is_named(faked: Environment) -> None:
    role = "arn:aws:iam::0:role/dev-migration-task-execution-role"
    refusal = (
        "An error occurred (AccessDeniedException) when calling the RunTask operation: User: arn:aws:iam::0:user/me is "
        f"not authorized to perform: iam:PassRole on resource: {role} because no identity-based policy allows it"
    )
    ended = run({**faked, "RUN_TASK": "refused", "REFUSAL": refusal})
    assert_refused(ended, 77, f"your credentials lack the permission iam:PassRole on {role}; ask")


def test_an_argument_reaches_the_runner_as_it_was_given(faked: Environment) -> None:
    given = ["upgrade", "--config", 'a "b" \\c $d é*.ini']
    run({**faked, "RUN_TASK": "None\tno\tNone"}, "dev", REGION, *given)
    arguments = Path(faked["ARGUMENTS"]).read_text().splitlines()
    [override] = json.loads(arguments[arguments.index("--overrides") + 1])["containerOverrides"]
    assert override == {
        "name": "migration",
        "command": ["python", "-m", "migration_runner", "upgrade", "--output-format", "text", *given[1:]],
    }


def test_a_task_that_is_out_of_sight_is_no_success(faked: Environment, tmp_path: Path) -> None:
    # given a script with a second of patience instead of a minute
    text = SCRIPT.read_text()
    assert text.count("PATIENCE=60") == 1
    impatient = tmp_path / SCRIPT.name
    impatient.write_text(text.replace("PATIENCE=60", "PATIENCE=1"))
    impatient.chmod(0o755)
    # when ECS does not describe the task that it has started
    ended = run({**faked, "RUN_TASK": "arn:aws:ecs:us-west-2:0:task/c/0123\tNone\tNone"}, script=impatient)
    # then nobody knows, and the log may tell
    assert_refused(ended, 75, "ECS has not described task 0123 for 1 seconds: what became of it is unknown.")
    assert ended.link.endswith("/log-group/g/log-events/p$252Fmigration$252F0123")


@pytest.mark.parametrize(
    "answer",
    [
        {"RUN_TASK": "refused", "REFUSAL": 'Read timeout on endpoint URL: "https://ecs.us-west-2.amazonaws.com/"'},
        {"RUN_TASK": "refused", "REFUSAL": "Connection was closed before we received a valid response from endpoint"},
        {"RUN_TASK": "refused", "REFUSAL": "An error occurred (ServerException) when calling the RunTask operation: x"},
        {"RUN_TASK": "refused", "REFUSAL": "An error occurred (503) when calling the RunTask operation: x"},
        {"RUN_TASK": "refused", "REFUSAL": ""},
        {"RUN_TASK": ""},
        {"RUN_TASK": "Warning: a proxy stands between"},
    ],
    ids=["timeout", "closed", "failed", "overloaded", "no reason", "nothing", "something else"],
)
def test_a_start_that_aws_has_not_answered_is_unknown_and_it_is_shown_how_to_find_the_task(
    faked: Environment, answer: Environment
) -> None:
    ended = run({**faked, **answer})
    assert_refused(ended, 75, "AWS was asked to start the task, but has not answered; what became of the task is unkn")
    arguments = Path(faked["ARGUMENTS"]).read_text().splitlines()
    name = arguments[arguments.index("--started-by") + 1]
    command = f"  aws ecs list-tasks --region us-west-2 --cluster dev-inventory-cluster --started-by {name}\n"
    assert command in ended.words


def test_a_start_that_aws_has_refused_is_not_unknown(faked: Environment) -> None:
    ended = run({**faked, "RUN_TASK": "refused", "REFUSAL": THROTTLED.format("RunTask")})
    assert_refused(ended, 69, "`aws ecs run-task` failed: ThrottlingException: Rate exceeded.")
    assert "list-tasks" not in ended.words


@pytest.mark.parametrize("default", [True, False], ids=["default", "ignored"])
def test_a_log_that_nobody_reads_any_more_ends_the_script_with_words(faked: Environment, default: bool) -> None:
    # given a task that goes on and has always more to say
    environment = {**faked, "RUN_TASK": STARTED, "TASK": RUNNING, "LOG": "f/%s\\nline\\n"}
    # when its reader goes after the first line, as head -1 does; Python ignores the signal, and may hand that on
    pipe = subprocess.PIPE
    started = subprocess.Popen(
        [SCRIPT, "dev", REGION], env=environment, stdout=pipe, stderr=pipe, text=True, restore_signals=default
    )
    assert started.stdout
    assert started.stdout.readline() == "line\n"
    started.stdout.close()
    ended = end(started)
    # then a shell sees 141, and the words say what goes on
    assert ended.exit_code == (-signal.SIGPIPE if default else 141)
    assert "Standard output takes no more.\nInterrupted: the task goes on." in ended.words
    assert STOP in ended.words
    assert ended.link
    assert "write error" not in ended.words


def test_a_task_that_has_ended_keeps_its_exit_code_though_nobody_reads_its_log(faked: Environment) -> None:
    started = start({**faked, "RUN_TASK": STARTED, "TASK": STOPPED, "LOG": "f/%s\\nline\\n"}, "dev", REGION)
    assert started.stdout
    started.stdout.close()
    ended = end(started)
    assert ended.exit_code == 0
    assert ended.words.endswith("python -m migration_runner upgrade: exit code 0.\n")


def test_a_log_that_can_not_be_read_to_the_end_is_said_once_with_its_reason(faked: Environment) -> None:
    refusal = THROTTLED.format("GetLogEvents")
    ended = run({**faked, "RUN_TASK": STARTED, "TASK": STOPPED, "LOG_REFUSAL": refusal})
    assert ended.words.count("The log can't be read: ThrottlingException: Rate exceeded.\n") == 1
    assert (ended.exit_code, ended.log) == (0, "")


def test_a_log_that_can_not_be_read_is_said_while_the_task_runs(faked: Environment, tmp_path: Path) -> None:
    # given a script with a second of silence instead of ten
    text = SCRIPT.read_text()
    assert text.count("SILENCE=10") == 1
    impatient = tmp_path / SCRIPT.name
    impatient.write_text(text.replace("SILENCE=10", "SILENCE=1"))
    impatient.chmod(0o755)
    refusal = THROTTLED.format("GetLogEvents")
    # when the log of a task that goes on is refused
    environment = {**faked, "RUN_TASK": STARTED, "TASK": RUNNING, "LOG_REFUSAL": refusal}
    started = start(environment, "dev", REGION, script=impatient)
    assert started.stderr
    words = ""
    while words.count("is still RUNNING") < 3:
        line = started.stderr.readline()
        assert line, words
        words += line
    os.killpg(started.pid, signal.SIGINT)
    # then that was said once
    assert (words + end(started).words).count("The log can't be read: ThrottlingException: Rate exceeded.\n") == 1


def test_what_stands_before_an_answer_is_not_taken_for_it(faked: Environment) -> None:
    noise = "InsecureRequestWarning: a proxy\n\twarns\n"
    environment = {**faked, "NOISE": noise, "RUN_TASK": STARTED, "TASK": STOPPED, "LOG": "f/1\\nfirst\\nsecond\\n%.0s"}
    ended = run(environment)
    assert (ended.exit_code, ended.log) == (0, "first\nsecond\n")
    assert "p$252Fmigration$252F0123" in ended.link


@pytest.mark.parametrize("noise", ["", "InsecureRequestWarning: a proxy\n"], ids=["nothing", "a warning"])
def test_no_answer_is_no_missing_service(faked: Environment, noise: str) -> None:
    sentence = f"`aws ecs describe-services` failed: the answer can't be understood: '{noise.strip()}'."
    assert_refused(run({**faked, "NETWORK": "", "NOISE": noise}), 69, sentence)
