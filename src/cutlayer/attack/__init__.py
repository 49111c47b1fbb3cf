"""Attacks: what a curious peer could learn, measured on a run of one's own. One file a method."""
