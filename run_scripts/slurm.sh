#!/bin/bash
# Train on two nodes with four GPUs each:  sbatch run_scripts/slurm.sh --config_file configs/irra.yaml
# The run saves its state before its time is up. Resume it:  sbatch run_scripts/slurm.sh --resume logs/CUHK-PEDES/<run>
#SBATCH --job-name=pedestal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120

set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-4}" \
     --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:29500" train.py "$@"
