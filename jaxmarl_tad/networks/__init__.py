"""Function approximators: tables, multilayer perceptrons, gated recurrent units, prefixes, mixers."""
