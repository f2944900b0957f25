# shellcheck shell=bash
# Shared by the launchers: arguments --name=value, their checks, --dry-run. Sourced, not run.

# Prints one line and exits with the status of everything that the user can fix.
die() {
  echo "error: $*" >&2
  exit 2
}

# parse "REQUIRED NAMES" "OPTIONAL NAMES" "$@": sets one variable per name (dashes become underscores), `dry_run`, and
# the array `extra` with what follows --.
parse() {
  local required=$1 optional=$2 argument key
  shift 2
  dry_run=false extra=()
  for key in $required $optional; do printf -v "${key//-/_}" %s ""; done
  while (($#)); do
    argument=$1
    shift
    case $argument in
      --help)
        sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
        exit 0
        ;;
      --dry-run) dry_run=true ;;
      --)
        extra=("$@")
        break
        ;;
      --*=*)
        key=${argument%%=*} key=${key#--}
        [[ " $required $optional " == *" $key "* ]] ||
          die "--$key is unknown: use --${required// /, --}${optional:+, --${optional// /, --}}, --dry-run, --help"
        printf -v "${key//-/_}" %s "${argument#*=}"
        ;;
      *) die "argument '$argument' is not understood: write --name=value; flags of maskcl_jax.main follow a --" ;;
    esac
  done
  for key in $required; do
    local variable=${key//-/_}
    [[ -n ${!variable} ]] || die "--$key is missing"
  done
}

# Runs a command, or prints it in a dry run.
run() {
  if $dry_run; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# The name of a run, which its machine, folder and job have too.
check_name() {
  [[ $1 =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || die "--name=$1 is not a name: use a-z, 0-9 and -, at most 40 characters"
}

# A config of this repository, with its preset after the colon.
check_config() {
  [[ -f "$root/${1%%:*}" || -f "$root/configs/${1%%:*}.py" ]] ||
    die "--config=$1 is not a file of this repository: write for instance configs/cmae.py:imagenet"
}

# A bucket's bare name, without gs://.
check_bucket() {
  [[ $2 =~ ^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$ ]] || die "--$1=$2 is not a bucket: write its name without gs://"
}

# "BUCKET/FOLDER", or nothing.
check_data() {
  [[ -n $1 ]] || return 0
  [[ $1 == */?* ]] || die "--data=$1 has no folder: write BUCKET/FOLDER, without gs://"
  check_bucket data "${1%%/*}"
}

# check_number FLAG VALUE: an integer from 1.
check_number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--$1=$2 is not a number: use 1 or more"
}

# parse_topology GENERATION:SHAPE [RUNTIME VERSION], as in `maskcl_jax.compile_check`: sets generation, shape, chips,
# accelerator_type, runtime_version (by default Google's for this generation), gke_name.
parse_topology() {
  local flat="2x2 2x4 4x4 4x8 8x8 8x16 16x16" solid="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8" shapes=""
  generation=${1%%:*} shape=${1#*:}
  case $generation in
    v5e | v6e) shapes=$flat ;;
    v4 | v5p) shapes=$solid ;;
  esac
  [[ $1 == *:* && " $shapes " == *" $shape "* ]] ||
    die "--topology=$1 is unknown: write v5e: or v6e: with one of $flat; v4: or v5p: with one of $solid"
  chips=$((${shape//x/ * }))
  case $generation in
    # The names of v4 and v5p count cores, two per chip.
    v4) accelerator_type=v4-$((2 * chips)) runtime_version=tpu-ubuntu2204-base gke_name=tpu-v4-podslice ;;
    v5e) accelerator_type=v5litepod-$chips runtime_version=v2-alpha-tpuv5-lite gke_name=tpu-v5-lite-podslice ;;
    v5p) accelerator_type=v5p-$((2 * chips)) runtime_version=v2-alpha-tpuv5 gke_name=tpu-v5p-slice ;;
    v6e) accelerator_type=v6e-$chips runtime_version=v2-alpha-tpuv6e gke_name=tpu-v6e-slice ;;
  esac
  runtime_version=${2:-$runtime_version}
}

# data_flags CONFIG FOLDER: sets the array `data_arguments` to the flag for the folder of the preset's data, to none
# without a FOLDER.
data_flags() {
  data_arguments=()
  [[ -n $2 ]] || return 0
  case ${1#*:} in
    folder* | imagenet100* | npz* | tar* | tiny_imagenet*) data_arguments=("--config.data.path=$2") ;;
    *) data_arguments=("--config.data.data_dir=$2") ;;
  esac
}

# render FILE NAMES...: prints the file with @NAME@ replaced by the variable of that name in lower case.
render() {
  local text key variable
  text=$(< "$1")
  shift
  shopt -u patsub_replacement 2> /dev/null || true # from bash 5.2 on, & in a value stands for the match
  for key in "$@"; do
    variable=$(tr '[:upper:]' '[:lower:]' <<< "$key")
    text=${text//@$key@/${!variable}}
  done
  printf '%s\n' "$text"
}

# Words as a JSON list, which is YAML too.
json_list() {
  local list
  list=$(printf '%s\n' "$@" | sed 's/[\\"]/\\&/g; s/.*/"&"/' | paste -sd, -)
  printf '[%s]' "$list"
}

# Uploads the last commit of this repository, from which every host installs. Sets `code`; uses `bucket` and `name`.
upload_code() {
  code=gs://$bucket/$name/code.tar.gz
  if $dry_run; then
    echo "+ git archive --format=tar.gz HEAD | gcloud storage cp - $code"
  else
    [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] ||
      echo "warning: uncommitted changes are not uploaded" >&2
    git -C "$root" archive --format=tar.gz HEAD | gcloud storage cp - "$code"
  fi
}

# Prints what every TPU host runs as root: fetch the code, start its tpu_host.sh. Uses `code` and `host_arguments`.
host_commands() {
  echo "export HOME=/root && mkdir -p /srv/maskcl_jax && gcloud storage cat $code | tar xz -C /srv/maskcl_jax &&"
  printf 'bash /srv/maskcl_jax/launch/tpu_host.sh'
  printf ' %q' "${host_arguments[@]}"
  echo
}

# A checkpoint is completed by renaming its folder, which is atomic only in a bucket with a hierarchical namespace.
check_namespace() {
  local enabled
  $dry_run && return 0
  enabled=$(gcloud storage buckets describe "gs://$bucket" --format='value(hierarchical_namespace.enabled)') ||
    die "--bucket=$bucket cannot be read: check that it exists and that gcloud is logged in"
  [[ $enabled == True ]] || die "--bucket=$bucket has no hierarchical namespace, so a checkpoint could be incomplete." \
    "Create one: gcloud storage buckets create gs://NEW --location=REGION --uniform-bucket-level-access --enable-hierarchical-namespace"
}

# Checks the arguments that both GKE launchers have, and sets the variables of their YAML.
check_jobset() {
  check_name "$name"
  check_bucket bucket "$bucket"
  check_config "$config"
  check_data "$data"
  check_number restarts "${restarts:=100}"
  [[ $image =~ ^[A-Za-z0-9./:@_-]+$ ]] || die "--image=$image is not the name of an image"
  [[ ${service_account:=default} =~ ^[a-z0-9.-]+$ ]] || die "--service-account=$service_account is not a name"
  [[ ${spot:=no} == yes || $spot == no ]] || die "--spot=$spot is neither yes nor no"
  spot_selector=""
  if [[ $spot == yes ]]; then spot_selector='                cloud.google.com/gke-spot: "true"'; fi
  data_bucket=${data%%/*} data_bucket=${data_bucket:-$bucket}
  data_flags "$config" "${data:+/mnt/data/${data#*/}}"
  arguments=$(json_list --config="$config" --workdir="/mnt/runs/$name" \
    ${data_arguments[@]+"${data_arguments[@]}"} ${extra[@]+"${extra[@]}"})
  check_namespace
}

# apply FILE NAMES...: fills in the JobSet and submits it to the cluster, or prints it in a dry run.
apply() {
  local file=$1 filled state
  shift
  filled=$(render "$file" NAME RESTARTS SERVICE_ACCOUNT SPOT_SELECTOR IMAGE ARGUMENTS BUCKET DATA_BUCKET "$@" | grep -v '^$')
  if $dry_run; then
    printf '%s\n' "$filled"
    return
  fi
  state=$(kubectl get jobset "$name" --ignore-not-found -o 'jsonpath={.metadata.name} {.status.terminalState}')
  case $state in
    "") ;;
    *Completed)
      echo "$name is done: gs://$bucket/$name"
      return
      ;;
    *Failed) kubectl delete jobset "$name" ;;
    *)
      echo "$name is running already: kubectl get pods -l jobset.sigs.k8s.io/jobset-name=$name"
      return
      ;;
  esac
  kubectl apply -f - <<< "$filled"
}
