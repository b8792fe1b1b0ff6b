"""The whole mesh on one machine: embedded PostgreSQL and Valkey, every service as a child process."""
