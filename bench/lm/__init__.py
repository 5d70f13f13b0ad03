"""A character-level language model to train and compare recurrent layers with: `python -m bench charlm`."""
