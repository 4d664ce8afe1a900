"""Show what a Transformer does inside: attention, hidden states, positions and dimensions, as pictures and pages."""
