#!/usr/bin/env bash
# Submits a run to SLURM: one process per node with all its GPUs. It is requeued when preempted or out of time.
#
#   launch/slurm.sh --name=cmae --config=configs/cmae.py:imagenet --workdir=DIR --nodes=4 --gpus-per-node=8 \
#     [--data=DIR] [--time=24:00:00] [--cpus=64] [--partition=P] [--account=A] [--dry-run] [-- flags of maskcl_jax.main]
#
# DIR is on a file system that all nodes share; python is that of the environment from which this is called. The same
# command continues the run, or says that it is in the queue.
# Watch: squeue --me, tail -f DIR/slurm.log. Stop: scancel --signal=TERM --full JOB saves and requeues; scancel JOB ends.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

parse "name config workdir nodes gpus-per-node" "data time cpus partition account" "$@"
check_name "$name"
check_config "$config"
for number in nodes gpus_per_node; do check_number "${number//_/-}" "${!number}"; done
if [[ -n $cpus ]]; then check_number cpus "$cpus"; fi
[[ ${time:=24:00:00} =~ ^([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}$ ]] || die "--time=$time is not a time: write for instance 24:00:00"
data_flags "$config" "$data"

if ! $dry_run && [[ -n $(squeue --me --noheader --name="$name") ]]; then
  echo "$name is in the queue already:"
  squeue --me --name="$name"
  exit 0
fi

# SIGTERM reaches the training processes five minutes before the time limit: they save, and the job is requeued.
options=(
  --job-name="$name" --nodes="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus_per_node" --time="$time"
  --requeue --signal=TERM@300 --open-mode=append --output="$workdir/slurm.log" --chdir="$root"
)
if [[ -n $cpus ]]; then options+=(--cpus-per-task="$cpus"); fi
if [[ -n $partition ]]; then options+=(--partition="$partition"); fi
if [[ -n $account ]]; then options+=(--account="$account"); fi
run mkdir -p "$workdir"
run sbatch "${options[@]}" "$root/launch/slurm_job.sh" --config="$config" --workdir="$workdir" \
  ${data_arguments[@]+"${data_arguments[@]}"} ${extra[@]+"${extra[@]}"}
