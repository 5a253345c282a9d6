"""Detection: YOLOS on ragged tokens, background removed in front of it by BAViT, and what that costs and wins."""
