#!/usr/bin/env bash
# Trains on a TPU VM or on all hosts of a pod slice, which it creates if needed. The same command continues the run.
#
#   launch/tpu_vm.sh --name=cmae --zone=ZONE --topology=v5e:4x4 --bucket=BUCKET --config=configs/cmae.py:imagenet \
#     [--data=BUCKET/FOLDER] [--project=P] [--runtime-version=V] [--spot=yes] [--dry-run] [-- flags of maskcl_jax.main]
#
# The run is in gs://BUCKET/cmae. The last commit of this repository is what runs.
# Watch: gcloud compute tpus tpu-vm ssh cmae --zone=ZONE --worker=0 --command='journalctl -fu maskcl_jax'
# Stop (saves first): ... --worker=all --command='sudo systemctl stop maskcl_jax'. The VM costs money until
# gcloud compute tpus tpu-vm delete cmae --zone=ZONE
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

parse "name zone topology bucket config" "data project runtime-version spot" "$@"
check_name "$name"
parse_topology "$topology" "$runtime_version"
check_bucket bucket "$bucket"
check_config "$config"
check_data "$data"
[[ ${spot:=no} == yes || $spot == no ]] || die "--spot=$spot is neither yes nor no"
check_namespace

where=(--zone="$zone")
if [[ -n $project ]]; then where+=(--project="$project"); fi

upload_code
if $dry_run || ! gcloud compute tpus tpu-vm describe "$name" "${where[@]}" > /dev/null 2>&1; then
  options=(--accelerator-type="$accelerator_type" --version="$runtime_version")
  if [[ $spot == yes ]]; then options+=(--spot); fi
  run gcloud compute tpus tpu-vm create "$name" "${where[@]}" "${options[@]}" --scopes=cloud-platform
fi
host_arguments=(--name="$name" --bucket="$bucket" --config="$config" ${data:+--data="$data"})
if ((${#extra[@]})); then host_arguments+=(-- "${extra[@]}"); fi
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
  --command="sudo bash -euo pipefail -c $(printf %q "$(host_commands)")"
