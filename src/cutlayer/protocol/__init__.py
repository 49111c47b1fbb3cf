"""Who may say what, when. Messages, their bytes, and the session: no torch, no sockets, no clock, no disk."""
