"""Tested code of the book *Batch Normalization, Measured*."""
