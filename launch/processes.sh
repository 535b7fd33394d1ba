#!/usr/bin/env bash
# N processes on this machine that train together: what a pod does, without the pod.
#
#   launch/processes.sh [--dry-run] [--devices D] [--port P] N MODULE ARGUMENTS...
#
#   launch/processes.sh --devices 4 2 launch.halo configs/quickstart.py --run-dir runs/pod
#
# --devices D   D virtual CPU devices for each process; without it, process i takes accelerator i
# --port P      where process 0 listens on this machine (8476)
# --dry-run     print the commands and stop
# PYTHON        the interpreter (python)
#
# SIGTERM and SIGINT reach every process. Exit code: the first one, by number of the process, that is not 0.
set -euo pipefail

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }

dry_run=false devices='' port=8476
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry-run) dry_run=true ;;
    --devices) devices=${2:?--devices needs a number}; shift ;;
    --port) port=${2:?--port needs a number}; shift ;;
    --help) usage; exit 0 ;;
    *) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then usage >&2; exit 2; fi
count=$1 module=$2
shift 2

# The environment and the command of process $1, in the array `command`.
command_of() {
  command=(env)
  if [[ -n $devices ]]; then
    command+=(JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=$devices")
  else
    command+=("JAX_LOCAL_DEVICE_IDS=$1")
  fi
  command+=("${PYTHON:-python}" -m "$module" "${arguments[@]}"
    --coordinator "127.0.0.1:$port" --num-processes "$count" --process-id "$1")
}

arguments=("$@")
pids=()
for ((process = 0; process < count; process++)); do
  command_of "$process"
  if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
if $dry_run; then exit 0; fi

# A trapped signal interrupts `wait`, so it is asked again until the process has really ended.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
result=0
for process in "${!pids[@]}"; do
  code=0
  wait "${pids[$process]}" || code=$?
  while kill -0 "${pids[$process]}" 2>/dev/null; do
    code=0
    wait "${pids[$process]}" || code=$?
  done
  if ((code != 0)); then echo "process $process ended with $code" >&2; fi
  if ((result == 0)); then result=$code; fi
done
exit "$result"
