"""The deployment compiler: from a checkpoint to engines and a Triton model repository."""
