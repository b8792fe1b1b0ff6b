"""Generated from the proto package paymesh.reconciler.v1."""
