"""Methods that learn a joint policy and distil it for decentralised execution."""
