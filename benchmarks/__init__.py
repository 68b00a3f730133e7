"""What is measured, and how: ``python -m benchmarks`` runs the suite; see harness.py."""
