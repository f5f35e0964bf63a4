"""The clients of a federation: local training, hooks, and the Flower ClientApp."""
