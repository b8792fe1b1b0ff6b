"""Generated from the proto package paymesh.inventory.v1."""
