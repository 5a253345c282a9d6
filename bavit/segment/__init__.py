"""Segmentation: plain ViTs whose easy tokens end early (DToP), on ragged tokens."""
