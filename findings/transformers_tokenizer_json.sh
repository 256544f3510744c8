#!/usr/bin/env bash
# transformers 5.23.0; the control is 4.57.6. Python 3.11 or later, tokenizers as each of them requires.
#
# Behaviour: AutoTokenizer of transformers 5 builds the tokenizer of a named class (BertTokenizer, MPNetTokenizer ...) from
# the vocabulary of a folder's tokenizer.json and from its own rules. The normaliser, pre-tokeniser and post-processor of
# the file are ignored without a word: one that keeps case and hyphens is lower-cased and split at them, one with [CLS] and
# [SEP] gets <s> and </s>. With `"tokenizer_class": "PreTrainedTokenizerFast"` the file is used as it is. transformers 4
# took all of the file's rules in every case, so an encoder can answer otherwise after an upgrade.
#
# Seen:
#   the file itself: [CLS] Paris is well-known [SEP]
#   4.57.6 BertTokenizer: [CLS] Paris is well-known [SEP]
#   4.57.6 PreTrainedTokenizerFast: [CLS] Paris is well-known [SEP]
#   4.57.6 MPNetTokenizer: [CLS] Paris is well-known [SEP]
#   5.23.0 BertTokenizer: [CLS] paris is well - known [SEP]
#   5.23.0 PreTrainedTokenizerFast: [CLS] Paris is well-known [SEP]
#   5.23.0 MPNetTokenizer: <s> paris is well - known </s>
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
export HF_HUB_OFFLINE=1
cat > make.py <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

words = "[PAD] [UNK] [CLS] [SEP] [MASK] <s> </s> <pad> <unk> <mask> Paris paris is well - known well-known".split()
tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.normalizer = normalizers.NFC()
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
special = [(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
for kind, model in (("BertTokenizer", "bert"), ("PreTrainedTokenizerFast", "bert"), ("MPNetTokenizer", "mpnet")):
    folder = Path(kind)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    (folder / "config.json").write_text(json.dumps({"model_type": model, "vocab_size": len(words)}))
print("the file itself:", *tokenizer.encode(sys.argv[1]).tokens)
PY
cat > read.py <<'PY'
import sys

import transformers
from transformers import AutoTokenizer

for kind in ("BertTokenizer", "PreTrainedTokenizerFast", "MPNetTokenizer"):
    tokenizer = AutoTokenizer.from_pretrained(kind)
    print(transformers.__version__, kind + ":", *tokenizer.convert_ids_to_tokens(tokenizer(sys.argv[1])["input_ids"]))
PY
for version in 4.57.6 5.23.0; do
  "${PYTHON:-python3}" -m venv "env-$version"
  "env-$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" > pip.log 2>&1 \
    || { cat pip.log; exit 2; }
  [ -s seen ] || "env-$version/bin/python" make.py "Paris is well-known" | tee seen
  "env-$version/bin/python" read.py "Paris is well-known" 2> log | tee -a seen
done
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
