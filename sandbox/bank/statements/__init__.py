"""The bank's end-of-day statements in four formats, written as a stream: values in, bytes out. Pure."""
