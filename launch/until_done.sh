#!/usr/bin/env bash
# Runs a command until it is done: again where it was stopped and saved, a few times where it broke.
#
#   launch/until_done.sh python -m maskcl_jax.main --config=... --workdir=...
#
# Exit status of the command: 0 done; 2 what was written cannot work: both end this. 143 (stopped by SIGTERM and saved)
# runs it again after MASKCL_PAUSE (default 30) seconds, anything else too, but MASKCL_RESTARTS (default 3) times in all.
# A SIGTERM to this script goes on to the command, and ends this when that is saved. Where MASKCL_OUTCOME names a file,
# the last status is written there: a watcher on another machine reads it.
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
  # In a session of its own, so that Ctrl-C does not reach it too: a second signal would end it unsaved.
  setsid "$@" &
  child=$!
  status=0
  wait "$child" || status=$?
  # A signal ends the wait before the command has saved.
  while kill -0 "$child" 2> /dev/null; do
    status=0
    wait "$child" || status=$?
  done
  child=""
  if $stopping; then exit "$status"; fi
  case $status in
    0 | 2) finish "$status" ;;
    143) echo "stopped and saved: going on in $pause s" >&2 ;;
    *)
      if ((restarts-- <= 0)); then finish "$status"; fi
      echo "ended with status $status: going on from the newest checkpoint in $pause s" >&2
      ;;
  esac
  sleep "$pause" &
  wait $! || true
  if $stopping; then exit 143; fi
done
