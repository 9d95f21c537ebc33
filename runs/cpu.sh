#!/usr/bin/env bash
# From data to a measured model on a CPU:  runs/cpu.sh DATA_DIR [toy|small|base] [OUT_DIR] [fast|dense]
# DATA_DIR holds train*.jsonl(.xz) and, to measure with, test and dev files of the same form.
set -euo pipefail
data=$1 size=${2:-base} out=${3:-runs/out} profile=${4:-fast}
mkdir -p "$out"
train=("$data"/train*.jsonl*)
options=()
for file in "${train[@]}"; do options+=(--data "$file"); done
nbmf train "${options[@]}" --out "$out/$size.nbm" --size "$size" --profile "$profile"
for set in test dev; do
    for file in "$data/$set".jsonl*; do
        if [ -e "$file" ]; then nbmf bench "$file" --model "$out/$size.nbm" --limit 2000 --no-peers --out "$out/$size-$set.json"; fi
    done
done
