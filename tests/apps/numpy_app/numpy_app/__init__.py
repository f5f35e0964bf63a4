"""Logistic regression on handwritten digits with NumPy and Flower's FedAvg."""
