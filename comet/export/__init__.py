"""Students on their way to a phone: the ONNX file, its 8-bit version, the check of both and the card."""
