#!/usr/bin/env bash
# Train TBPS-CLIP (AAAI 2024): bash run_scripts/tbps-clip.sh CUHK-PEDES|ICFG-PEDES|RSTPReid [further flags]
# It trains as train.py --config_file configs/tbps-clip/<dataset>.yaml does. Copy it and change what you like.
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python}" train.py --name tbps-clip \
    --preparation tbps --img_aug --txt_aug --img_size 224 224 --batch_size 320 --drop_last \
    --loss_names 'nitc+ritc+citc+ss' --mvs_image --softlabel_ratio 0.5 --ritc_eps 0.01 --citc_loss_weight 0.1 \
    --ss_loss_weight 0.4 --freeze_conv1 --text_dropout 0.05 --text_positions interpolated --num_epoch 5 \
    --optimizer AdamW --alpha 0.9 --beta 0.98 --lr 1e-4 --weight_decay 0.02 --lr_rules undecayed \
    --lrscheduler step_cosine --warmup_epochs 1 --warmup_factor 0.01 --target_lr 5e-6 \
    --dataset_name "$dataset" "$@"
