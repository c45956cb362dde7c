"""Methods that learn from recorded experience alone."""
