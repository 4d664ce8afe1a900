"""Corpus -> tokenizer -> rows -> collators. Imports nothing of decero but `decero.errors`."""
