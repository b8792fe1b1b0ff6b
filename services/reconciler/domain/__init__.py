"""What the reconciler decides. Pure: values in, values out."""
