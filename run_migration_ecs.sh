#!/usr/bin/env bash
# One command of the migration runner, run by hand as a Fargate task inside the VPC; --help tells the rest.
# For bash 3.2 (macOS) and later, and the AWS CLI v1 or v2; nothing else is needed.

# Not -e: what fails is answered where it fails, and an exit with 1 would mean a failed migration.
set -uo pipefail

readonly CONTAINER=migration
# Not check: it asks no database, and the image lacks the squawk that it needs.
readonly COMMANDS='upgrade contract reopen downgrade stamp status plan history'
# The runner's own codes end at 6, and those of signals begin at 128: these are sysexits.h's.
readonly USAGE=64 NOT_FOUND=66 UNAVAILABLE=69 NOT_RUN=71 UNKNOWN=75 NOT_PERMITTED=77
# 128 + SIGPIPE.
readonly CLOSED=141
# How long the task may be out of sight, and nothing be said, in seconds.
readonly PATIENCE=60 SILENCE=10
readonly TAB=$'\t'

# What the functions hand on to each other. Asked for:
region='' cluster='' service='' task_definition='' command='' overrides=''
# Found, in the service and in the task definition:
network='' log_group='' log_prefix='' log_region=''
# The task, by the name that it was started with until its ARN is known; whether it has ended, and how:
starting='' task='' ended='' stop_code='' reason='' exit_code='' container_reason=''
# Its log: the stream, whether it may be read, how far it was, whether there was a line; and when anything was said:
stream='' readable=yes token='' log_seen='' said=0
# Why the log could not be read the last time, since when, and whether that was said:
unread='' unread_since='' unread_said=''
# A folder for what AWS has refused last:
files=''

help() {
  cat <<'HELP'
usage: ./run_migration_ecs.sh ENVIRONMENT REGION [COMMAND [ARGUMENT...]]

Runs `python -m migration_runner COMMAND ARGUMENT...` as a Fargate task of the deployed migration, in the subnets and
security groups of the running service, shows its log while it runs, and ends with its exit code. The task is that of
the last deployment: its image, its database. The log goes to standard output, everything else to standard error.

  ./run_migration_ecs.sh dev us-west-2                    upgrade to the newest revision of the deployed image
  ./run_migration_ecs.sh dev us-west-2 status             where the schema is, and what is pending
  ./run_migration_ecs.sh dev us-west-2 plan               the SQL of what is pending, and the locks it takes
  ./run_migration_ecs.sh dev us-west-2 contract           finish the renames that a deployment has left open
  ./run_migration_ecs.sh dev us-west-2 downgrade -1       one revision back; asks nothing
  ./run_migration_ecs.sh dev us-west-2 history

COMMAND is upgrade (the default), contract, reopen, downgrade, stamp, status, plan or history; `COMMAND --help` tells
its options, from the image. `check` is for your own machine or CI: it asks no database, and it needs squawk, which the image does not
have. For the same reason `plan` does not say here what is unsafe. `--output-format json` shows JSON for sentences.
Ctrl-C ends this script only: the task goes on, and the command that stops it is shown.

environment variables, for other names than the defaults:
  CLUSTER           ENVIRONMENT-inventory-cluster
  SERVICE           ENVIRONMENT-inventory-service; gives the network, and must be allowed to reach the database
  TASK_DEFINITION   ENVIRONMENT-migration-task, its newest revision; also FAMILY:REVISION. Its container must be called
                    migration, as MigrationTask calls it
  AWS_PROFILE and all the others that the AWS CLI knows

permissions: ecs:DescribeServices, ecs:DescribeTaskDefinition, ecs:RunTask, ecs:DescribeTasks, iam:PassRole on the
task's two roles, logs:GetLogEvents

exit codes:
    0  the schema is at the target
    1  a migration failed; for status: revisions are pending
    2  wrong use: no revisions, several heads, a broken chain, bad settings, an unknown revision
    3  the database can't be reached, or the session was lost
    4  a lock was not free in time
    5  the database is at a revision that this image does not have
    6  the database refused the credentials
   64  wrong arguments; nothing was started
   66  no such cluster, service or task definition, or no network to take from the service
   69  AWS can't be asked: no `aws` command, no connection, or another refusal
   71  ECS did not run the container, or ended the task by itself; its reason is shown
   75  what became of the task is unknown
   77  no valid credentials, or a permission is missing; it is named
  137  the container was killed, most often out of memory
  143  told to stop with SIGTERM
  141  standard output takes no more, as before `| head -1`; the task goes on
  129, 130 and 143 also when this script itself is interrupted; it says so, and the task goes on
HELP
}

say() {
  printf '%s\n' "$*" >&2
  said=$SECONDS
}

# end_with CODE SENTENCE...
end_with() {
  local code=$1
  shift
  say "error: $*"
  exit "$code"
}

main() {
  parse "$@"
  command -v aws >/dev/null ||
    end_with $UNAVAILABLE "there is no aws command: install the AWS CLI, https://aws.amazon.com/cli/."
  files=$(mktemp -d "${TMPDIR:-/tmp}/run_migration_ecs.XXXXXX") ||
    end_with $UNAVAILABLE "no folder for temporary files can be made in ${TMPDIR:-/tmp}."
  trap 'rm -rf "$files"' EXIT
  trap 'interrupted INT' INT
  trap 'interrupted TERM' TERM
  trap 'interrupted HUP' HUP
  trap unheard PIPE
  # No pager, no questions; and the log may hold any character.
  export AWS_PAGER='' AWS_CLI_AUTO_PROMPT=off PYTHONIOENCODING=utf-8
  say "Looking for $service in $cluster ($region) ..."
  find_network
  find_task_definition
  start_task
  follow
  conclude
}

parse() {
  local word shown
  # Behind a COMMAND it is the runner that is asked.
  for word in "${1-}" "${2-}" "${3-}"; do
    case "$word" in
      -h | --help) help; exit 0 ;;
    esac
  done
  for word in "$@" "${CLUSTER-}" "${SERVICE-}" "${TASK_DEFINITION-}"; do
    shown=$(visible "$word")
    is_unicode "$word" || end_with $USAGE "'$shown' is not UTF-8."
  done
  [ $# -ge 2 ] || end_with $USAGE "ENVIRONMENT and REGION are needed, such as: ./run_migration_ecs.sh dev us-west-2" \
    "(--help tells more)."
  local environment=$1
  region=$2
  shift 2
  case "$environment" in
    '' | -* | *[!A-Za-z0-9_-]*) end_with $USAGE "ENVIRONMENT is '$environment', but must be a name such as dev." ;;
  esac
  # AWS would look for a host of that name, and say no more than that there is none.
  [[ $region =~ ^[a-z]+(-[a-z]+)+-[0-9]+$ ]] ||
    end_with $USAGE "REGION is '$region', but must be a region such as us-west-2."
  cluster=${CLUSTER:-$environment-inventory-cluster}
  service=${SERVICE:-$environment-inventory-service}
  task_definition=${TASK_DEFINITION:-$environment-migration-task}
  must_be_name CLUSTER "$cluster"
  must_be_name SERVICE "$service"
  must_be_name TASK_DEFINITION "$task_definition"
  [ $# -gt 0 ] || set -- upgrade
  for word in $COMMANDS; do
    [ "$1" != "$word" ] || break
  done
  [ "$1" = "$word" ] || end_with $USAGE "COMMAND is '$1', but must be one of: ${COMMANDS// /, }."
  case "$1:$#" in
    downgrade:1) end_with $USAGE "downgrade needs a revision: one of \`history\`, -1 for one step back, or base." ;;
    reopen:1) end_with $USAGE "reopen needs a revision: the newest one of the older release, or base." ;;
    stamp:1) end_with $USAGE "stamp needs a revision: one of \`history\`, head or base." ;;
  esac
  case "$*" in
    *[[:cntrl:]]*) end_with $USAGE "an ARGUMENT holds a line break or another control character." ;;
  esac
  for word in "$@"; do
    [ -n "$word" ] || end_with $USAGE "an ARGUMENT is empty."
  done
  command="python -m migration_runner $*"
  # The log is for a person. Behind the caller's own options, a format of theirs would not count, nor behind a `--`.
  local asked=$1
  shift
  overrides=$(printf '{"containerOverrides":[{"name":"%s","command":[%s]}]}' "$CONTAINER" \
    "$(json_texts python -m migration_runner "$asked" --output-format text "$@")")
}

# must_be_name VARIABLE VALUE: AWS refuses others too, but the CLI takes a `-` at the beginning for an option.
must_be_name() {
  local LC_ALL=C shown
  shown=$(visible "$2")
  case "$2" in
    -* | *[!A-Za-z0-9_:/.-]*) end_with $USAGE "$1 is '$shown', but must be a name or an ARN." ;;
  esac
}

# Whether it is UTF-8: nothing is left of it without all that RFC 3629 (section 4) allows.
is_unicode() {
  local rest
  # Each becomes a letter first: without it, what stood around it could fit together.
  rest=$(printf '%s' "$1" | LC_ALL=C sed -e $'s/[\xc2-\xdf][\x80-\xbf]/u/g' \
    -e $'s/\xe0[\xa0-\xbf][\x80-\xbf]/u/g' -e $'s/\xed[\x80-\x9f][\x80-\xbf]/u/g' \
    -e $'s/[\xe1-\xec\xee\xef][\x80-\xbf][\x80-\xbf]/u/g' \
    -e $'s/\xf0[\x90-\xbf][\x80-\xbf][\x80-\xbf]/u/g' -e $'s/\xf4[\x80-\x8f][\x80-\xbf][\x80-\xbf]/u/g' \
    -e $'s/[\xf1-\xf3][\x80-\xbf][\x80-\xbf][\x80-\xbf]/u/g' -e $'s/[^\x80-\xff]//g')
  [ -z "$rest" ]
}

# A text with a ? for what a terminal might not show.
visible() {
  local LC_ALL=C
  printf '%s' "${1//[! -~]/?}"
}

json_texts() {
  local text separator=''
  for text in "$@"; do
    printf '%s"%s"' "$separator" "$(printf '%s' "$text" | sed 's/[\\"]/\\&/g')"
    separator=,
  done
}

# ask LIKE SERVICE OPERATION OPTION...: the answer as text, from the first line that is like this extended regular
# expression: warnings may stand before it. When there is no answer, the reason is kept for the next two functions.
ask() {
  local like=$1 printed answer
  shift
  printed=$(aws "$@" --region "$region" --output text --cli-connect-timeout 10 2>"$files/refusal") || return 1
  answer=$(printf '%s\n' "$printed" | LC_ALL=C sed -n -E "\\,$like,,\$p")
  if [ -z "$answer" ]; then
    printf "the answer can't be understood: '%s'\n" "${printed%%$'\n'*}" >"$files/refusal"
    return 1
  fi
  printf '%s\n' "$answer"
}

# The reason in AWS's words, on one line: the error's own where there is one, the last words of the CLI otherwise.
refusal() {
  awk 'NF { last = $0 }
    /An error occurred \(/ && error == "" {
      error = $0
      sub(/^.*An error occurred \(/, "", error)
      sub(/\)( when calling the [A-Za-z]* operation( \(reached max retries: [0-9]*\))?)?: */, ": ", error)
    }
    END {
      sub(/^aws: \[ERROR\]: /, "", last)
      print error != "" ? error : last != "" ? last : "it gives no reason"
    }' "$files/refusal"
}

# refused OPERATION ACTION: ends the script with the sentence and the code for what AWS has answered.
refused() {
  local words action resource
  words=$(refusal)
  case "$words" in
    *'not authorized'* | *AccessDenied* | *UnauthorizedOperation*)
      # RunTask also needs iam:PassRole, and only the words tell which of the two is meant.
      action=$(printf '%s' "$words" | sed -n 's/.*not authorized to perform: \([A-Za-z0-9-]*:[A-Za-z0-9]*\).*/\1/p')
      resource=$(printf '%s' "$words" | sed -n 's/.* on resource: \([^ ]*\).*/ on \1/p')
      end_with $NOT_PERMITTED "your credentials lack the permission ${action:-$2}$resource; ask whoever manages them." ;;
    *redentials* | *ExpiredToken* | *'token'*'nvalid'* | *'nvalid'*'token'* | *UnrecognizedClient* | *'has expired'* | \
      *InvalidClientTokenId* | *SignatureDoesNotMatch* | *InvalidSignature* | *SSO* | *'config profile'*)
      end_with $NOT_PERMITTED "AWS has no valid credentials of you: ${words%.}. Try \`aws sts get-caller-identity\`." ;;
    *ClusterNotFoundException*)
      end_with $NOT_FOUND "there is no cluster $cluster in $region; another is named with CLUSTER=NAME." ;;
  esac
  if [ -n "$starting" ] && maybe_done "$words"; then
    show_how_to_look
    end_with $UNKNOWN "AWS was asked to start the task, but has not answered; what became of the task is unknown:" \
      "${words%.}."
  fi
  case "$words" in
    *onnect*endpoint* | *timeout* | *'timed out'*)
      end_with $UNAVAILABLE "AWS can't be reached from here: ${words%.}." ;;
  esac
  end_with $UNAVAILABLE "\`aws $1\` failed: ${words%.}."
}

# maybe_done WORDS: whether what was refused so may have happened all the same: AWS has not refused it, but failed, or
# its answer was lost.
maybe_done() {
  case "$1" in
    *'arameter validation failed'*) return 1 ;;
    Server* | Internal* | ServiceUnavailable* | RequestTimeout* | 5??:*) return 0 ;;
  esac
  ! grep -q 'An error occurred (' "$files/refusal"
}

find_network() {
  local answer status
  answer=$(ask "^(ACTIVE|DRAINING|INACTIVE)$TAB|^None\$" ecs describe-services --cluster "$cluster" \
    --services "$service" --query 'services[0].[status, to_string(networkConfiguration.awsvpcConfiguration)]') ||
    refused 'ecs describe-services' ecs:DescribeServices
  IFS=$'\t' read -r status network <<<"$answer"
  # A service that was deleted is still described for a while.
  [ "$status" = ACTIVE ] ||
    end_with $NOT_FOUND "there is no service $service in $cluster; another is named with SERVICE=NAME."
  [ "$network" != null ] ||
    end_with $NOT_FOUND "the service $service has no network configuration of its own to run the task in; another" \
      "service is named with SERVICE=NAME."
}

find_task_definition() {
  local answer container=''
  answer=$(ask '^arn:' ecs describe-task-definition --task-definition "$task_definition" \
    --query "taskDefinition.[[taskDefinitionArn], containerDefinitions[?name=='$CONTAINER'].[name,
      logConfiguration.options.\"awslogs-group\", logConfiguration.options.\"awslogs-stream-prefix\",
      logConfiguration.options.\"awslogs-region\"]]") ||
    case "$(refusal)" in
      *'nable to describe task definition'*)
        end_with $NOT_FOUND "there is no task definition $task_definition in $region; another is named with" \
          "TASK_DEFINITION=FAMILY." ;;
      *) refused 'ecs describe-task-definition' ecs:DescribeTaskDefinition ;;
    esac
  { read -r task_definition; IFS=$'\t' read -r container log_group log_prefix log_region; } <<<"$answer"
  [ "$container" = "$CONTAINER" ] ||
    end_with $NOT_FOUND "$task_definition has no container $CONTAINER; another is named with TASK_DEFINITION=FAMILY."
  [ "$log_region" != None ] || log_region=$region
}

start_task() {
  local answer reason detail
  # At most 36 characters; the trigger of the deployments adopts only tasks that bear its own name here.
  starting="run_migration_ecs/$(date +%s)-$$"
  say "Starting ${task_definition##*/}: $command"
  answer=$(ask "^(arn:.+|None)$TAB" ecs run-task --cluster "$cluster" --task-definition "$task_definition" \
    --launch-type FARGATE --network-configuration "{\"awsvpcConfiguration\":$network}" --overrides "$overrides" \
    --started-by "$starting" --query '[tasks[0].taskArn, failures[0].reason, failures[0].detail]') ||
    refused 'ecs run-task' ecs:RunTask
  IFS=$'\t' read -r task reason detail <<<"$answer"
  if [ "$task" = None ]; then
    [ "$reason" != None ] || reason='it gives no reason'
    [ "$detail" = None ] || reason="$reason ($detail)"
    end_with $NOT_RUN "ECS did not start the task: $reason; nothing was changed."
  fi
  starting=''
  [ "$log_group" = None ] || [ "$log_prefix" = None ] || stream=$log_prefix/$CONTAINER/${task##*/}
  [ -n "$stream" ] || say "The log of this task definition can't be shown: it is not kept in CloudWatch."
}

# Waits for the end of the task, and shows its log meanwhile.
follow() {
  local answer status='' last='' seen=$SECONDS tries=5
  while :; do
    # Rows, as each of the texts may be missing: the CLI prints None, or nothing for a container that is not described.
    if answer=$(ask '^([A-Z_]+|None)$' ecs describe-tasks --cluster "$cluster" --tasks "$task" \
      --query "tasks[0].[[lastStatus], [stopCode], [stoppedReason],
        containers[?name=='$CONTAINER'].[exitCode], containers[?name=='$CONTAINER'].[reason]]"); then
      {
        read -r status
        read -r stop_code
        read -r reason
        read -r exit_code
        read -r container_reason
      } <<<"$answer"$'\n\n\n\n'
    else
      case "$(refusal)" in
        *AccessDenied* | *'not authorized'* | *ExpiredToken* | *'has expired'*)
          say "The task goes on, but can't be watched any more."
          show_log_link
          refused 'ecs describe-tasks' ecs:DescribeTasks ;;
      esac
      status=None
    fi
    # Right after its start ECS may not know the task yet, and a connection may be lost for a moment.
    if [ "$status" != None ]; then
      seen=$SECONDS
    elif [ $((SECONDS - seen)) -gt $PATIENCE ]; then
      show_log_link
      end_with $UNKNOWN "ECS has not described task ${task##*/} for $PATIENCE seconds: what became of it is unknown."
    fi
    case "$status" in
      RUNNING | DEACTIVATING | STOPPING | DEPROVISIONING) show_log ;;
      STOPPED)
        ended=yes
        break ;;
    esac
    if [ "$status" != "$last" ] && [ "$status" != None ] && [ -z "$log_seen" ]; then
      say "Task ${task##*/} is $status."
      last=$status
    elif [ $((SECONDS - said)) -ge $SILENCE ]; then
      say "Task ${task##*/} is still ${last:-starting} after $SECONDS seconds."
    fi
    sleep 1
  done
  [ -n "$exit_code" ] || exit_code=None
  # CloudWatch may have the last lines a moment later than ECS has the end; of a container that did not run, none.
  while show_log ||
    { { [ -z "$log_seen" ] || [ -n "$unread" ]; } && [ "$exit_code" != None ] && [ $((tries -= 1)) -gt 0 ]; }; do
    sleep 1
  done
  [ "$exit_code" = None ] || say_unread
}

# Shows what is new in the log; false when nothing is, or it can't be read.
show_log() {
  local answer before=$token
  [ -n "$stream" ] && [ -n "$readable" ] || return 1
  if ! answer=$(region=$log_region ask '^([bf]/[^[:space:]]*|None)$' logs get-log-events \
    --log-group-name "$log_group" --log-stream-name "$stream" \
    --start-from-head ${token:+--next-token "$token"} --query '[nextForwardToken, events[].[message]]'); then
    case "$(refusal)" in
      *AccessDenied* | *'not authorized'*)
        readable=''
        say "The log can't be shown: your credentials lack the permission logs:GetLogEvents on $log_group." ;;
      *)
        unread=$(refusal)
        unread_since=${unread_since:-$SECONDS}
        # At first the stream may not be there yet, and anything may fail once.
        [ $((SECONDS - unread_since)) -lt $SILENCE ] || say_unread ;;
    esac
    return 1
  fi
  unread='' unread_since=''
  token=${answer%%$'\n'*}
  [ "$token" != "$before" ] || return 1
  if [ "$answer" != "$token" ]; then
    log_seen=yes said=$SECONDS
    printf '%s\n' "${answer#*$'\n'}" 2>/dev/null || unheard
  fi
}

say_unread() {
  [ -n "$unread" ] && [ -z "$unread_said" ] || return 0
  unread_said=yes
  say "The log can't be read: ${unread%.}."
}

show_log_link() {
  local domain=''
  [ -n "$stream" ] || return 0
  case "$task" in
    arn:aws:*) domain=console.aws.amazon.com ;;
    arn:aws-cn:*) domain=console.amazonaws.cn ;;
    arn:aws-us-gov:*) domain=console.amazonaws-us-gov.com ;;
  esac
  say "Log: $log_group, $stream"
  [ -z "$domain" ] || say "https://$log_region.$domain/cloudwatch/home?region=$log_region#logsV2:log-groups/log-group/$(
    link_part "$log_group")/log-events/$(link_part "$stream")"
}

# The console wants each "/" escaped twice, with "$" for the "%".
link_part() {
  # shellcheck disable=SC2016  # no variable
  printf '%s' "$1" | sed 's,/,$252F,g'
}

conclude() {
  show_log_link
  # The container's own reason says more than the task's, where there is one.
  case "$container_reason" in
    None | '') ;;
    *) reason=$container_reason ;;
  esac
  [ "$exit_code" != None ] || end_with $NOT_RUN "the container did not run: $reason"
  [ "$stop_code" = EssentialContainerExited ] && [ "$reason" != "$container_reason" ] || say "ECS says: $reason"
  # The trigger of the deployments takes no such end for a success either.
  [ "$stop_code" = EssentialContainerExited ] || [ "$exit_code" != 0 ] || exit_code=$NOT_RUN
  say "$command: exit code $exit_code."
  exit "$exit_code"
}

# interrupted SIGNAL: says what goes on without this script, and ends as the signal would have ended it.
# shellcheck disable=SC2329  # by a trap
interrupted() {
  trap - INT TERM HUP PIPE
  if [ -n "$ended" ]; then
    say "Interrupted: the task has ended."
    show_log_link
  elif [ -n "$task" ] && [ "$task" != None ]; then
    say "Interrupted: the task goes on. To stop it, which rolls back what it has not committed:"
    say "  aws ecs stop-task --region $region --cluster $cluster --task ${task##*/}"
    show_log_link
  elif [ -n "$starting" ]; then
    say "Interrupted while the task was being started."
    show_how_to_look
  else
    say "Interrupted: no task was started."
  fi
  rm -rf "$files"
  kill -s "$1" $$
  # Who has started this script may have it ignore the signal.
  exit $CLOSED
}

# Standard output takes no more. That ends the script, as it ends others; but not when only the exit code is missing.
unheard() {
  readable=''
  [ -z "$ended" ] || return 0
  say "Standard output takes no more."
  interrupted PIPE
}

show_how_to_look() {
  # ECS finds a task by this name only until it has ended.
  say "Whether it runs, tells this; when it lists none, \`status\` tells where the schema is:"
  say "  aws ecs list-tasks --region $region --cluster $cluster --started-by $starting"
}

main "$@"
