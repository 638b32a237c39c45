"""Trains the `tiny` checkpoint on generated pairs of source and edited video: VAE, DiT, streaming, wording."""
