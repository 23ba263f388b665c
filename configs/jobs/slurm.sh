#!/bin/bash
# A sweep as a SLURM job array: every task makes its part, the bank is on the common file system.
#
#   sbatch --export=ALL,CONFIG=configs/digits.toml,OUT=runs/digits configs/jobs/slurm.sh
#
# What tasks left that were killed for good, one more task makes (it sees an array of one):
#
#   sbatch --array=0 --dependency=afterany:JOB --export=... configs/jobs/slurm.sh
#
#SBATCH --job-name=accomplice
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# A minute before the time is up: the unit in training is finished, or saved, first.
#SBATCH --signal=B:TERM@60
# For GPUs:
##SBATCH --gpus-per-task=1

# exec, so that signals reach the sweep and not a shell.
exec accomplice sweep "${CONFIG:-configs/digits.toml}" --out "${OUT:-runs/digits}" "$@"
