"""The outside world, stood in for. Nothing in `services` knows that it is a sandbox."""
