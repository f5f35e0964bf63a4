"""This platform's rounds beside Flower's simulation and PyTorch by hand: `python -m benchmarks.simulators`."""
