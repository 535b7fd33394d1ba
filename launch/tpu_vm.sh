#!/usr/bin/env bash
# A training job on Cloud TPU VMs, requested as a queued resource; every step runs on all hosts of the slice.
#
#   launch/tpu_vm.sh [--dry-run] STEP NAME [MODULE ARGUMENTS...]
#
#   create NAME        ask for the slice and wait until it is there
#   install NAME       the code and its packages on every host
#   run NAME MODULE... the same command on every host; started again as long as it ends with 42 (saved, go on)
#   delete NAME        give everything back
#
#   PROJECT=my-project ZONE=us-east5-a TYPE=v5p-64 launch/tpu_vm.sh create pod
#   ... install pod; ... run pod launch.halo configs/halo_2b/halo.py --teacher ... --data ... --run-dir /mnt/shared/run
#
# PROJECT, ZONE      where; always needed
# TYPE               accelerator type, as create wants it (v5p-64 is 32 chips on 8 hosts)
# VERSION            runtime of the hosts (tpu-ubuntu2204-base)
# CAPACITY           --spot, --reserved or nothing, for create
# REPOSITORY, REF    git address of this code and the commit to check out, for install
# --dry-run          print the commands and stop
set -euo pipefail

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }

do_it() {
  if $dry_run; then printf '%q ' "$@"; echo; else "$@"; fi
}

dry_run=false
if [[ ${1:-} == --dry-run ]]; then dry_run=true; shift; fi
if [[ $# -lt 2 ]]; then usage >&2; exit 2; fi
step=$1 name=$2
shift 2
if [[ ! $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]]; then
  echo "$name: use lower-case letters, digits and '-', as in DNS labels" >&2
  exit 2
fi
place=(--project "${PROJECT:?PROJECT is not set}" --zone "${ZONE:?ZONE is not set}")
queue=(gcloud compute tpus queued-resources)

on_all_hosts() {
  do_it gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --command "$1"
}

case $step in
  create)
    do_it "${queue[@]}" create "$name" --node-id "$name" "${place[@]}" \
      --accelerator-type "${TYPE:?TYPE is not set}" \
      --runtime-version "${VERSION:-tpu-ubuntu2204-base}" ${CAPACITY:+"$CAPACITY"}
    ask=("${queue[@]}" describe "$name" "${place[@]}" '--format=value(state.state)')
    if $dry_run; then do_it "${ask[@]}"; exit 0; fi
    while state=$("${ask[@]}") && [[ $state != ACTIVE ]]; do
      if [[ $state == FAILED || $state == SUSPENDED ]]; then echo "$name is $state" >&2; exit 1; fi
      echo "$name is $state"
      sleep 30
    done
    ;;
  install)
    on_all_hosts "$(printf 'set -e; test -d hypenet || git clone %q hypenet; cd hypenet; git fetch --all; git checkout %q; python3 -m venv .venv; .venv/bin/pip install --quiet %q' \
      "${REPOSITORY:?REPOSITORY is not set}" "${REF:?REF is not set}" '.[tpu]')"
    ;;
  run)
    if [[ $# -lt 1 ]]; then usage >&2; exit 2; fi
    command="cd hypenet && exec .venv/bin/python -m$(printf ' %q' "$@")"
    code=42
    while ((code == 42)); do
      code=0
      on_all_hosts "$command" || code=$?
    done
    exit "$code"
    ;;
  delete)
    do_it "${queue[@]}" delete "$name" "${place[@]}" --force --quiet
    ;;
  *)
    usage >&2
    exit 2
    ;;
esac
