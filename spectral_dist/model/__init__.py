"""The language model: filters, mixers, layers."""
