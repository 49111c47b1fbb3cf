"""What parties say to each other to find the rows that all hold, and what each does with it."""
