"""Generated from the proto package paymesh.shipping.v1."""
