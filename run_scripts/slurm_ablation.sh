#!/bin/bash
# Train the runs of an ablation on several GPUs, one for each job of an array:
#   sbatch run_scripts/slurm_ablation.sh --config_file configs/irra.yaml --loss_names sdm sdm+id --seeds 1 2 3
# Each job trains runs that no other job trains, until none is left. Submit it again to continue after the time is up.
#SBATCH --job-name=ablation
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=ablation_%A_%a.txt

set -euo pipefail
srun python -m run_scripts.ablate "$@"
