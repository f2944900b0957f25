#!/usr/bin/env bash
# Runs on each host of a TPU as root: mounts the buckets, installs, trains in the background. The launchers call it.
#
#   launch/tpu_host.sh --name=NAME --bucket=BUCKET --config=CONFIG [--data=BUCKET/FOLDER] [--dry-run] [-- flags of main]
#
# A second call leaves a run that is running alone, and continues one that is not.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

parse "name bucket config" "data" "$@"
check_name "$name"
check_bucket bucket "$bucket"
check_config "$config"
check_data "$data"
runs=/mnt/maskcl_jax/runs images=/mnt/maskcl_jax/data
data_flags "$config" "${data:+$images/${data#*/}}"

gcsfuse_version=3.11.1
python_version=3.12

if ! $dry_run && systemctl is-active --quiet maskcl_jax; then
  echo "a run is active on this host: journalctl -fu maskcl_jax"
  exit 0
fi

if $dry_run || ! command -v gcsfuse > /dev/null; then
  release=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$gcsfuse_version
  run curl -fsSLo /srv/gcsfuse.deb "$release/gcsfuse_${gcsfuse_version}_amd64.deb"
  run apt-get install -y -qq /srv/gcsfuse.deb
fi

# mount_bucket BUCKET FOLDER OPTIONS...
mount_bucket() {
  local from=$1 to=$2
  shift 2
  if ! $dry_run && mountpoint -q "$to"; then return 0; fi
  run mkdir -p "$to"
  run gcsfuse --implicit-dirs "$@" "$from" "$to"
}
# No host may cache the contents of a folder: the others write to it.
mount_bucket "$bucket" "$runs" --metadata-cache-ttl-secs=0
if [[ -n $data ]]; then mount_bucket "${data%%/*}" "$images" -o ro; fi

run python3 -m pip install -q uv
run python3 -m uv venv -q --allow-existing --python="$python_version" /srv/venv
run python3 -m uv pip install -q --python=/srv/venv/bin/python "${root}[tpu]"

# The service sends its signal only to until_done.sh, which passes it on once: a second one would end the run unsaved.
if ! $dry_run; then systemctl reset-failed maskcl_jax 2> /dev/null || true; fi
run mkdir -p "$runs/$name"
run systemd-run --quiet --unit=maskcl_jax --working-directory="$root" \
  --property=KillMode=mixed --property=TimeoutStopSec=900 \
  --setenv=MASKCL_OUTCOME="$runs/$name/outcome" --setenv=JAX_COMPILATION_CACHE_DIR=/srv/compiled \
  bash launch/until_done.sh /srv/venv/bin/python -m maskcl_jax.main --config="$config" --workdir="$runs/$name" \
  ${data_arguments[@]+"${data_arguments[@]}"} ${extra[@]+"${extra[@]}"}
