"""Generated from the proto package paymesh.orchestrator.v1."""
