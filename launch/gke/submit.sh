#!/usr/bin/env bash
# A training job on TPU slices of a Kubernetes cluster with JobSet (made by xpk, or by hand).
#
#   launch/gke/submit.sh [--dry-run] NAME MODULE ARGUMENTS...
#
#   IMAGE=... CLAIM=... ACCELERATOR=tpu-v5p-slice TOPOLOGY=2x4x4 HOSTS=8 launch/gke/submit.sh halo-2b \
#     launch.halo configs/halo_2b/halo.py --teacher /shared/Qwen3-1.7B --data /shared/text --run-dir /shared/halo-2b
#
# IMAGE              made with launch/gke/Dockerfile
# CLAIM              volume claim that all pods may write, mounted at /shared; the run directory must lie there
# ACCELERATOR, TOPOLOGY, HOSTS   node labels of the slice, and how many hosts it has
# CHIPS              chips of a host (4)
# SLICES             how many slices (1)
# QUEUE              Kueue queue (multislice-queue, the one of xpk)
# GRACE              seconds between SIGTERM and SIGKILL; a save must fit in (120)
# --dry-run          print what would be applied and stop
set -euo pipefail

dry_run=false
if [[ ${1:-} == --dry-run ]]; then dry_run=true; shift; fi
if [[ $# -lt 2 ]]; then sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; fi
NAME=$1
shift
# JobSet adds to the name, and Kubernetes allows 63 characters.
if [[ ! $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]]; then
  echo "$NAME: use at most 40 lower-case letters, digits and '-', as in DNS labels" >&2
  exit 2
fi
: "${IMAGE:?IMAGE is not set}" "${CLAIM:?CLAIM is not set}" "${ACCELERATOR:?ACCELERATOR is not set}"
: "${TOPOLOGY:?TOPOLOGY is not set}" "${HOSTS:?HOSTS is not set}"
: "${CHIPS:=4}" "${SLICES:=1}" "${QUEUE:=multislice-queue}" "${GRACE:=120}"

ARGUMENTS=''
for word in "$@"; do
  word=${word//\\/\\\\}
  ARGUMENTS+="${ARGUMENTS:+, }\"${word//\"/\\\"}\""
done
ARGUMENTS="[$ARGUMENTS]"

manifest=$(< "$(dirname "$0")/jobset.yaml")
for field in NAME QUEUE SLICES HOSTS GRACE ACCELERATOR TOPOLOGY IMAGE CHIPS CLAIM ARGUMENTS; do
  manifest=${manifest//"\${$field}"/"${!field}"}
done
if $dry_run; then echo "$manifest"; exit 0; fi
kubectl apply -f - <<< "$manifest"
