#!/usr/bin/env bash
# Makes benchmarks/.venv: what our training step needs, in the versions of requirements.txt, and the libraries that it
# is compared with. Run from the repository root; then `benchmarks/.venv/bin/python -m benchmarks.train_step`.
set -euo pipefail
here=$(dirname "$0")
"${PYTHON:-python3}" -m venv "$here/.venv"
pip="$here/.venv/bin/pip install --quiet --disable-pip-version-check"
pinned=$(grep -E '^(torch|numpy|scipy|numba|pydantic|ruamel.yaml|jaxtyping|safetensors)==' "$here/../requirements.txt")

# shellcheck disable=SC2086  # one requirement a word
$pip $pinned "sae-lens==6.54.*" "eai-sparsify==1.3.3"

# Without their requirements, which are for what surrounds the training: language models (nnsight before 0.4, which lets
# another torch in), vision models (timm, torchvision), displays (circuitsvis, opencv). The adapters do not import those.
$pip --no-deps "dictionary-learning==0.1.*" "overcomplete==0.3.*"
