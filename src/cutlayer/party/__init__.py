"""A party: the only room where torch and the network meet."""
