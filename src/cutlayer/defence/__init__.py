"""Defences: what crosses made safer before it crosses, and what that costs in privacy. One file a method."""
