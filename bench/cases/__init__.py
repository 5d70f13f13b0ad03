"""Cases and suites, the tensors of a case, what is right, the timer."""
