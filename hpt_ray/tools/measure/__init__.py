"""The meter: bias, variance and signal-to-noise of every method's gradient, against the true policy gradient."""
