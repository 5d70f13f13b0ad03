"""Echo state networks on chaotic series, beside reservoirpy: forecasts, and time."""
