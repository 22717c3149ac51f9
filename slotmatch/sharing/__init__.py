"""A model for others: with its card in a folder (``card``), on a hub (``push``), as ONNX."""
