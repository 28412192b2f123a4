"""A person's taste to new vectors, and new vectors to new media."""
