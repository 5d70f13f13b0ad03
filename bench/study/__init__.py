"""The study ladder: from the equation to a persistent kernel, one idea a rung (README.md)."""
