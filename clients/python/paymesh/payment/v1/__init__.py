"""Generated from the proto package paymesh.payment.v1."""
