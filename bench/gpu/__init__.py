"""The command `gpu`: checks, CUDA graphs, the parts and their time limits."""
