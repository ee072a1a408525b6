#!/usr/bin/env bash
# Turns texts into token files on many hosts, as an array of jobs under SLURM:
#
#     sbatch --array=0-15 launch/slurm_prepare.sh --config run.yaml
#
# Everything after the script's name is a flag of spectral_dist.prepare. Submit from the folder that
# the texts are named from, which every host must see. Each job of the array builds its share of the
# files (those with its number, counted through the sorted paths); a job that is killed and requeued
# builds what is missing. The training then finds all of them up to date.
#
# To set in the environment, optional:
#   SPECTRAL_PYTHON   Python that has spectral_dist (default: .venv/bin/python here, else python3)
#   SPECTRAL_SETUP    file that is sourced first: module load, conda activate
#
# How a job ends: 0 its files are ready; 2 a text or a flag is wrong, in one line; others: the machine.

#SBATCH --job-name=spectral_prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16       # EDIT: files built at a time
#SBATCH --time=12:00:00          # EDIT
##SBATCH --partition=cpu         # EDIT
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
  echo "slurm_prepare: error: submit it as an array, such as sbatch --array=0-15" >&2
  exit 2
fi
if [[ -n ${SPECTRAL_SETUP:-} ]]; then
  # shellcheck disable=SC1090
  source "$SPECTRAL_SETUP"
fi
python=${SPECTRAL_PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi
# An array may begin at any number; it must have no gaps, or some files would be nobody's.
# shellcheck disable=SC2153  # SLURM sets all of these
count=$((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN + 1))
if [[ $count -ne $SLURM_ARRAY_TASK_COUNT ]]; then
  echo "slurm_prepare: error: --array has gaps: its files would be built by nobody" >&2
  exit 2
fi
exec "$python" -m spectral_dist.prepare "$@" --processes "${SLURM_CPUS_PER_TASK:-1}" \
  --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$count"
