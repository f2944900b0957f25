#!/usr/bin/env bash
# Trains on GPU nodes of a GKE cluster, as a JobSet. Preempted or failed, it is restarted and continues.
#
#   launch/gke_gpu.sh --name=cmae --gpu=nvidia-h100-80gb --nodes=2 --gpus-per-node=8 --image=IMAGE --bucket=BUCKET \
#     --config=configs/cmae.py:imagenet [--data=BUCKET/FOLDER] [--service-account=S] [--spot=yes] [--restarts=100] \
#     [--dry-run] [-- flags of maskcl_jax.main]
#
# Uses kubectl's current cluster, which must have JobSet, the Cloud Storage FUSE driver, such nodes, and a Kubernetes
# service account that may write to BUCKET. IMAGE is built from launch/Dockerfile. The run is in gs://BUCKET/cmae.
# --dry-run prints the YAML. Called again it continues a run that failed and leaves one that is running alone.
# Watch: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=cmae,batch.kubernetes.io/job-completion-index=0
# Stop (saves first): kubectl delete jobset cmae
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

parse "name gpu nodes gpus-per-node image bucket config" "data service-account spot restarts" "$@"
check_jobset
[[ $gpu =~ ^nvidia-[a-z0-9-]+$ ]] || die "--gpu=$gpu is not an accelerator of GKE: write for instance nvidia-h100-80gb"
check_number nodes "$nodes"
check_number gpus-per-node "$gpus_per_node"
apply "$root/launch/gke_gpu.yaml" GPU NODES GPUS_PER_NODE
