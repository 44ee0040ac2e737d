"""Export of students for phones: the ONNX file, its 8-bit version, the check of both and the card."""
