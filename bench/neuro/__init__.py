"""Continuous-time rate networks with Dale's law on two tasks of neuroscience, beside a Python loop."""
