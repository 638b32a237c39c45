"""What runs inside the Triton server: the stages of a stream, their state, and the engines they step."""

__version__ = "0.1.0"
