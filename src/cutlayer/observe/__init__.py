"""Consumers of facts: what a party tells about its run, counted, shown, kept. No tensor ever comes here."""
