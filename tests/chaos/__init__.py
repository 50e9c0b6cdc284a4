"""A cluster that is used while one node at a time is killed and its disk damaged."""
