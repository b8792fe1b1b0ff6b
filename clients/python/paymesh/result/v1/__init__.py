"""Generated from the proto package paymesh.result.v1."""
