"""A GGUF language model behind an HTTP function."""

__version__ = "0.1.0"
