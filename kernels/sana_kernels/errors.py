"""What the kernels refuse."""


class KernelError(ValueError):
    """A tensor or a machine that the kernels do not take; the text names it."""
