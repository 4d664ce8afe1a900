"""How a forward pass runs, and what it touches inside other libraries."""
