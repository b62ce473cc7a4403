#!/usr/bin/env bash
# IRRA (CVPR 2023) on CUHK-PEDES, ICFG-PEDES or RSTPReid: bash run_scripts/irra.sh RSTPReid [further flags]
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec python train.py --config_file "configs/irra/$(echo "$dataset" | tr '[:upper:]' '[:lower:]').yaml" "$@"
