"""Tensors to payloads and back, one method per file."""
