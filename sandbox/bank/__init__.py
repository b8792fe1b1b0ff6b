"""A card network and the banks behind it, with books of its own and faults on demand."""
