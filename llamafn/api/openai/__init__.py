"""OpenAI's API, as far as one small model can: what is not supported is a 400, never ignored in silence."""
