#!/usr/bin/env bash
# Trains on all GPUs of this machine and restarts after a failure. The same command continues the run.
#
#   launch/gpu_node.sh --config=configs/cmae.py:imagenet --workdir=runs/cmae [--data=DIR] [--gpus=0,1,2,3] \
#     [--dry-run] [-- flags of maskcl_jax.main]
#
# Watch: this terminal, or tensorboard --logdir=WORKDIR. Stop: Ctrl-C, which saves first.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

parse "config workdir" "data gpus" "$@"
check_config "$config"
data_flags "$config" "$data"
[[ ! ${gpus:-0} =~ [^0-9,] ]] || die "--gpus=$gpus is not a list of numbers: write for instance 0,1,2,3"

cd "$root"
if [[ -n $gpus ]]; then export CUDA_VISIBLE_DEVICES=$gpus; fi
# By default JAX allocates three quarters of the GPU's memory.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
run bash launch/until_done.sh python -m maskcl_jax.main --config="$config" --workdir="$workdir" \
  ${data_arguments[@]+"${data_arguments[@]}"} ${extra[@]+"${extra[@]}"}
