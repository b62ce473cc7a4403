#!/usr/bin/env bash
# AGM (2025) on CUHK-PEDES, ICFG-PEDES or RSTPReid: bash run_scripts/agm.sh RSTPReid [further flags]
set -eu
cd "$(dirname "$0")/.."
dataset=${1:-CUHK-PEDES}
[ $# -gt 0 ] && shift
exec python train.py --config_file "configs/agm/$(echo "$dataset" | tr '[:upper:]' '[:lower:]').yaml" "$@"
