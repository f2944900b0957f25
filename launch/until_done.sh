#!/usr/bin/env bash
# Runs a command until it is done: again after it was stopped and saved, and a few times after a failure.
#
#   launch/until_done.sh python -m maskcl_jax.main --config=... --workdir=...
#
# The exit status of the command decides. 0 (done) and 2 (the command cannot work as written) end this script. 143
# (stopped by SIGTERM and saved) runs the command again after MASKCL_PAUSE seconds (default 30); so does any other
# status, at most MASKCL_RESTARTS times in all (default 3). A SIGTERM to this script is passed to the command and ends
# the script when that has saved. MASKCL_OUTCOME may name a file for the last status, which a watcher on another machine
# reads.
set -euo pipefail

(($#)) || { echo "error: the command is missing" >&2; exit 2; }
[[ $1 != -* ]] || { echo "error: argument '$1' is not understood: write the command to run" >&2; exit 2; }
restarts=${MASKCL_RESTARTS:-3} pause=${MASKCL_PAUSE:-30} outcome=${MASKCL_OUTCOME:-}
child="" stopping=false

finish() {
  if [[ -n $outcome ]]; then echo "$1" > "$outcome"; fi
  exit "$1"
}

stop() {
  stopping=true
  if [[ -n $child ]]; then kill -TERM "$child" 2> /dev/null || true; fi
}
trap stop TERM INT

if [[ -n $outcome ]]; then rm -f "$outcome"; fi
while true; do
  # In its own session, so that Ctrl-C does not reach it too: a second signal would end it unsaved.
  setsid "$@" &
  child=$!
  status=0
  wait "$child" || status=$?
  # A signal interrupts `wait` before the command has saved.
  while kill -0 "$child" 2> /dev/null; do
    status=0
    wait "$child" || status=$?
  done
  child=""
  if $stopping; then exit "$status"; fi
  case $status in
    0 | 2) finish "$status" ;;
    143) echo "stopped and saved: continuing in $pause s" >&2 ;;
    *)
      if ((restarts-- <= 0)); then finish "$status"; fi
      echo "ended with status $status: continuing from the newest checkpoint in $pause s" >&2
      ;;
  esac
  sleep "$pause" &
  wait $! || true
  if $stopping; then exit 143; fi
done
