"""gRPC: servers and clients that carry deadlines, keys, traces and typed failures."""
