"""Corpus -> tokenizer -> rows -> collators. Of decero, this package imports only `decero.errors`."""
