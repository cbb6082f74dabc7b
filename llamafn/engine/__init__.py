"""Tokens in, text out: llama.cpp behind its low-level bindings. Nothing here knows of HTTP."""
