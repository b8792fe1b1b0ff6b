"""Generated from the proto package paymesh.money.v1."""
