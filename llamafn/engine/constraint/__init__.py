"""Answers that follow a JSON Schema: the schema as a grammar, and the choice of tokens that keeps to it.

Imported by the first request that brings a schema; a cold start without one does not pay for it.
"""
