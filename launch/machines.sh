#!/bin/bash
# A run on machines that ssh reaches, one process each, started again when one of them dies:
#
#   launch/machines.sh node-a node-b -- --config=t5_base_c4 --workdir=/shared/runs/base
#
# The first machine holds the coordinator, at its name as given (MTPT_COORDINATOR=HOST:PORT for
# another). Each runs `mtpt` in the folder that this is called in (MTPT_FOLDER for another). Ctrl-C
# and SIGTERM have all of them save and end.
set -u

machines=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  machines+=("$1")
  shift
done
if [ ${#machines[@]} -eq 0 ] || [ $# -eq 0 ]; then
  echo 'launch: launch/machines.sh HOST ... -- --config=NAME --workdir=FOLDER' >&2
  exit 2
fi
shift
first=${machines[0]#*@}
coordinator=${MTPT_COORDINATOR:-$first:8476}
folder=${MTPT_FOLDER:-$PWD}
ssh=${MTPT_SSH:-ssh}
mark=mtpt-${coordinator##*:}

# What a machine runs: its process id is kept, for ending it. Each word is quoted for its shell.
remote() {
  printf 'cd %q && echo $$ > "${TMPDIR:-/tmp}"/%q.pid && exec mtpt train' "$folder" "$mark-$1"
  printf ' %q' --restarts=20 "--coordinator=$coordinator" "--processes=${#machines[@]}" \
    "--process=$1" "${@:2}"
}

sessions=()
for number in "${!machines[@]}"; do
  "$ssh" "${machines[number]}" "$(remote "$number" "$@")" &
  sessions+=($!)
done

end() {
  for number in "${!machines[@]}"; do
    if kill -0 "${sessions[number]}" 2> /dev/null; then
      # shellcheck disable=SC2029 # the mark is ours, and the rest is for the machine
      "$ssh" "${machines[number]}" "kill -TERM \"\$(cat \"\${TMPDIR:-/tmp}\"/$mark-$number.pid)\"" &
    fi
  done
}
trap end INT TERM

worst=0
for number in "${!sessions[@]}"; do
  while :; do
    wait "${sessions[number]}"
    status=$?
    kill -0 "${sessions[number]}" 2> /dev/null || break # else only a signal ended the waiting
  done
  [ "$status" -eq 0 ] || echo "launch: ${machines[number]} ended with status $status" >&2
  [ "$status" -le "$worst" ] || worst=$status
done
exit "$worst"
