"""BAViT: the background-aware ViT, which tells background tokens from foreground ones."""
