#!/usr/bin/env bash
# triton 3.7.1 with torch 2.13.0 and numpy 2.4.6, kernels interpreted on the CPU (TRITON_INTERPRET=1).
#
# Behaviour: `tl.dot` of two bf16 blocks returns products of the numbers' bit patterns, read as integers, without a
# warning; results lie near 1e10. The same kernel is right in fp16 and fp32, and loads, stores and sums of bf16 are right
# too: only the product is not. The interpreter keeps bf16 in NumPy arrays of uint16 and multiplies those.
#
# Seen:
#   float32: product within 0.001 True, sum within 0.05 True
#   float16: product within 0.001 True, sum within 0.05 True
#   bfloat16: product within 0.001 False, sum within 0.05 True, product of the bit patterns True
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
def product_and_sum(left, right, product, total, size: tl.constexpr):
    index = tl.arange(0, size)
    where = index[:, None] * size + index[None, :]
    a, b = tl.load(left + where), tl.load(right + where)
    tl.store(product + where, tl.dot(a, b))
    tl.store(total + where, (a + b).to(tl.float32))


for kind in (torch.float32, torch.float16, torch.bfloat16):
    torch.manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE).to(kind) for _ in range(2))
    product, total = torch.empty(2, SIZE, SIZE)
    product_and_sum[(1,)](a, b, product, total, SIZE)
    exact = a.float() @ b.float()
    line = f"{str(kind)[6:]}: product within 0.001 {torch.allclose(product, exact, atol=1e-3)}, "
    line += f"sum within 0.05 {torch.allclose(total, a.float() + b.float(), atol=5e-2)}"
    if kind is torch.bfloat16:
        bits = [(each.view(torch.int16).to(torch.int64) & 0xFFFF).to(torch.float64) for each in (a, b)]
        line += f", product of the bit patterns {torch.allclose(product.double(), bits[0] @ bits[1], rtol=1e-5)}"
    print(line)
PY
TRITON_INTERPRET=1 env/bin/python -W ignore check.py | tee seen
diff seen <(sed -n 's/^#   \(float\|bfloat\)/\1/p' "$script")
