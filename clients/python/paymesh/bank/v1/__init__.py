"""Generated from the proto package paymesh.bank.v1."""
