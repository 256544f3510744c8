#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, on a CPU. Python 3.11 or later.
#
# Behaviour: a checkpoint whose names carry a prefix is read with `key_mapping={r"^(?:module\.|model\.)+": ""}`, and every
# weight is found. `save_pretrained` reverses that mapping, and what it writes is neither the model's names nor the
# checkpoint's: each begins with "+", left over from the regular expression. Read back, nothing fits, and the whole model is
# random without an error. A BERT whose file has the old names gamma and beta, as published ones do, is saved with those
# again. With `save_original_format=False` both are saved by the names of the model.
#
# Seen:
#   loaded: 0 missing
#   saved: +embeddings.LayerNorm.bias
#   loaded again: 39 missing
#   saved with save_original_format=False: embeddings.LayerNorm.bias
#   old names saved: embeddings.LayerNorm.beta
#   old names saved with save_original_format=False: embeddings.LayerNorm.bias
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
export HF_HUB_OFFLINE=1
cat > show.py <<'PY'
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
config = BertConfig(
    vocab_size=20, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
)


def write(folder, rename):
    BertModel(config).save_pretrained(folder)
    tensors = load_file(f"{folder}/model.safetensors")
    save_file({rename(name): each for name, each in tensors.items()}, f"{folder}/model.safetensors", {"format": "pt"})


def first(folder):
    return min(load_file(f"{folder}/model.safetensors"))


write("prefixed", lambda name: f"module.{name}")
model, found = BertModel.from_pretrained("prefixed", key_mapping={r"^(?:module\.|model\.)+": ""}, output_loading_info=True)
print("loaded:", len(found["missing_keys"]), "missing")
model.save_pretrained("saved")
print("saved:", first("saved"))
_, found = BertModel.from_pretrained("saved", output_loading_info=True)
print("loaded again:", len(found["missing_keys"]), "missing")
model.save_pretrained("own", save_original_format=False)
print("saved with save_original_format=False:", first("own"))
write("old", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"))
model = BertModel.from_pretrained("old")
model.save_pretrained("saved")
print("old names saved:", first("saved"))
model.save_pretrained("own", save_original_format=False)
print("old names saved with save_original_format=False:", first("own"))
PY
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 > pip.log 2>&1 \
  || { cat pip.log; exit 2; }
env/bin/python show.py 2> log | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
