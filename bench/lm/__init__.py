"""A character-level language model to train and compare recurrent layers with; driven by bench/charlm.py."""
