#!/usr/bin/env bash
# triton 3.7.1 with torch 2.13.0 and numpy 2.4.6, kernels interpreted on the CPU (TRITON_INTERPRET=1).
#
# Behaviour: arithmetic on bf16 blocks (`a + b`, `tl.dot(a, b)`) computes with the numbers' bit patterns, read as
# integers, without a warning; products lie near 1e10. The same kernel is right in fp16 and fp32, and loads, stores and
# conversions of bf16 are right: blocks converted to fp32 first give the right sums. The interpreter keeps bf16 in NumPy
# arrays of uint16 and computes with those.
#
# Seen:
#   float32: product True, sum True, sum in float32 True
#   float16: product True, sum True, sum in float32 True
#   bfloat16: product False, sum False, sum in float32 True, product of the bit patterns True
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 triton==3.7.1 numpy==2.4.6 \
  > pip.log 2>&1 || { cat pip.log; exit 2; }
cat > check.py <<'PY'
import torch
import triton
import triton.language as tl

SIZE = 16


@triton.jit
def compute(left, right, product, total, converted, size: tl.constexpr):
    index = tl.arange(0, size)
    where = index[:, None] * size + index[None, :]
    a, b = tl.load(left + where), tl.load(right + where)
    tl.store(product + where, tl.dot(a, b))
    tl.store(total + where, (a + b).to(tl.float32))
    tl.store(converted + where, a.to(tl.float32) + b.to(tl.float32))


def bits(block):
    return block.view(torch.int16).to(torch.int64) & 0xFFFF


for kind in (torch.float32, torch.float16, torch.bfloat16):
    torch.manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE).to(kind) for _ in range(2))
    product, total, converted = torch.empty(3, SIZE, SIZE)
    compute[(1,)](a, b, product, total, converted, SIZE)
    exact = a.float() + b.float()
    line = f"{str(kind)[6:]}: product {torch.allclose(product, a.float() @ b.float(), atol=1e-3)}, "
    line += f"sum {torch.allclose(total, exact, atol=5e-2)}, sum in float32 {torch.equal(converted, exact)}"
    if kind is torch.bfloat16:
        raw = torch.allclose(product.double(), bits(a).double() @ bits(b).double(), rtol=1e-5)
        line += f", product of the bit patterns {raw}"
    print(line)
PY
TRITON_INTERPRET=1 env/bin/python -W ignore check.py | tee seen
diff seen <(sed -n 's/^#   \(float\|bfloat\)/\1/p' "$script")
