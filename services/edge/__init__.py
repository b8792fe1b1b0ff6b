"""The HTTP/JSON front: who is asking, what may they, and which service knows the answer."""
