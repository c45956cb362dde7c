"""Value-based methods."""
