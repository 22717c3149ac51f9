"""What the models cost on this machine: ``python -m benchmarks`` measures, prints and stores it."""
