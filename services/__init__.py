"""The processes of paymesh, one folder each, and `kit`, which they share."""
