"""What the edge decides, without I/O: keys, cards, and which problem an error is."""
