"""Generated from the proto package paymesh.fraud.v1."""
