"""The RPCs: proto in, domain, proto out."""
