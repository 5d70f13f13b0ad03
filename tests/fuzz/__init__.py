"""Whole problems drawn at random, run by rnnfast and by torch, and judged; see README.md."""
