"""Generated from the proto package paymesh.events.v1."""
