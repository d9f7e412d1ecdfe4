"""From a run's configuration to the pods it needs on Kubernetes, and their orderly end.

`python -m hpt_ray.tools.deploy render` writes a kustomize overlay on `deploy/kuberay`; `python -m hpt_ray.tools.deploy
drain` is what a pod runs before it ends. Neither talks to Kubernetes.
"""
