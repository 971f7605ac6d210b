"""Builds the book: pairs and executes the chapters, checks them, and extends Sphinx."""
