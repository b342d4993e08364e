"""From a model's name to its parameters; `checkpoint.py` is the door. No torch at import."""
