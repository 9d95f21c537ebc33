"""From what a user has to files that train: collecting records, and preparing them."""
