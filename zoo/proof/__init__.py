"""Bits per byte with a proof: text compressed to a file by a trained model, and given back bit for bit."""
