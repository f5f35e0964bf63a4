"""fedsim: federated-learning simulation for fairness research."""
