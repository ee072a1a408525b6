"""Data: readers, tokenizers, token files (.bin), the mixture of datasets; no model in it."""
