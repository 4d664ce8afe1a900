"""The tab of a demo that shows the attention of every head for one text."""
