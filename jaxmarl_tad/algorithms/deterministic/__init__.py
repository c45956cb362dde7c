"""Deterministic policy gradients: actors that climb what a critic says of their actions."""
