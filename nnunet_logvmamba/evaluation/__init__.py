"""Scores of segmentations; usable without nnU-Net."""
