"""Segmentation: plain ViTs whose easy tokens end early, and what that costs and wins (DToP)."""
