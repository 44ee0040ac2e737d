"""Export of students for phones: the ONNX file, its 8-bit version, the check of both and the card."""

import os

# onnxruntime reports its use to Microsoft some seconds after it is loaded; its own function to stop that comes too late
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
