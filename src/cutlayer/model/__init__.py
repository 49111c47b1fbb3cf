"""A network, cut and put together again: `cut`, `Parts`, `merge`, `describe`."""
