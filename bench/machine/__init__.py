"""What the machine allows: its environment, peaks, roofline, latencies, costs of calls."""
