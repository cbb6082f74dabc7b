"""A platform's request to ours, our response to theirs; one module each."""
