"""How the mesh is run: on one machine (`local`) or on Kubernetes (`k8s`)."""
