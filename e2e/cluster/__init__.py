"""A real Kubernetes cluster for development and tests: `python -m e2e.cluster --help`.

Two providers behind one interface (`interface.Cluster`): kind, where Docker and kind are there, and otherwise the
upstream components themselves, compiled from their Go modules, on this machine's containerd.
"""
