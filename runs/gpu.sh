#!/usr/bin/env bash
# The networks of the dense profile on one GPU, in pieces:  runs/gpu.sh BUNDLE [SECONDS]
# BUNDLE is OUT.nbm.work/dense.xz, which `nbmf train --profile dense` writes before it trains (under 64 MiB at size base). Takes code and
# bundle only; each piece ends within SECONDS with a checkpoint beside the bundle, from which the next goes on. Bring that
# checkpoint (dense.pt) back beside the bundle and run `nbmf train` again: it goes on from there.
set -euo pipefail
bundle=$1 seconds=${2:-540}
python3 -c 'import nbmf' 2>/dev/null || python3 -m pip install --quiet "$(dirname "$0")/.."
python3 -c 'import torch' 2>/dev/null || python3 -m pip install --quiet torch
python3 -m nbmf.train.bundle "$bundle" --device "${DEVICE:-cuda}" --seconds "$seconds"
