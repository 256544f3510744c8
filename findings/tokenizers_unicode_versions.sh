#!/usr/bin/env bash
# tokenizers 0.23.3. Python 3.11 to 3.13 (their unicodedata: 14.0 to 15.1).
#
# Behaviour: the parts of one tokenizer follow different versions of Unicode. Lowercase knows letters of version 16; NFKC does
# not know a sign of 12.1 that unicodedata decomposes; what counts as punctuation to split at, and as an accent to strip,
# ends with version 8. A tokenizer written again with unicodedata, or with
# another normaliser, gives other tokens; and str.lower() has a rule for the last sigma of a word that Lowercase
# has not.
#
# Seen:
#   lower case of U+1C89 (Unicode 16.0): U+1C8A
#   NFKC of U+32FF (12.1): U+32FF
#   unicodedata, NFKC of U+32FF: U+4EE4 U+548C
#   BertPreTokenizer splits at U+2E43 (9.0, punctuation): no
#   BertPreTokenizer splits at U+2E42 (7.0, punctuation): yes
#   BertNormalizer strips U+08D4 (9.0, a combining mark): no
#   BertNormalizer strips U+0300 (1.1, a combining mark): yes
#   lower case of U+0391 U+03A3: U+03B1 U+03C3
#   str.lower() of U+0391 U+03A3: U+03B1 U+03C2
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.3 || exit 2
cat > show.py <<'PY'
import unicodedata

from tokenizers import normalizers, pre_tokenizers


def name(text):
    return " ".join(f"U+{ord(character):04X}" for character in text)


def splits(character):
    return "yes" if len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(f"a{character}b")) == 3 else "no"


def strips(mark):
    normalizer = normalizers.BertNormalizer(clean_text=False, strip_accents=True, lowercase=False)
    return "yes" if normalizer.normalize_str(f"a{mark}") == "a" else "no"


print("lower case of U+1C89 (Unicode 16.0):", name(normalizers.Lowercase().normalize_str("\u1c89")))
print("NFKC of U+32FF (12.1):", name(normalizers.NFKC().normalize_str("\u32ff")))
print("unicodedata, NFKC of U+32FF:", name(unicodedata.normalize("NFKC", "\u32ff")))
assert unicodedata.category("\u2e43") == unicodedata.category("\u2e42").replace("Ps", "Po") == "Po"
print("BertPreTokenizer splits at U+2E43 (9.0, punctuation):", splits("\u2e43"))
print("BertPreTokenizer splits at U+2E42 (7.0, punctuation):", splits("\u2e42"))
assert unicodedata.category("\u08d4") == unicodedata.category("\u0300") == "Mn"
print("BertNormalizer strips U+08D4 (9.0, a combining mark):", strips("\u08d4"))
print("BertNormalizer strips U+0300 (1.1, a combining mark):", strips("\u0300"))
word = "\u0391\u03a3"
print(f"lower case of {name(word)}:", name(normalizers.Lowercase().normalize_str(word)))
print(f"str.lower() of {name(word)}:", name(word.lower()))
PY
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
