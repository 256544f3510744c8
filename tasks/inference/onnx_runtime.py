"""ONNX Runtime with its telemetry switched off; the modules of this package import it from here.

Since 1.28 its Linux wheels write a lasting device id below ~/.cache and look up a telemetry host with the first session
of a process, unless ORT_DISABLE_TELEMETRY is set when the library is loaded: later is too late, and
`onnxruntime.disable_telemetry_events()` changes nothing (findings/onnxruntime_device_id.sh).
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
