#!/bin/bash
# A sweep as an array job: every task does its share of the programs, all write to one folder.
#
#   sbatch --array=0-7 experiments/launch/slurm.sh ippo hallway length=2,3,4,5 memory=none,gru \
#       lr=1e-4,3e-4 seeds=64 out=/shared/runs/memory
#
# Submitting the same line again does only what is missing: finished programs are skipped, those that
# were cut off go on from their last checkpoint.

#SBATCH --job-name=tad
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=tad-%A-%a.log
# Two minutes before the time is over, and when it is preempted, the run saves and ends.
#SBATCH --signal=B:TERM@120

set -eu
: "${SLURM_ARRAY_TASK_ID:?submit this as an array job: sbatch --array=0-7 $0 ...}"
# `exec`, so that the signal reaches tad and not this script.
exec tad run "$@" --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"
