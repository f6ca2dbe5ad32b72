#!/bin/bash
# A run on all hosts of a TPU VM slice, which goes on when this terminal is closed:
#
#   launch/tpu_vm.sh NAME ZONE -- --config=t5_large_c4 --workdir=/mnt/shared/runs/large
#
# JAX finds the hosts by itself. The workdir is on a file system that all hosts mount (Filestore, or
# a bucket through gcsfuse). Each host writes to ~/mtpt.log; docs/launch.md says how to look at it,
# and how to end the run.
set -u

if [ $# -lt 4 ] || [ "$3" != -- ]; then
  echo 'launch: launch/tpu_vm.sh NAME ZONE -- --config=NAME --workdir=FOLDER' >&2
  exit 2
fi
name=$1 zone=$2
shift 3

# Each word is quoted for the shell of the hosts. Crashes and the loss of another host start the
# process again, until 20 times in a row no new checkpoint was written. `exec`: no shell stays between
# the session and the run, which would keep the one open and the other from being told to end.
words=$(printf ' %q' --restarts=20 "$@")
command="cd ~/mtpt && . .venv/bin/activate && exec nohup mtpt train$words > ~/mtpt.log 2>&1 < /dev/null &"

exec "${MTPT_GCLOUD:-gcloud}" compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$command"
