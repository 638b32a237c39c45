"""The model on a data-centre GPU: prepared weights, fused kernels, and a CUDA graph per kind of chunk."""
