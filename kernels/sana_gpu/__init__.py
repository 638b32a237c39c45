"""The model on a data-centre GPU: prepared weights, fused kernels, and a CUDA graph per kind of chunk."""

from sana_runtime.memory import grow_segments

# Before any module here imports torch.
grow_segments()
