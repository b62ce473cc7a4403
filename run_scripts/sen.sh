#!/usr/bin/env bash
# Train SEN (2024): bash run_scripts/sen.sh CUHK-PEDES|ICFG-PEDES|RSTPReid [further flags]
# It trains as train.py --config_file configs/sen/<dataset>.yaml does. Copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python}" train.py --name sen \
    --img_aug --batch_size 128 --loss_names 'sdm+mae+id+tri' --mae_loss_weight 10 --tri_loss_weight 10 \
    --mask_ratio 0.7 --caption_masking inplace --mlm_masking noun --caption_filter 0.2 \
    --sampler idrannum --num_instance 2 --seed 42 \
    --temperature 0.02 --num_epoch 60 --optimizer Adam --lr 1e-5 --lrscheduler cosine --warmup_epochs 5 \
    --dataset_name "$dataset" "$@"
