"""Dynamic token pruning for segmentation (DToP, Tang et al., ICCV 2023): easy tokens leave a plain ViT early."""
