"""Generated from the proto package paymesh.choreography.v1."""
