#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as a JobSet. Preempted or failed, it is restarted and continues.
#
#   launch/gke_tpu.sh --name=cmae --topology=v5e:4x4 --image=IMAGE --bucket=BUCKET --config=configs/cmae.py:imagenet \
#     [--data=BUCKET/FOLDER] [--service-account=S] [--spot=yes] [--chips-per-host=4] [--restarts=100] [--dry-run] \
#     [-- flags of maskcl_jax.main]
#
# Uses kubectl's current cluster, which must have JobSet, the Cloud Storage FUSE driver, a node pool of this topology,
# and a Kubernetes service account that may write to BUCKET. IMAGE is built from launch/Dockerfile. The run is in
# gs://BUCKET/cmae.
# --dry-run prints the YAML. Called again it continues a run that failed and leaves one that is running alone.
# Watch: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=cmae,batch.kubernetes.io/job-completion-index=0
# Stop (saves first): kubectl delete jobset cmae
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

parse "name topology image bucket config" "data service-account spot chips-per-host restarts" "$@"
check_jobset
parse_topology "$topology"
check_number chips-per-host "${chips_per_host:=4}"
((chips % chips_per_host == 0)) || die "--chips-per-host=$chips_per_host does not divide the $chips chips of $topology"
hosts=$((chips / chips_per_host))
apply "$root/launch/gke_tpu.yaml" HOSTS GKE_NAME SHAPE CHIPS_PER_HOST
