"""The Triton kernels: what they compute, how they are launched, and what is known of them without a GPU."""
