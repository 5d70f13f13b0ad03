"""Whole problems drawn at random, run by rnnfast and by torch, and judged; README.md says how to read a report."""
