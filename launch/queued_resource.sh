#!/usr/bin/env bash
# Requests TPUs from the queue (spot by default), trains when they are ready, and requests new ones after preemption.
#
#   launch/queued_resource.sh --name=cmae --zone=ZONE --topology=v5e:4x4 --bucket=BUCKET \
#     --config=configs/cmae.py:imagenet [--data=BUCKET/FOLDER] [--project=P] [--runtime-version=V] [--spot=no] \
#     [--every=60] [--dry-run] [-- flags of maskcl_jax.main]
#
# Polls every --every seconds until the run is done, then deletes the TPUs. Ending this script does not end the run; the
# same command polls again. The run is in gs://BUCKET/cmae.
# Watch: gcloud compute tpus tpu-vm ssh cmae --zone=ZONE --worker=0 --command='journalctl -fu maskcl_jax'
# Stop: end this script, then gcloud compute tpus queued-resources delete cmae --zone=ZONE --force
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

parse "name zone topology bucket config" "data project runtime-version spot every" "$@"
check_name "$name"
parse_topology "$topology" "$runtime_version"
check_bucket bucket "$bucket"
check_config "$config"
check_data "$data"
check_number every "${every:=60}"
[[ ${spot:=yes} == yes || $spot == no ]] || die "--spot=$spot is neither yes nor no"
check_namespace

where=(--zone="$zone")
if [[ -n $project ]]; then where+=(--project="$project"); fi
queue=(gcloud compute tpus queued-resources)
outcome=gs://$bucket/$name/outcome

# Its startup script runs whenever a VM boots.
request() {
  local options=(--node-id="$name" --accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
  if [[ $spot == yes ]]; then options+=(--spot); fi
  local script
  script=$(printf '#!/bin/bash\nset -euo pipefail\n%s' "$(host_commands)")
  run "${queue[@]}" create "$name" "${where[@]}" "${options[@]}" --scopes=cloud-platform \
    --metadata=^~~^startup-script="$script"
}

# give_back MESSAGE STATUS
give_back() {
  echo "$1"
  run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
  exit "$2"
}

upload_code
host_arguments=(--name="$name" --bucket="$bucket" --config="$config" ${data:+--data="$data"})
if ((${#extra[@]})); then host_arguments+=(-- "${extra[@]}"); fi
if $dry_run; then
  request
  exit 0
fi

while true; do
  state=$("${queue[@]}" describe "$name" "${where[@]}" --format='value(state.state)' 2> /dev/null || true)
  case ${state:-NONE} in
    NONE)
      gcloud storage rm --quiet "$outcome" 2> /dev/null || true # of an earlier run
      request
      ;;
    SUSPENDED | FAILED)
      echo "the TPUs were preempted ($state): requesting new ones"
      run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
      continue
      ;;
    ACTIVE)
      status=$(gcloud storage cat "$outcome" 2> /dev/null || true)
      case $status in
        "") ;;
        0) give_back "done: gs://$bucket/$name" 0 ;;
        *) give_back "error: the run ended with status $status, see the log in gs://$bucket/$name" 1 ;;
      esac
      ;;
  esac
  sleep "$every"
done
