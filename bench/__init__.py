"""The benchmarks of rnnfast: `python -m bench` lists the commands, bench/README.md explains them."""
