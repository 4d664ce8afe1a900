"""Show a checkpoint on a local page: type a text, see the answer. Write the page as a Space for the hub."""
