"""Trains the `tiny` checkpoint: generated pairs of source and edited video, a VAE, a DiT and its streaming distillation."""
