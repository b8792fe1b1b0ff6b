"""Takes orders through the other services, step by step, and back where one of them says no."""
