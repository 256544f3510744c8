#!/usr/bin/env bash
# onnxruntime 1.31.1 (converter to fp16, CPU provider) with transformers 5.23.0 (MPNet) and torch 2.13.0 (exporter).
#
# Behaviour: MPNet sorts the distance d between two tokens into buckets: the whole part of log(d / 8) / log(16) * 8.
# `convert_float_to_float16` rounds the constant log(16) from 2.7726 to 2.7734. The CPU provider (x86-64) has no fp16
# kernels for Log, Div and Mul, and computes them in fp32. The exact logarithm over the rounded constant gives 1.9994
# for a distance of 16, which the cast to an integer cuts to 1: distances of 16, 32 and 64 get the bias of a nearer
# bucket. All in fp32 no distance is wrong, and all in fp16 none is either, as both roundings cancel out; only the
# mixture is wrong. Sentences of up to 16 tokens are answered as before, so a model tried on short ones passes. It is
# not the rounding of weights: torch's `model.half()`, which computes buckets in fp32, stays close at every length, and
# the fp32 graph with nothing but this one constant rounded has the same three wrong distances.
#
# Seen:
#   distances in another bucket than in fp32: onnx fp16 [16, 32, 64], one constant [16, 32, 64], numpy all fp16 []
#   16 tokens, logits off by: torch fp16 0.004, onnx fp16 0.002
#   17 tokens, logits off by: torch fp16 0.009, onnx fp16 0.574
set -euo pipefail
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 onnx==1.23.2 \
  onnxruntime==1.31.1 numpy==2.4.6 > pip.log 2>&1 || { cat pip.log; exit 2; }
HF_HUB_OFFLINE=1 env/bin/python -W ignore - <<'PY'
import copy, math, numpy as np, onnx, onnxruntime, torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from transformers import MPNetConfig, MPNetForSequenceClassification

class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).logits

torch.manual_seed(0)
model = Logits(MPNetForSequenceClassification(MPNetConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=64, initializer_range=0.3))).eval()
model.model.mpnet.encoder.relative_attention_bias.weight.data.normal_(0, 3)  # so that a wrong bucket shows
axes = {0: "rows", 1: "tokens"}
torch.onnx.export(model, (torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.long)), "fp32.onnx", dynamo=False,
    opset_version=18, input_names=["ids", "mask"], output_names=["logits"], dynamic_axes={"ids": axes, "mask": axes})
exact = onnx.load("fp32.onnx")
(bucket,) = (n.input[1] for n in exact.graph.node if n.op_type == "Gather" and "attention_bias" in n.input[0])
exact.graph.output.append(onnx.helper.make_tensor_value_info(bucket, onnx.TensorProto.INT64, None))
rounded = copy.deepcopy(exact)
constants = [n.attribute[0].t for n in rounded.graph.node if n.op_type == "Constant"]
(log16,) = (t for t in constants if np.isclose(onnx.numpy_helper.to_array(t), math.log(16)).tolist() is True)
log16.CopyFrom(onnx.numpy_helper.from_array(np.float32(np.float16(math.log(16)))))
open_graph = lambda graph: onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
exact, rounded, half = map(open_graph, (exact, rounded, convert_float_to_float16(exact, keep_io_types=True)))

ids = np.full((1, 128), 5)
buckets = [s.run([bucket], {"ids": ids, "mask": ids // 5})[0][0] for s in (exact, half, rounded)]
d = np.arange(8, 128)
whole = lambda kind: (np.log((d / 8).astype(kind)) / kind(math.log(16)) * kind(8)).astype(int)
wrong = [np.flatnonzero(other != buckets[0]).tolist() for other in buckets[1:]]
wrong.append(d[whole(np.float16) != whole(np.float32)].tolist())
print("distances in another bucket than in fp32: onnx fp16 {}, one constant {}, numpy all fp16 {}".format(*wrong))
off, torch_half = {}, copy.deepcopy(model).half()
for length in (16, 17):
    ids = torch.randint(5, 99, (8, length))
    feed = {"ids": ids.numpy(), "mask": np.ones((8, length), int)}
    seen = torch_half(ids, torch.ones_like(ids)).detach().numpy(), half.run(["logits"], feed)[0]
    off[length] = [float(abs(logits - exact.run(["logits"], feed)[0]).max()) for logits in seen]
    print("{} tokens, logits off by: torch fp16 {:.3f}, onnx fp16 {:.3f}".format(length, *off[length]))
assert wrong == [[16, 32, 64], [16, 32, 64], []], "the buckets changed"
assert max(off[16]) < 0.05 and off[17][0] < 0.05 and off[17][1] > 0.1, "the logits changed"
PY
