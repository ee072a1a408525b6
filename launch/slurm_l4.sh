#!/usr/bin/env bash
# Trains on hosts with NVIDIA L4 GPUs under SLURM, for as long as it takes:
#
#     sbatch --nodes=2 launch/slurm_l4.sh --config configs/level2.yaml --run_name x
#
# Everything after the script's name is a setting of spectral_dist.train. Submit from the folder that
# the run reads and writes, which every host must see under the same path: texts, checkpoints, logs.
#
# To edit: the lines marked EDIT below; every #SBATCH line can also be given to sbatch, which wins.
# To set in the environment, all optional:
#
#   SPECTRAL_PYTHON          Python that has spectral_dist
#                            (default: .venv/bin/python here if there is one, else python3)
#   SPECTRAL_SETUP           file that is sourced first: module load, conda activate, NCCL_SOCKET_IFNAME
#                            and what else the cluster wants
#   SPECTRAL_CONTAINER       image that the processes run in, by Pyxis (srun --container-image); the
#                            folder of the job is mounted, SPECTRAL_PYTHON (python3) is of the image
#   SPECTRAL_TASKS_PER_NODE  processes on a host (default: one for each GPU; 1 is one for all of them)
#   SPECTRAL_MAX_RESTARTS    restarts after failures in a row (default: 3)
#   SPECTRAL_CPU_DEVICES     train without GPUs: CPU devices of a process, one process on a host
#
# What is left behind: slurm-JOB.out shows what rank 0 prints, logs/JOB/RANK.log what every rank
# prints; a requeued job goes on in the same files, and one of more than 100 MB becomes RANK.log.old
# first. Nothing here prints the environment, so a
# WANDB_API_KEY in it reaches the training and no log.
#
# How a job ends, by the exit code of the training:
#   0        trained to the end
#   75       stopped by a signal and saved: requeued, and continues at the next step
#   76       the machine failed, or a process was lost or hung, and 128 and above (but 130), a
#            process was killed:
#            requeued at most SPECTRAL_MAX_RESTARTS times, until it is once stopped and saved
#   others   2 is a mistake in a setting, 130 is an interrupt: the job ends with that code
# A host on which a GPU does not answer, or has uncorrected memory errors, is named before the start;
# the job is then requeued without it, and that counts as a failure.
# SLURM itself requeues a job whose host has failed, and ends one that was cancelled.

#SBATCH --job-name=spectral_dist
#SBATCH --nodes=1                # or sbatch --nodes=N
#SBATCH --gpus-per-node=8        # EDIT: the GPUs of a host
#SBATCH --time=24:00:00          # EDIT: the longest that the partition allows; the job is requeued
##SBATCH --partition=l4          # EDIT: where the L4 are, if not in the default partition
##SBATCH --account=NAME          # EDIT: if the cluster wants one
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit (SLURM may be up to a minute early) every task gets SIGUSR1, and
# saves. Not B:USR1, which only this script would get: a signal that SLURM brings to the tasks by
# itself needs nothing to work here, as with scancel --signal=USR1 and with preemption.
#SBATCH --signal=USR1@120

set -euo pipefail

say() { echo "slurm_l4: $*"; }

fail() {
  echo "slurm_l4: error: $*" >&2
  exit 2
}

positive() {  # positive NAME VALUE: check that a variable is a count
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1=$2: must be a positive integer"
}

gpus_of_this_host() {
  if [[ -n "${SLURM_GPUS_ON_NODE:-}" ]]; then
    echo "$SLURM_GPUS_ON_NODE"
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

names_a_mesh() {  # names_a_mesh WORD...: whether --mesh is among the settings
  local word
  for word in "$@"; do
    [[ "$word" == --mesh || "$word" == --mesh=* ]] && return 0
  done
  return 1
}

# ---- what there is to train on ----

[[ -n "${SLURM_JOB_ID:-}" ]] || fail "runs under SLURM: sbatch --nodes=2 $0 --run_name x ..."
if [[ -n "${SPECTRAL_SETUP:-}" ]]; then
  [[ -r "$SPECTRAL_SETUP" ]] || fail "SPECTRAL_SETUP=$SPECTRAL_SETUP: cannot be read"
  set +eu # module and conda have unset variables
  # shellcheck source=/dev/null
  source "$SPECTRAL_SETUP" || fail "SPECTRAL_SETUP=$SPECTRAL_SETUP: failed"
  set -eu
fi
python="${SPECTRAL_PYTHON:-}"
container=()
if [[ -n "${SPECTRAL_CONTAINER:-}" ]]; then
  python="${python:-python3}"
  container=(
    --container-image="$SPECTRAL_CONTAINER" --container-mounts="$PWD:$PWD" --container-workdir="$PWD"
  )
else
  if [[ -z "$python" ]]; then
    python=python3
    [[ ! -x .venv/bin/python ]] || python=.venv/bin/python
  fi
  command -v "$python" >/dev/null || fail "SPECTRAL_PYTHON=$python: there is no such program"
  "$python" -c 'import spectral_dist' 2>/dev/null ||
    fail "SPECTRAL_PYTHON=$python: cannot import spectral_dist, installed in a virtual environment?"
fi

nodes="$SLURM_JOB_NUM_NODES"
max_restarts="${SPECTRAL_MAX_RESTARTS:-3}"
[[ "$max_restarts" =~ ^[0-9]+$ ]] || fail "SPECTRAL_MAX_RESTARTS=$max_restarts: must be an integer"
if [[ -n "${SPECTRAL_CPU_DEVICES:-}" ]]; then
  positive SPECTRAL_CPU_DEVICES "$SPECTRAL_CPU_DEVICES"
  tasks_per_node="${SPECTRAL_TASKS_PER_NODE:-1}"
  positive SPECTRAL_TASKS_PER_NODE "$tasks_per_node"
  devices_per_node=$((tasks_per_node * SPECTRAL_CPU_DEVICES))
  devices="$devices_per_node CPU devices"
  export JAX_PLATFORMS=cpu
  XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$SPECTRAL_CPU_DEVICES"
  export XLA_FLAGS
else
  devices_per_node="$(gpus_of_this_host)"
  ((devices_per_node > 0)) || fail "no GPU on $(hostname): ask for --gpus-per-node, or set" \
    "SPECTRAL_CPU_DEVICES to train without"
  tasks_per_node="${SPECTRAL_TASKS_PER_NODE:-$devices_per_node}"
  [[ "$tasks_per_node" == 1 || "$tasks_per_node" == "$devices_per_node" ]] ||
    fail "SPECTRAL_TASKS_PER_NODE=$tasks_per_node: must be 1 or the GPUs of a host," \
      "$devices_per_node"
  devices="$devices_per_node GPUs"
fi

# Between hosts the gradient once a step, within a host the shards of every layer.
mesh=()
names_a_mesh "$@" || mesh=(--mesh="${nodes}x${devices_per_node}x1")

logs="logs/$SLURM_JOB_ID"
mkdir -p "$logs"
find "$logs" -name '*.log' -size +100M -exec mv {} {}.old ';'
# Failures in a row, in a file: SLURM_RESTART_COUNT counts every preemption as well.
failures="$logs/failures"

# ---- the GPUs of each host ----

leave_out() {  # leave_out HOSTS: start again without these; only a job that waits can be told so
  local try
  for try in {1..40}; do
    scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$1" 2>/dev/null && return
    sleep 0.5
  done
  say "$1 could not be left out after $try tries"
}

requeue() {  # requeue REASON [HOSTS]: start the job again, without some hosts
  say "$1: requeued"
  # SLURM begins at once to end this job's processes by SIGTERM, scontrol among them: it may not
  # have had its answer yet.
  (trap '' TERM && scontrol requeue "$SLURM_JOB_ID" && { [[ -z "${2:-}" ]] || leave_out "$2"; }) &&
    exit "$code"
  say "could not be requeued: submit the same command again, and it continues"
  exit "$code"
}

failed() {  # failed CODE WHY [HOSTS]: count a failure in a row; requeue the job, or give up
  code="$1"
  echo "$code" >>"$failures"
  local restart
  restart="$(wc -l <"$failures")"
  if ((restart <= max_restarts)); then
    requeue "$2, restart $restart of $max_restarts" "${3:-}"
  fi
  say "$2 after $max_restarts restarts: given up, see $logs"
}

# On each host: prints its name and what is wrong with its GPUs. Without nvidia-smi nothing is known.
# shellcheck disable=SC2016
look_at_gpus='
command -v nvidia-smi >/dev/null || exit 0
there=$(nvidia-smi --list-gpus 2>/dev/null | grep -c "^GPU ")
errors=$(nvidia-smi --query-gpu=ecc.errors.uncorrected.volatile.total --format=csv,noheader,nounits 2>/dev/null |
  grep -c "^[1-9]")
((there >= $1)) || echo "$SLURMD_NODENAME: $there of $1 GPUs answer"
((errors == 0)) || echo "$SLURMD_NODENAME: $errors GPUs have uncorrected memory errors"
'
command -v srun >/dev/null || fail "srun was not found on $(hostname)"
if [[ -z "${SPECTRAL_CPU_DEVICES:-}" ]]; then
  found="$(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task=1 \
    bash -c "$look_at_gpus" look_at_gpus "$devices_per_node")" || say "not all GPUs were looked at"
  if [[ -n "$found" ]]; then
    say "$found"
    bad="$(cut -d: -f1 <<<"$found" | sort -u | paste -sd,)"
    failed 76 "GPUs of $bad" "$bad"
    exit "$code"
  fi
fi

# ---- the step ----

# SLURM sends SIGTERM to this script, and to every task, when it ends the job: cancelled, out of
# time, or a host has failed. The tasks save; whether the job is requeued is then SLURM's decision.
# A SIGUSR1 that was sent to this script alone (scancel --batch) goes on to the tasks. It must not be
# SIGTERM: srun does not pass that on, it kills the tasks.
step='' told_to_end='' interrupted=''
trap 'told_to_end=yes interrupted=yes' TERM
trap 'interrupted=yes; [[ -z "$step" ]] || kill -USR1 "$step" 2>/dev/null || true' USR1

export PYTHONUNBUFFERED=1  # the logs are read while they are written
options=(
  --nodes="$nodes"
  --ntasks="$((nodes * tasks_per_node))"
  --ntasks-per-node="$tasks_per_node"
  # Neighbouring ranks on one host: the mesh puts fsdp inside a host.
  --distribution=block
  # Every processor of the host: tasks are else bound to one each.
  --cpus-per-task="$((SLURM_CPUS_ON_NODE > tasks_per_node ? SLURM_CPUS_ON_NODE / tasks_per_node : 1))"
  # No binding of GPUs, so that every task sees all of its host and the program takes its share by
  # its local rank: NCCL moves data between two GPUs directly only where a process sees both. Not
  # --gpu-bind=none, with which SLURM 22.05 names the GPUs to one task alone.
  # What is set here reaches the tasks even after sbatch --export=NONE.
  --export=ALL
  --output="$logs/%t.log"
  --open-mode=append
  # One failed rank must not have the healthy ones killed: they would be told SIGTERM, end with 75,
  # and hide why. They notice the loss and end with 76 within --hang_timeout, 10 minutes by default.
  # --wait is for those that cannot: what still runs 15 minutes after the first has ended is killed.
  --kill-on-bad-exit=0
  --wait=900
  "${container[@]}"
)
say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $nodes x $devices," \
  "$((nodes * tasks_per_node)) processes${mesh[*]:+, ${mesh[*]} as none was given}; logs in $logs"
touch "$logs/0.log"
shown="$(stat --format=%s "$logs/0.log")"
srun "${options[@]}" "$python" -m spectral_dist.train "$@" "${mesh[@]}" &
step=$!
# A cancelled job sends SIGTERM to everything here: the last lines of rank 0 are still to come.
(
  trap '' TERM
  exec tail --bytes="+$((shown + 1))" --follow --pid="$step" "$logs/0.log"
) &
console=$!

code=0
while :; do  # a signal for this script ends `wait` early
  interrupted=''
  code=0
  wait "$step" || code=$?
  [[ -n "$interrupted" ]] || break
done
wait "$console" || true

# ---- the end ----

if [[ -n "$told_to_end" ]]; then
  say "ended by SLURM, exit code $code"
elif ((code == 75)); then
  rm -f "$failures"
  requeue "stopped and saved"
elif ((code == 76 || (code >= 128 && code != 130))); then
  failed "$code" "exit code $code"
elif ((code != 0)); then
  say "exit code $code: see $logs"
fi
exit "$code"
