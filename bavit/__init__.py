"""Background-aware vision transformers."""
