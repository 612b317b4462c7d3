"""Speed against PyTorch eager, torch.compile and JAX: `python -m benchmarks train|infer|ops|packed|import`."""
